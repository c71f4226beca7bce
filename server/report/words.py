"""Words and figures of the report: what a record is about, and numbers as they are shown."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from math import isfinite, isinf
from typing import Any, Final

from server.evidence.record import Record, Target
from server.evidence.scores import ModelScores
from server.evidence.wording import STATES
from server.format import number_and_name

MODELS = {
    "original": "Original",
    "retrained": "Retrained",
    "unlearned": "Unlearned",
    "recovered": "Recovered",
    "relearned": "Relearned",
}
# Measures below the last layer, by their short names, as verdict and tables say them.
BELOW: Final = {
    "head back": "last layer put back",
    "blank head": "empty last layer",
    "class means": "class means",
    "probe": "probe",
    "matched head": "last layer, features matched",
    "turned head": "last layer, features turned",
}
MINUS = "\N{MINUS SIGN}"
MOST_NAMES = 10
_NONE = "\N{EN DASH}"
_RAISED = str.maketrans(
    "0123456789", "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"
)


def outcome_of(record: Record) -> tuple[str, ModelScores | None]:
    """Return the name and the numbers of what the request to forget ended with."""
    for key, scores in (("recovered", record.recovered), ("unlearned", record.unlearned)):
        if scores is not None:
            return MODELS[key], scores
    return "Result", None


def subject_of(record: Record) -> tuple[str, bool]:
    """Return what is to be forgotten, in words, and whether that is a plural."""
    forget = record.forget or Target()
    for noun, plural, names in (
        ("class", "classes", [number_and_name(c, record.class_names) for c in forget.classes]),
        ("client", "clients", list(forget.clients)),
    ):
        if names and forget.level in (noun, None):
            if len(names) == 1:
                return f"{noun} {names[0]}", False
            return f"{plural} {', '.join(names[:-1])} and {names[-1]}", True
    return f"the {forget.level or 'chosen'}-level forget set", False


def versions_of(record: Record) -> dict[str, str]:
    """Return the words for the new version and for the change from the one before."""
    base, new = record.base_version, record.model_version
    if record.verifies is not None:
        new = record.verifies.version
    if base and new:
        change = f"going from version {base} to {new}"
    elif new:
        change = f"giving version {new}"
    else:
        change = "without a version being kept"
    return {"new": f"version {new}" if new else "a model", "change": change}


def is_yardstick(record: Record) -> bool:
    """Return whether the result was retrained from scratch, which others are compared with."""
    return record.verdict is not None and record.verdict.yardstick == "itself"


def title_of(record: Record) -> str:
    """Return the heading of the page."""
    if record.forget is None:
        return "Training"
    verb = {
        "relearn": "Learn again",
        "yardstick": "Retrain without",
        "verify": "Judged again: forget",
    }.get(str(record.kind), "Forget")
    return f"{verb} {subject_of(record)[0]}"


def facts_of(record: Record) -> list[tuple[str, str]]:
    """Return what a reader asks first: what, who asked and why, when it was done, in service."""
    method = "Retrained from scratch" if record.method == "retraining" else record.method
    rows = [
        ("Request", record.request),
        *_about(record),
        ("Asked by", record.asked_by or "not recorded"),
        ("Why", record.why or "not recorded"),
        ("Asked on", as_time(record.created)),
        ("Started", as_time(record.started)),
        ("Finished", as_time(record.finished)),
        ("In service", in_service(record)),
        ("Method", method),
    ]
    return [(name, str(value)) for name, value in rows if value]


def _about(record: Record) -> list[tuple[str, str]]:
    """Return which request a verification is about, and who measured."""
    about = record.verifies
    if about is None:
        return []
    then = "none" if about.state is None else STATES[about.state]
    by = "the coordinator alone"
    if about.asked_clients:
        names = about.measured_by
        shown = f" ({', '.join(names)})" if 0 < len(names) <= MOST_NAMES else ""
        by = f"the clients{shown} and the coordinator"
    return [
        ("Judges again", f"{about.request}, finished {as_time(about.finished)}"),
        ("Its own verdict", then),
        ("Measured by", by),
    ]


def in_service(record: Record) -> str | None:
    """Return whether the result entered service, in words; None where that is not recorded."""
    if record.refused:
        return f"no: version {record.base_version} stays in service"
    if record.in_service is None:
        return None
    if record.in_service:
        return f"yes, as version {record.model_version} when this request finished"
    return (
        f"no: version {record.model_version} is kept as a trial" if record.model_version else "no"
    )


def as_time(text: str | None) -> str | None:
    """Return a time of the record to the second, in UTC; what is no time stays as it is."""
    if not text:
        return None
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC" if when.tzinfo else text


def clients_of(record: Record) -> str:
    """Return how many clients took part, in words."""
    count = record.num_clients
    return "its clients" if count is None else f"{count} client{'' if count == 1 else 's'}"


def forgotten_classes(record: Record) -> list[int]:
    """Return the classes that the request names."""
    return [] if record.forget is None else [int(label) for label in record.forget.classes]


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
    """Return a loss, with as many digits as tell something; a power of ten from 10,000 on."""
    if value is not None and isfinite(value) and abs(value) >= 1e4:
        factor, _, exponent = f"{value:.1e}".partition("e")
        power = str(int(exponent)).translate(_RAISED)
        return f"{as_number(float(factor))} \N{MULTIPLICATION SIGN} 10{power}"
    return as_number(value, 2 if value is not None and abs(value) >= 10 else 3)


def as_length(value: float | None) -> str:
    """Return the length of an update, in three digits."""
    return _NONE if value is None else f"{value:.3g}"


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
