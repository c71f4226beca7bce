"""Runs a request on an engine: the one way in for the command line, Flower and scripts."""

import json
import logging
import os
import tempfile
import threading
from dataclasses import fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from client import wire
from client.errors import BadSetting, EffaceError, kind_of, split_mark
from client.wire import Describe
from server.nodes.engines import superlink
from server.nodes.federation import Cost, Round
from server.nodes.grid import LOCAL_POLL_SECONDS, REMOTE_POLL_SECONDS, Interrupted, NamedGrid
from server.report.write import write_report
from server.requests import records
from server.requests.data import server_data
from server.requests.intake import Service
from server.requests.progress import EventFile, Listener, Listeners
from server.settings import RunSettings, essence, parse
from server.storage.home import Home, write_json
from server.storage.ledger import RequestRow
from server.storage.registry import DEMO_PREFIX
from strategies.rounds.base import Failure

log = logging.getLogger("efface.server")
DEMO_OPTIONS: Final = "unlearn-lr=0.05,unlearn-epochs=6,relearn-lr=0.1,relearn-rounds=3"
# A second process on the same home waits that long, then refuses: longer than a ServerApp that was
# stopped lives on (21 s, until its next heartbeat).
LOCK_SECONDS: Final = 30.0
SUPERLINK_DEADLINE: Final = 7 * 24 * 3600.0  # seconds; a run has its own deadlines for each round


def open_home(path: str) -> Home:
    """Return the server home: `path`, else EFFACE_HOME, else ~/.efface."""
    return Home(path or None)


def run(settings: RunSettings, listener: Listener) -> dict[str, Any]:
    """Check a request, write it down, carry it out on its engine, and return its record.

    Raises:
        EffaceError: If it is refused (nothing has started) or fails (the old version stays).
        KeyboardInterrupt: If it is stopped; the same call takes it up again.
    """
    home = open_home(settings.home)
    if not settings.simulated:
        superlink.check_connection(settings.superlink)  # before anything is written down
    with home.lock(LOCK_SECONDS):
        service = Service.open(home)
        service.ledger.interrupt_running("the process that ran it ended without a word")
        row = service.prepare(settings)
        stored = parse(row.settings)
        if settings.engine == "inline":
            return _inline(service, row, settings, stored, listener)
    if settings.engine == "ray":
        return _ray(home, row, settings, stored, listener)
    return _superlink(home, row, settings, listener)


def _inline(
    service: Service,
    row: RequestRow,
    settings: RunSettings,
    stored: RunSettings,
    listener: Listener,
) -> dict[str, Any]:
    from client.app import app
    from server.nodes.engines.inline import InlineGrid

    node: dict[str, bool | float | int | str] = {}
    directory = settings.data_dir or stored.data_dir
    if directory:
        node["data-dir"] = directory
    os.environ["EFFACE_STORE"] = str(service.home.clients)
    with InlineGrid(app, stored.num_clients, node_config=node) as inner:
        grid = NamedGrid(inner, settings.round_timeout, LOCAL_POLL_SECONDS)
        return service.execute(row.id, grid, _with_events(service.home, row, listener))


def _ray(
    home: Home,
    row: RequestRow,
    settings: RunSettings,
    stored: RunSettings,
    listener: Listener,
) -> dict[str, Any]:
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    from client.app import app
    from server.nodes.engines.ray import run_on_ray

    stop = threading.Event()
    records: list[dict[str, Any]] = []

    def work(grid: Grid) -> None:
        # The lock belongs to a thread: the one that works takes it.
        with home.lock(LOCK_SECONDS):
            service = Service.open(home)
            named = NamedGrid(grid, settings.round_timeout, LOCAL_POLL_SECONDS, stop=stop)
            name_nodes(named, service, row.id)
            records.append(service.execute(row.id, named, _with_events(home, row, listener)))

    environment = {"EFFACE_STORE": str(home.clients)}
    directory = settings.data_dir or stored.data_dir or os.environ.get("EFFACE_DATA_DIR", "")
    if directory:
        environment["EFFACE_DATA_DIR"] = str(Path(directory).resolve())
    run_on_ray(
        app,
        work,
        num_clients=stored.num_clients,
        environment=environment,
        cpus=stored.threads,
        gpus=settings.client_gpus,
        stop=stop,
    )
    return records[0]


def _superlink(
    home: Home, row: RequestRow, settings: RunSettings, listener: Listener
) -> dict[str, Any]:
    connection = settings.superlink
    events = home.runs / row.id / "events.jsonl"
    seen = _Tail(events, listener)
    with tempfile.TemporaryDirectory() as folder:
        # The defaults travel in the bundle: -c may set only keys that are in it.
        app = superlink.stage_app(Path(folder) / "app", defaults())
        told: dict[str, superlink.Scalar] = {
            "mode": "request",
            "home": str(home.path.resolve()),
            "request": row.id,
            "round-timeout": settings.round_timeout,
            "join-timeout": settings.join_timeout,
        }
        run_id = superlink.submit(app, connection, told)
    try:
        superlink.wait(run_id, connection, on_poll=seen.read, deadline=SUPERLINK_DEADLINE)
    except KeyboardInterrupt:
        superlink.stop(run_id, connection)
        raise
    except superlink.RunFailedError as error:
        seen.read()
        return _after_failure(home, row.id, error)
    seen.read()
    return _record(home, Service.open(home).ledger.request(row.id))


def _after_failure(home: Home, request: str, error: EffaceError) -> dict[str, Any]:
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
        raise kind_of(row.reason_code)(row.reason) from error
    raise error


def _record(home: Home, row: RequestRow) -> dict[str, Any]:
    record = records.read(home, row)
    if record is None:
        raise EffaceError(f"request {row.id} must have a record, got none: it is {row.state}")
    return record


def serve(grid: Grid, config: dict[str, Any]) -> dict[str, Any]:
    """Carry out a run inside a ServerApp: what `flwr run` starts.

    Args:
        grid: Flower's.
        config: The run config.
    """
    settings = parse(config)
    home = open_home(settings.home)
    with home.lock(LOCK_SECONDS):
        service = Service.open(home)
        service.ledger.interrupt_running("the process that ran it ended without a word")
        row = service.prepare(settings)
        named = NamedGrid(grid, settings.round_timeout, REMOTE_POLL_SECONDS)
        name_nodes(named, service, row.id)
        return service.execute(row.id, named, _with_events(home, row, LogListener()))


def name_nodes(grid: NamedGrid, service: Service, request: str) -> None:
    """Give nodes a name where the platform has none: simulated ones by their partition.

    A node that is neither named nor simulated is called by its number.
    """
    row = service.ledger.request(request)
    settings = parse(row.settings)
    grid.wait_for(settings.num_clients, settings.join_timeout, without=service.absent(row))
    if all(node.name for node in grid.get_nodes()):
        return
    spec = settings.model_spec(server_data(settings))
    told = Describe(
        client="unnamed",
        fingerprint=wire.fingerprint(),
        request=request,
        lineage=request,
        phase="names",
        **settings.common(spec),
    ).check()
    content = RecordDict({"arrays": ArrayRecord(), "config": told.config()})
    unnamed = [node.node_id for node in grid.get_nodes() if not node.name]
    messages = [Message(content, dst_node_id=n, message_type=wire.DESCRIBE) for n in unnamed]
    for reply in grid.send_and_receive(messages):
        node = reply.metadata.src_node_id
        if reply.has_error():
            raise EffaceError(
                f"node {node} must answer, got {split_mark(reply.error.reason or '')[1]}"
            )
        position = int(reply.content.metric_records["metrics"]["partition"])  # type: ignore[arg-type]
        grid.names[node] = f"client-{position}" if position >= 0 else f"node-{node}"
    grid.take_traffic()


def demo(settings: RunSettings, listener: Listener, *, forget_class: int) -> dict[str, Any]:
    """Train, forget a class and compare with retraining, relearn it; return one merged record.

    Without options of its own, QuickDrop climbs further than by default: the demo's tiny images
    and model need it to forget as deeply as Retrained.
    """
    if settings.method == "quickdrop" and not settings.method_options:
        settings = replace(settings, method_options=DEMO_OPTIONS)
    # A federation of its own: what other requests in this home erased must not stay out of it.
    settings, home = settings.rooted(), open_home(settings.home)
    num_classes = settings.model_spec(server_data(settings)).num_classes
    if not 0 <= forget_class < num_classes:
        raise BadSetting(f"class must lie in [0, {num_classes}), got {forget_class}")
    name = _stopped_demo(home, settings, forget_class)
    name = name or f"{DEMO_PREFIX}{datetime.now():%Y-%m-%d %H:%M:%S.%f}"
    settings = replace(settings, federation=name)

    def step(mode: str, **values: Any) -> dict[str, Any]:
        done = _finished(home, name, mode)
        return done or run(replace(settings, mode=mode, **values), listener)

    trained = step("train")
    target = {"forget_classes": str(forget_class)}
    forgotten = step("forget", compare="retrain", version=trained["model_version"], **target)
    relearned = step("relearn", version=forgotten["model_version"], **target)
    merged = {**forgotten, "kind": "demo"}
    for key in ("seconds", "rounds", "samples", "client_seconds", "bytes"):
        merged[key] = {**trained[key], **forgotten[key], **relearned[key]}
    merged["timeline"] = trained["timeline"] + forgotten["timeline"] + relearned["timeline"]
    merged["relearned"] = relearned["relearned"]
    merged["trained_version"] = trained["model_version"]
    merged["relearned_version"] = relearned["model_version"]
    merged["report"] = str(home.reports / f"{forgotten['request']}-demo.html")
    write_report(merged, Path(merged["report"]))
    write_json(home.runs / forgotten["request"] / "demo.json", merged)
    return merged


def _stopped_demo(home: Home, settings: RunSettings, forget_class: int) -> str | None:
    """Return the federation of a demo of these settings and class that was stopped half-way."""
    rows = Service.open(home).ledger.requests()
    names = [row.federation for row in rows if row.federation.startswith(DEMO_PREFIX)]
    for name in dict.fromkeys(reversed(names)):
        steps = [row for row in rows if row.federation == name]
        asked = essence(replace(settings, federation=name).plain())
        same = essence(steps[0].settings) == asked
        target = all(row.classes == (forget_class,) for row in steps[1:])
        if same and target and (steps[-1].kind, steps[-1].state) != ("relearn", "done"):
            return name
    return None


def _finished(home: Home, federation: str, kind: str) -> dict[str, Any] | None:
    """Return the record of a step that a stopped demo had finished."""
    for row in Service.open(home).ledger.requests(federation, state="done"):
        if row.kind == kind:
            return records.read(home, row)
    return None


def defaults() -> dict[str, str | int | float | bool]:
    """Return the run config's defaults by kebab-case name."""
    return {f.name.replace("_", "-"): f.default for f in fields(RunSettings)}  # type: ignore[misc]


def _with_events(home: Home, row: RequestRow, listener: Listener) -> Listener:
    folder = home.runs / row.id
    folder.mkdir(mode=0o700, exist_ok=True)
    return Listeners([EventFile(folder / "events.jsonl"), listener])


class LogListener:
    """Writes to Flower's run log."""

    def round(self, done: Round, scores: dict[str, Any] | None) -> None:
        log.info("%s round %d/%d: %.2f s", done.phase, done.number, done.of, done.cost.seconds)

    def note(self, text: str) -> None:
        log.info("%s", text)


class _Tail:
    """Reads the events that another process appends, and passes them on."""

    def __init__(self, path: Path, listener: Listener) -> None:
        self.path, self.listener = path, listener
        self.position = path.stat().st_size if path.exists() else 0

    def read(self) -> None:
        """Pass on what is new."""
        if not self.path.exists():
            return
        with self.path.open() as file:
            file.seek(self.position)
            for line in file:
                if not line.endswith("\n"):
                    break
                self.position += len(line.encode())
                self._pass_on(json.loads(line))

    def _pass_on(self, event: dict[str, Any]) -> None:
        if event["event"] == "note":
            self.listener.note(event["text"])
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
        )
        self.listener.round(done, event["scores"])


__all__ = ["Interrupted", "demo", "open_home", "run", "serve"]
