"""The tables of the report: accuracies, costs, where a result comes from.

It is long because every table of the page is made here, each from the record alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from server.evidence.participation import Participation
from server.evidence.phases import PHASES
from server.evidence.record import Record
from server.evidence.scores import ModelScores, SiteScores
from server.format import class_text, target_text
from server.report.display import stored_updates
from server.report.pictures import curves_of
from server.report.words import (
    MODELS,
    as_count,
    as_gap,
    as_length,
    as_loss,
    as_number,
    as_seconds,
    as_setting,
    as_share,
    as_size,
    as_time,
    as_times,
    clients_of,
    forgotten_classes,
    is_yardstick,
    sum_of,
)

_NOT_OF_THE_REQUEST = {"train", "retrain", "relearn"}
_MOST_CLASSES_IN_TABLE = 20
_MOST_CLIENTS_IN_TABLE = 30
R = TypeVar("R")


@dataclass(frozen=True)
class Table:
    """Cells ready to show. `groups` are (title, columns spanned) above the headings; may be empty.

    Each row is its name, its cells, and a mark for the style sheet ("", "yardstick", "total",
    "forgotten"); one cell alone spans the whole row.
    """

    groups: Sequence[tuple[str, int]]
    headings: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str], str]]


def _shown_models(record: Record) -> list[tuple[str, str, ModelScores | None]]:
    """Return key, name and numbers of each model; Original always, Retrained where it matters."""
    wanted = {"original"} | ({"retrained"} if record.forget else set())
    if record.kind == "yardstick":  # it has the scores of Retrained alone
        wanted = {"retrained"}
    models = [(key, name, getattr(record, key)) for key, name in MODELS.items()]
    return [model for model in models if model[2] is not None or model[0] in wanted]


def accuracy_table(record: Record) -> Table | None:
    """Return the accuracies of every model and how far they are from Retrained's."""
    retrained = record.retrained
    models = _shown_models(record)
    if not any(numbers for *_, numbers in models):
        return None
    trained_only = record.forget is None
    columns: list[tuple[str, str, Callable[[str, ModelScores], str]]] = []

    def with_difference(
        group: str, read: Callable[[ModelScores | None], float | None], unit: str = "%"
    ) -> None:
        if not any(read(numbers) is not None for *_, numbers in models):
            return
        columns.append((group, unit, lambda _, numbers: as_number(read(numbers))))
        if retrained and read(retrained) is not None:
            columns.append(
                (
                    group,
                    "to Retrained",
                    lambda key, numbers: (
                        "" if key == "retrained" else as_gap(read(numbers), read(retrained))
                    ),
                )
            )

    with_difference("Forget accuracy", lambda s: None if s is None else s.forget_accuracy)
    with_difference(
        "Accuracy" if trained_only else "Retain accuracy",
        lambda s: None if s is None else s.retain_accuracy,
    )
    columns.append(("Loss", "cross-entropy", lambda _, numbers: as_loss(numbers.loss)))
    with_difference("Relearning mean", lambda s: None if s is None else s.curve_mean)
    with_difference("Surer of members", lambda s: None if s is None else s.membership, "points")
    with_difference(
        "Client relearning", lambda s: None if s is None else s.client_relearning, "points"
    )
    rows: list[tuple[str, Sequence[str], str]] = []
    for key, name, numbers in models:
        mark = "yardstick" if key in ("original", "retrained") else ""
        if numbers is None:
            how = "; add --compare retrain to measure it" if key == "retrained" else ""
            itself = key == "retrained" and is_yardstick(record)
            rows.append((name, ["the result itself" if itself else f"not measured{how}"], mark))
        else:
            rows.append((name, [cell(key, numbers) for *_, cell in columns], mark))
    return Table(_spans([group for group, *_ in columns]), [unit for _, unit, _ in columns], rows)


def heldout_table(record: Record) -> Table | None:
    """Return the accuracies on the clients' held-out data."""
    measured = [
        (name, numbers.heldout, key)
        for key, name, numbers in _shown_models(record)
        if numbers is not None and numbers.heldout is not None
    ]
    if not measured:
        return None
    return Table(
        [],
        ["Forget accuracy, %", "Retain accuracy, %"],
        [
            (
                name,
                [as_number(heldout.forget_accuracy), as_number(heldout.retain_accuracy)],
                "yardstick" if key in ("original", "retrained") else "",
            )
            for name, heldout, key in measured
        ],
    )


def site_table(record: Record) -> Table | None:
    """Return each client's accuracies on what it holds out, of Original, Retrained and the result.

    The median and all together come last. Examples are those of the result's measuring. What was
    learned again afterwards stands beside what was forgotten.
    """
    result = record.recovered or record.result
    heldout = None if result is None else result.heldout
    if heldout is None or not heldout.sites:
        return None
    before = [
        (name, scores.heldout)
        for name, scores in (("Original", record.original), ("Retrained", record.retrained))
        if scores is not None and scores is not result and scores.heldout is not None
    ]
    models = [*before, ("result", heldout)]
    again = record.relearned
    if again is not None and again is not result and again.heldout is not None:
        models.append(("relearned", again.heldout))
    centre = heldout.forget_median or 0.0
    rows: list[tuple[str, Sequence[str], str]] = []
    for site in _cut(heldout.sites, lambda site: -abs((site.forget_accuracy or 0.0) - centre)):
        own = [
            next((other for other in of.sites if other.client == site.client), SiteScores())
            for _, of in models
        ]
        cells = [
            *(as_number(one.forget_accuracy) for one in own),
            as_count(site.forget_count),
            *(as_number(one.retain_accuracy) for one in own),
            as_count(site.retain_count),
        ]
        rows.append((str(site.client), cells, ""))
    both = [of for _, of in models]
    middle = [*(as_number(of.forget_median) for of in both), ""]
    middle += [*(as_number(of.retain_median) for of in both), ""]
    together = [*(as_number(of.forget_accuracy) for of in both), ""]
    together += [*(as_number(of.retain_accuracy) for of in both), ""]
    rows += [("median", middle, "total"), ("all together", together, "total")]
    headings = [*(name for name, _ in models), "examples"]
    span = len(headings)
    return Table([("Forget accuracy, %", span), ("Retain accuracy, %", span)], headings * 2, rows)


def participation_table(record: Record) -> Table | None:
    """Return what every client did in every phase; None where that was not kept."""
    sums = sums_alone(record)  # then each client is noted with an equal share of all examples
    spared = any(one.not_needed for one in record.participation)
    rows: list[tuple[str, Sequence[str], str]] = [
        (
            f"{one.client}, {one.phase}",
            [
                f"{one.answered} of {one.rounds}",
                as_count(None if sums else _used(one)),
                *([as_count(one.not_needed)] if spared else []),
                as_count(None if sums else one.examples),
                as_length(one.update_norm),
                as_length(one.largest_update_norm),
                "" if one.largest_in_round is None else str(one.largest_in_round),
            ],
            "",
        )
        for one in _cut(record.participation, _worth_a_look)
    ]
    if not rows:
        return None
    of_rounds = ["answered", "used data", *(["asked, not needed"] if spared else [])]
    headings = [*of_rounds, "examples", "length of updates", "longest", "in round"]
    return Table([("Rounds", len(of_rounds)), ("", 4)], headings, rows)


def sums_alone(record: Record) -> bool:
    """Return whether the coordinator saw sums alone, and nothing of one client."""
    return bool(record.settings.get("secure-aggregation"))


def _used(one: Participation) -> int | None:
    """Return in how many rounds a client used data; older records do not say it outright."""
    return one.used if one.used is not None else one.answered if one.examples else 0


def _worth_a_look(one: Participation) -> tuple[float, float]:
    """Return a key by which who missed most comes first, then the longest updates."""
    return (one.answered or 0) - (one.rounds or 0), -(one.largest_update_norm or 0.0)


def _cut(rows: Sequence[R], key: Callable[[R], Any]) -> Sequence[R]:
    """Return rows as they are, or of many the first by `key`, in the order in which they were."""
    if len(rows) <= _MOST_CLIENTS_IN_TABLE:
        return rows
    kept = sorted(range(len(rows)), key=lambda i: key(rows[i]))[:_MOST_CLIENTS_IN_TABLE]
    return [rows[i] for i in sorted(kept)]


def class_table(record: Record) -> Table | None:
    """Return accuracy by class; of many classes, the forgotten and the 10 that moved most."""
    measured = [
        (name, numbers.per_class_accuracy)
        for _, name, numbers in _shown_models(record)
        if numbers is not None and numbers.per_class_accuracy
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
                class_text(label, record.class_names),
                [as_number(values[label]) for _, values in measured],
                "forgotten" if label in forgotten else "",
            )
            for label in labels
        ],
    )


def relearning_table(record: Record) -> Table | None:
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


def cost_table(record: Record) -> Table | None:
    """Return what every phase took."""
    # Measuring has wall times of its own; elsewhere a record holds it beside the phases.
    seconds = {**record.seconds_measuring, **record.seconds}
    columns: Sequence[tuple[Mapping[str, float | None], Callable[[float | None], str]]] = (
        (seconds, as_seconds),
        (record.client_seconds, as_seconds),
        (record.rounds, as_count),
        (record.samples, as_count),
    )
    seen = {phase for costs, _ in columns for phase in costs} | {*record.bytes}
    phases = [phase for phase in PHASES if phase in seen]
    others = sorted(seen.difference(PHASES))
    if not phases:
        return None

    def cells(of: Sequence[str]) -> list[str]:
        texts = [show(sum_of([costs.get(phase) for phase in of])) for costs, show in columns]
        traffic = [known for phase in of if (known := record.bytes.get(phase)) is not None]
        texts.append(as_size(sum_of([one.up for one in traffic])))
        texts.append(as_size(sum_of([one.down for one in traffic])))
        return texts

    rows: list[tuple[str, Sequence[str], str]] = [(phase, cells([phase]), "") for phase in phases]
    request = [phase for phase in phases if phase not in _NOT_OF_THE_REQUEST]
    if len(request) > 1:
        rows.append((f"request ({' + '.join(request)})", cells(request), "total"))
    if others:
        rows.append(("asking and measuring", cells(others), ""))
    headings = ["wall time", "client time", "rounds", "samples", "bytes up", "bytes down"]
    return Table([], headings, rows)


def round_sizes(record: Record) -> Table | None:
    """Return what goes up in an answer that carries work, by phase, against the whole model.

    A client that has no data to work on sends a few numbers alone; where only sums are seen it
    sends as much as the others.
    """
    whole, sums = record.model_bytes, sums_alone(record)
    if not whole:
        return None
    rows: list[tuple[str, Sequence[str], str]] = []
    for phase in PHASES:
        rounds, traffic = record.rounds.get(phase), record.bytes.get(phase)
        up = None if traffic is None else traffic.up
        of_phase = [one for one in record.participation if one.phase == phase]
        answers = sum((one.answered if sums else _used(one)) or 0 for one in of_phase)
        if rounds and answers and up is not None:
            each = up / answers
            rows.append((phase, [as_count(rounds), as_size(each), as_share(each, whole)], ""))
    if not rows:
        return None
    rows.insert(0, ("the whole model", ["", as_size(whole), as_share(whole, whole)], "yardstick"))
    return Table([], ["rounds", "up, one answer", "of the model"], rows)


@dataclass(frozen=True)
class SpeedUpShown:
    """The speed-up's rows, and the times that they are made of."""

    table: Table
    retrain: str
    request: str
    overhead: str | None  # None where training paid nothing beforehand
    slower: bool  # than retraining


def speed_up_rows(record: Record) -> SpeedUpShown | None:
    """Return the speed-up rows and the times they are made of."""
    speed_up = record.speed_up
    if speed_up is None:
        return None
    spent = [t for phase, t in record.seconds.items() if phase not in _NOT_OF_THE_REQUEST]
    rows: list[tuple[str, Sequence[str], str]] = []
    if speed_up.request is not None:
        rows.append(("one request alone", [as_times(speed_up.request)], ""))
    paid = bool(speed_up.overhead_seconds)
    amortised = speed_up.amortised if paid else {}
    for count, value in sorted(amortised.items(), key=lambda item: int(item[0])):
        noun = "request" if int(count) == 1 else "requests"
        rows.append((f"amortised over {count} {noun}", [as_times(value)], ""))
    return SpeedUpShown(
        table=Table([], ["times shorter"], rows),
        retrain=as_seconds(record.seconds.get("retrain")),
        request=as_seconds(sum_of(spent)),
        overhead=as_seconds(speed_up.overhead_seconds) if paid else None,
        slower=speed_up.request is not None and speed_up.request < 1,
    )


def overhead_line(record: Record) -> str | None:
    """Return what distillation took of the training, None where there was none."""
    distillation = record.distillation
    if distillation is None:
        return None
    share, seconds = distillation.client_seconds_share, distillation.seconds
    if not share and not seconds:
        return None
    text = "Distillation, which training pays so that a request can be short, took "
    if share is not None:
        text += f"{as_number(100 * share)} % of the clients’ training time"
        return text + (f" ({as_seconds(seconds)})." if seconds is not None else ".")
    return text + f"{as_seconds(seconds)}."


def settings_rows(record: Record) -> list[tuple[str, str]]:
    """Return the settings that had a part in it, by name.

    A task of one's own takes nothing of the built-in networks; without synthetic data there is
    nothing to distill.
    """
    given = record.settings
    idle: tuple[str, ...] = ()
    if given.get("task"):
        idle += ("model",)
    if given.get("scale") == 0:
        idle += ("image", "distill")
    return sorted(
        (str(key), as_setting(value))
        for key, value in given.items()
        if str(key).partition("-")[0] not in idle
    )


def _has_forgotten(record: Record) -> str | None:
    if record.has_forgotten is None:
        return None
    return target_text(vars(record.has_forgotten), record.class_names) or None


_SUMS_ONLY: Final = "in sums alone: the coordinator saw no client's own (secure aggregation)"


def provenance_rows(record: Record) -> list[tuple[str, str]]:
    """Return who asked for what, and what ran where, as names and values."""
    lineage = " \N{RIGHTWARDS ARROW} ".join(
        version for version in (record.base_version, record.model_version) if version
    )
    data = [f"task {record.model}"] if record.settings.get("task") else []
    data += [record.dataset] if record.dataset else []
    if record.num_classes is not None:
        data.append("no classes" if record.num_classes == 1 else f"{record.num_classes} classes")
    names = record.class_names
    if len(names) <= _MOST_CLASSES_IN_TABLE and any(n != str(i) for i, n in enumerate(names)):
        data.append("called " + ", ".join(names))
    if record.num_train is not None:
        test = "" if record.num_test is None else f" and {as_count(record.num_test)} test"
        data.append(f"{as_count(record.num_train)} training{test} examples")
    split = [record.partition] if record.partition else []
    if record.num_clients is not None:
        split.append(clients_of(record))
    stored = None if record.storage is None else record.storage.updates
    rows = [
        ("Request", record.request),
        ("Asked by", record.asked_by),
        ("Why", record.why),
        ("Kind", record.kind),
        ("Method", record.method),
        ("Chosen by Efface", (record.chosen or {}).get("why")),
        ("Versions", lineage),
        ("Has forgotten", _has_forgotten(record)),
        ("Warnings", "; ".join(record.warnings) or None),
        ("Asked on", as_time(record.created)),
        ("Started", as_time(record.started)),
        ("Finished", as_time(record.finished)),
        ("Data set", ", ".join(data)),
        ("Partition", ", ".join(split)),
        ("Model", record.model),
        ("Engine", record.engine),
        ("Seed", record.seed),
        ("Answers", _SUMS_ONLY if record.settings.get("secure-aggregation") else None),
        (stored_updates(record), as_size(stored) if stored else None),
        ("Hardware", record.hardware),
        ("Commit", record.commit),
        ("Command", record.command),
    ]
    optional = {
        *("Started", "Finished", "Asked by", "Why", "Chosen by Efface", stored_updates(record)),
        *("Has forgotten", "Warnings", "Answers"),
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
