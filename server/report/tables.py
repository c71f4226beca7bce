"""The tables of the report: accuracies, costs, where a result comes from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.report.display import stored_updates, target_text
from server.report.pictures import curves_of
from server.report.words import (
    MODELS,
    as_count,
    as_gap,
    as_loss,
    as_number,
    as_seconds,
    as_share,
    as_size,
    as_times,
    clients_of,
    curve_mean,
    forgotten_classes,
    sum_of,
    value_of,
)
from server.requests.records import PHASES

_NOT_OF_THE_REQUEST = {"train", "retrain", "relearn"}
_MOST_CLASSES_IN_TABLE = 20


@dataclass(frozen=True)
class Table:
    """Cells ready to show. `groups` are (title, columns spanned) above the headings; may be empty.

    Each row is its name, its cells, and a mark for the style sheet ("", "yardstick", "total",
    "forgotten"); one cell alone spans the whole row.
    """

    groups: Sequence[tuple[str, int]]
    headings: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str], str]]


def _shown_models(record: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any] | None]]:
    """Return key, name and numbers of each model; Original always, Retrained where it matters."""
    wanted = {"original"} | ({"retrained"} if record.get("forget") else set())
    return [
        (key, name, record.get(key) or None)
        for key, name in MODELS.items()
        if record.get(key) or key in wanted
    ]


def accuracy_table(record: Mapping[str, Any]) -> Table | None:
    """Return the accuracies of every model and their gaps to Retrained."""
    retrained = record.get("retrained")
    models = _shown_models(record)
    if not any(numbers for *_, numbers in models):
        return None
    trained_only = not record.get("forget")
    columns: list[tuple[str, str, Callable[[str, Mapping[str, Any]], str]]] = []

    def with_gap(group: str, read: Callable[[Mapping[str, Any] | None], float | None]) -> None:
        if not any(read(numbers) is not None for *_, numbers in models):
            return
        columns.append((group, "%", lambda _, numbers: as_number(read(numbers))))
        if retrained and read(retrained) is not None:
            columns.append(
                (
                    group,
                    "gap",
                    lambda key, numbers: (
                        "" if key == "retrained" else as_gap(read(numbers), read(retrained))
                    ),
                )
            )

    with_gap("Forget accuracy", lambda numbers: value_of(numbers, "forget_accuracy"))
    with_gap(
        "Accuracy" if trained_only else "Retain accuracy",
        lambda numbers: value_of(numbers, "retain_accuracy"),
    )
    columns.append(("Loss", "nats", lambda _, numbers: as_loss(value_of(numbers, "loss"))))
    with_gap("Relearning mean", curve_mean)
    rows: list[tuple[str, Sequence[str], str]] = []
    for key, name, numbers in models:
        mark = "yardstick" if key in ("original", "retrained") else ""
        if numbers is None:
            how = "; add --compare retrain to measure it" if key == "retrained" else ""
            rows.append((name, [f"not measured{how}"], mark))
        else:
            rows.append((name, [cell(key, numbers) for *_, cell in columns], mark))
    return Table(_spans([group for group, *_ in columns]), [unit for _, unit, _ in columns], rows)


def heldout_table(record: Mapping[str, Any]) -> Table | None:
    """Return the accuracies on the clients' held-out data."""
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
                [as_number(value_of(heldout, column)) for column in keys],
                "yardstick" if key in ("original", "retrained") else "",
            )
            for name, heldout, key in measured
        ],
    )


def class_table(record: Mapping[str, Any]) -> Table | None:
    """Return accuracy by class; of many classes, the forgotten and the 10 that moved most."""
    measured = [
        (name, numbers["per_class_accuracy"])
        for _, name, numbers in _shown_models(record)
        if numbers and numbers.get("per_class_accuracy")
    ]
    if not measured:
        return None
    forgotten = forgotten_classes(record)
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
                [as_number(values[label]) for _, values in measured],
                "forgotten" if label in forgotten else "",
            )
            for label in labels
        ],
    )


def relearning_table(record: Mapping[str, Any]) -> Table | None:
    """Return the relearning curves' values; None if their steps differ."""
    curves = curves_of(record)
    if not curves or any(list(curve.steps) != list(curves[0].steps) for curve in curves):
        return None
    rows = [
        (
            curve.label,
            [as_number(value) for value in curve.accuracy],
            "" if curve.role == "result" else "yardstick",
        )
        for curve in curves
    ]
    return Table([], [str(step) for step in curves[0].steps], rows)


def cost_table(record: Mapping[str, Any]) -> Table | None:
    """Return what every phase took."""
    measures = ("seconds", "client_seconds", "rounds", "samples", "bytes")
    # Measuring has wall times of its own; elsewhere a record holds it beside the phases.
    measured = record.get("seconds_measuring") or {}
    told = {**record, "seconds": {**measured, **(record.get("seconds") or {})}}
    seen = {phase for measure in measures for phase in told.get(measure) or {}}
    phases = [phase for phase in PHASES if phase in seen]
    others = sorted(seen.difference(PHASES))
    if not phases:
        return None
    formats: Sequence[tuple[str, Callable[[float | None], str]]] = (
        ("seconds", as_seconds),
        ("client_seconds", as_seconds),
        ("rounds", as_count),
        ("samples", as_count),
    )

    def cells(of: Sequence[str]) -> list[str]:
        texts = []
        for measure, show in formats:
            known = [(told.get(measure) or {}).get(phase) for phase in of]
            texts.append(show(sum_of(known)))
        for direction in ("up", "down"):
            sizes = [value_of((told.get("bytes") or {}).get(phase), direction) for phase in of]
            texts.append(as_size(sum_of(sizes)))
        return texts

    rows: list[tuple[str, Sequence[str], str]] = [(phase, cells([phase]), "") for phase in phases]
    request = [phase for phase in phases if phase not in _NOT_OF_THE_REQUEST]
    if len(request) > 1:
        rows.append((f"request ({' + '.join(request)})", cells(request), "total"))
    if others:
        rows.append(("asking and measuring", cells(others), ""))
    headings = ["wall time", "client time", "rounds", "samples", "bytes up", "bytes down"]
    return Table([], headings, rows)


def round_sizes(record: Mapping[str, Any]) -> Table | None:
    """Return what a client sends up in a round of each phase, against the whole model."""
    whole, clients = value_of(record, "model_bytes"), value_of(record, "num_clients")
    if not whole or not clients:
        return None
    rows: list[tuple[str, Sequence[str], str]] = []
    for phase in PHASES:
        rounds = value_of(record.get("rounds"), phase)
        up = value_of((record.get("bytes") or {}).get(phase), "up")
        if rounds and up is not None:
            each = up / (rounds * clients)
            rows.append((phase, [as_count(rounds), as_size(each), as_share(each, whole)], ""))
    if not rows:
        return None
    rows.insert(0, ("the whole model", ["", as_size(whole), as_share(whole, whole)], "yardstick"))
    return Table([], ["rounds", "up, a round and client", "of the model"], rows)


def speed_up_rows(record: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the speed-up rows and the two times they are made of."""
    speed_up = record.get("speed_up")
    if not speed_up:
        return None
    seconds = record.get("seconds") or {}
    request = sum_of([t for phase, t in seconds.items() if phase not in _NOT_OF_THE_REQUEST])
    rows: list[tuple[str, Sequence[str], str]] = []
    if speed_up.get("request") is not None:
        rows.append(("one request alone", [as_times(speed_up["request"])], ""))
    for count, value in sorted((speed_up.get("amortised") or {}).items(), key=lambda i: int(i[0])):
        noun = "request" if int(count) == 1 else "requests"
        rows.append((f"amortised over {count} {noun}", [as_times(value)], ""))
    return {
        "table": Table([], ["times shorter"], rows),
        "retrain": as_seconds(seconds.get("retrain")),
        "request": as_seconds(request),
        "overhead": as_seconds(value_of(speed_up, "overhead_seconds")),
    }


def overhead_line(record: Mapping[str, Any]) -> str | None:
    """Return what distillation took of the training, None where there was none."""
    distillation = record.get("distillation")
    if not distillation:
        return None
    share, seconds = (
        value_of(distillation, "client_seconds_share"),
        value_of(distillation, "seconds"),
    )
    text = "Distillation, which training pays so that a request can be short, took "
    if share is not None:
        text += f"{as_number(100 * share)} % of the clients’ training time"
        return text + (f" ({as_seconds(seconds)})." if seconds is not None else ".")
    return text + f"{as_seconds(seconds)}."


def provenance_rows(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return who asked for what, and what ran where, as names and values."""
    lineage = " \N{RIGHTWARDS ARROW} ".join(
        str(record[key]) for key in ("base_version", "model_version") if record.get(key)
    )
    data = [str(record["dataset"])] if record.get("dataset") else []
    if record.get("num_classes") is not None:
        data.append(f"{record['num_classes']} classes")
    split = [str(record["partition"])] if record.get("partition") else []
    if record.get("num_clients") is not None:
        split.append(clients_of(record))
    stored = (record.get("storage") or {}).get("updates")
    rows = [
        ("Request", record.get("request")),
        ("Asked by", record.get("asked_by")),
        ("Why", record.get("why")),
        ("Kind", record.get("kind")),
        ("Method", record.get("method")),
        ("Chosen by Efface", (record.get("chosen") or {}).get("why")),
        ("Versions", lineage),
        ("Has forgotten", target_text(record.get("has_forgotten")) or None),
        ("Warnings", "; ".join(record.get("warnings") or []) or None),
        ("Created", record.get("created")),
        ("Data set", ", ".join(data)),
        ("Partition", ", ".join(split)),
        ("Model", record.get("model")),
        ("Engine", record.get("engine")),
        ("Seed", record.get("seed")),
        (stored_updates(record), as_size(stored) if stored else None),
        ("Hardware", record.get("hardware")),
        ("Commit", record.get("commit")),
        ("Command", record.get("command")),
    ]
    optional = {
        *("Asked by", "Why", "Chosen by Efface", stored_updates(record)),
        *("Has forgotten", "Warnings"),
    }
    return [
        (name, "not recorded" if value in (None, "") else str(value))
        for name, value in rows
        if value not in (None, "") or name not in optional
    ]


def _spans(groups: Sequence[str]) -> list[tuple[str, int]]:
    """Return each run of equal neighbours as (value, length)."""
    spans: list[tuple[str, int]] = []
    for group in groups:
        if spans and spans[-1][0] == group:
            spans[-1] = (group, spans[-1][1] + 1)
        else:
            spans.append((group, 1))
    return spans
