"""Carrying out one request: rounds, measuring, verdict, and the version that comes of it.

Either the new version enters the registry together with the request's new state, or nothing does.
A stopped request goes on where it was when it is carried out again.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Final

from flwr.app import ArrayRecord

from client.errors import EffaceError
from client.learning.models import ModelSpec
from client.wire import ForgetSpec
from server.evidence import wording
from server.evidence.measures import Judge, measuring_device
from server.evidence.record import Record
from server.evidence.scores import ModelScores
from server.evidence.serial import plain
from server.evidence.verdict import CreptBack, Limits, Verdict, decide
from server.format import target_text
from server.nodes.class_names import agreed_names
from server.nodes.federation import Cost, GridFederation, Round, from_numpy
from server.requests import classes, forgotten, records, verification
from server.requests.attendance import await_clients, settle_pending
from server.requests.claims import checked
from server.requests.context import Work, outcome
from server.requests.features import measured, with_features
from server.requests.orders import Order, order_of
from server.requests.yardstick import (
    MOST,
    Yardstick,
    inputs_of,
    name_of,
    of_number,
    of_other_code,
    path_of,
    relearning,
    retrained,
    seed_of,
)
from server.settings import RunSettings
from server.storage import keys
from server.storage.history import History
from server.storage.ledger import VersionRow
from strategies.parts import guard
from strategies.rounds.base import ClientLost
from strategies.smaller_steps import smaller_steps

FINGERPRINTS: Final = ("data_sha256", "class_sha256", "class_sketch")  # of data, in a card


class VerificationFailed(EffaceError):
    """The request ran, but did not forget; the old version stays in service.

    Attributes:
        record: The request's, with the verdict; None where only the reason is known.
    """

    code = "verification-failed"

    def __init__(
        self, message: str = "", *, see: str = "", record: Record | None = None, remedy: str = ""
    ) -> None:
        super().__init__(message, see=see)
        self.record, self.remedy = record, remedy


class NotShown(VerificationFailed):
    """The request ran, but too little was measured to say; the old version stays in service."""

    code = "not-shown"


class Unsettled(ClientLost):
    """Some nodes have made the request last and others not: it must go on, not begin anew."""

    code = "unsettled"


def execute(work: Work) -> Record:
    """Do what a request asks for, publish its record and return it.

    Raises:
        VerificationFailed: If its result may not enter service.
        Unsettled: If not all nodes made it last.
    """
    s, row = work.request.settings, work.request.row
    work.folder.mkdir(mode=0o700, exist_ok=True)
    if row.kind != "verify" or verification.asks_clients(row.level, work.request.data):
        await_clients(work.workspace, row, s, work.grid)
        settle_pending(work)
    for note in () if work.request.data is None else work.request.data.notes:
        work.listener.note(f"data: {note}")
    try:
        if row.kind == "train":
            _train(work)
        elif row.kind == "yardstick":
            _stock(work)
        elif row.kind == "verify":
            _verify(work)
        else:
            _change(work)
    except ClientLost as error:
        if not error.diverged:
            raise
        text = f"{error}; {_remedy(work, error.phase)}"
        raise ClientLost(text, failures=error.failures, phase=error.phase) from error
    return work.publish()


def _remedy(work: Work, phase: str) -> str:
    """Return what to change where a phase's steps went too far."""
    s, method = work.request.settings, work.request.method
    if method is None:
        less, now = f"--lr {s.lr / 10:g}", f"{s.lr:g}"
        if s.final_lr:
            less, now = f"{less} --final-lr {s.final_lr / 10:g}", f"{now} and {s.final_lr:g}"
        return f"train with smaller steps, such as {less} (now {now})"
    return smaller_steps(method, phase, s.forget.level, lr=s.lr, final_lr=s.final_lr)


def _train(work: Work) -> None:
    """Train a first version on all clients, and make their synthetic sets."""
    s = work.request.settings
    online = [node.name for node in work.grid.get_nodes()]
    forgotten.check_clients(work.workspace.ledger, work.request.row, s, online)
    erased = work.workspace.ledger.erased(work.request.row.federation)
    if erased.classes or erased.clients:
        known = () if work.request.data is None else work.request.data.class_names
        work.listener.note(
            "left out of training, because it was erased: " + target_text(vars(erased), known)
        )
    judge = _judge(work, ForgetSpec(), erased.classes)
    federation = work.federation(
        "journal",
        judge,
        lineage=work.request.row.token,
        forget=ForgetSpec(),
        erased={"classes": erased.classes, "clients": erased.clients},
    )
    names = _agreed_classes(work, federation)
    forgotten.check_names(work.workspace.ledger, work.request.row, s, names)
    kept = History(work.workspace.home.updates / work.request.row.token)
    if s.keep_updates:
        federation.keep, federation.keep_every = kept.keep, s.keep_updates
    model = work.fedavg(federation, "train", scale=s.scale)
    scores = judge.full(model, federation)
    record = work.record(
        federation,
        "fedavg",
        work.request.row.token,
        kept,
        training=None,
        original=scores,
        class_names=names,
    )
    card = work.card(
        lineage=work.request.row.token,
        data=classes.card_data(s, work.request.data, names, work.request.spec),
        updates=work.request.row.token if s.keep_updates else None,
        erased={"classes": list(erased.classes), "clients": list(erased.clients)},
        scores=plain(scores),
        training={phase: vars(cost) for phase, cost in federation.costs.items()},
    )
    work.commit(record, model, card, state="in-service", parent=None)


def _change(work: Work) -> None:
    """Forget or relearn, measure, judge, and put the result in service."""
    s, row = work.request.settings, work.request.row
    base, chosen = work.request.base, work.request.method
    if chosen is None:
        raise ValueError("method must be given to change a version, got None")
    card, forget = base.card, s.forget
    earlier, judge, federation = _on_base(work)
    if row.kind == "relearn":
        federation.common |= _order(work, federation).common
    _check_targets(work, federation, forget)
    names = _agreed_classes(work, federation, card)
    first = from_numpy(base.arrays)
    forgetting = row.kind == "forget"
    if forgetting and s.compare == "retrain":
        judge = replace(judge, alone=federation.classes_alone())
    before = replace(judge, spec=federation.spec)
    if (picked := work.workspace.chosen(row)) is not None:
        work.listener.note(f"method {row.method} was chosen: {picked['why']}")
    if forgetting and s.compare == "retrain":
        _sealed(work)  # what it cannot be compared by is said before any round
    original = before.full(first, federation)
    usual = _score_ascents(work, federation, before)
    kept = work.workspace.history(card)
    if forgetting and chosen.needs.history and kept is not None:
        federation.history = kept.rounds
        if not s.trial:
            federation.keep = History(work.workspace.home.updates / row.token).keep
    crept_back = None
    try:
        model = (chosen.forget if forgetting else chosen.relearn)(federation, first)
    except guard.CreptBack as error:  # a result that did not forget, to be shown as one
        model, crept_back = error.model, CreptBack(error.accuracy, error.threshold)
    federation.on_round = usual
    after = replace(judge, spec=federation.spec)  # channels may have gone
    result = after.full(model, federation)
    training = Cost(**card["training"]["train"]) if "train" in card["training"] else None
    compose = functools.partial(
        work.record,
        federation,
        row.method,
        card["lineage"],
        kept,
        training=training,
        model_bytes=sum(array.nbytes for array in base.arrays.values()),
        chosen=picked,
        class_names=names,
        channels=federation.findings.get("channels"),
    )
    if forgetting:
        original, result = (
            replace(scores, relearning_curve=relearning(by, weights, federation, name))
            for scores, by, weights, name in (
                (original, before, first, "original"),
                (result, after, model, "recovered"),
            )
        )
        known = (before.spec, first), (after.spec, model)
        stock = _retrained(work, federation) if s.compare == "retrain" else []
        yardstick = stock[0] if stock else None
        below = measured(judge, federation, *known, yardstick)
        retrainings = [with_features(judge, federation, known[0], one, below) for one in stock]
        verdict = decide(
            forget.level,
            result,
            original=original,
            retrained=None if yardstick is None else yardstick.scores,
            limits=Limits(s.max_forget_accuracy, s.max_relearning_gap),
            erased_before=earlier["classes"],
            method=row.method,
            crept_back=crept_back,
            retrainings=retrainings,
            features=below,
        )
        refused = not _admitted(verdict, s)
        record = compose(
            yardstick=yardstick,
            original=original,
            recovered=result,
            features=below,
            stock=tuple(retrainings),
            verdict=verdict,
            refused=refused,
        )
        if refused:
            _refuse(work, record, verdict)
    else:
        root = work.workspace.registry.lineage(base.row.id)[-1]
        trained = _trained_scores(work, root, after, federation)
        record = compose(original=original, relearned=result, trained=trained)
    if not s.trial:
        _settle(work, federation)
        signed = federation.attestations
        record = replace(record, attestations=tuple(signed[name] for name in sorted(signed)))
    gone = _plus(earlier, forget) if forgetting else earlier
    new_card = work.card(
        lineage=card["lineage"],
        data=card.get("data") or classes.card_data(s, work.request.data, names, work.request.spec),
        erased=gone,
        scores=plain(result if forgetting else _as_served(result, after, model, gone)),
        training=card["training"],
        updates=_updates_after(work, card, replayed=chosen.needs.history),
        model=asdict(federation.spec),
        # Of what the first version was trained on: the coordinator's own may be others now.
        **{
            key: card[key] for key in ("data_sha256", "class_sha256", "class_sketch") if key in card
        },
    )
    state = "trial" if s.trial else "in-service"
    work.commit(record, model, new_card, state=state, parent=base.row.id)


def _judge(work: Work, forget: ForgetSpec, erased: Sequence[int]) -> Judge:
    """Return what scores versions for a request."""
    request = work.request
    device = measuring_device(request.settings.device)
    return Judge(request.spec, request.data, forget, tuple(erased), device)


def _on_base(work: Work) -> tuple[dict[str, list[Any]], Judge, GridFederation]:
    """Return what was erased before a request on a version, its judge, and its federation."""
    card, forget = work.request.base.card, work.request.settings.forget
    earlier = _minus(card["erased"], forget)
    judge = _judge(work, forget, earlier["classes"])
    federation = work.federation(
        "journal",
        judge,
        lineage=card["lineage"],
        forget=forget,
        erased=earlier,
        model=card["model"],
    )
    return earlier, judge, federation


def _admitted(verdict: Verdict, settings: RunSettings) -> bool:
    """Return whether a version may be kept: a trial always, others by what the request accepts."""
    # Where recovery gave up, an open verdict says that sites contradict it: nothing to accept.
    accepted = ("passed",) if verdict.finding("crept-back") else ("passed", settings.accept)
    return settings.trial or verdict.state in accepted


def _as_served(
    scores: ModelScores, judge: Judge, model: ArrayRecord, gone: Mapping[str, Any]
) -> ModelScores:
    """Return a relearned version's scores: what came back counts as retained, the rest not."""
    named = tuple(gone["classes"])
    left = ForgetSpec("class", named) if named else ForgetSpec()
    now = replace(judge, forget=left, erased=()).quick(model)
    return replace(scores, heldout=None, **{"forget_accuracy": None, **now})


def _settle(work: Work, federation: GridFederation) -> None:
    """Have every node make the request last, and note those that were offline.

    Raises:
        Unsettled: If one did not. Synthetic sets may be destroyed already: a new request would find
            nothing to ascend on, while this one has its result.
    """
    order = _order(work, federation)
    federation.common |= order.common
    federation.site_keys = keys.site_keys(work.workspace.home.keys)
    try:
        reached = federation.settle(order.action, destroy=order.destroy)
    except ClientLost as error:
        raise Unsettled(f"{error}; the same command goes on from here") from error
    row = work.request.row
    away = [name for name in work.workspace.absent(row) if name not in reached]
    work.workspace.ledger.note_pending(row.id, away)
    for name in away:
        work.listener.note(
            f"{name} is offline: {row.id} waits there until a request reaches it "
            "(`efface forgotten`)"
        )


def _order(work: Work, federation: GridFederation) -> Order:
    """Return the request's order, signed now if it was not yet."""
    row, lineage = work.request.row, str(federation.common["lineage"])
    return order_of(work.workspace.home, row, work.request.settings, lineage)


def _updates_after(work: Work, card: Mapping[str, Any], *, replayed: bool) -> str | None:
    """Return the name of the stored updates that a changed version can be replayed from."""
    if work.request.row.kind != "forget" or work.request.settings.trial:
        return None  # what was relearned is in none of them
    if replayed:
        return work.request.row.token
    # Every update knows a forgotten class; without a client the others' are still sound.
    return card.get("updates") if work.request.settings.forget.level == "client" else None


def _agreed_classes(
    work: Work, federation: GridFederation, card: Mapping[str, Any] | None = None
) -> tuple[str, ...]:
    """Return the classes' names, if data and sites agree on them, and with the version's card.

    Raises:
        DataError: If they do not; nothing has started.
    """
    data = work.request.data
    names = None if data is None else data.class_names
    if card is not None:
        classes.check_as_trained(str(work.request.row.base_version), card, data)
        names = classes.card_names(card) or names
    if not work.request.settings.simulated:  # simulated clients share the coordinator's own data
        owner = "the coordinator" if data is not None else str(work.request.row.base_version)
        names = agreed_names(federation, names, owner)
    return tuple(names or ())


def _check_targets(work: Work, federation: GridFederation, forget: ForgetSpec) -> None:
    gone = work.workspace.absent(work.request.row)
    names = sorted(node.name for node in work.grid.get_nodes())
    for name in forget.clients:
        if name not in names and name not in gone:
            raise ClientLost(f"client must be online, got {name!r}; online: {', '.join(names)}")


def _score_ascents(
    work: Work, federation: GridFederation, judge: Judge
) -> Callable[[Round, ArrayRecord], dict[str, Any] | None]:
    """Score every round of ascent, `evaluate_every` or not; return the listener before."""
    usual = federation.on_round

    def watch(done: Round, model: ArrayRecord) -> dict[str, Any] | None:
        note = usual(done, model) or {"phase": done.phase, "round": done.number}
        if done.phase == "unlearn" and note.get("per_class_accuracy") is None:
            note |= replace(judge, spec=federation.spec).quick(model)
        return note

    federation.on_round = watch
    return usual


def _retrained(work: Work, federation: GridFederation) -> list[Yardstick]:
    """Return the retrained models that are there; number 0 is trained if there is none.

    Others that come while the request is stopped are no part of it: its steps are those it began.
    """
    inputs, cache = _inputs(work, federation), work.workspace.home.cache
    sealed = _sealed(work)
    paths = [path_of(cache, of_number(inputs, number)) for number in range(MOST)]
    # Of the others only those that a record has: whoever can write the folder could add some.
    there = [
        number
        for number, path in enumerate(paths)
        if path.exists() and (not number or not sealed or path.name in sealed)
    ]
    if others := of_other_code(cache, inputs):
        work.listener.note(
            f"retrained models of other code were left out: {others}; efface yardstick trains "
            "them anew"
        )
    numbers = federation.journal.value("stock", lambda: there or [0])
    return [_retraining(work, federation, inputs, number, sealed) for number in numbers]


def _sealed(work: Work) -> dict[str, str]:
    """Return what sealed records have of the retrained models."""
    workspace = work.workspace
    return records.stock_hashes(workspace.home, workspace.ledger, work.request.row.federation)


def _inputs(work: Work, federation: GridFederation) -> dict[str, Any]:
    """Return what number 0 depends on."""
    request = work.request
    return inputs_of(request.settings, asdict(request.spec), federation, request.row.federation)


def _seeded(work: Work, number: int) -> Work:
    """Return the same work with the seed of one retrained model."""
    s = work.request.settings
    settings = replace(s, seed=seed_of(s.seed, number))
    return replace(work, request=replace(work.request, settings=settings))


def _retraining(
    work: Work,
    federation: GridFederation,
    inputs: Mapping[str, Any],
    number: int,
    sealed: Mapping[str, str],
) -> Yardstick:
    """Return a model retrained without what this request and earlier ones forget."""
    seeded = _seeded(work, number)
    judge = _judge(work, federation.forget, federation.common["erased_classes"])
    judge = replace(judge, alone=federation.classes_alone())

    def train() -> tuple[ArrayRecord, GridFederation]:
        name = name_of("retrain", number)
        own = seeded.federation(
            name,
            judge,
            lineage=f"{work.request.row.token}-{name}",
            forget=federation.forget,
            erased={
                "classes": federation.common["erased_classes"],
                "clients": federation.common["erased_clients"],
            },
        )
        own.described |= federation.described  # the same examples, without their synthetic sets
        return seeded.fedavg(own, "retrain", scale=0), own

    return retrained(
        judge,
        federation,
        work.workspace.home.cache,
        of_number(inputs, number),
        train,
        work.listener.note,
        number,
        sealed,
    )


def _stock(work: Work) -> None:
    """Train the retrained models that a request asks for; nothing of what serves is changed."""
    s, row, base = work.request.settings, work.request.row, work.request.base
    card, forget = base.card, s.forget
    _, judge, federation = _on_base(work)
    _check_targets(work, federation, forget)
    names = _agreed_classes(work, federation, card)
    judge = replace(judge, alone=federation.classes_alone())
    original = (federation.spec, from_numpy(base.arrays))
    stock, models, inputs, sealed = [], [], _inputs(work, federation), _sealed(work)
    for number in range(s.count):
        work.listener.note(f"retrained model {number + 1} of {s.count}")
        models.append(_retraining(work, federation, inputs, number, sealed))
        stock.append(with_features(judge, federation, original, models[-1]))
    record = work.record(
        federation,
        row.method,
        card["lineage"],
        None,
        training=None,
        yardstick=models[0],
        class_names=names,
        stock=tuple(stock),
    )
    kept = records.keep(work.workspace.home, replace(record, in_service=False))
    work.workspace.ledger.finish(row.id, outcome(record, kept))


def _verify(work: Work) -> None:
    """Judge again what an earlier request made; its record and what serves stay as they are."""
    s, row, workspace = work.request.settings, work.request.row, work.workspace
    subject = checked(workspace.home, workspace.ledger, s.verifies)
    asks = verification.asks_clients(row.level, work.request.data)
    card = work.request.base.card
    _, _, federation = _on_base(work)
    names = classes.card_names(card) or ()
    if asks:
        _check_targets(work, federation, s.forget)
        names = _agreed_classes(work, federation, card)
    measures = verification.measured(
        workspace.home,
        workspace.ledger,
        subject,
        s,
        work.request.data,
        federation if asks else None,
    )
    notes = (*workspace.warnings(row), *measures.notes)
    record = work.record(
        federation,
        row.method,
        card["lineage"],
        None,
        training=None,
        class_names=tuple(names),
        verifies=verification.verifies(subject, federation, asked_clients=asks, notes=notes),
    )
    record = measures.of(replace(record, warnings=()))
    kept = records.keep(workspace.home, record)
    workspace.ledger.finish(row.id, outcome(record, kept))


def _trained_scores(
    work: Work, root: VersionRow, judge: Judge, federation: GridFederation
) -> ModelScores | None:
    """Return the first version's scores on this request's sets: what relearning aims at.

    None where its weights are destroyed, for it knew what was forgotten.
    """
    if root.id in work.workspace.ledger.pruned():
        return None
    arrays, card = work.workspace.registry.load(root)
    return replace(judge, spec=ModelSpec.of_card(card["model"])).full(
        from_numpy(arrays), federation
    )


def _refuse(work: Work, record: Record, verdict: Verdict) -> None:
    """Record a result that does not enter service, without a version, and say why.

    Raises:
        VerificationFailed: Always.
    """
    forget = work.request.settings.forget
    reason = wording.refusal(verdict, forget.level, forget.clients, record.class_names)
    kept = records.keep(work.workspace.home, replace(record, in_service=False))
    error = refusal(record, reason)
    work.workspace.ledger.fail(work.request.id, reason, outcome(record, kept), code=error.code)
    work.publish()
    raise error


def refusal(record: Record, reason: str) -> VerificationFailed:
    """Return the error that says why a result was turned away, what serves, and what can be done.

    Args:
        record: Of the request.
        reason: The ledger's.
    """
    text = f"{record.request}: {reason}. Version {record.base_version} stays in service"
    text += f"; report: {record.report}"
    if record.verdict is None:
        return VerificationFailed(text, record=record)
    kind = NotShown if record.verdict.state == "not-shown" else VerificationFailed
    told = wording.remedy(record.verdict, record.method or "") or ""
    return kind(f"{text}; {told}", record=record, remedy=told)


def _minus(erased: Mapping[str, Any], forget: ForgetSpec) -> dict[str, list[Any]]:
    return {
        "classes": [c for c in erased["classes"] if c not in forget.classes],
        "clients": [c for c in erased["clients"] if c not in forget.clients],
    }


def _plus(erased: Mapping[str, Any], forget: ForgetSpec) -> dict[str, list[Any]]:
    return {
        "classes": sorted({*erased["classes"], *forget.classes}),
        "clients": sorted({*erased["clients"], *forget.clients}),
    }
