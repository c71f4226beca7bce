"""Turn a request's record into one page that an officer and a researcher can both read.

The page holds numbers only: no image of any kind, no script, nothing to fetch. Everything in it
comes from the record; what the record lacks is left out or called "not measured".
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, isinf
from pathlib import Path
from typing import Any
from uuid import uuid4

from jinja2 import Environment, Undefined
from markupsafe import Markup

from client.errors import BadSetting
from server.display import RETAIN_TOLERANCE, original_knows_no_better, stored_updates
from server.plots import (
    MOST_COLUMNS,
    Curve,
    accuracy_over_phases,
    channel_heatmap,
    cost_bars,
    relearning_curves,
)
from server.report_page import PAGE

# How near to Retrained counts as "in line with" it, in percent points, where the record does not
# say what was asked for; the page states the figures beside each judgement.
ACCURACY_TOLERANCE = 5.0
RELEARNING_TOLERANCE = 15.0

_MODELS = {
    "original": "Original",
    "retrained": "Retrained",
    "unlearned": "Unlearned",
    "recovered": "Recovered",
    "relearned": "Relearned",
}
_PHASES = ("train", "retrain", "score", "unlearn", "recover", "relearn")
_NOT_OF_THE_REQUEST = {"train", "retrain", "relearn"}
_MOST_CLASSES_IN_TABLE = 20
_MOST_LAYERS_OPEN = 6
_MOST_CHANNELS_IN_CELL = 8
_MINUS = "\N{MINUS SIGN}"
_NONE = "\N{EN DASH}"


@dataclass(frozen=True)
class Finding:
    """One line under the verdict.

    `tone` is "pass", "fail", "open" (no judgement possible) or "note" (none asked for).
    """

    title: str
    tone: str
    label: str
    text: str


@dataclass(frozen=True)
class Verdict:
    """The sentence a reader takes away, and what it rests on."""

    tone: str
    label: str
    sentence: str
    findings: Sequence[Finding]


@dataclass(frozen=True)
class Table:
    """Cells ready to show. `groups` are (title, columns spanned) above the headings; may be empty.

    Each row is its name, its cells, and a mark for the style sheet ("", "yardstick", "total",
    "forgotten"); one cell alone spans the whole row.
    """

    groups: Sequence[tuple[str, int]]
    headings: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str], str]]


@dataclass(frozen=True)
class Channels:
    """What a method found of the channels, and which it chose.

    `open` and `folded` are the layers' heat maps, those with the most chosen channels open;
    `by_class` says whether scores are of classes, `cut` whether some classes are not shown.
    """

    title: str
    action: str
    summary: str
    table: Table
    open: Sequence[Markup]
    folded: Sequence[Markup]
    by_class: bool
    cut: bool


def write_report(record: Mapping[str, Any], path: Path) -> Path:
    """Write the HTML report of `record` to `path`, whole or not at all.

    Args:
        record: A request record, format 1, not changed. Values may be null.
        path: The file to write or replace; missing folders are made. Where `record.json` lies
            beside it, the page links to it.

    Returns:
        `path`.

    Raises:
        BadSetting: If the record is of another format.
        OSError: If the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    page = render(record, linked=(path.parent / "record.json").exists())
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(page)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def render(record: Mapping[str, Any], *, linked: bool = False) -> str:
    """Return the report of `record` as one HTML page.

    Args:
        record: A request record, format 1.
        linked: Whether the page may link to `record.json` in its own folder.

    Raises:
        BadSetting: If the record is of another format.
    """
    if record.get("format") != 1:
        raise BadSetting(
            f"record format must be 1, got {record.get('format')!r}; "
            "write the report with the Efface that wrote the record"
        )
    environment = Environment(
        autoescape=True,
        # A key that an older record lacks reads as null does.
        undefined=Undefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.from_string(PAGE).render(
        title=_title(record),
        verdict=judge(record),
        record=record,
        accuracy=_accuracy_table(record),
        heldout=_heldout_table(record),
        classes=_class_table(record),
        phases_plot=_phases_plot(record),
        relearning_plot=_relearning_plot(record),
        relearning=_relearning_table(record),
        channels=_channels(record),
        forgets=bool(record.get("forget")),
        retrained=bool(record.get("retrained")),
        curve_measured=_mean(_result(record)[1]) is not None,
        cost_plot=_cost_plot(record),
        costs=_cost_table(record),
        round_sizes=_round_sizes(record),
        scored="score" in (record.get("seconds") or {}),
        speed_up=_speed_up(record),
        overhead=_overhead(record),
        provenance=_provenance(record),
        settings=sorted(
            (str(key), _setting(value)) for key, value in (record.get("settings") or {}).items()
        ),
        accuracy_tolerance=f"{_limits(record)[0]:g}",
        relearning_tolerance=f"{_limits(record)[1]:g}",
        linked=linked,
    )


def judge(record: Mapping[str, Any]) -> Verdict:
    """Say in plain words what was forgotten, and whether it looks like retraining.

    Accuracy and relearning are each compared with Retrained. Where Original already lies as near
    to Retrained, the comparison cannot tell, and does not count as a pass. Of a client, relearning
    is not defined: accuracy alone is judged.
    """
    versions = _versions(record)
    if not record.get("forget"):
        sentence = (
            f"{_capital(versions['new'])} was trained on {record.get('dataset') or 'its data'} "
            f"over {_clients(record)}; this request forgot nothing."
        )
        return Verdict("note", "Trained", sentence, [])

    subject, plural = _subject(record)
    was, its, comes = ("were", "their", "come") if plural else ("was", "its", "comes")
    if record.get("kind") == "relearn":
        sentence = (
            f"{_capital(subject)} {was} learned again on request {versions['change']}: "
            + _relearned_text(record)
        )
        return Verdict("note", "Learned again", sentence, [])

    _, result = _result(record)
    accuracy = _judge_accuracy(record, result)
    relearning = _judge_relearning(record, result)
    earlier = _judge_earlier(record, result)
    decisive = [accuracy, *([relearning] if relearning else [])]
    findings = [*decisive, _judge_retained(record, result), *([earlier] if earlier else [])]
    if record.get("relearned"):
        findings.append(
            Finding("Learned again", "note", "for information", _capital(_relearned_text(record)))
        )

    measured = f"{its} accuracy of {_percent(_of(result, 'forget_accuracy'))}"
    yardstick = _percent(_of(record.get("retrained"), "forget_accuracy"))
    without = "a model retrained without them" if plural else "a model retrained without it"
    if result is None:
        rest = "the outcome was not measured"
    elif record.get("retrained") is None:
        rest = (
            f"{measured} could not be compared with {without}, which was not measured "
            "(ask for it with --compare retrain)"
        )
    else:
        verb = "is above" if accuracy.label == "higher" else "is within reach of"
        verb = "stands against" if accuracy.label == "cannot tell" else verb
        rest = f"{measured} {verb} the {yardstick} of {without}"
        again = f"{'they' if plural else 'it'} {comes} back"
        means = f"({_number(_mean(result))} against {_number(_mean(record['retrained']))})"
        if relearning is None:
            no_better = original_knows_no_better(record["forget"])
            rest += f". {no_better}" if accuracy.label == "cannot tell" else ""
        elif relearning.label == "not measured":
            rest += ", and how fast it could be learned again was not measured"
        elif relearning.tone == "fail":
            link = "and" if accuracy.tone == "fail" else "but"
            rest += (
                f", {link} under relearning {again} faster than in that model {means}, so "
                f"{subject} may be hidden rather than forgotten"
            )
        else:
            link = "but" if accuracy.tone == "fail" else "and"
            pace = "more slowly than" if relearning.label == "slower" else "about as fast as"
            rest += f", {link} under relearning {again} {pace} in that model {means}"

    tones = {finding.tone for finding in decisive}
    if "fail" in tones or (earlier and earlier.tone == "fail"):
        opening = f"The attempt to forget {subject} {versions['change']} falls short: "
        return Verdict("fail", "Not in line with retraining", opening + rest + ".", findings)
    # Whether it is forgotten is what an open verdict does not know: say only what was done.
    opening = f"The request to forget {subject} was carried out, {versions['change']}: "
    if "not measured" in {finding.label for finding in decisive}:
        return Verdict("open", "Not fully measured", opening + rest + ".", findings)
    if "pass" not in tones:
        return Verdict("open", "Not conclusive", opening + rest + ".", findings)
    opening = f"{_capital(subject)} {was} forgotten {versions['change']}: "
    return Verdict("pass", "In line with retraining", opening + rest + ".", findings)


def _judge_accuracy(record: Mapping[str, Any], result: Mapping[str, Any] | None) -> Finding:
    title = "Forget accuracy"
    value, goal = _of(result, "forget_accuracy"), _of(record.get("retrained"), "forget_accuracy")
    if value is None or goal is None:
        text = f"Result {_percent(value)}. Retrained was not measured; add --compare retrain."
        if value is None:
            text = "The result was not measured."
        return Finding(title, "open", "not measured", text)
    text = f"Result {_percent(value)}, Retrained {_percent(goal)}: gap {_gap(value, goal)} points"
    limit, _ = _limits(record)
    # A class is forgotten at zero accuracy, a client's data only as far as others' tell of them.
    by_class = record["forget"]["level"] == "class"
    most = max(limit, goal) if by_class else goal + limit
    before = _of(record.get("original"), "forget_accuracy")
    alike = before is not None and before <= most
    if alike and not by_class:
        text += f", Original {_percent(before)}. {original_knows_no_better(record['forget'])}."
        return Finding(title, "open", "cannot tell", text)
    if value > most:
        return Finding(title, "fail", "higher", text + f" (limit {_percent(most)}).")
    if alike:
        text += f". Original has {_percent(before)} too: accuracy cannot tell them apart here."
        return Finding(title, "open", "cannot tell", text)
    return Finding(title, "pass", "within reach", text + f" (limit {_percent(most)}).")


def _limits(record: Mapping[str, Any]) -> tuple[float, float]:
    """Return the limits that the request's own verdict has: on accuracy, and on relearning."""
    settings = record.get("settings") or {}
    return (
        float(settings.get("max-forget-accuracy", ACCURACY_TOLERANCE)),
        float(settings.get("max-relearning-gap", RELEARNING_TOLERANCE)),
    )


def _judge_earlier(record: Mapping[str, Any], result: Mapping[str, Any] | None) -> Finding | None:
    """Return whether what earlier requests erased stays away; None if they erased no class."""
    erased = record.get("erased_before") or []
    each = (result or {}).get("per_class_accuracy") or []
    known = {c: each[c] for c in erased if c < len(each) and each[c] is not None}
    if not known:
        return None
    limit, _ = _limits(record)
    shown = ", ".join(f"class {c} {_percent(value)}" for c, value in known.items())
    back = any(value > limit for value in known.values())
    tone, label = ("fail", "back again") if back else ("pass", "still away")
    return Finding("Erased earlier", tone, label, f"{_capital(shown)} (limit {limit:g}).")


def _judge_relearning(
    record: Mapping[str, Any], result: Mapping[str, Any] | None
) -> Finding | None:
    """Return how fast the forgotten comes back; None of a client, of whom it is not defined."""
    title = "Relearning"
    value, goal = _mean(result), _mean(record.get("retrained"))
    if value is None or goal is None:
        if record["forget"]["level"] == "client":
            return None
        missing = "The result’s curve" if value is None else "Retrained’s curve"
        how = "" if record.get("retrained") else " For Retrained, add --compare retrain."
        return Finding(title, "open", "not measured", f"{missing} was not measured.{how}")
    text = f"Mean {_number(value)}, Retrained {_number(goal)}: gap {_gap(value, goal)} points"
    _, most = _limits(record)
    limit = f" (limit +{most:g})"
    if value - goal > most:
        return Finding(title, "fail", "comes back faster", f"{text}{limit}.")
    before = _mean(record.get("original"))
    if before is not None and before - goal <= most:
        text += f". Original has {_number(before)}: the curve cannot tell them apart here."
        return Finding(title, "open", "cannot tell", text)
    if goal - value > most:
        text += f"{limit}. It went deeper than retraining would."
        return Finding(title, "pass", "slower", text)
    return Finding(title, "pass", "within reach", f"{text}{limit}.")


def _judge_retained(record: Mapping[str, Any], result: Mapping[str, Any] | None) -> Finding:
    title = "Retain accuracy"
    value, goal = _of(result, "retain_accuracy"), _of(record.get("retrained"), "retain_accuracy")
    if value is None:
        return Finding(title, "open", "not measured", "The result was not measured.")
    if goal is None:
        before = _of(record.get("original"), "retain_accuracy")
        text = f"Result {_percent(value)}, Original {_percent(before)}; Retrained was not measured."
        return Finding(title, "open", "not measured", text)
    text = (
        f"Result {_percent(value)}, Retrained {_percent(goal)}: gap {_gap(value, goal)} points "
        f"(limit {_MINUS}{RETAIN_TOLERANCE:g})."
    )
    if goal - value > RETAIN_TOLERANCE:
        return Finding(title, "fail", "lower", text)
    return Finding(title, "pass", "kept", text)


def _relearned_text(record: Mapping[str, Any]) -> str:
    after = _of(record.get("relearned"), "forget_accuracy")
    before = _of(record.get("original"), "forget_accuracy")
    if after is None:
        return "the outcome was not measured."
    text = f"the forget accuracy is {_percent(after)} again"
    return text + (f", where Original had {_percent(before)}." if before is not None else ".")


def _result(record: Mapping[str, Any]) -> tuple[str, Mapping[str, Any] | None]:
    """Return the name and the numbers of what the request to forget ended with."""
    for key in ("recovered", "unlearned"):
        if record.get(key):
            return _MODELS[key], record[key]
    return "Result", None


def _subject(record: Mapping[str, Any]) -> tuple[str, bool]:
    """Return what is to be forgotten, in words, and whether that is a plural."""
    forget = record["forget"]
    for noun, key in (("class", "classes"), ("client", "clients")):
        names = [str(name) for name in forget.get(key) or []]
        if names and (forget.get("level") in (noun, None)):
            if len(names) == 1:
                return f"{noun} {names[0]}", False
            plural = "classes" if noun == "class" else "clients"
            return f"{plural} {', '.join(names[:-1])} and {names[-1]}", True
    return f"the {forget.get('level') or 'chosen'}-level forget set", False


def _versions(record: Mapping[str, Any]) -> dict[str, str]:
    base, new = record.get("base_version"), record.get("model_version")
    if base and new:
        change = f"going from version {base} to {new}"
    elif new:
        change = f"giving version {new}"
    else:
        change = "without a version being kept"
    return {"new": f"version {new}" if new else "a model", "change": change}


def _title(record: Mapping[str, Any]) -> str:
    if not record.get("forget"):
        return "Training"
    verb = "Learn again" if record.get("kind") == "relearn" else "Forget"
    return f"{verb} {_subject(record)[0]}"


def _clients(record: Mapping[str, Any]) -> str:
    count = record.get("num_clients")
    return "its clients" if count is None else f"{count} client{'' if count == 1 else 's'}"


def _shown_models(record: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any] | None]]:
    """Return key, name and numbers of each model; Original always, Retrained where it matters."""
    wanted = {"original"} | ({"retrained"} if record.get("forget") else set())
    return [
        (key, name, record.get(key) or None)
        for key, name in _MODELS.items()
        if record.get(key) or key in wanted
    ]


def _accuracy_table(record: Mapping[str, Any]) -> Table | None:
    retrained = record.get("retrained")
    models = _shown_models(record)
    if not any(numbers for *_, numbers in models):
        return None
    trained_only = not record.get("forget")
    columns: list[tuple[str, str, Callable[[str, Mapping[str, Any]], str]]] = []

    def with_gap(group: str, read: Callable[[Mapping[str, Any] | None], float | None]) -> None:
        if not any(read(numbers) is not None for *_, numbers in models):
            return
        columns.append((group, "%", lambda _, numbers: _number(read(numbers))))
        if retrained and read(retrained) is not None:
            columns.append(
                (
                    group,
                    "gap",
                    lambda key, numbers: (
                        "" if key == "retrained" else _gap(read(numbers), read(retrained))
                    ),
                )
            )

    with_gap("Forget accuracy", lambda numbers: _of(numbers, "forget_accuracy"))
    with_gap(
        "Accuracy" if trained_only else "Retain accuracy",
        lambda numbers: _of(numbers, "retain_accuracy"),
    )
    columns.append(("Loss", "nats", lambda _, numbers: _loss(_of(numbers, "loss"))))
    with_gap("Relearning mean", _mean)
    rows: list[tuple[str, Sequence[str], str]] = []
    for key, name, numbers in models:
        mark = "yardstick" if key in ("original", "retrained") else ""
        if numbers is None:
            how = "; add --compare retrain to measure it" if key == "retrained" else ""
            rows.append((name, [f"not measured{how}"], mark))
        else:
            rows.append((name, [cell(key, numbers) for *_, cell in columns], mark))
    return Table(_spans([group for group, *_ in columns]), [unit for _, unit, _ in columns], rows)


def _heldout_table(record: Mapping[str, Any]) -> Table | None:
    measured = [
        (name, numbers["heldout"], key)
        for key, name, numbers in _shown_models(record)
        if numbers and numbers.get("heldout")
    ]
    if not measured:
        return None
    keys = ("forget_accuracy", "retain_accuracy")
    return Table(
        [],
        ["Forget accuracy, %", "Retain accuracy, %"],
        [
            (
                name,
                [_number(_of(heldout, column)) for column in keys],
                "yardstick" if key in ("original", "retrained") else "",
            )
            for name, heldout, key in measured
        ],
    )


def _class_table(record: Mapping[str, Any]) -> Table | None:
    """Return accuracy by class; of many classes, the forgotten and the 10 that moved most."""
    measured = [
        (name, numbers["per_class_accuracy"])
        for _, name, numbers in _shown_models(record)
        if numbers and numbers.get("per_class_accuracy")
    ]
    if not measured:
        return None
    forgotten = _forgotten_classes(record)
    count = min(len(values) for _, values in measured)
    labels = list(range(count))
    if count > _MOST_CLASSES_IN_TABLE:
        first, last = measured[0][1], measured[-1][1]
        moved = sorted(
            (label for label in labels if label not in forgotten),
            key=lambda label: -abs((first[label] or 0.0) - (last[label] or 0.0)),
        )
        labels = sorted([*moved[:10], *(label for label in forgotten if label < count)])
    return Table(
        [],
        [name for name, _ in measured],
        [
            (
                f"class {label}",
                [_number(values[label]) for _, values in measured],
                "forgotten" if label in forgotten else "",
            )
            for label in labels
        ],
    )


def _relearning_table(record: Mapping[str, Any]) -> Table | None:
    curves = _curves(record)
    if not curves or any(list(curve.steps) != list(curves[0].steps) for curve in curves):
        return None
    rows = [
        (
            curve.label,
            [_number(value) for value in curve.accuracy],
            "" if curve.role == "result" else "yardstick",
        )
        for curve in curves
    ]
    return Table([], [str(step) for step in curves[0].steps], rows)


def _cost_table(record: Mapping[str, Any]) -> Table | None:
    measures = ("seconds", "client_seconds", "rounds", "samples", "bytes")
    # Measuring has wall times of its own; elsewhere a record holds it beside the phases.
    measured = record.get("seconds_measuring") or {}
    told = {**record, "seconds": {**measured, **(record.get("seconds") or {})}}
    seen = {phase for measure in measures for phase in told.get(measure) or {}}
    phases = [phase for phase in _PHASES if phase in seen]
    others = sorted(seen.difference(_PHASES))
    if not phases:
        return None
    formats: Sequence[tuple[str, Callable[[float | None], str]]] = (
        ("seconds", _seconds),
        ("client_seconds", _seconds),
        ("rounds", _count),
        ("samples", _count),
    )

    def cells(of: Sequence[str]) -> list[str]:
        texts = []
        for measure, show in formats:
            known = [(told.get(measure) or {}).get(phase) for phase in of]
            texts.append(show(_sum(known)))
        for direction in ("up", "down"):
            sizes = [_of((told.get("bytes") or {}).get(phase), direction) for phase in of]
            texts.append(_size(_sum(sizes)))
        return texts

    rows: list[tuple[str, Sequence[str], str]] = [(phase, cells([phase]), "") for phase in phases]
    request = [phase for phase in phases if phase not in _NOT_OF_THE_REQUEST]
    if len(request) > 1:
        rows.append((f"request ({' + '.join(request)})", cells(request), "total"))
    if others:
        rows.append(("asking and measuring", cells(others), ""))
    headings = ["wall time", "client time", "rounds", "samples", "bytes up", "bytes down"]
    return Table([], headings, rows)


def _round_sizes(record: Mapping[str, Any]) -> Table | None:
    """Return what a client sends up in a round of each phase, against the whole model."""
    whole, clients = _of(record, "model_bytes"), _of(record, "num_clients")
    if not whole or not clients:
        return None
    rows: list[tuple[str, Sequence[str], str]] = []
    for phase in _PHASES:
        rounds = _of(record.get("rounds"), phase)
        up = _of((record.get("bytes") or {}).get(phase), "up")
        if rounds and up is not None:
            each = up / (rounds * clients)
            rows.append((phase, [_count(rounds), _size(each), _share(each, whole)], ""))
    if not rows:
        return None
    rows.insert(0, ("the whole model", ["", _size(whole), _share(whole, whole)], "yardstick"))
    return Table([], ["rounds", "up, a round and client", "of the model"], rows)


def _speed_up(record: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the speed-up rows and the two times they are made of."""
    speed_up = record.get("speed_up")
    if not speed_up:
        return None
    seconds = record.get("seconds") or {}
    request = _sum([t for phase, t in seconds.items() if phase not in _NOT_OF_THE_REQUEST])
    rows: list[tuple[str, Sequence[str], str]] = []
    if speed_up.get("request") is not None:
        rows.append(("one request alone", [_times(speed_up["request"])], ""))
    for count, value in sorted((speed_up.get("amortised") or {}).items(), key=lambda i: int(i[0])):
        noun = "request" if int(count) == 1 else "requests"
        rows.append((f"amortised over {count} {noun}", [_times(value)], ""))
    return {
        "table": Table([], ["times shorter"], rows),
        "retrain": _seconds(seconds.get("retrain")),
        "request": _seconds(request),
        "overhead": _seconds(_of(speed_up, "overhead_seconds")),
    }


def _overhead(record: Mapping[str, Any]) -> str | None:
    distillation = record.get("distillation")
    if not distillation:
        return None
    share, seconds = _of(distillation, "client_seconds_share"), _of(distillation, "seconds")
    text = "Distillation, which training pays so that a request can be short, took "
    if share is not None:
        text += f"{_number(100 * share)} % of the clients’ training time"
        return text + (f" ({_seconds(seconds)})." if seconds is not None else ".")
    return text + f"{_seconds(seconds)}."


def _provenance(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    lineage = " \N{RIGHTWARDS ARROW} ".join(
        str(record[key]) for key in ("base_version", "model_version") if record.get(key)
    )
    data = [str(record["dataset"])] if record.get("dataset") else []
    if record.get("num_classes") is not None:
        data.append(f"{record['num_classes']} classes")
    split = [str(record["partition"])] if record.get("partition") else []
    if record.get("num_clients") is not None:
        split.append(_clients(record))
    stored = (record.get("storage") or {}).get("updates")
    rows = [
        ("Request", record.get("request")),
        ("Asked by", record.get("asked_by")),
        ("Why", record.get("why")),
        ("Kind", record.get("kind")),
        ("Method", record.get("method")),
        ("Chosen by Efface", (record.get("chosen") or {}).get("why")),
        ("Versions", lineage),
        ("Created", record.get("created")),
        ("Data set", ", ".join(data)),
        ("Partition", ", ".join(split)),
        ("Model", record.get("model")),
        ("Engine", record.get("engine")),
        ("Seed", record.get("seed")),
        (stored_updates(record), _size(stored) if stored else None),
        ("Hardware", record.get("hardware")),
        ("Commit", record.get("commit")),
        ("Command", record.get("command")),
    ]
    optional = {"Asked by", "Why", "Chosen by Efface", stored_updates(record)}
    return [
        (name, "not recorded" if value in (None, "") else str(value))
        for name, value in rows
        if value not in (None, "") or name not in optional
    ]


def _phases_plot(record: Mapping[str, Any]) -> Markup | None:
    # Retraining is another model's history, not a phase of this one.
    timeline = [e for e in record.get("timeline") or [] if e.get("phase") not in (None, "retrain")]
    if not record.get("forget"):
        # A federation may evaluate a forget set that no request has named yet.
        timeline = [{**entry, "forget_accuracy": None} for entry in timeline]
    original = record.get("original")
    if timeline and timeline[0]["phase"] != "train" and original:
        timeline.insert(0, {**original, "phase": "before", "round": None})
    if len(timeline) < 2:
        return None
    # The page's own template escapes everything; the SVG is ours and its texts are escaped in it.
    return Markup(accuracy_over_phases(timeline, _forgotten_classes(record), name="phases"))


def _relearning_plot(record: Mapping[str, Any]) -> Markup | None:
    curves = _curves(record)
    return Markup(relearning_curves(curves, name="relearning")) if curves else None


def _curves(record: Mapping[str, Any]) -> list[Curve]:
    name, result = _result(record)
    models = (
        ("Original", "original", record.get("original")),
        ("Retrained", "retrain", record.get("retrained")),
        (name, "result", result),
    )
    curves = []
    for label, role, numbers in models:
        curve = (numbers or {}).get("relearning_curve") or {}
        steps, accuracy = curve.get("steps") or [], curve.get("forget_accuracy") or []
        if steps and len(steps) == len(accuracy):
            curves.append(Curve(label, role, steps, accuracy))
    return curves


def _channels(record: Mapping[str, Any]) -> Channels | None:
    """Return the channels that a method scored and chose, or None where it did neither."""
    found = record.get("channels") or {}
    scores = {str(name): layer or {} for name, layer in (found.get("scores") or {}).items()}
    chosen = {
        str(name): sorted({int(channel) for channel in channels or []})
        for name, channels in (found.get("chosen") or {}).items()
    }
    names = [*scores, *(name for name in chosen if name not in scores)]
    if not names:
        return None
    action = str(found.get("action") or "chosen")
    sizes = {name: len(scores.get(name, {}).get("values") or []) or None for name in names}
    forgotten = {str(label) for label in _forgotten_classes(record)}

    def plot(name: str) -> Markup:
        return Markup(
            channel_heatmap(
                scores[name]["values"],
                columns[name],
                chosen.get(name, []),
                layer=name,
                action=action,
                forgotten=forgotten,
                name=f"channels-{names.index(name)}",
            )
        )

    columns = {name: [str(c) for c in layer.get("columns") or []] for name, layer in scores.items()}
    drawn = [name for name in scores if sizes[name] and columns[name]]
    open_ = sorted(drawn, key=lambda name: -len(chosen.get(name, [])))[:_MOST_LAYERS_OPEN]
    return Channels(
        title=str(found.get("title") or "Score of each channel"),
        action=action,
        summary=_channels_summary(sizes, chosen, action),
        table=_channel_table(sizes, chosen, action),
        open=[plot(name) for name in drawn if name in open_],
        folded=[plot(name) for name in drawn if name not in open_],
        by_class=any(column.isdecimal() for name in drawn for column in columns[name]),
        cut=any(len(columns[name]) > MOST_COLUMNS for name in drawn),
    )


def _channels_summary(
    sizes: Mapping[str, int | None], chosen: Mapping[str, Sequence[int]], action: str
) -> str:
    num_chosen, total = _chosen_of(sizes, chosen)
    layers = sum(1 for channels in chosen.values() if channels)
    were = "was" if num_chosen == 1 else "were"
    of = "channel" + ("" if num_chosen == 1 else "s")
    if total is not None:
        of = f"of {_count(total)} channels ({_share(num_chosen, total)})"
    place = f", in {layers} of {len(sizes)} layer{'' if len(sizes) == 1 else 's'}"
    return f"{_count(num_chosen)} {of} {were} {action}{place if num_chosen else ''}."


def _channel_table(
    sizes: Mapping[str, int | None], chosen: Mapping[str, Sequence[int]], action: str
) -> Table:
    rows: list[tuple[str, Sequence[str], str]] = []
    for name, size in sizes.items():
        channels = chosen.get(name, [])
        cells = [_count(size), _count(len(channels)), _share(len(channels), size)]
        rows.append((name, [*cells, _channel_list(channels)], ""))
    if len(rows) > 1:
        num_chosen, total = _chosen_of(sizes, chosen)
        cells = [_count(total), _count(num_chosen), _share(num_chosen, total)]
        rows.append(("all layers", [*cells, ""], "total"))
    return Table([], ["channels", action, "share", f"channels {action}, from 0"], rows)


def _channel_list(channels: Sequence[int]) -> str:
    """Return channel numbers; of many, the first ones, with all of them one click away."""
    texts = [str(channel) for channel in channels]
    if len(texts) <= _MOST_CHANNELS_IN_CELL:
        return ", ".join(texts) or "none"
    first = ", ".join(texts[:_MOST_CHANNELS_IN_CELL])
    return Markup("<details><summary>{}, … (all {})</summary>{}</details>").format(
        first, len(texts), ", ".join(texts)
    )


def _chosen_of(
    sizes: Mapping[str, int | None], chosen: Mapping[str, Sequence[int]]
) -> tuple[int, int | None]:
    """Return how many channels were chosen, and of how many: None if a layer's are not known."""
    known = [size for size in sizes.values() if size is not None]
    total = sum(known) if len(known) == len(sizes) else None
    return sum(len(channels) for channels in chosen.values()), total


def _cost_plot(record: Mapping[str, Any]) -> Markup | None:
    colours = {"train": "original", "retrain": "retrain"}
    bars = [
        (phase, float(value), colours.get(phase, "forget"))
        for phase, value in sorted(
            (record.get("seconds") or {}).items(),
            key=lambda item: (
                _PHASES.index(item[0]) if item[0] in _PHASES else len(_PHASES),
                item[0],
            ),
        )
        if value is not None and isfinite(value)
    ]
    return Markup(cost_bars(bars, name="cost")) if len(bars) > 1 else None


def _forgotten_classes(record: Mapping[str, Any]) -> list[int]:
    return [int(label) for label in (record.get("forget") or {}).get("classes") or []]


def _of(numbers: Mapping[str, Any] | None, key: str) -> float | None:
    value = (numbers or {}).get(key)
    return None if value is None else float(value)


def _mean(numbers: Mapping[str, Any] | None) -> float | None:
    return _of((numbers or {}).get("relearning_curve"), "mean")


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _spans(groups: Sequence[str]) -> list[tuple[str, int]]:
    """Return each run of equal neighbours as (value, length)."""
    spans: list[tuple[str, int]] = []
    for group in groups:
        if spans and spans[-1][0] == group:
            spans[-1] = (group, spans[-1][1] + 1)
        else:
            spans.append((group, 1))
    return spans


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _number(value: float | None, digits: int = 1) -> str:
    if value is None:
        return _NONE
    if not isfinite(value):
        return ("" if value > 0 else _MINUS) + "\N{INFINITY}" if isinf(value) else "undefined"
    text = f"{value:,.{digits}f}"
    return text.replace("-", _MINUS) if float(text.replace(",", "")) else text.lstrip("-")


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{_number(value)} %"


def _share(part: float | None, whole: float | None) -> str:
    if part is None or not whole:
        return _NONE
    share = 100 * part / whole
    return f"{_number(share, 1 if share >= 1 or share == 0 else 2)} %"


def _gap(value: float | None, goal: float | None) -> str:
    if value is None or goal is None:
        return _NONE
    text = _number(value - goal)
    return text if text.startswith(_MINUS) or value == goal or text == "0.0" else f"+{text}"


def _loss(value: float | None) -> str:
    return _number(value, 2 if value is not None and abs(value) >= 10 else 3)


def _seconds(value: float | None) -> str:
    if value is None:
        return _NONE
    return f"{_number(value, 1 if value >= 10 else 2)} s"


def _count(value: float | None) -> str:
    return _number(value, 0)


def _size(value: float | None) -> str:
    """Return bytes in decimal units, as networks are billed."""
    if value is None:
        return _NONE
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{_number(value, 0 if unit == 'B' else 1)} {unit}"
        value /= 1000
    return f"{_number(value)} TB"


def _times(value: float | None) -> str:
    return (
        f"{_number(value, 0 if value is not None and value >= 100 else 1)}\N{MULTIPLICATION SIGN}"
    )


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
