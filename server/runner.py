"""Runs a request on an engine: the one way in for the command line, Flower and scripts."""

import json
import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import fields, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from flwr.serverapp import Grid
from sqlalchemy.exc import SQLAlchemyError

from client import wire
from client.errors import EffaceError, kind_of
from client.operator import pace
from client.steps.measuring import Describe
from client.task_folders import TASKS
from server.evidence.measures import measuring_device
from server.evidence.record import Costs, Record, to_json
from server.nodes import database
from server.nodes.engines import superlink
from server.nodes.federation import Cost, Round
from server.nodes.grid import LOCAL_POLL_SECONDS, REMOTE_POLL_SECONDS, NamedGrid
from server.nodes.naming import name_by_partition
from server.requests import records, verification
from server.requests.attendance import await_clients
from server.requests.claims import claimed
from server.requests.classes import class_number
from server.requests.data import server_data
from server.requests.execution import refusal
from server.requests.intake import Service
from server.requests.progress import EventFile, Listener, Listeners, Waiting
from server.requests.resolved import ResolvedRequest
from server.requests.tasks import with_scale
from server.requests.verification import Verified
from server.settings import RunSettings, essence, parse
from server.storage.home import Home, write_json
from server.storage.ledger import GONE, Ledger, RequestRow, database_url
from server.storage.opened import opened
from server.storage.registry import DEMO_PREFIX, Registry
from strategies.rounds.failures import Failure

log = logging.getLogger("efface.server")
DEMO_STEPS: Final = ("train", "forget", "relearn")
DEMO_OPTIONS: Final = "unlearn-lr=0.05,unlearn-epochs=6,relearn-lr=0.1,relearn-rounds=3"
# A second process on the same home waits that long, then refuses: longer than a ServerApp that was
# stopped lives on (21 s, until its next heartbeat).
LOCK_SECONDS: Final = 30.0
PACK: Final = "EFFACE_PACK"  # 0 in the environment: every array travels by itself, which is slower
SUPERLINK_DEADLINE: Final = 7 * 24 * 3600.0  # seconds; a run has its own deadlines for each round


def open_home(settings: RunSettings) -> Home:
    """Return the server home: the one that is named, else EFFACE_HOME, else ~/.efface.

    Raises:
        NoSuchHome: If it is not there; only training makes one.
    """
    return Home(settings.home or None, existing=settings.mode != "train")


def run(settings: RunSettings, listener: Listener) -> Record:
    """Check a request, write it down, carry it out on its engine, and return its record.

    Raises:
        EffaceError: If it is refused (nothing has started) or fails (the old version stays).
        KeyboardInterrupt: If it is stopped; the same call takes it up again.
    """
    home = open_home(settings)
    if not settings.simulated:
        superlink.check_connection(settings.superlink)  # before anything is written down
    with home.lock(LOCK_SECONDS):
        service = Service.open(home)
        service.ledger.interrupt_running(GONE)
        request = service.prepare(settings)
        if settings.simulated:
            return _simulated(service, request, settings, listener)
    return _superlink(home, request.row, settings, listener)


def verify(
    home_path: str,
    identifier: str,
    told: Mapping[str, Any],
    listener: Listener,
    *,
    recorded: bool = True,
) -> Verified:
    """Judge again what a request to forget made, and write down what was found.

    Where the coordinator has test examples of a class it measures alone, in this process; what a
    client held, and where only clients have data, the clients measure, on their own engine.

    Args:
        home_path: The home; empty for EFFACE_HOME or ~/.efface.
        identifier: The request's id, or that of the version that it made.
        told: Settings that were given, by kebab-case key: limits, `data`, `engine`, who asks, ...
        listener: Told of rounds and notes.
        recorded: Whether to write it down; else no client can be asked. A home that cannot be
            written gets nothing either.

    Raises:
        EffaceError: If it is refused (nothing has started) or fails, as when a client is away.
        KeyboardInterrupt: If it is stopped; the same call takes it up again.
    """
    home, ledger = opened(home_path)
    if not recorded or not home.writable:
        return verification.verified(home, ledger, identifier, told)
    claims = claimed(home, ledger, identifier)
    found, subject = verification.begun(claims, told), claims.subject
    if subject is None:
        return found
    settings = verification.settings_of(subject, told, home)
    verification.check_limits(subject, settings)
    data, _ = verification.data_of(subject, settings)
    asks = verification.asks_clients(subject.row.level, data)
    record = run(settings, listener) if asks else _alone(settings, listener)
    told_of = record.verifies
    return replace(
        found,
        again=record,
        notes=() if told_of is None else told_of.notes,
        verification=record.request,
        report=record.report,
        asked_clients=asks,
    )


def _alone(settings: RunSettings, listener: Listener) -> Record:
    """Carry out a request that asks no client, in this process."""
    from client.app import app
    from server.nodes.engines.inline import InlineGrid

    home = open_home(settings)
    with home.lock(LOCK_SECONDS), InlineGrid(app, 0) as nobody:
        service = Service.open(home)
        service.ledger.interrupt_running(GONE)
        request = service.prepare(settings)
        grid = NamedGrid(nobody, settings.round_timeout, LOCAL_POLL_SECONDS)
        return service.execute(request, grid, _with_events(home, request.row, listener))


def plan(settings: RunSettings) -> dict[str, Any]:
    """Return what a request to forget would take (`Service.plan`); nothing is written down.

    Raises:
        BadSetting, AlreadyDone: If it would be refused.
    """
    home, ledger = opened(settings.home)
    return Service(home, ledger, Registry(home, ledger, sweep=False)).plan(settings)


def _simulated(
    service: Service, request: ResolvedRequest, settings: RunSettings, listener: Listener
) -> Record:
    from client.app import app
    from server.nodes.engines.inline import InlineGrid, side_by_side
    from server.nodes.engines.ray import RayGrid

    stored, stores = request.settings, str(service.home.clients)
    node: dict[str, bool | float | int | str] = {}
    directory = settings.data_dir or stored.data_dir or os.environ.get("EFFACE_DATA_DIR")
    if directory:
        node["data-dir"] = str(Path(directory).resolve())
    simulated: InlineGrid | RayGrid
    if settings.engine == "ray":
        simulated = RayGrid(
            app,
            stored.num_clients,
            node_config=node,
            environment={"EFFACE_STORE": stores, TASKS: str(service.home.tasks.resolve())},
            cpus=stored.threads,
            gpus=settings.client_gpus,
        )
    else:
        os.environ["EFFACE_STORE"] = stores
        workers = side_by_side(measuring_device(stored.device).type)
        simulated = InlineGrid(app, stored.num_clients, node_config=node, workers=workers)
    with simulated as inner:
        grid = NamedGrid(inner, settings.round_timeout, LOCAL_POLL_SECONDS)
        grid.under_way = inner.under_way
        told = _with_events(service.home, request.row, listener)
        grid.on_answers = told.answers
        return service.execute(request, grid, told)


def _superlink(home: Home, row: RequestRow, settings: RunSettings, listener: Listener) -> Record:
    connection = settings.superlink
    seen = _Tail(home.runs / row.id / "events.jsonl", listener)
    with Ledger.open(database_url(home)) as ledger:
        ended = _Ending(home, ledger, row.id)
        run_id = _submitted(home, row, settings)
        try:
            superlink.wait(
                run_id,
                connection,
                on_poll=seen.read,
                ended=ended,
                # What is to be deleted from the SuperLink's database goes when its run is over.
                complete=None if database.VARIABLE in os.environ else ended.is_done,
                deadline=SUPERLINK_DEADLINE,
            )
        except KeyboardInterrupt:
            superlink.stop(run_id, connection)
            raise
        except superlink.RunFailedError as error:
            seen.read()
            return _after_failure(home, row.id, error)
        finally:
            _purge()
    seen.read()
    return _record(home, Service.open(home).ledger.request(row.id))


def _purge() -> None:
    """Delete what was exchanged from the SuperLink's database, where its keeper has named it."""
    named = os.environ.get(database.VARIABLE)
    if not named:
        return
    try:
        database.purge(Path(named))
    except EffaceError as error:  # the request is done either way, and the next one tries again
        log.warning("%s", error)


def _submitted(home: Home, row: RequestRow, settings: RunSettings) -> int:
    """Hand a request to the SuperLink; return Flower's id of the run."""
    with tempfile.TemporaryDirectory() as folder:
        # The defaults travel in the bundle: -c may set only keys that are in it.
        code = str(row.settings.get("task-code", ""))
        task = home.tasks / code if code else None
        app = superlink.stage_app(Path(folder) / "app", defaults(), task=task)
        told: dict[str, superlink.Scalar] = {
            "mode": "request",
            "home": str(home.path.resolve()),
            "request": row.id,
            "round-timeout": settings.round_timeout,
            "join-timeout": settings.join_timeout,
        }
        try:
            return superlink.submit(app, settings.superlink, told)
        except EffaceError as error:
            _give_up(home, row, error)
            raise


def _give_up(home: Home, row: RequestRow, error: EffaceError) -> None:
    """Give a request up that no SuperLink took; an interrupted one can still go on."""
    with home.lock(LOCK_SECONDS):
        ledger = Service.open(home).ledger
        if ledger.request(row.id).state == "received":
            ledger.abort(row.id, f"no SuperLink took it: {error}", code=error.code)


def _after_failure(home: Home, request: str, error: EffaceError) -> Record:
    """Return the record of a request that was done before its Flower run failed.

    Raises:
        EffaceError: Otherwise: for the reason that the ledger has, or else Flower's own.
    """
    with home.lock(LOCK_SECONDS):
        ledger = Service.open(home).ledger
        ledger.interrupt_running("its Flower run ended without a word")
        row = ledger.request(request)
    if row.state == "done":
        return _record(home, row)
    if row.state == "failed" and row.reason:
        record = records.read(home, row)  # no failure but a refusal has one
        raise (
            kind_of(row.reason_code)(row.reason) if record is None else refusal(record, row.reason)
        ) from error
    raise error


def _record(home: Home, row: RequestRow) -> Record:
    record = records.read(home, row)
    if record is None:
        raise EffaceError(f"request {row.id} must have a record, got none: it is {row.state}")
    return record


def serve(grid: Grid, config: dict[str, Any]) -> Record:
    """Carry out a run inside a ServerApp: what `flwr run` starts.

    Args:
        grid: Flower's.
        config: The run config.
    """
    pace.quicken_pulls()
    packs = os.environ.get(PACK) != "0"
    settings = parse(config)
    home = open_home(settings)
    with home.lock(LOCK_SECONDS):
        service = Service.open(home)
        service.ledger.interrupt_running(GONE)
        request = service.prepare(settings)
        named = NamedGrid(grid, settings.round_timeout, REMOTE_POLL_SECONDS, packs=packs)
        told = _with_events(home, request.row, LogListener())
        named.on_answers = told.answers
        return service.execute(request, named, told, partial(name_nodes, named, service, request))


def name_nodes(grid: NamedGrid, service: Service, request: ResolvedRequest) -> None:
    """Give nodes a name where the platform has none: simulated ones by their partition.

    A node that is neither named nor simulated is called by its number.
    """
    settings = request.settings
    await_clients(service, request.row, settings, grid)
    told = Describe(
        client="unnamed",
        fingerprint=wire.fingerprint(),
        request=request.id,
        lineage=request.id,
        phase="names",
        **settings.common(request.spec),
    ).check()
    name_by_partition(grid, told)


def demo(settings: RunSettings, listener: Listener, *, forget: str) -> Record:
    """Train, forget a class and compare with retraining, relearn it; return one merged record.

    `forget` is the class's name or number.

    Without options of its own, QuickDrop ascends further than by default: the demo's tiny images
    and model need it to forget as deeply as Retrained.
    """
    if settings.method == "quickdrop" and not settings.method_options:
        settings = replace(settings, method_options=DEMO_OPTIONS)
    # A federation of its own: what other requests in this home erased must not stay out of it.
    settings, home = settings.rooted(), open_home(settings)
    data = server_data(settings)
    if data is not None:
        forget_class = class_number(forget, data.class_names, data.num_classes)
    else:
        forget_class = class_number(forget, None, settings.model_classes)
    name = _stopped_demo(home, with_scale(settings, None)[0], forget_class)
    name = name or f"{DEMO_PREFIX}{datetime.now():%Y-%m-%d %H:%M:%S.%f}"
    settings = replace(settings, federation=name)

    def step(mode: str, **values: Any) -> Record:
        done = _finished(home, name, mode)
        return done or run(replace(settings, mode=mode, **values), listener)

    trained = step("train")
    target = {"forget_classes": f"#{forget_class}"}
    forgotten = step("forget", compare="retrain", version=trained.model_version, **target)
    relearned = step("relearn", version=forgotten.model_version, **target)
    costs: dict[str, Any] = {
        part.name: {
            **getattr(trained, part.name),
            **getattr(forgotten, part.name),
            **getattr(relearned, part.name),
        }
        for part in fields(Costs)
        if part.name != "seconds_measuring"
    }
    from server.report.write import write_report  # brings matplotlib, half a second

    page = home.reports / f"{forgotten.request}-demo.html"
    merged = replace(
        forgotten,
        **costs,
        kind="demo",
        timeline=trained.timeline + forgotten.timeline + relearned.timeline,
        relearned=relearned.relearned,
        trained_version=trained.model_version,
        relearned_version=relearned.model_version,
        report=str(page),
    )
    write_report(merged, page)
    write_json(home.runs / str(forgotten.request) / "demo.json", to_json(merged))
    return merged


def _stopped_demo(home: Home, settings: RunSettings, forget_class: int) -> str | None:
    """Return the federation of a demo of these settings and class that was stopped half-way."""
    rows = Service.open(home).ledger.requests()
    names = [row.federation for row in rows if row.federation.startswith(DEMO_PREFIX)]
    for name in dict.fromkeys(reversed(names)):
        steps = [row for row in rows if row.federation == name and row.kind in DEMO_STEPS]
        asked = essence(replace(settings, federation=name).plain())
        same = essence(steps[0].settings) == asked
        target = all(row.classes == (forget_class,) for row in steps[1:])
        if same and target and (steps[-1].kind, steps[-1].state) != ("relearn", "done"):
            return name
    return None


def _finished(home: Home, federation: str, kind: str) -> Record | None:
    """Return the record of a step that a stopped demo had finished."""
    for row in Service.open(home).ledger.requests(federation, state="done"):
        if row.kind == kind:
            return records.read(home, row)
    return None


def defaults() -> dict[str, str | int | float | bool]:
    """Return the run config's defaults by kebab-case name."""
    return {f.name.replace("_", "-"): f.default for f in fields(RunSettings)}  # type: ignore[misc]


def _with_events(home: Home, row: RequestRow, listener: Listener) -> Listeners:
    folder = home.runs / row.id
    folder.mkdir(mode=0o700, exist_ok=True)
    return Listeners([EventFile(folder / "events.jsonl"), listener])


class LogListener:
    """Writes to Flower's run log."""

    def round(self, done: Round, scores: dict[str, Any] | None) -> None:
        log.info("%s round %d/%d: %.2f s", done.phase, done.number, done.of, done.cost.seconds)

    def note(self, text: str) -> None:
        log.info("%s", text)


class _Ending:
    """Says whether a request's work has ended, by the home's lock and its state in the ledger.

    Whoever carries it out holds the home until its page is written.
    """

    def __init__(self, home: Home, ledger: Ledger, request: str) -> None:
        self.home, self.ledger, self.request = home, ledger, request
        self.ran, self.state = False, ""

    def __call__(self) -> bool:
        """Return whether it has; a request that goes on is interrupted until its run begins."""
        if self.home.held():  # by the ServerApp, as a rule; Flower is asked in any case, only later
            self.ran = True
            return False
        try:
            state = self.ledger.request(self.request).state
        except (EffaceError, SQLAlchemyError):
            return False  # a database that restarts; as above
        self.state = state
        self.ran = self.ran or state == "running"
        return state in ("done", "failed", "aborted") or (state == "interrupted" and self.ran)

    def is_done(self) -> bool:
        """Return whether it has ended well, and its result and page are there."""
        return self.state == "done"


class _Tail:
    """Reads the events that another process appends, and passes them on."""

    def __init__(self, path: Path, listener: Listener) -> None:
        self.path, self.listener = path, listener
        self.position = path.stat().st_size if path.exists() else 0

    def read(self) -> bool:
        """Pass on what is new; return whether there was anything."""
        if not self.path.exists():
            return False
        before = self.position
        with self.path.open() as file:
            file.seek(self.position)
            for line in file:
                if not line.endswith("\n"):
                    break
                self.position += len(line.encode())
                self._pass_on(json.loads(line))
        return self.position > before

    def _pass_on(self, event: dict[str, Any]) -> None:
        if event["event"] == "note":
            self.listener.note(event["text"])
            return
        if event["event"] == "answers":
            if isinstance(self.listener, Waiting):
                self.listener.answers(event["come"], event["of"])
            return
        failures = [Failure(**failure) for failure in event["failures"]]
        done = Round(
            event["phase"],
            event["number"],
            event["of"],
            Cost(seconds=event["seconds"], rounds=1),
            event["loss"],
            event["clients"],
            failures,
            event.get("norms", {}),
        )
        self.listener.round(done, event["scores"])


__all__ = ["demo", "open_home", "plan", "run", "serve"]
