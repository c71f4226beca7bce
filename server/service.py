"""Requests from arrival to verdict: train, forget, relearn.

`prepare_*` checks a request and writes it down; nothing has started when it fails. `execute` runs
what was written down on any engine's grid, and either a new version enters the registry together
with the request's new state, or nothing does. A stopped request goes on where it was when it is
executed again.
"""

import functools
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
from flwr.app import ArrayRecord

from client import datasets, site, wire
from client.datasets import DataSet
from client.errors import BadSetting, EffaceError
from client.models import ModelSpec, build
from client.seeds import generator
from client.splits import Split, pixel_statistics
from client.wire import Describe, ForgetSpec
from server import history, planning, records
from server.evaluation import Judge, verdict
from server.federation import Cost, GridFederation, Round, from_numpy, to_numpy
from server.grid import Interrupted, NamedGrid
from server.history import History
from server.home import Home, write_atomic, write_json
from server.journal import Journal
from server.ledger import Erased, Ledger, Outcome, RequestRow, VersionRow, database_url
from server.progress import Listener
from server.registry import Registry, pack, unpack
from server.settings import TRAINING, RunSettings, parse
from strategies.federation import Plan, Samples
from strategies.method import Needs
from strategies.methods import METHODS, method
from strategies.retraining import train
from strategies.rounds import ClientLost

CHOSEN: Final = "chosen.json"  # in a request's folder: which method was chosen for it, and why
PHASES: Final = ("train", "retrain", "score", "unlearn", "recover", "relearn")


class AlreadyDone(EffaceError):
    """The version has forgotten this already; nothing was changed."""


class VerificationFailed(EffaceError):
    """The request ran, but its result did not forget; the old version stays in service."""


class Unpublished(EffaceError):
    """The request is done and its version entered; only its report is not written yet."""


class Unsettled(ClientLost):
    """Some nodes have made the request last and others not: it must go on, not begin anew."""


@dataclass(frozen=True)
class _Checked:
    """A request on a version that has passed every check.

    `settings` are as they were asked; `method` is the one they name, or the one chosen.
    """

    settings: RunSettings
    method: str
    base: VersionRow
    situation: planning.Situation
    chosen: planning.Chosen | None

    @property
    def kind(self) -> str:
        return "forget" if self.settings.mode == "forget" else "relearn"


@dataclass
class Service:
    """The coordinator's work on one home."""

    home: Home
    ledger: Ledger
    registry: Registry

    @classmethod
    def open(cls, home: Home) -> "Service":
        """Open a home's ledger and registry, and publish what a stop left unpublished."""
        ledger = Ledger.open(database_url(home))
        service = cls(home, ledger, Registry(home, ledger))
        records.publish_left(home, ledger)
        service.sweep()
        return service

    def sweep(self) -> None:
        """Destroy what may not be kept any longer: stored updates, and rounds of a training.

        A stopped training whose data an erasure has named since is given up: going on, it would
        serve a model that knows them.
        """
        requests = self.ledger.requests()
        if any(self.home.updates.iterdir()):
            history.sweep(self.home, self.ledger, {token(row): row for row in requests})
        for row in requests:
            state = row.state
            if row.kind == "train" and state == "interrupted":
                erasure = self._erased_since(row, requests)
                if erasure is not None:
                    what = ForgetSpec(str(erasure.level), erasure.classes, erasure.clients)
                    reason = f"{what} was erased since ({erasure.id}), and its rounds know it"
                    state = self.ledger.abort(row.id, f"{reason}; train again").state
            if state in ("failed", "aborted"):
                records.forget_rounds(self.home, row)

    def _erased_since(self, row: RequestRow, requests: list[RequestRow]) -> RequestRow | None:
        """Return the first erasure in service that was done after a request arrived, or None."""
        trials = {v.request for v in self.ledger.versions() if v.state == "trial"}
        for later in requests:
            done = (later.kind, later.state) == ("forget", "done") and later.id not in trials
            same = later.federation == row.federation
            if done and same and later.finished is not None and later.finished > row.created:
                return later
        return None

    def history(self, card: Mapping[str, Any]) -> History | None:
        """Return the updates that a version's training left, or None if there are none."""
        if not card.get("updates"):
            return None
        found = History(self.home.updates / card["updates"])
        return None if found.empty else found

    # ---- arrival -------------------------------------------------------------------------------

    def prepare(self, settings: RunSettings) -> RequestRow:
        """Check a request and write it down; an interrupted one that is the same is taken up.

        Raises:
            BadSetting: If something asked for is unknown or out of range.
            AlreadyDone: If the version has forgotten the same thing already.
        """
        if settings.mode == "request":
            return self.ledger.request(settings.request)
        settings = settings.rooted()
        if settings.mode == "train":
            return self._prepare_train(settings)
        return self._prepare_change(settings)

    def _prepare_train(self, settings: RunSettings) -> RequestRow:
        settings.check_training()
        data = server_data(settings)
        check_simulation(settings, data)
        check_shares(settings, data)
        if data is None and not settings.holdout:
            raise BadSetting(
                "holdout must be positive when the coordinator has no data, got 0: nothing could "
                "be measured"
            )
        build(settings.model_spec(data), torch.Generator())
        federation = federation_name(settings)
        return self._write_down(
            settings, kind="train", method="fedavg", federation=federation, forget=ForgetSpec()
        )

    def _prepare_change(self, settings: RunSettings) -> RequestRow:
        checked = self._checked(settings)
        row = self._write_down(
            checked.settings,
            kind=checked.kind,
            method=checked.method,
            federation=checked.base.federation,
            forget=checked.settings.forget,
            base=checked.base.id,
        )
        note = self.home.runs / row.id / CHOSEN
        if checked.chosen is not None and not note.exists():  # one taken up keeps its method
            note.parent.mkdir(mode=0o700, exist_ok=True)
            write_json(note, asdict(checked.chosen))
        return row

    def plan(self, settings: RunSettings) -> dict[str, Any]:
        """Check a request to forget as `prepare` does and return what it will take.

        Nothing is written down, and no node is asked.

        Raises:
            BadSetting, AlreadyDone: As `prepare`.
        """
        checked = self._checked(settings.rooted())
        told, base = checked.settings, checked.base
        same = self._interrupted(told, "forget", base.federation, base.id)
        name = checked.method if same is None else same.method
        chosen = None if checked.chosen is None else asdict(checked.chosen)
        return {
            "format": 1,
            "changed": False,
            "kind": "forget",
            "method": name,
            "chosen": chosen if same is None else self.chosen(same),
            "forget": asdict(told.forget),
            "base_version": base.id,
            "federation": base.federation,
            "engine": told.engine,
            "takes_up": None if same is None else same.id,
            **checked.situation.document(name),
        }

    def chosen(self, row: RequestRow) -> dict[str, Any] | None:
        """Return why a request's method was chosen; None where the request named it."""
        if row.settings["method"] != planning.AUTO:
            return None
        found: dict[str, Any] = json.loads((self.home.runs / row.id / CHOSEN).read_text())
        return found

    def _checked(self, settings: RunSettings) -> _Checked:
        base = self.registry.resolve(settings.version or None)
        settings = inherited(settings, base)
        forget = settings.forget
        if forget.level == "none":
            raise BadSetting(
                "request must name classes or clients, got nothing; "
                "try --class 9 or --client client-0"
            )
        automatic = settings.method == planning.AUTO
        if automatic and settings.options:
            raise BadSetting(
                "option must be for a method that is named, got method auto with "
                f"{settings.method_options!r}; name the method, or leave --set out"
            )
        if not automatic:
            method(settings.method, forget.level, settings.options)
        data = server_data(settings)
        check_simulation(settings, data)
        spec = settings.model_spec(data)
        out = [c for c in forget.classes if c >= spec.num_classes]
        if out:
            raise BadSetting(f"class must lie in [0, {spec.num_classes}), got {out[0]}")
        erased = self.ledger.erased(base.federation)
        situation = self._situation(settings, base, data)
        chosen = None
        if automatic:
            forgetting = settings.mode == "forget"
            chosen = situation.choose() if forgetting else self._as_forgotten(erased, forget)
        elif settings.mode == "forget":
            situation.check(settings.method)
        asked = settings
        if chosen is not None:
            settings = replace(settings, method=chosen.method)
        version_erased = base.card["erased"]
        if settings.mode == "forget":
            done = [c for c in forget.classes if c in version_erased["classes"]]
            gone = [c for c in forget.clients if c in version_erased["clients"]]
            rest = len(forget.classes) + len(forget.clients) - len(done) - len(gone)
            if (done or gone) and rest:
                raise BadSetting(
                    f"request must name only what version {base.id} knows, got "
                    f"{ForgetSpec(forget.level, tuple(done), tuple(gone))}, which is forgotten "
                    "already; leave that out"
                )
            if done or gone:
                by = (
                    erased.class_requests.get(done[0], "an earlier request")
                    if done
                    else erased.client_requests.get(gone[0], "an earlier request")
                )
                raise AlreadyDone(
                    f"version {base.id} has forgotten "
                    f"{ForgetSpec(forget.level, tuple(done), tuple(gone))} already ({by}); "
                    "nothing was changed"
                )
            if len({*forget.classes, *version_erased["classes"]}) >= spec.num_classes - 1:
                raise BadSetting("request must leave at least two classes, got one that does not")
        else:
            if base.card["model"].get("pruned"):
                raise BadSetting(
                    f"relearning must start from a version with all its channels, got {base.id}, "
                    "whose pruned channels cannot be trained back; train again, or keep it so"
                )
            if not METHODS[settings.method].needs.relearning:
                raise BadSetting(
                    f"method {settings.method} must be able to relearn, got one that cannot: "
                    "what it removes cannot be trained back; choose another method"
                )
            never = [c for c in forget.classes if c not in version_erased["classes"]]
            never_clients = [c for c in forget.clients if c not in version_erased["clients"]]
            if never or never_clients:
                what = ForgetSpec(forget.level, tuple(never), tuple(never_clients))
                raise BadSetting(
                    f"relearning must name what version {base.id} has forgotten, got {what}; "
                    "see `efface requests`"
                )
        serving = self.ledger.in_service(base.federation)
        if not settings.trial and serving is not None and serving.id != base.id:
            raise BadSetting(
                f"version must be the one in service ({serving.id}), got {base.id}, which may "
                "know what was erased since; leave --version out, or add --trial to experiment"
            )
        if settings.forget.level == "client":
            self._check_clients(settings)
        return _Checked(asked, settings.method, base, situation, chosen)

    def _situation(
        self, settings: RunSettings, base: VersionRow, data: DataSet | None
    ) -> planning.Situation:
        root = self.registry.lineage(base.id)[-1]
        samples = 0
        if settings.server_samples:
            samples = len(own_samples(settings, data)[0].labels)
        return planning.Situation(
            settings=settings,
            base=base,
            spec=_spec(base.card["model"]),
            data=data,
            shares=shares(settings, data),
            kept=self.history(base.card),
            check_samples=check_samples,
            server_examples=samples,
            trained_on=self.ledger.request(root.request).settings["engine"],
            trained_by=root.card["hardware"],
            machine=hardware(),
        )

    def _as_forgotten(self, erased: Erased, forget: ForgetSpec) -> planning.Chosen:
        """Return the method by which something was forgotten: it knows how to bring it back.

        Raises:
            BadSetting: If nothing of it was.
        """
        found = [
            *(erased.class_requests.get(label) for label in forget.classes),
            *(erased.client_requests.get(name) for name in forget.clients),
        ]
        for request in filter(None, found):
            row = self.ledger.request(request)
            return planning.Chosen(row.method, f"{forget} was forgotten by it in {request}")
        raise BadSetting(
            f"relearning must name what has been forgotten, got {forget}; see `efface requests`"
        )

    def absent(self, row: RequestRow) -> tuple[str, ...]:
        """Return the clients that a request can do without.

        They are those that were erased earlier, and those that it names if its method does not ask
        them. Should one come back, every message tells the nodes that it is erased.
        """
        gone = self.ledger.erased(row.federation).clients
        if row.kind != "forget" or METHODS[row.method].needs.target_online:
            return tuple(c for c in gone if c not in row.clients)
        return tuple({*gone, *row.clients})

    def _check_clients(self, settings: RunSettings) -> None:
        if settings.engine == "superlink":
            return  # names are the SuperLink's; an unknown one is refused when the nodes are asked
        known = {f"client-{i}" for i in range(settings.num_clients)}
        for name in settings.forget.clients:
            if name not in known:
                raise BadSetting(
                    f"client must be one of client-0 to client-{settings.num_clients - 1}, "
                    f"got {name!r}"
                )

    def _write_down(
        self,
        settings: RunSettings,
        *,
        kind: Any,
        method: str,
        federation: str,
        forget: ForgetSpec,
        base: str | None = None,
    ) -> RequestRow:
        return self._interrupted(settings, kind, federation, base) or self.ledger.new_request(
            kind=kind,
            method=method,
            federation=federation,
            level=None if forget.level == "none" else forget.level,  # type: ignore[arg-type]
            classes=forget.classes,
            clients=forget.clients,
            settings=settings.plain(),
            base_version=base,
            asked_by=settings.asked_by,
            why=settings.why,
        )

    def _interrupted(
        self, settings: RunSettings, kind: str, federation: str, base: str | None
    ) -> RequestRow | None:
        """Return the request that was interrupted and asked for the same, if there is one."""
        for row in self.ledger.requests(federation, state="interrupted"):
            same = row.kind == kind and row.base_version == base
            if same and essence(row.settings) == essence(settings.plain()):
                return row
        return None

    # ---- work ----------------------------------------------------------------------------------

    def execute(self, request_id: str, grid: NamedGrid, listener: Listener) -> dict[str, Any]:
        """Run a request that was written down and return its record.

        Raises:
            VerificationFailed: If the result did not forget.
            Unpublished: If all was done but the report.
            EffaceError: If the request cannot be carried out; it is then `failed`.
            KeyboardInterrupt, Interrupted, Unsettled: If it was stopped; it is then `interrupted`.
        """
        row = self.ledger.start(request_id)
        try:
            return _Work(self, row, grid, listener).run()
        except BaseException as error:
            now = self.ledger.request(request_id)
            if now.state != "running":
                if isinstance(error, EffaceError):
                    raise
                raise _unpublished(now, error) from error
            if isinstance(error, EffaceError) and not isinstance(error, Interrupted | Unsettled):
                self.ledger.fail(request_id, str(error))
            else:
                self.ledger.interrupt(request_id, _stop_reason(error))
            raise
        finally:
            self.sweep()


@dataclass
class _Work:
    """One execution of one request."""

    service: Service
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
        self.folder = self.service.home.runs / self.row.id
        self.folder.mkdir(mode=0o700, exist_ok=True)

    def run(self) -> dict[str, Any]:
        """Do what the request asks for."""
        s = self.settings
        self.grid.wait_for(s.num_clients, s.join_timeout, without=self.service.absent(self.row))
        record = self.train() if self.row.kind == "train" else self.change()
        self.publish()
        return record

    # -- training --------------------------------------------------------------------------------

    def train(self) -> dict[str, Any]:
        """Train a first version on all clients, and make their synthetic sets."""
        s = self.settings
        erased = self.service.ledger.erased(self.row.federation)
        if erased.classes or erased.clients:
            self.listener.note(
                "left out of training, because it was erased: "
                + _named(erased.classes, erased.clients)
            )
        judge = Judge(self.spec, self.data, ForgetSpec(), erased.classes)
        federation = self.federation(
            "journal",
            judge,
            lineage=token(self.row),
            forget=ForgetSpec(),
            erased=(erased.classes, erased.clients),
        )
        kept = History(self.service.home.updates / token(self.row))
        if s.keep_updates:
            federation.keep, federation.keep_every = kept.keep, s.keep_updates
        model = self.fedavg(federation, "train", scale=s.scale)
        scores = judge.full(model, federation)
        record = self.record("train", federation, method="fedavg", lineage=token(self.row))
        record["original"] = scores
        self.fill(record, federation, kept)
        card = self.card(
            lineage=token(self.row),
            updates=token(self.row) if s.keep_updates else None,
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
        base = self.service.ledger.version(str(row.base_version))
        arrays, card = self.service.registry.load(base)
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
        record["chosen"] = self.service.chosen(row)
        if record["chosen"] is not None:
            self.listener.note(f"method {row.method} was chosen: {record['chosen']['why']}")
        record["original"] = judge.full(model, federation)
        chosen = method(row.method, forget.level, s.options)
        usual = self._score_ascents(federation, judge)
        kept = self.service.history(card)
        if forgetting and chosen.needs.history and kept is not None:
            federation.history = kept.rounds
            if not s.trial:
                federation.keep = History(self.service.home.updates / token(row)).keep
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
            root = self.service.registry.lineage(base.id)[-1]
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
            return token(self.row)
        # Every update knows a forgotten class; without a client the others' are still sound.
        return card.get("updates") if self.settings.forget.level == "client" else None

    def _check_targets(self, federation: GridFederation, forget: ForgetSpec) -> None:
        gone = self.service.absent(self.row)
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
        base = self.service.registry.load(str(self.row.base_version))[0]
        card = self.service.registry.load(str(self.row.base_version))[1]
        before = replace(judge, spec=_spec(card["model"]))
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
            "code": wire.fingerprint(),
            # Two federations may share every setting, and a site's data may change.
            "federation": self.row.federation,
            "data": federation.class_counts(),
        }
        digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
        path = self.service.home.cache / f"retrained-{digest}.safetensors"
        cached = path.exists()
        if cached:
            arrays, note = unpack(path.read_bytes(), path)
            cost, timeline = Cost(**note["cost"]), note.get("timeline", [])
            self.listener.note("retraining was found in the cache")
        else:
            own = self.federation(
                "retrain",
                judge,
                lineage=f"{token(self.row)}-retrain",
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
        arrays, card = self.service.registry.load(root)
        return replace(judge, spec=_spec(card["model"])).full(from_numpy(arrays), federation)

    def _refuse(self, record: dict[str, Any]) -> None:
        """Record a result that did not forget, without a version, and say so."""
        reason = "; ".join(record["verdict"]["reasons"])
        records.keep(self.service.home, record)
        self.service.ledger.fail(self.row.id, f"{records.REFUSED}: {reason}", outcome(record))
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
            "request": token(self.row),
            "lineage": lineage,
            **s.told(self.spec),
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
            first_weights=self.initial,
        )
        return found

    def initial(self) -> ArrayRecord:
        """Return the seed's initial weights."""
        network = build(self.spec, generator(self.settings.seed, "initial weights"))
        return ArrayRecord(network.state_dict())

    def card(self, **values: Any) -> dict[str, Any]:
        """Return what to know about a version."""
        return {
            "settings": self.settings.training(),
            "data_dir": self.settings.data_dir,
            "model": asdict(self.spec),
            "request": self.row.id,
            "code": wire.fingerprint(),
            "hardware": hardware(),
            **values,
        }

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
            "report": str(self.service.home.reports / f"{self.row.id}.html"),
        }

    def fill(
        self, record: dict[str, Any], federation: GridFederation, kept: History | None
    ) -> None:
        """Put costs, timeline, storage and speed-up into a record."""
        costs = federation.costs
        record["seconds"] = {p: costs[p].seconds for p in PHASES if p in costs}
        record["seconds_measuring"] = {p: c.seconds for p, c in costs.items() if p not in PHASES}
        for key in ("rounds", "samples", "client_seconds"):
            record[key] = {p: getattr(costs[p], key) for p in PHASES if p in costs}
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
            card = self.service.ledger.version(record["base_version"]).card
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
        stores = self.service.home.clients / federation.settings(Describe).population
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
        records.keep(self.service.home, record)  # first: a stop after the transaction finds it
        version = self.service.registry.commit(
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
        records.publish(self.service.home, self.service.ledger.request(self.row.id))


# ---- small things -------------------------------------------------------------------------------


def _stop_reason(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt | SystemExit | EffaceError):
        return str(error) or "stopped by the operator"
    return f"{type(error).__name__}: {error}"


def _unpublished(row: RequestRow, error: BaseException) -> EffaceError:
    """Return what to say of an error after the request's end."""
    kind = VerificationFailed if row.state == "failed" else Unpublished
    return kind(
        f"report of {row.id} must be written, got {type(error).__name__} {error}".rstrip()
        + f"; {row.id} is {row.state} ({row.result_version or row.reason}) all the same. "
        f"Write the report with: efface report {row.id}"
    )


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


def server_data(settings: RunSettings) -> DataSet | None:
    """Return the coordinator's data set, or None if it has none."""
    if settings.dataset == "none":
        return None
    return datasets.load(settings.dataset, _data_dir(settings))


def _data_dir(settings: RunSettings) -> Path | None:
    directory = settings.data_dir or os.environ.get("EFFACE_DATA_DIR")
    return Path(directory) if directory else None


def check_simulation(settings: RunSettings, data: DataSet | None) -> None:
    """Refuse once what every simulated client would refuse on its own.

    Raises:
        BadSetting: If there is no data to share, or not the device.
    """
    if not settings.simulated:
        return
    if data is None:
        raise BadSetting(
            "dataset must be one that simulated clients can share on engine "
            f"{settings.engine}, got none; clients with data of their own need --engine superlink"
        )
    if settings.device.startswith("cuda") and not torch.cuda.is_available():
        raise BadSetting(
            f"device must be one that torch finds here, got {settings.device!r}; try --device auto"
        )


def check_shares(settings: RunSettings, data: DataSet | None) -> None:
    """Refuse once a partition that simulated clients could not share the data by.

    Raises:
        BadSetting: If it leaves a client too little, or there are not so many samples.
    """
    if not settings.simulated or data is None:
        return
    if settings.max_samples > len(data.train):
        raise BadSetting(
            f"max-samples must be at most {len(data.train)}, got {settings.max_samples}"
        )
    shares(settings, data)


def shares(settings: RunSettings, data: DataSet | None) -> tuple[torch.Tensor, ...] | None:
    """Return the positions of every simulated client's examples; None where clients are real."""
    s = settings
    if not s.simulated or data is None:
        return None
    # The nodes' own function, which keeps what it found for those in this process.
    return site.shares(
        s.dataset, _data_dir(s), s.partition, s.num_clients, s.max_samples, s.partition_seed
    )


def own_samples(settings: RunSettings, data: DataSet | None) -> tuple[Samples, DataSet | None]:
    """Return the coordinator's own examples, and its data without those taken from the test part.

    Raises:
        BadSetting: If `server-samples` reads wrong, or asks for more than there is.
    """
    kind, _, rest = settings.server_samples.partition(":")
    if kind == "npz" and rest:
        source = datasets.load(settings.server_samples).train
        index, left = torch.arange(len(source)), data
    elif kind == "test" and rest.isdecimal() and int(rest) > 0:
        if data is None or len(data.test) <= int(rest):
            raise BadSetting(
                f"server-samples must leave test images to measure on, got {rest} of "
                f"{0 if data is None else len(data.test)}"
            )
        draws = generator(settings.seed, "server samples")
        order = torch.randperm(len(data.test), generator=draws)
        source, index, others = data.test, order[: int(rest)], order[int(rest) :].sort().values
        left = replace(data, test=Split(source.images[others], source.labels[others], None))
    else:
        raise BadSetting(
            f"server-samples must be test:NUMBER or npz:PATH, got {settings.server_samples!r}"
        )
    if data is None:
        mean, std = pixel_statistics(source.images)
    else:
        mean, std = data.mean, data.std
    images = datasets.normalise(source.images[index], mean, std)
    return Samples(images, source.labels[index]), left


def check_samples(settings: RunSettings, data: DataSet | None) -> None:
    """Refuse a request that needs examples of the coordinator's own without them.

    Raises:
        BadSetting: If there are none, or none of a class to forget.
    """
    if not settings.server_samples:
        raise BadSetting(
            f"method {settings.method} must have examples of the coordinator's own, got no "
            "server-samples; try --server-samples test:1600 or npz:PATH"
        )
    samples, _ = own_samples(settings, data)
    held = set(samples.labels.tolist())
    if missing := [c for c in settings.forget.classes if c not in held]:
        raise BadSetting(
            f"server-samples must hold every class to forget, got none of {missing[0]}; add "
            "examples"
        )


def _spec(model: Mapping[str, Any]) -> ModelSpec:
    """Return the model that a version's card describes."""
    return ModelSpec(**{**model, "pruned": tuple(model.get("pruned", ()))})


def federation_name(settings: RunSettings) -> str:
    """Return the name under which versions and erasures of one set of clients belong together.

    Simulated clients are what the data set's partition makes of them; real ones have data of their
    own, and are those that one SuperLink reaches.
    """
    s = settings
    if s.federation:
        return s.federation
    if not s.simulated:
        return f"{s.dataset}, {s.num_clients} clients of SuperLink {s.superlink}"
    subset = f", {s.max_samples} images" if s.max_samples else ""
    return f"{s.dataset}, {s.num_clients} clients, {s.partition}{subset}, seed {s.partition_seed}"


def inherited(settings: RunSettings, base: VersionRow) -> RunSettings:
    """Return `settings` with everything a version was trained with taken from its card."""
    own = {
        key: value for key, value in settings.plain().items() if key not in base.card["settings"]
    }
    merged = parse({**own, **base.card["settings"]})
    # Data files may have moved since; where they were is only the default.
    data_dir = settings.data_dir or base.card["data_dir"]
    return replace(merged, version=base.id, data_dir=data_dir)


def essence(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a request's result depends on."""
    ways = [
        "mode",
        "home",
        "request",
        "engine",
        "connection",
        "client-gpus",
        "asked-by",
        "why",
        "round-timeout",
        "join-timeout",
        "data-dir",
        "device",
    ]
    return {key: value for key, value in settings.items() if key not in ways}


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


def command(settings: RunSettings, kind: str) -> str:
    """Return the command line that asks for the same again: every setting that is not a default."""
    said = ["efface", kind]
    given, usual = settings.plain(), RunSettings().plain()
    own = ("mode", "home", "request", "version", "asked-by", "why")
    for key, value in given.items():
        if value == usual[key] or key in own or (kind != "train" and key in TRAINING):
            continue
        name = {"forget-classes": "class", "forget-clients": "client", "method-options": "set"}
        for part in str(value).split(",") if key in name else [value]:
            said.append(f"--{name.get(key, key)}" + ("" if value is True else f" {part}"))
    return " ".join(said)


def token(row: RequestRow) -> str:
    """Return a request's name for the nodes: unique even when a coordinator starts a new home."""
    return f"{row.id}-{row.created:%Y%m%dT%H%M%S%f}"


def hardware() -> str:
    """Return the machine in a line: cores, processor, accelerator, torch."""
    processor = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    accelerator = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{os.cpu_count()} cores, {processor}{accelerator}; torch {torch.__version__}"


def commit() -> str | None:
    """Return the commit of the code that runs, with "-dirty" if it was changed since, if any."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
