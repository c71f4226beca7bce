"""Carrying out one request: rounds, measuring, verdict, and the version that comes of it.

Either the new version enters the registry together with the request's new state, or nothing does.
A stopped request goes on where it was when it is carried out again.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from flwr.app import ArrayRecord

from client import wire
from client.data.datasets import DataSet
from client.errors import EffaceError
from client.files import write_atomic
from client.learning.models import ModelSpec, build
from client.seeds import generator
from client.wire import Describe, ForgetSpec
from server.evidence.measures import Judge, verdict
from server.nodes.federation import Cost, GridFederation, Round, from_numpy, to_numpy
from server.nodes.grid import NamedGrid
from server.provenance import code, command, commit, hardware
from server.requests import records
from server.requests.data import own_samples, server_data
from server.requests.progress import Listener
from server.requests.workspace import Workspace
from server.settings import RunSettings, essence, parse
from server.storage.history import History
from server.storage.journal import Journal
from server.storage.ledger import Outcome, RequestRow, VersionRow
from server.storage.registry import pack, unpack
from strategies.federation import Plan, Samples
from strategies.method import Needs
from strategies.methods.retraining import train
from strategies.rounds.base import ClientLost
from strategies.table import METHODS, method


class VerificationFailed(EffaceError):
    """The request ran, but its result did not forget; the old version stays in service."""

    code = "verification-failed"


class Unsettled(ClientLost):
    """Some nodes have made the request last and others not: it must go on, not begin anew."""

    code = "unsettled"


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

    def run(self) -> dict[str, Any]:
        """Do what the request asks for."""
        s = self.settings
        self.grid.wait_for(s.num_clients, s.join_timeout, without=self.workspace.absent(self.row))
        record = self.train() if self.row.kind == "train" else self.change()
        self.publish()
        return record

    # -- training --------------------------------------------------------------------------------

    def train(self) -> dict[str, Any]:
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
        record = self.record("train", federation, method="fedavg", lineage=self.row.token)
        record["original"] = scores
        self.fill(record, federation, kept)
        card = self.card(
            lineage=self.row.token,
            updates=self.row.token if s.keep_updates else None,
            erased={"classes": list(erased.classes), "clients": list(erased.clients)},
            scores=scores,
            training={phase: vars(cost) for phase, cost in federation.costs.items()},
        )
        self.commit(record, model, card, state="in-service", parent=None)
        return record

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

    def change(self) -> dict[str, Any]:
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
        model = from_numpy(arrays)
        record = self.record(row.kind, federation, method=row.method, lineage=card["lineage"])
        forgetting = row.kind == "forget"
        judge = replace(judge, spec=federation.spec)
        record["model_bytes"] = sum(array.nbytes for array in arrays.values())
        record["chosen"] = self.workspace.chosen(row)
        if record["chosen"] is not None:
            self.listener.note(f"method {row.method} was chosen: {record['chosen']['why']}")
        record["original"] = judge.full(model, federation)
        chosen = method(row.method, forget.level, s.options)
        usual = self._score_ascents(federation, judge)
        kept = self.workspace.history(card)
        if forgetting and chosen.needs.history and kept is not None:
            federation.history = kept.rounds
            if not s.trial:
                federation.keep = History(self.workspace.home.updates / row.token).keep
        act = chosen.forget if forgetting else chosen.relearn
        model = act(federation, model)
        federation.on_round = usual
        judge = replace(judge, spec=federation.spec)  # channels may have gone
        record["channels"] = federation.findings.get("channels")
        record["recovered" if forgetting else "relearned"] = judge.full(model, federation)
        if forgetting:
            self._compare(record, judge, federation, model)
            record["verdict"] = verdict(
                record,
                max_forget_accuracy=s.max_forget_accuracy,
                max_relearning_gap=s.max_relearning_gap,
            )
        else:
            root = self.workspace.registry.lineage(base.id)[-1]
            record["trained"] = self._trained_scores(root, judge, federation)
        self.fill(record, federation, kept)
        if forgetting and record["verdict"]["passed"] is False:
            self._refuse(record)
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
            scores=record["recovered" if forgetting else "relearned"],
            training=card["training"],
            updates=self._updates_after(card, replayed=chosen.needs.history),
            model=asdict(federation.spec),
        )
        state = "trial" if s.trial else "in-service"
        self.commit(record, model, new_card, state=state, parent=base.id)
        return record

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

    def _compare(
        self, record: dict[str, Any], judge: Judge, federation: GridFederation, model: ArrayRecord
    ) -> None:
        s = self.settings
        base = self.workspace.registry.load(str(self.row.base_version))[0]
        card = self.workspace.registry.load(str(self.row.base_version))[1]
        before = replace(judge, spec=ModelSpec.of_card(card["model"]))
        for name, weights, by in (
            ("original", from_numpy(base), before),
            ("recovered", model, judge),
        ):
            measure = functools.partial(by.relearning, weights)
            record[name]["relearning_curve"] = federation.journal.value(
                f"relearning-{name}", measure
            )
        if s.compare != "retrain":
            return
        scores, cost, cached = self.retrained(replace(judge, spec=self.spec), federation)
        record["retrained"] = scores
        federation.costs["retrain"] = cost
        record["retrain_cached"] = cached

    def retrained(
        self, judge: Judge, federation: GridFederation
    ) -> tuple[dict[str, Any], Cost, bool]:
        """Return the scores and cost of a model that never saw the data; cached by its inputs."""
        s = self.settings
        without = {
            key: value
            for key, value in s.training().items()
            if key not in ("scale", "distill-every", "distill-fraction", "keep-updates")
            and not key.startswith("image-")
        }
        inputs = {
            "training": without,
            "model": asdict(self.spec),
            "forget": asdict(federation.forget),
            "erased": [federation.common["erased_classes"], federation.common["erased_clients"]],
            "code": code("strategies.methods.retraining"),
            # Two federations may share every setting, and a site's data may change.
            "federation": self.row.federation,
            "data": federation.class_counts(),
        }
        digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
        path = self.workspace.home.cache / f"retrained-{digest}.safetensors"
        cached = path.exists()
        if cached:
            arrays, note = unpack(path.read_bytes(), path)
            cost, timeline = Cost(**note["cost"]), note.get("timeline", [])
            self.listener.note("retraining was found in the cache")
        else:
            own = self.federation(
                "retrain",
                judge,
                lineage=f"{self.row.token}-retrain",
                forget=federation.forget,
                erased=(federation.common["erased_classes"], federation.common["erased_clients"]),
            )
            model = self.fedavg(own, "retrain", scale=0)
            arrays, cost, timeline = to_numpy(model), own.costs["retrain"], own.notes
            note = {"cost": vars(cost), "inputs": inputs, "timeline": timeline}
            write_atomic(path, pack(arrays, note))
        weights = from_numpy(arrays)
        scores = judge.full(weights, federation)
        scores["relearning_curve"] = federation.journal.value(
            "relearning-retrained", lambda: judge.relearning(weights)
        )
        scores["timeline"] = timeline
        return scores, cost, cached

    def _trained_scores(
        self, root: VersionRow, judge: Judge, federation: GridFederation
    ) -> dict[str, Any]:
        """Return the first version's scores on this request's sets: what relearning aims at."""
        arrays, card = self.workspace.registry.load(root)
        return replace(judge, spec=ModelSpec.of_card(card["model"])).full(
            from_numpy(arrays), federation
        )

    def _refuse(self, record: dict[str, Any]) -> None:
        """Record a result that did not forget, without a version, and say so."""
        reason = "; ".join(record["verdict"]["reasons"])
        records.keep(self.workspace.home, record)
        self.workspace.ledger.fail(
            self.row.id,
            f"verification failed: {reason}",
            outcome(record),
            code=VerificationFailed.code,
        )
        self.publish()
        raise VerificationFailed(
            f"verification of {self.row.id} failed: {reason}. Version {record['base_version']} "
            f"stays in service; report: {record['report']}"
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
        self, kind: str, federation: GridFederation, *, method: str, lineage: str
    ) -> dict[str, Any]:
        """Return a request's record, to be filled."""
        s, forget = self.settings, federation.forget
        level = forget.level
        return {
            "format": 1,
            "request": self.row.id,
            "kind": kind,
            "method": method,
            "chosen": None,
            "engine": s.engine,
            "seed": s.seed,
            "created": self.row.created.isoformat(),
            "command": command(s if kind == "train" else replace(s, method=method), kind),
            "asked_by": self.row.asked_by,
            "why": self.row.why,
            "forget": None
            if level == "none"
            else {"level": level, "classes": list(forget.classes), "clients": list(forget.clients)},
            "erased_before": list(federation.common["erased_classes"]),
            "model_version": None,
            "base_version": self.row.base_version,
            "lineage": lineage,
            "dataset": s.dataset,
            "partition": s.partition,
            "model": self.spec.name,
            "num_clients": s.num_clients,
            "num_classes": self.spec.num_classes,
            "settings": s.plain(),
            "original": None,
            "retrained": None,
            "channels": None,
            "model_bytes": None,
            "unlearned": None,
            "recovered": None,
            "relearned": None,
            "hardware": hardware(),
            "commit": commit(),
            "report": str(self.workspace.home.reports / f"{self.row.id}.html"),
        }

    def fill(
        self, record: dict[str, Any], federation: GridFederation, kept: History | None
    ) -> None:
        """Put costs, timeline, storage and speed-up into a record."""
        costs = federation.costs
        record["seconds"] = {p: costs[p].seconds for p in records.PHASES if p in costs}
        record["seconds_measuring"] = {
            p: c.seconds for p, c in costs.items() if p not in records.PHASES
        }
        for key in ("rounds", "samples", "client_seconds"):
            record[key] = {p: getattr(costs[p], key) for p in records.PHASES if p in costs}
        record["bytes"] = {p: {"up": c.up, "down": c.down} for p, c in costs.items()}
        record["timeline"] = [n for n in federation.notes if "per_class_accuracy" in n]
        ascents = [n for n in record["timeline"] if n["phase"] == "unlearn"]
        if record["kind"] == "forget" and ascents:
            first = ascents[-1] if len(ascents) == 1 else _before_recovery(record["timeline"])
            record["unlearned"] = {
                key: first[key]
                for key in ("forget_accuracy", "retain_accuracy", "loss", "per_class_accuracy")
            }
        training = costs.get("train")
        if training is None and record["base_version"]:
            card = self.workspace.ledger.version(record["base_version"]).card
            if "train" in card["training"]:
                training = Cost(**card["training"]["train"])
        record["distillation"] = (
            None
            if training is None or not training.client_seconds
            else {
                "client_seconds_share": training.distill_seconds / training.client_seconds,
                "seconds": training.distill_seconds,
            }
        )
        record["storage"] = {
            "updates": 0 if kept is None else kept.num_bytes,
            "updates_seconds": None if training is None else training.keep_seconds,
            "synthetic": self._synthetic_bytes(federation, record["lineage"]),
        }
        kind = METHODS.get(record["method"])
        record["speed_up"] = speed_up(record, training, None if kind is None else kind.needs)

    def _synthetic_bytes(self, federation: GridFederation, lineage: str) -> int | None:
        """Return what the simulated clients' synthetic sets take; None where clients are real."""
        if not self.settings.simulated:
            return None
        stores = self.workspace.home.clients / federation.settings(Describe).population
        return sum(path.stat().st_size for path in stores.glob(f"*/{lineage}/*.safetensors"))

    def commit(
        self,
        record: dict[str, Any],
        model: ArrayRecord,
        card: dict[str, Any],
        *,
        state: Any,
        parent: str | None,
    ) -> None:
        """Enter the version and finish the request, in one transaction."""
        records.keep(self.workspace.home, record)  # first: a stop after the transaction finds it
        version = self.workspace.registry.commit(
            self.row.id,
            to_numpy(model),
            card,
            parent=parent,
            federation=self.row.federation,
            state=state,
            outcome=outcome(record),
        )
        record["model_version"] = version.id

    def publish(self) -> None:
        """Write the record and its report, and tidy up what a resume would have needed."""
        records.publish(self.workspace.home, self.workspace.ledger.request(self.row.id))


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


def outcome(record: Mapping[str, Any]) -> Outcome:
    """Return what the ledger keeps of a record."""
    after = record["relearned"] or record["recovered"] or record["original"]
    return Outcome(
        seconds=record.get("seconds", {}),
        bytes=record.get("bytes", {}),
        before=record["original"],
        after=after,
    )


def speed_up(
    record: Mapping[str, Any], training: Cost | None, needs: Needs | None
) -> dict[str, Any] | None:
    """Return how much shorter a request was than retraining, alone and amortised.

        amortised(q) = q * T_retrain / (T_overhead + q * T_request)

    T_request is scoring, unlearning and recovery; T_overhead what the method needs of training
    added to it: distillation, or keeping updates.
    """
    seconds = record["seconds"]
    request = sum(seconds.get(phase, 0.0) for phase in ("score", "unlearn", "recover"))
    if "retrain" not in seconds or request <= 0:
        return None
    overhead = 0.0
    if training is not None and training.client_seconds > 0 and needs is not None:
        if needs.synthetic_data:
            overhead += training.seconds * training.distill_seconds / training.client_seconds
        if needs.history:
            overhead += training.keep_seconds
    full = seconds["retrain"]
    return {
        "request": full / request,
        "amortised": {str(q): q * full / (overhead + q * request) for q in (1, 10, 100)},
        "overhead_seconds": overhead,
    }


def _before_recovery(timeline: list[dict[str, Any]]) -> dict[str, Any]:
    chosen = next(n for n in timeline if n["phase"] == "unlearn")
    for note in timeline:
        if note["phase"] == "recover":
            break
        if note["phase"] == "unlearn":
            chosen = note
    return chosen


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
