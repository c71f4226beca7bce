"""Words and figures of the report: what a record is about, and numbers as they are shown."""

import json
from collections.abc import Mapping, Sequence
from math import isfinite, isinf
from typing import Any

from server.report.format import number_and_name

MODELS = {
    "original": "Original",
    "retrained": "Retrained",
    "unlearned": "Unlearned",
    "recovered": "Recovered",
    "relearned": "Relearned",
}
MINUS = "\N{MINUS SIGN}"
_NONE = "\N{EN DASH}"


def outcome_of(record: Mapping[str, Any]) -> tuple[str, Mapping[str, Any] | None]:
    """Return the name and the numbers of what the request to forget ended with."""
    for key in ("recovered", "unlearned"):
        if record.get(key):
            return MODELS[key], record[key]
    return "Result", None


def subject_of(record: Mapping[str, Any]) -> tuple[str, bool]:
    """Return what is to be forgotten, in words, and whether that is a plural."""
    forget = record["forget"]
    for noun, key in (("class", "classes"), ("client", "clients")):
        known = record.get("class_names") if noun == "class" else None
        members = forget.get(key) or []
        names = [number_and_name(m, known) if known else str(m) for m in members]
        if names and (forget.get("level") in (noun, None)):
            if len(names) == 1:
                return f"{noun} {names[0]}", False
            plural = "classes" if noun == "class" else "clients"
            return f"{plural} {', '.join(names[:-1])} and {names[-1]}", True
    return f"the {forget.get('level') or 'chosen'}-level forget set", False


def versions_of(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the words for the new version and for the change from the one before."""
    base, new = record.get("base_version"), record.get("model_version")
    if base and new:
        change = f"going from version {base} to {new}"
    elif new:
        change = f"giving version {new}"
    else:
        change = "without a version being kept"
    return {"new": f"version {new}" if new else "a model", "change": change}


def title_of(record: Mapping[str, Any]) -> str:
    """Return the heading of the page."""
    if not record.get("forget"):
        return "Training"
    verb = "Learn again" if record.get("kind") == "relearn" else "Forget"
    return f"{verb} {subject_of(record)[0]}"


def clients_of(record: Mapping[str, Any]) -> str:
    """Return how many clients took part, in words."""
    count = record.get("num_clients")
    return "its clients" if count is None else f"{count} client{'' if count == 1 else 's'}"


def forgotten_classes(record: Mapping[str, Any]) -> list[int]:
    """Return the classes that the request names."""
    return [int(label) for label in (record.get("forget") or {}).get("classes") or []]


def value_of(numbers: Mapping[str, Any] | None, key: str) -> float | None:
    """Return a number of a record by its key, None where it was not measured."""
    value = (numbers or {}).get(key)
    return None if value is None else float(value)


def curve_mean(numbers: Mapping[str, Any] | None) -> float | None:
    """Return the mean of a relearning curve, None where it was not measured."""
    return value_of((numbers or {}).get("relearning_curve"), "mean")


def sum_of(values: Sequence[float | None]) -> float | None:
    """Return the sum of what is known, None where nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def capitalised(text: str) -> str:
    """Return a text with its first letter large, the rest as it is."""
    return text[:1].upper() + text[1:]


def as_number(value: float | None, digits: int = 1) -> str:
    """Return a number with a true minus sign, and zero without any."""
    if value is None:
        return _NONE
    if not isfinite(value):
        return ("" if value > 0 else MINUS) + "\N{INFINITY}" if isinf(value) else "undefined"
    text = f"{value:,.{digits}f}"
    return text.replace("-", MINUS) if float(text.replace(",", "")) else text.lstrip("-")


def as_percent(value: float | None) -> str:
    """Return a percentage, or "unknown"."""
    return "unknown" if value is None else f"{as_number(value)} %"


def as_share(part: float | None, whole: float | None) -> str:
    """Return a part of a whole in percent; small ones with two digits."""
    if part is None or not whole:
        return _NONE
    share = 100 * part / whole
    return f"{as_number(share, 1 if share >= 1 or share == 0 else 2)} %"


def as_gap(value: float | None, goal: float | None) -> str:
    """Return a difference with its sign."""
    if value is None or goal is None:
        return _NONE
    text = as_number(value - goal)
    return text if text.startswith(MINUS) or value == goal or text == "0.0" else f"+{text}"


def as_loss(value: float | None) -> str:
    """Return a loss, with as many digits as tell something."""
    return as_number(value, 2 if value is not None and abs(value) >= 10 else 3)


def as_seconds(value: float | None) -> str:
    """Return a duration."""
    if value is None:
        return _NONE
    return f"{as_number(value, 1 if value >= 10 else 2)} s"


def as_count(value: float | None) -> str:
    """Return a whole number."""
    return as_number(value, 0)


def as_size(value: float | None) -> str:
    """Return bytes in decimal units, as networks are billed."""
    if value is None:
        return _NONE
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{as_number(value, 0 if unit == 'B' else 1)} {unit}"
        value /= 1000
    return f"{as_number(value)} TB"


def as_times(value: float | None) -> str:
    """Return a factor."""
    return (
        f"{as_number(value, 0 if value is not None and value >= 100 else 1)}\N{MULTIPLICATION SIGN}"
    )


def as_setting(value: Any) -> str:
    """Return the value of a setting as it is written."""
    return value if isinstance(value, str) else json.dumps(value, default=str)
