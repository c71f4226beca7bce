"""Judging again what a request to forget made, as by one who was not there. Nothing is written.

First what the record claims is checked as `efface audit` does. Then the version before, the result
and all retrained models that are there by now are measured on the coordinator's test images, by the
functions that the request itself used, and the verdict is decided anew.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from flwr.app import ArrayRecord

from client.errors import BadSetting
from client.learning.models import ModelSpec
from server.evidence.measures import Judge, measuring_device
from server.evidence.record import Record
from server.evidence.scores import ModelScores
from server.evidence.serial import read
from server.evidence.stock import Retraining
from server.evidence.verdict import Limits, decide
from server.nodes.federation import Cost, from_numpy
from server.requests import attestations, audit, features, orders, records, yardstick
from server.requests.classes import check_as_trained
from server.requests.data import moved, own_samples, version_data
from server.requests.forgotten import check_data
from server.requests.yardstick import Yardstick
from server.settings import RunSettings, parse
from server.storage import keys
from server.storage.home import Home
from server.storage.ledger import Ledger, RequestRow, VersionRow
from server.storage.registry import Registry, unpack
from server.storage.seal_check import Checked, Problem

# Points. The same weights on another machine may give an image or two another class.
SAME: Final = 0.5


@dataclass(frozen=True)
class Verified:
    """What a request to forget is found to have made.

    Attributes:
        request: Its id.
        base: The version before, "Original".
        version: The result.
        recorded: Its record; None if it does not verify.
        problems: What of record, order, attestations, rows and weights does not verify. Nothing is
            measured then.
        limits: What it was judged by; the request may have been judged by others.
        again: The record with today's measures and verdict in place of its own, which nobody keeps.
            None if nothing was measured.
        notes: What is to be said beside it.
    """

    request: str
    base: str
    version: str
    recorded: Record | None
    problems: tuple[Problem, ...]
    limits: Limits
    again: Record | None = None
    notes: tuple[str, ...] = ()


def verified(
    home: Home,
    ledger: Ledger,
    identifier: str,
    limits: Limits | None = None,
    data_now: str = "",
) -> Verified:
    """Judge again what a request made.

    Args:
        home: Where it is; nothing is written.
        ledger: The home's.
        identifier: The request's id, or that of the version that it made.
        limits: What to judge by; the defaults if None.
        data_now: Where the version's data lie now, if they have moved.

    Raises:
        UnknownIdError: If there is no such request or version.
        BadSetting: If it is no request to forget, its result was not kept, or it can only be
            measured at the clients.
        PrunedError: If the weights before or after it were pruned.
    """
    limits = limits or Limits()
    row = _request(ledger, identifier)
    before, after = ledger.version(str(row.base_version)), ledger.version(str(row.result_version))
    checked = ledger.checked(home, every_signature=True)
    record, problems = _claims(home, ledger, row, (before, after), checked)
    found = Verified(row.id, before.id, after.id, record, tuple(problems), limits)
    if problems:
        return replace(found, recorded=None)
    if record is None:
        raise BadSetting(
            f"request must have a record to be compared with, got none of {row.id}",
            see="efface audit",
        )
    if row.level != "class":
        raise BadSetting(
            f"request must be one to forget classes, got {row.id}, of {', '.join(row.clients)}: "
            "what a client held is measured at the clients, who are asked only while a request "
            f"runs. Its record verifies; their accuracies of that time: efface show {row.id}"
        )
    registry = Registry(home, ledger, sweep=False)
    for version in (before, after):
        registry.check_kept(version)
    return _measured(home, ledger, registry, found, row, record, (before, after), data_now)


def _request(ledger: Ledger, identifier: str) -> RequestRow:
    """Return the request that is meant, one to forget whose result was kept."""
    if identifier.startswith("v"):
        row = ledger.request(ledger.version(identifier).request)
        named = f"{identifier}, made by {row.id}: {row.kind}"
    else:
        row = ledger.request(identifier)
        named = f"{row.id}: {row.kind}"
    if row.kind != "forget":
        raise BadSetting(f"request must be one to forget, got {named}", see="efface requests")
    if row.result_version is None or row.state != "done":
        why = f" ({row.reason})" if row.reason else ""
        raise BadSetting(
            f"request must have a result that was kept, got {row.id}, which is {row.state}{why}; "
            "the same command with --trial makes a result that is kept whatever its verdict",
            see=f"efface show {row.id}",
        )
    return row


def _claims(
    home: Home,
    ledger: Ledger,
    row: RequestRow,
    versions: Sequence[VersionRow],
    checked: Checked,
) -> tuple[Record | None, list[Problem]]:
    """Return a request's record, and what of its claims does not verify."""
    ids = {version.id for version in versions}
    wrong = [p for p in checked.problems if p.request in (row.id, None) or p.version in ids]
    wrong += records.problems_of(home, row)
    path = home.runs / row.id / orders.NAME
    if path.exists():
        found = orders.problems(path, row, keys.public_keys(home.keys))
        wrong += [Problem(text, row.id, file=str(file)) for text, file in found]
    for version in versions:
        wrong += audit.of_version(home, version, pruned=version.id in checked.pruned)
    if wrong:
        return None, list(dict.fromkeys(wrong))
    record = records.read(home, row)
    if record is not None and path.exists():
        wrong += attestations.problems(home, ledger, row, record, checked)
    return record, wrong


def _measured(
    home: Home,
    ledger: Ledger,
    registry: Registry,
    found: Verified,
    row: RequestRow,
    record: Record,
    versions: tuple[VersionRow, VersionRow],
    data_now: str,
) -> Verified:
    before, after = versions
    asked = parse(row.settings)
    settings = moved(replace(asked, data=data_now)) if data_now else asked
    data = version_data(settings, before)
    cautions = check_data(settings, before, data)
    check_as_trained(before.id, before.card, data)
    if settings.server_samples:
        _, data = own_samples(settings, data)
    if data is None or not len(data.test):
        raise BadSetting(
            f"coordinator must have test examples to measure {after.id} on, got none: only the "
            "clients have data, who are asked only while a request runs. The record of "
            f"{row.id} verifies; what they measured then: efface show {row.id}"
        )
    forget, limits = asked.forget, found.limits
    earlier = {name: list(before.card["erased"][name]) for name in ("classes", "clients")}
    spec = asked.model_spec(data)
    judge = Judge(spec, data, forget, tuple(earlier["classes"]), measuring_device(settings.device))
    (first_spec, first), (result_spec, last) = (
        (ModelSpec.of_card(version.card["model"]), from_numpy(registry.load(version)[0]))
        for version in versions
    )
    original = _scores(replace(judge, spec=first_spec), first)
    result = _scores(replace(judge, spec=result_spec), last)
    kept, left_out = yardstick.stock(
        home.cache, asked, asdict(spec), forget, earlier, row.federation, ledger.erased
    )
    stock = [
        Yardstick(_scores(judge, weights), Cost(), True, weights, one.number, one.seed)
        for one in kept
        for weights in [from_numpy(unpack(one.path.read_bytes(), one.path)[0])]
    ]
    retrained = stock[0] if stock else None
    known = (first_spec, first), (result_spec, last)
    below = features.measured(judge, None, *known, retrained)
    retrainings = tuple(features.with_features(judge, None, known[0], one, below) for one in stock)
    verdict = decide(
        forget.level,
        result,
        original=original,
        retrained=None if retrained is None else retrained.scores,
        limits=limits,
        erased_before=earlier["classes"],
        method=row.method,
        retrainings=retrainings,
        features=below,
    )
    again = replace(
        record,
        original=original,
        retrained=None if retrained is None else retrained.scores,
        recovered=result,
        unlearned=None,
        stock=retrainings,
        features=below,
        verdict=verdict,
    )
    notes = [*data.notes, *cautions, *_beside(record, again, asked, limits)]
    if left_out:
        notes.append(f"retrained models left out, for they were trained on other data: {left_out}")
    return replace(found, again=again, notes=tuple(notes))


def _scores(judge: Judge, weights: ArrayRecord) -> ModelScores:
    """Return what the coordinator measures of a model by its outputs."""
    curve = yardstick.relearning(judge, weights, None, "")
    return replace(read(ModelScores, judge.quick(weights), "scores"), relearning_curve=curve)


def _beside(record: Record, again: Record, asked: RunSettings, limits: Limits) -> Iterator[str]:
    """Return what differs from the request's own measuring."""
    own = Limits(asked.max_forget_accuracy, asked.max_relearning_gap)
    if own != limits:
        yield (
            f"the request was judged by other limits: forget accuracy {own.forget_accuracy:g} %, "
            f"relearning {own.relearning_gap:g} points"
        )
    if record.verdict is not None and record.verdict.finding("crept-back") is not None:
        yield "that the forget set crept back in recovery was seen then, and cannot be seen now"
    pairs: list[tuple[str, ModelScores | None, ModelScores | None]] = [
        ("Original", record.original, again.original),
        ("the result", record.recovered, again.recovered),
    ]
    then = {(one.number, one.seed): one for one in record.stock}
    pairs += [(f"Retrained {one.number}", _of(then, one), one.scores) for one in again.stock]
    for name, old, new in pairs:
        for what in ("forget_accuracy", "retain_accuracy", "curve_mean"):
            was, now = getattr(old, what, None), getattr(new, what, None)
            if was is not None and now is not None and abs(was - now) > SAME:
                words = {"curve_mean": "relearning"}.get(what, what.replace("_", " "))
                yield f"{words} of {name} is {now:.1f} % now, and {was:.1f} % in the record"
    gone = [one.number for one in record.stock if one.number not in {s.number for s in again.stock}]
    if gone:
        yield "retrained models that the request read and that are not kept any more: " + ", ".join(
            map(str, gone)
        )


def _of(then: dict[tuple[int, int], Retraining], one: Retraining) -> ModelScores | None:
    known = then.get((one.number, one.seed))
    return None if known is None else known.scores


def limits_of(values: dict[str, Any]) -> Limits:
    """Return the limits that settings name by their kebab-case keys, the defaults for the rest.

    Raises:
        BadSetting: If one is out of range.
    """
    names = ("max-forget-accuracy", "max-relearning-gap")
    told = parse({name: values[name] for name in names if name in values})
    return Limits(told.max_forget_accuracy, told.max_relearning_gap)
