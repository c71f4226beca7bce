"""Carrying out one request: rounds, measuring, verdict, and the version that comes of it.

Either the new version enters the registry together with the request's new state, or nothing does.
A stopped request goes on where it was when it is carried out again.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from flwr.app import ArrayRecord

from client import wire
from client.data.datasets import DataSet
from client.errors import EffaceError
from client.learning.models import ModelSpec, build
from client.seeds import generator
from client.wire import Describe, ForgetSpec
from server.evidence import wording
from server.evidence.measures import Judge
from server.evidence.record import Record, Storage, Target
from server.evidence.scores import ModelScores
from server.evidence.serial import plain
from server.evidence.verdict import CreptBack, Limits, Verdict, decide
from server.nodes.federation import Cost, GridFederation, Round, from_numpy, to_numpy
from server.nodes.grid import NamedGrid
from server.provenance import command, commit, hardware
from server.requests import costs, records
from server.requests.data import own_samples, server_data
from server.requests.progress import Listener
from server.requests.workspace import Workspace
from server.requests.yardstick import Yardstick, inputs_of, relearning, retrained
from server.settings import RunSettings, essence, parse
from server.storage.history import History
from server.storage.journal import Journal
from server.storage.ledger import Outcome, RequestRow, VersionRow
from strategies.federation import Plan, Samples
from strategies.methods.retraining import train
from strategies.parts import guard
from strategies.rounds.base import ClientLost
from strategies.table import METHODS, method


class VerificationFailed(EffaceError):
    """The request ran, but forgetting failed or is not shown; the old version stays in service."""


class Unsettled(ClientLost):
    """Some nodes have made the request last and others not: it must go on, not begin anew."""


@dataclass
class Work:
    """One execution of one request."""

    workspace: Workspace
    row: RequestRow
    grid: NamedGrid
    listener: Listener
    settings: RunSettings = field(init=False)
    data: DataSet | None = field(init=False)

    def __post_init__(self) -> None:
        self.settings = parse(self.row.settings)
        self.data = server_data(self.settings)
        self.spec = self.settings.model_spec(self.data)
        self.samples: Samples | None = None
        if self.settings.server_samples:
            self.samples, self.data = own_samples(self.settings, self.data)
        self.folder = self.workspace.home.runs / self.row.id
        self.folder.mkdir(mode=0o700, exist_ok=True)

    def run(self) -> Record:
        """Do what the request asks for, publish its record and return it."""
        s = self.settings
        self.grid.wait_for(s.num_clients, s.join_timeout, without=self.workspace.absent(self.row))
        if self.row.kind == "train":
            self.train()
        else:
            self.change()
        return self.publish()

    # -- training --------------------------------------------------------------------------------

    def train(self) -> None:
        """Train a first version on all clients, and make their synthetic sets."""
        s = self.settings
        erased = self.workspace.ledger.erased(self.row.federation)
        if erased.classes or erased.clients:
            self.listener.note(
                "left out of training, because it was erased: "
                + _named(erased.classes, erased.clients)
            )
        judge = Judge(self.spec, self.data, ForgetSpec(), erased.classes)
        federation = self.federation(
            "journal",
            judge,
            lineage=self.row.token,
            forget=ForgetSpec(),
            erased=(erased.classes, erased.clients),
        )
        kept = History(self.workspace.home.updates / self.row.token)
        if s.keep_updates:
            federation.keep, federation.keep_every = kept.keep, s.keep_updates
        model = self.fedavg(federation, "train", scale=s.scale)
        scores = judge.full(model, federation)
        record = self.record(
            federation, "fedavg", self.row.token, kept, training=None, original=scores
        )
        card = self.card(
            lineage=self.row.token,
            updates=self.row.token if s.keep_updates else None,
            erased={"classes": list(erased.classes), "clients": list(erased.clients)},
            scores=plain(scores),
            training={phase: vars(cost) for phase, cost in federation.costs.items()},
        )
        self.commit(record, model, card, state="in-service", parent=None)

    def fedavg(self, federation: GridFederation, phase: str, *, scale: int) -> ArrayRecord:
        """Run the whole of federated averaging from the seed's initial weights."""
        s = self.settings
        distillation = {
            "scale": scale,
            "image_lr": s.image_lr,
            "image_steps": s.image_steps,
            "image_momentum": s.image_momentum,
            "distill_every": s.distill_every,
            "distill_fraction": s.distill_fraction,
        }
        return train(federation, phase=phase, **distillation)

    # -- forgetting and relearning ---------------------------------------------------------------

    def change(self) -> None:
        """Forget or relearn, measure, judge, and put the result in service."""
        s, row = self.settings, self.row
        base = self.workspace.ledger.version(str(row.base_version))
        arrays, card = self.workspace.registry.load(base)
        forget = s.forget
        earlier = _minus(card["erased"], forget)
        judge = Judge(self.spec, self.data, forget, tuple(earlier["classes"]))
        federation = self.federation(
            "journal",
            judge,
            lineage=card["lineage"],
            forget=forget,
            erased=(earlier["classes"], earlier["clients"]),
            model=card["model"],
        )
        self._check_targets(federation, forget)
        first = from_numpy(arrays)
        forgetting = row.kind == "forget"
        before = replace(judge, spec=federation.spec)
        if (picked := self.workspace.chosen(row)) is not None:
            self.listener.note(f"method {row.method} was chosen: {picked['why']}")
        original = before.full(first, federation)
        chosen = method(row.method, forget.level, s.options)
        usual = self._score_ascents(federation, before)
        kept = self.workspace.history(card)
        if forgetting and chosen.needs.history and kept is not None:
            federation.history = kept.rounds
            if not s.trial:
                federation.keep = History(self.workspace.home.updates / row.token).keep
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
            self.record,
            federation,
            row.method,
            card["lineage"],
            kept,
            training=training,
            model_bytes=sum(array.nbytes for array in arrays.values()),
            chosen=picked,
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
            yardstick = self._retrained(federation) if s.compare == "retrain" else None
            verdict = decide(
                forget.level,
                result,
                original=original,
                retrained=None if yardstick is None else yardstick.scores,
                limits=Limits(s.max_forget_accuracy, s.max_relearning_gap),
                erased_before=earlier["classes"],
                method=row.method,
                crept_back=crept_back,
            )
            refused = crept_back is not None or not (
                s.trial or verdict.state == "passed" or verdict.state == s.accept
            )
            record = compose(
                yardstick=yardstick,
                original=original,
                recovered=result,
                verdict=verdict,
                refused=refused,
            )
            if refused:
                self._refuse(record, verdict)
        else:
            root = self.workspace.registry.lineage(base.id)[-1]
            trained = self._trained_scores(root, after, federation)
            record = compose(original=original, relearned=result, trained=trained)
        if not s.trial:
            destroy = s.destroy or forget.level == "client"
            try:
                federation.settle(row.kind, destroy=destroy)
            except ClientLost as error:
                # Synthetic sets may be destroyed already: a new request would find nothing to climb
                # on, while this one has its result.
                raise Unsettled(f"{error}; the same command goes on from here") from error
        gone = _plus(earlier, forget) if forgetting else earlier
        new_card = self.card(
            lineage=card["lineage"],
            erased=gone,
            scores=plain(result),
            training=card["training"],
            updates=self._updates_after(card, replayed=chosen.needs.history),
            model=asdict(federation.spec),
        )
        state = "trial" if s.trial else "in-service"
        self.commit(record, model, new_card, state=state, parent=base.id)

    def _updates_after(self, card: Mapping[str, Any], *, replayed: bool) -> str | None:
        """Return the name of the stored updates that a changed version can be replayed from."""
        if self.row.kind != "forget" or self.settings.trial:
            return None  # what was relearned is in none of them
        if replayed:
            return self.row.token
        # Every update knows a forgotten class; without a client the others' are still sound.
        return card.get("updates") if self.settings.forget.level == "client" else None

    def _check_targets(self, federation: GridFederation, forget: ForgetSpec) -> None:
        gone = self.workspace.absent(self.row)
        names = sorted(node.name for node in self.grid.get_nodes())
        for name in forget.clients:
            if name not in names and name not in gone:
                raise ClientLost(f"client must be online, got {name!r}; online: {', '.join(names)}")

    def _score_ascents(
        self, federation: GridFederation, judge: Judge
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

    def _retrained(self, federation: GridFederation) -> Yardstick:
        """Return Retrained, without what this request and earlier ones forget."""
        judge = Judge(
            self.spec, self.data, federation.forget, tuple(federation.common["erased_classes"])
        )

        def train() -> tuple[ArrayRecord, GridFederation]:
            own = self.federation(
                "retrain",
                judge,
                lineage=f"{self.row.token}-retrain",
                forget=federation.forget,
                erased=(federation.common["erased_classes"], federation.common["erased_clients"]),
            )
            return self.fedavg(own, "retrain", scale=0), own

        inputs = inputs_of(self.settings, asdict(self.spec), federation, self.row.federation)
        cache = self.workspace.home.cache
        return retrained(judge, federation, cache, inputs, train, self.listener.note)

    def _trained_scores(
        self, root: VersionRow, judge: Judge, federation: GridFederation
    ) -> ModelScores:
        """Return the first version's scores on this request's sets: what relearning aims at."""
        arrays, card = self.workspace.registry.load(root)
        return replace(judge, spec=ModelSpec.of_card(card["model"])).full(
            from_numpy(arrays), federation
        )

    def _refuse(self, record: Record, verdict: Verdict) -> None:
        """Record a result that does not enter service, without a version, and say why.

        Raises:
            VerificationFailed: Always.
        """
        forget = self.settings.forget
        told = wording.reasons(verdict, forget.level, forget.clients)
        missing = [wording.not_measured(m, forget.level) for m in verdict.missing]
        failed = verdict.state == "failed"
        told += [] if failed else [f"not measured: {text}" for text in missing]
        reason = "; ".join(told)
        head = "failed" if failed else "shows neither success nor failure"
        records.keep(self.workspace.home, replace(record, in_service=False))
        self.workspace.ledger.fail(self.row.id, f"verification {head}: {reason}", outcome(record))
        self.publish()
        remedy = "" if failed else f"; try {' or '.join(wording.remedies(verdict))}"
        raise VerificationFailed(
            f"verification of {self.row.id} {head}: {reason}. Version {record.base_version} "
            f"stays in service; report: {record.report}{remedy}"
        )

    # -- shared ----------------------------------------------------------------------------------

    def federation(
        self,
        journal: str,
        judge: Judge,
        *,
        lineage: str,
        forget: ForgetSpec,
        erased: tuple[Any, Any],
        model: Mapping[str, Any] | None = None,
    ) -> GridFederation:
        """Return the federation for one purpose of this request, with its own journal.

        `model` is a version's, as its card has it; without it, channels are neither pruned nor
        removed.
        """
        s = self.settings
        common = {
            "fingerprint": wire.fingerprint(),
            "request": self.row.token,
            "lineage": lineage,
            **s.common(self.spec),
            "scale": s.scale,
            "model_pruned": list((model or {}).get("pruned", ())),
            "model_compact": bool((model or {}).get("compact", False)),
            "forget_level": forget.level,
            "forget_classes": list(forget.classes),
            "forget_clients": list(forget.clients),
            "erased_classes": list(erased[0]),
            "erased_clients": list(erased[1]),
        }
        inputs = {"code": wire.fingerprint(), "erased": [list(erased[0]), list(erased[1])]}
        keep = Journal(self.folder / journal, {**essence(s.plain()), **inputs})

        def on_round(done: Round, model: ArrayRecord) -> dict[str, Any] | None:
            every = s.evaluate_every
            due = done.number == done.of or bool(every and done.number % every == 0)
            scores = replace(judge, spec=found.spec).quick(model) if due else None
            self.listener.round(done, scores)
            if not scores:
                return None
            return {"phase": done.phase, "round": done.number, **scores}

        training = {
            "steps": s.local_steps,
            "epochs": s.local_epochs,
            "batch_size": s.batch_size,
            "lr": s.lr,
            "momentum": s.momentum,
            "weight_decay": s.weight_decay,
            "proximal": s.proximal,
            "scale": 0,
        }
        found = GridFederation(
            self.grid,
            common,
            keep,
            on_round,
            training=training,
            own_samples=self.samples,
            plan=Plan(s.rounds, s.fraction, s.min_share),
            first_weights=functools.partial(initial_weights, self.spec, s.seed),
        )
        return found

    def card(self, **values: Any) -> dict[str, Any]:
        """Return what to know about a version of this request."""
        return version_card(self.settings, self.spec, self.row, **values)

    def record(
        self,
        federation: GridFederation,
        method: str,
        lineage: str,
        kept: History | None,
        *,
        training: Cost | None,
        yardstick: Yardstick | None = None,
        **measured: Any,
    ) -> Record:
        """Compose the request's record of its facts, its costs and what was measured.

        Args:
            federation: The request's own, after its last round.
            method: The method's name.
            lineage: The training whose synthetic sets are used.
            kept: Updates stored in training.
            training: What training cost; None where that is not known, or it is this request.
            yardstick: Retrained.
            measured: Further fields of `Record`.
        """
        s, row, forget = self.settings, self.row, federation.forget
        spent = dict(federation.costs)
        if yardstick is not None:
            spent["retrain"] = yardstick.cost
        training = spent.get("train", training)
        rounds = costs.timeline(federation.notes)
        needs = METHODS[method].needs if method in METHODS else None
        return Record(
            **vars(costs.measured(spent)),
            request=row.id,
            kind=row.kind,
            method=method,
            engine=s.engine,
            seed=s.seed,
            created=row.created.isoformat(),
            command=command(s if row.kind == "train" else replace(s, method=method), row.kind),
            asked_by=row.asked_by,
            why=row.why,
            forget=None
            if forget.level == "none"
            else Target(forget.level, forget.classes, forget.clients),
            erased_before=tuple(federation.common["erased_classes"]),
            base_version=row.base_version,
            lineage=lineage,
            dataset=s.dataset,
            partition=s.partition,
            model=self.spec.name,
            num_clients=s.num_clients,
            num_classes=self.spec.num_classes,
            settings=s.plain(),
            retrained=None if yardstick is None else yardstick.scores,
            retrain_cached=None if yardstick is None else yardstick.cached,
            unlearned=costs.after_unlearning(rounds) if row.kind == "forget" else None,
            timeline=rounds,
            distillation=costs.distillation(training),
            storage=Storage(
                updates=0 if kept is None else kept.num_bytes,
                updates_seconds=None if training is None else training.keep_seconds,
                synthetic=self._synthetic_bytes(federation, lineage),
            ),
            speed_up=costs.against_retraining(spent, training, needs),
            hardware=hardware(),
            commit=commit(),
            report=str(self.workspace.home.reports / f"{row.id}.html"),
            **measured,
        )

    def _synthetic_bytes(self, federation: GridFederation, lineage: str) -> int | None:
        """Return what the simulated clients' synthetic sets take; None where clients are real."""
        if not self.settings.simulated:
            return None
        stores = self.workspace.home.clients / federation.settings(Describe).population
        return sum(path.stat().st_size for path in stores.glob(f"*/{lineage}/*.safetensors"))

    def commit(
        self,
        record: Record,
        model: ArrayRecord,
        card: dict[str, Any],
        *,
        state: Any,
        parent: str | None,
    ) -> None:
        """Enter the version and finish the request, in one transaction."""
        # First: a stop after the transaction finds it.
        records.keep(self.workspace.home, replace(record, in_service=state == "in-service"))
        self.workspace.registry.commit(
            self.row.id,
            to_numpy(model),
            card,
            parent=parent,
            federation=self.row.federation,
            state=state,
            outcome=outcome(record),
        )

    def publish(self) -> Record:
        """Write the record and its report, and tidy up what a resume would have needed."""
        row = self.workspace.ledger.request(self.row.id)
        record = records.publish(self.workspace.home, row)
        if record is None:
            raise EffaceError(f"request {row.id} must have a record, got none: it is {row.state}")
        return record


def initial_weights(spec: ModelSpec, seed: int) -> ArrayRecord:
    """Return a seed's initial weights of a model."""
    return ArrayRecord(build(spec, generator(seed, "initial weights")).state_dict())


def version_card(
    settings: RunSettings, spec: ModelSpec, row: RequestRow, **values: Any
) -> dict[str, Any]:
    """Return what to know about a version: how its model was made, by what, on what."""
    return {
        "settings": settings.training(),
        "data_dir": settings.data_dir,
        "model": asdict(spec),
        "request": row.id,
        "code": wire.fingerprint(),
        "hardware": hardware(),
        **values,
    }


def outcome(record: Record) -> Outcome:
    """Return what the ledger keeps of a record."""
    return Outcome(
        seconds=plain(record.seconds),
        bytes=plain(record.bytes),
        before=plain(record.original),
        after=plain(record.result),
    )


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


def _named(classes: tuple[int, ...], clients: tuple[str, ...]) -> str:
    return ", ".join([f"class {c}" for c in classes] + [f"client {c}" for c in clients])
