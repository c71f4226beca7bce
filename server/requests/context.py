"""The workings of one execution: its federation, its record, its version, its publication."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord

from client import wire
from client.data.identity import class_identities, class_sketches, identity
from client.errors import EffaceError
from client.learning.models import ModelSpec, build, state_of
from client.seeds import generator
from client.wire import ForgetSpec
from server.evidence.measures import Judge
from server.evidence.participation import gathered
from server.evidence.record import Forgotten, Record, Storage, Target
from server.evidence.serial import plain
from server.nodes.federation import Cost, GridFederation, Round, to_numpy
from server.nodes.grid import NamedGrid
from server.provenance import command, commit, hardware
from server.requests import costs, messages, records
from server.requests.classes import sizes
from server.requests.progress import Listener
from server.requests.resolved import ResolvedRequest
from server.requests.workspace import Workspace
from server.requests.yardstick import Yardstick
from server.settings import IMAGE_NETWORK, RunSettings, essence
from server.storage.history import History
from server.storage.journal import Journal
from server.storage.ledger import Outcome, RequestRow
from strategies.methods.retraining import train
from strategies.parts.averaging import PLAIN, Aggregation
from strategies.table import METHODS


@dataclass(frozen=True)
class Work:
    """What the steps of one execution share."""

    workspace: Workspace
    request: ResolvedRequest
    grid: NamedGrid
    listener: Listener

    @property
    def folder(self) -> Path:
        """The request's own folder."""
        return self.workspace.home.runs / self.request.id

    def fedavg(self, federation: GridFederation, phase: str, *, scale: int) -> ArrayRecord:
        """Run the whole of federated averaging from the seed's initial weights."""
        s = self.request.settings
        distillation = {
            "scale": scale,
            "image_start": s.image_start,
            "image_lr": s.image_lr,
            "image_steps": s.image_steps,
            "image_momentum": s.image_momentum,
            "image_batch": s.image_batch,
            "distill_every": s.distill_every,
            "distill_fraction": s.distill_fraction,
        }
        return train(federation, phase=phase, **distillation)

    def federation(
        self,
        journal: str,
        judge: Judge,
        *,
        lineage: str,
        forget: ForgetSpec,
        erased: Mapping[str, Sequence[Any]],
        model: Mapping[str, Any] | None = None,
    ) -> GridFederation:
        """Return the federation for one purpose of this request, with its own journal.

        Args:
            journal: Folder of its rounds, in the request's own.
            judge: Scores its rounds.
            lineage: Of the version that it starts from.
            forget: What its nodes leave out or forget.
            erased: "classes" and "clients" that earlier requests removed.
            model: A version's, as its card has it; without it, channels are neither pruned nor
                removed.
        """
        s, spec = self.request.settings, self.request.spec.base
        common = messages.common(
            s,
            spec if model is None else ModelSpec.of_card(model),
            erased,
            forget=forget,
            request=self.request.row.token,
            lineage=lineage,
        )
        removed = [list(erased["classes"]), list(erased["clients"])]
        inputs = {"code": wire.fingerprint(), "erased": removed}
        keep = Journal(self.folder / journal, {**essence(s.plain()), **inputs})

        def on_round(done: Round, model: ArrayRecord) -> dict[str, Any] | None:
            every = s.evaluate_every
            due = done.number == done.of or bool(every and done.number % every == 0)
            scores = replace(judge, spec=found.spec).quick(model) if due else None
            self.listener.round(done, scores)
            if not scores:
                return None
            return {"phase": done.phase, "round": done.number, **scores}

        found = GridFederation(
            self.grid,
            common,
            keep,
            on_round,
            clip=s.clip_updates,
            training=messages.ordinary(s),
            own_samples=self.request.samples,
            plan=messages.plan_of(s),
            first_weights=functools.partial(initial_weights, self.request.spec, s.seed),
            tell=self.listener.note,
            # In sums nobody but the nodes can clip.
            aggregation=PLAIN if s.secure_aggregation else Aggregation(s.aggregate, s.clip_updates),
        )
        return found

    def card(self, **values: Any) -> dict[str, Any]:
        """Return what to know about a version of this request."""
        data = self.request.data
        content = {
            "data_sha256": None if data is None else identity(data),
            "class_sha256": {} if data is None else class_identities(data),
            "class_sketch": {} if data is None else class_sketches(data),
        }
        known = {**content, **values}
        return version_card(self.request.settings, self.request.spec, self.request.row, **known)

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
        s, row, forget = self.request.settings, self.request.row, federation.forget
        spent = dict(federation.costs)
        if yardstick is not None:
            spent["retrain"] = yardstick.cost
        training = spent.get("train", training)
        rounds = costs.timeline(federation.notes)
        participation, absences = gathered(federation.parts)
        examples = sizes(s, self.request.data)
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
            has_forgotten=_forgotten(federation, forgetting=row.kind in ("forget", "verify")),
            warnings=tuple(self.workspace.warnings(row)),
            base_version=row.base_version,
            lineage=lineage,
            dataset=s.dataset,
            partition=s.partition,
            model=self.request.spec.task.title,
            num_clients=s.num_participants,
            num_classes=self.request.spec.num_classes,
            num_train=examples["num_train"],
            num_test=examples["num_test"],
            settings=s.plain(),
            retrained=None if yardstick is None else yardstick.scores,
            retrain_cached=None if yardstick is None else yardstick.cached,
            unlearned=costs.after_unlearning(rounds) if row.kind == "forget" else None,
            timeline=rounds,
            participation=participation,
            privacy=costs.privacy(federation.parts),
            absences=absences,
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
        simulation = self.request.settings.simulation
        if simulation is None:
            return None
        stores = self.workspace.home.clients / simulation.population
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
        found = replace(record, in_service=state == "in-service")
        kept = records.keep(self.workspace.home, found)
        self.workspace.registry.commit(
            self.request.row.id,
            to_numpy(model),
            card,
            parent=parent,
            federation=self.request.row.federation,
            state=state,
            outcome=outcome(record, kept),
        )

    def publish(self) -> Record:
        """Write the record and its report, and tidy up what a resume would have needed."""
        row = self.workspace.ledger.request(self.request.row.id)
        record = records.publish(self.workspace.home, self.workspace.ledger, row)
        if record is None:
            raise EffaceError(f"request {row.id} must have a record, got none: it is {row.state}")
        return record


def _forgotten(federation: GridFederation, *, forgetting: bool) -> Forgotten:
    """Return all that the result of a request has forgotten."""
    named = federation.forget if forgetting else ForgetSpec()
    earlier = federation.common
    return Forgotten(
        tuple(sorted({*earlier["erased_classes"], *named.classes})),
        tuple(sorted({*earlier["erased_clients"], *named.clients})),
    )


def initial_weights(spec: ModelSpec, seed: int) -> ArrayRecord:
    """Return a seed's initial weights of a model."""
    return ArrayRecord(state_of(spec, build(spec, generator(seed, "initial weights"))))


def version_card(
    settings: RunSettings, spec: ModelSpec, row: RequestRow, **values: Any
) -> dict[str, Any]:
    """Return what to know about a version: how its model was made, by what, on what."""
    of_others = IMAGE_NETWORK if settings.task else ()
    return {
        "settings": {k: v for k, v in settings.training().items() if k not in of_others},
        "data_dir": settings.data_dir,
        "model": asdict(spec),
        "request": row.id,
        "code": wire.fingerprint(),
        "hardware": hardware(),
        **values,
    }


def outcome(record: Record, sha256: str) -> Outcome:
    """Return what the ledger keeps of a record, whose SHA-256 `records.keep` returned."""
    return Outcome(
        seconds=plain(record.seconds),
        bytes=plain(record.bytes),
        before=plain(record.original),
        after=plain(record.result),
        record_sha256=sha256,
    )
