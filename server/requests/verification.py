"""Judging again what a request to forget made, as by one who was not there.

First what the record claims is checked as `efface audit` does. Then the version before, the result
and all retrained models that are there by now are measured by the functions that the request itself
used, and the verdict is decided anew: by the coordinator on its test examples, or where these do
not tell (it has none, or clients were forgotten) by the clients as well.

A verification is a request of its own: dated, with a record that the ledger seals. The record that
it is about stays as it is. Where the coordinator alone measures, it can be left unwritten.

It is long because what a verification takes over from the request, what it measures, and what it
says of differences must agree.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from flwr.app import ArrayRecord

from client.data.datasets import Data
from client.errors import BadSetting
from client.learning.models import ModelSpec
from server.evidence.features.scores import FeatureMeasures
from server.evidence.measures import Judge, measuring_device
from server.evidence.record import Record, Verifies
from server.evidence.scores import ModelScores
from server.evidence.serial import read
from server.evidence.stock import Retraining
from server.evidence.verdict import Limits, Verdict, decide
from server.nodes.federation import Cost, GridFederation, from_numpy
from server.requests import features, records, yardstick
from server.requests.claims import Claims, Subject, claimed
from server.requests.classes import check_as_trained
from server.requests.data import moved, own_samples, version_data
from server.requests.forgotten import check_data
from server.requests.yardstick import Yardstick, name_of
from server.settings import RunSettings, parse
from server.storage.home import Home
from server.storage.ledger import Ledger
from server.storage.registry import Registry
from server.storage.seal_check import Problem

# Points. The same weights on another machine may give an image or two another class.
SAME: Final = 0.5
SURER: Final = {
    "membership": "training examples",
    "client_relearning": "each half of the training examples when the other half was learned again",
}
LIMITS: Final = ("max-forget-accuracy", "max-relearning-gap")
# What a request was told and a verification is told anew, or takes the default of.
ANEW: Final = (
    *(*LIMITS, "data", "asked-by", "why", "by-default"),
    *("round-timeout", "join-timeout", "version", "request", "trial", "compare", "accept"),
    *("destroy", "allow-forgotten", "count"),
)


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
        again: The record with today's measures and verdict: the verification's own, or where that
            is not written down the request's with these in place of its own. None if nothing was
            measured.
        notes: What is to be said beside it.
        verification: Id of the verification; None if it was not written down.
        report: Its page, likewise.
        asked_clients: Whether clients measured anything anew.
    """

    request: str
    base: str
    version: str
    recorded: Record | None
    problems: tuple[Problem, ...]
    limits: Limits
    again: Record | None = None
    notes: tuple[str, ...] = ()
    verification: str | None = None
    report: str | None = None
    asked_clients: bool = False


@dataclass(frozen=True)
class Measures:
    """What was measured anew, and what follows."""

    original: ModelScores
    result: ModelScores
    stock: tuple[Retraining, ...]
    features: FeatureMeasures | None
    verdict: Verdict
    notes: tuple[str, ...]

    def of(self, record: Record) -> Record:
        """Return a record with them in place of its own."""
        return replace(
            record,
            original=self.original,
            retrained=self.stock[0].scores if self.stock else None,
            recovered=self.result,
            unlearned=None,
            stock=self.stock,
            features=self.features,
            verdict=self.verdict,
        )


def begun(claims: Claims, told: Mapping[str, Any]) -> Verified:
    """Return what is found before anything is measured.

    Args:
        claims: What was found of the request's claims.
        told: Settings that were given, by kebab-case key.

    Raises:
        BadSetting: If a limit is out of range.
    """
    subject = claims.subject
    limits = limits_of({**_by_key(widest(claims.row.settings)), **told})
    return Verified(
        claims.row.id,
        claims.before.id,
        claims.after.id,
        None if subject is None else subject.record,
        claims.problems,
        limits,
    )


def settings_of(subject: Subject, told: Mapping[str, Any], home: Home) -> RunSettings:
    """Return the settings of a verification: the request's own, and what it is told anew.

    Limits that it is not told are the widest that one may be recorded with (`widest`).

    Args:
        subject: What is judged again.
        told: Settings that were given, by kebab-case key.
        home: Where it is.

    Raises:
        BadSetting: If one is out of range, or names an engine that does not reach the clients.
    """
    own = subject.row.settings
    told = {key: value for key, value in told.items() if value != ""}
    kept = {key: value for key, value in own.items() if key not in ANEW}
    asked = {
        "mode": "verify",
        "verifies": subject.row.id,
        "method": subject.row.method,
        "home": str(home.path),
    }
    settings = parse({**kept, **_by_key(widest(own)), **told, **asked})
    if settings.simulated != parse(own).simulated:
        wanted = "inline or ray" if parse(own).simulated else "superlink"
        raise BadSetting(
            f"engine must be {wanted}, which reaches the clients of {subject.row.id}, got "
            f"{settings.engine}; leave --engine out"
        )
    return moved(settings) if settings.data else settings


def data_of(subject: Subject, settings: RunSettings) -> tuple[Data | None, tuple[str, ...]]:
    """Return the coordinator's data, without examples of its own, and what is to be said of them.

    Raises:
        BadSetting, DataError: If they cannot be read, or are others than the version's.
    """
    data = version_data(settings, subject.before)
    cautions = check_data(settings, subject.before, data)
    check_as_trained(subject.before.id, subject.before.card, data)
    if settings.server_samples:
        _, data = own_samples(settings, data)
    return data, (*(() if data is None else data.notes), *cautions)


def asks_clients(level: str | None, data: Data | None) -> bool:
    """Return whether clients must measure: of what a client held, or where only they have data."""
    return level == "client" or data is None or not len(data.test)


# ---- what is measured ---------------------------------------------------------------------------


def verified(
    home: Home,
    ledger: Ledger,
    identifier: str,
    told: Mapping[str, Any],
) -> Verified:
    """Judge again what a request made by the coordinator's own data; nothing is written.

    Args:
        home: Where it is.
        ledger: The home's.
        identifier: The request's id, or that of the version that it made.
        told: Settings that were given, by kebab-case key: limits, and where the data lie now.

    Raises:
        UnknownIdError: If there is no such request or version.
        BadSetting: If it is no request to forget, its result was not kept, or clients would have to
            be asked.
        PrunedError: If the weights before or after it were pruned.
    """
    claims = claimed(home, ledger, identifier)
    found, subject = begun(claims, told), claims.subject
    if subject is None:
        return found
    settings = settings_of(subject, told, home)
    data, said = data_of(subject, settings)
    row = subject.row
    if asks_clients(row.level, data):
        whose = "what a client held" if row.level == "client" else "what only clients have data of"
        raise BadSetting(
            f"verification must be written down where clients are asked, got --unrecorded for "
            f"{row.id}: {whose} is measured by them, and their answers are kept; leave "
            "--unrecorded out"
        )
    measures = measured(home, ledger, subject, settings, data, None)
    return replace(found, again=measures.of(subject.record), notes=(*said, *measures.notes))


def measured(
    home: Home,
    ledger: Ledger,
    subject: Subject,
    settings: RunSettings,
    data: Data | None,
    federation: GridFederation | None,
) -> Measures:
    """Measure the version before, the result and all retrained models that are kept; decide.

    Args:
        home: Where they are.
        ledger: The home's.
        subject: What is judged again.
        settings: The verification's.
        data: The coordinator's, without examples of its own.
        federation: The verification's, whose clients measure; None where the coordinator alone
            does.
    """
    row, (before, after) = subject.row, (subject.before, subject.after)
    forget = settings.forget
    limits = Limits(settings.max_forget_accuracy, settings.max_relearning_gap)
    registry = Registry(home, ledger, sweep=False)
    earlier = erased_before(subject)
    spec = settings.model_spec(data)
    judge = Judge(spec, data, forget, tuple(earlier["classes"]), measuring_device(settings.device))
    (first_spec, first), (result_spec, last) = (
        (ModelSpec.of_card(version.card["model"]), from_numpy(registry.load(version)[0]))
        for version in (before, after)
    )
    left: list[str] = []
    sealed = records.stock_hashes(home, ledger, row.federation)
    found, left_out = yardstick.stock(
        home.cache, settings, asdict(spec), forget, earlier, row.federation, ledger.erased, sealed
    )
    if federation is not None:  # those that come while it is stopped are no part of it
        numbers = federation.journal.value("stock", lambda: [one.number for one in found])
        found = [one for one in found if one.number in numbers]
    if federation is not None and found:
        judge = replace(judge, alone=federation.classes_alone())
    original = _scores(replace(judge, spec=first_spec), first, federation, "original")
    result = _scores(replace(judge, spec=result_spec), last, federation, "recovered")
    if changed := _other_data(found, federation):
        left.append(f"{', '.join(changed)} held other data when the retrained models were trained")
    stock = []
    for one in found:
        arrays, _, digest = yardstick.loaded(one.path, sealed)
        weights = from_numpy(arrays)
        scores = _scores(judge, weights, federation, name_of("retrained", one.number))
        own = (one.number, one.seed, one.path.name, digest)
        stock.append(Yardstick(scores, Cost(), True, weights, *own))
    retrained = stock[0] if stock else None
    known = (first_spec, first), (result_spec, last)
    below = features.measured(judge, federation, *known, retrained)
    retrainings = tuple(
        features.with_features(judge, federation, known[0], one, below) for one in stock
    )
    verdict = decide(
        forget.level,
        result,
        original=original,
        retrained=None if retrained is None else retrained.scores,
        limits=limits,
        erased_before=earlier["classes"],
        # No method is named: whoever verifies did not see it run.
        retrainings=retrainings,
        features=below,
    )
    measures = Measures(original, result, retrainings, below, verdict, ())
    notes = [*_beside(subject.record, measures.of(subject.record), parse(row.settings), limits)]
    if left_out:
        notes.append(f"retrained models left out, for they were trained on other data: {left_out}")
    return replace(measures, notes=(*notes, *left))


def _other_data(stock: Sequence[yardstick.Kept], federation: GridFederation | None) -> list[str]:
    """Return the clients that count their examples otherwise than when the stock was trained."""
    if federation is None or not stock:
        return []
    return [
        name
        for name, told in sorted(federation.described.items())
        if stock[0].data.get(name, told["count-train-per-class"]) != told["count-train-per-class"]
    ]


def erased_before(subject: Subject) -> dict[str, list[Any]]:
    """Return the "classes" and "clients" that the version before had forgotten."""
    return {name: list(subject.before.card["erased"][name]) for name in ("classes", "clients")}


def verifies(
    subject: Subject, federation: GridFederation, *, asked_clients: bool, notes: Sequence[str]
) -> Verifies:
    """Return what a verification's record says of the request that it is about."""
    told = [part.answered for part in federation.parts if part.phase == "evaluate"]
    row, verdict = subject.row, subject.record.verdict
    return Verifies(
        request=row.id,
        version=row.result_version,
        record_sha256=row.record_sha256,
        state=None if verdict is None else verdict.state,
        finished=None if row.finished is None else row.finished.isoformat(),
        asked_clients=asked_clients,
        measured_by=tuple(sorted({name for answered in told for name in answered})),
        notes=tuple(notes),
    )


def _scores(
    judge: Judge, weights: ArrayRecord, federation: GridFederation | None, name: str
) -> ModelScores:
    """Return what is measured of a model by its outputs."""
    if federation is None:
        scores = read(ModelScores, judge.quick(weights), "scores")
    else:
        scores = judge.full(weights, federation)
    return replace(scores, relearning_curve=yardstick.relearning(judge, weights, federation, name))


def _beside(record: Record, again: Record, asked: RunSettings, limits: Limits) -> Iterator[str]:
    """Return what differs from the request's own measuring."""
    own = Limits(asked.max_forget_accuracy, asked.max_relearning_gap)
    by_hand = [one.verdict is None or one.verdict.false_alarms is None for one in (record, again)]
    of_class = record.forget is not None and record.forget.level == "class"
    if own != limits and (
        any(by_hand) or (of_class and own.forget_accuracy != limits.forget_accuracy)
    ):
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
        for what, members in SURER.items():
            was, now = getattr(old, what, None), getattr(new, what, None)
            if was is not None and now is not None and abs(was - now) > SAME:
                yield (
                    f"how much surer {name} is of {members} is {now:+.1f} points now, and "
                    f"{was:+.1f} in the record"
                )
    both = [(old, new) for _, old, new in pairs if old is not None and new is not None]
    had, has = ({pair[side].client_relearning is not None for pair in both} for side in (0, 1))
    if had != has:
        yield "client relearning " + (
            "is measured now, and was not then" if True in has else "was then, and is not now"
        )
    shown = [old for _, old, _ in pairs if old is not None and old.membership is not None]
    if shown and (again.recovered is None or again.recovered.membership is None):
        yield (
            "how much surer the models are of the client's training examples was measured then, "
            "and not now: a site that has erased them looks at them no more"
        )
    gone = [one.number for one in record.stock if one.number not in {s.number for s in again.stock}]
    if gone:
        yield "retrained models that the request read and that are not kept any more: " + ", ".join(
            map(str, gone)
        )


def _of(then: dict[tuple[int, int], Retraining], one: Retraining) -> ModelScores | None:
    known = then.get((one.number, one.seed))
    return None if known is None else known.scores


def limits_of(values: Mapping[str, Any]) -> Limits:
    """Return the limits that settings name by their kebab-case keys, the defaults for the rest.

    Raises:
        BadSetting: If one is out of range.
    """
    told = parse({name: values[name] for name in LIMITS if name in values})
    return Limits(told.max_forget_accuracy, told.max_relearning_gap)


def widest(own: Mapping[str, Any]) -> Limits:
    """Return the widest limits of a verification that is recorded: no request chose them to pass.

    Args:
        own: Settings of the request that it is about. The narrower of its limits and the defaults
            holds.
    """
    asked, usual = limits_of(own), Limits()
    return Limits(
        min(asked.forget_accuracy, usual.forget_accuracy),
        min(asked.relearning_gap, usual.relearning_gap),
    )


def check_limits(subject: Subject, settings: RunSettings) -> None:
    """Check that a verification that is to be recorded is judged by no wider limits than `widest`.

    Raises:
        BadSetting: If one is wider.
    """
    asked = _by_key(Limits(settings.max_forget_accuracy, settings.max_relearning_gap))
    for name, most in _by_key(widest(subject.row.settings)).items():
        if asked[name] > most:
            raise BadSetting(
                f"{name} must be at most {most:g}, got {asked[name]:g}: a verification that is "
                f"recorded is judged by no wider limits than {subject.row.id} and the defaults; "
                f"leave --{name} out, or add --unrecorded to look only"
            )


def _by_key(limits: Limits) -> dict[str, float]:
    return dict(zip(LIMITS, (limits.forget_accuracy, limits.relearning_gap), strict=True))
