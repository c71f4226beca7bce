"""The commands that work with the clients: demo, train, forget, relearn.

It is long because each command declares its options with their help, beside what it prints.
"""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from client.errors import BadSetting
from server.cli import options
from server.cli.command import FORMAT, OTHER, Answer, Call, command
from server.cli.options import LEARNING, REQUEST, RUNNING, chosen
from server.cli.reading import opened
from server.cli.sources import Color, Fit, ImageSize, SkipBroken, as_read
from server.report import display

if TYPE_CHECKING:
    from server.evidence.record import Record
    from server.nodes.metrics import Metrics
    from server.requests.progress import Listener
    from server.settings import RunSettings

GROUP: Final = "Train and forget"

Classes = Annotated[
    list[str] | None,
    typer.Option(
        "--class",
        "-c",
        metavar="NAME|NUMBER",
        help="Class by its name, or its number from 0 up ('#2' where a name is a number); may be "
        "repeated.",
        show_default=False,
    ),
]
Clients = Annotated[
    list[str] | None,
    typer.Option("--client", help="Client to name; may be repeated.", show_default=False),
]
MethodOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Hyper-parameter of the method (`efface methods`); may be repeated.",
        show_default=False,
        rich_help_panel=REQUEST,
    ),
]
AskedBy = Annotated[
    str,
    typer.Option(
        "--by", help="Who asked; kept in the ledger.", show_default=False, rich_help_panel=REQUEST
    ),
]
Why = Annotated[
    str,
    typer.Option(
        "--why",
        help="Why it was asked; kept in the ledger.",
        show_default=False,
        rich_help_panel=REQUEST,
    ),
]
MetricsPort = Annotated[
    int | None,
    typer.Option(
        "--metrics-port",
        help="Answer Prometheus on this port of this machine while the command runs; 0 for any.",
        show_default=False,
        rich_help_panel=OTHER,
    ),
]

# A request computes as its version was trained.
_OF_THE_VERSION: Final = ("seed", "threads", "precision")
_REQUEST_OPTIONS: Final = chosen([REQUEST, RUNNING], leave_out=_OF_THE_VERSION)
DEMO_METHOD: Final = "quickdrop"
# A demonstration always compares, and starts from what it has just trained.
_DEMO_OPTIONS: Final = [
    replace(option, default_here=DEMO_METHOD) if option.key == "method" else option
    for option in chosen(
        [*LEARNING, REQUEST, RUNNING],
        leave_out=["version", "data", "compare", "trial", "destroy", "clients"],
    )
]
_RELEARN_OPTIONS: Final = chosen(
    [REQUEST, RUNNING],
    leave_out=[
        *("compare", "destroy", "max-forget-accuracy", "max-relearning-gap", "accept"),
        *_OF_THE_VERSION,
    ],
)


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    command(
        app,
        "demo",
        group=GROUP,
        settings=_DEMO_OPTIONS,
        epilog="Example: efface demo --class 3 --seed 1",
    )(demo)
    command(
        app,
        "train",
        group=GROUP,
        settings=chosen([*LEARNING, RUNNING]),
        epilog="Example: efface train --dataset npz:scans.npz --num-clients 4 --rounds 20",
    )(train)
    command(
        app,
        "forget",
        group=GROUP,
        settings=_REQUEST_OPTIONS,
        epilog="Example: efface forget --class 9 --method auto --dry-run; then with --by 'Data "
        "protection' --why 'Request 2026-17'",
    )(forget)
    command(
        app,
        "relearn",
        group=GROUP,
        settings=_RELEARN_OPTIONS,
        epilog="Example: efface relearn --class 9",
    )(relearn)


def demo(
    call: Call,
    values: dict[str, Any],
    forget_class: Annotated[
        str,
        typer.Option("--class", "-c", metavar="NAME|NUMBER", help="Class to forget."),
    ] = "9",
    method_options: MethodOptions = None,
    metrics_port: MetricsPort = None,
) -> Answer:
    """Train, forget a class, compare with retraining, bring the class back."""
    from server.evidence.record import to_json
    from server.runner import demo as run_demo

    values = {"method": DEMO_METHOD, **values}
    settings = settings_for(call, values, mode="train", method_options=method_options)
    with watched(call, metrics_port) as (listener, metrics):
        record = run_demo(settings, listener, forget=forget_class)
        count(metrics, record)
    return Answer({"changed": True, **to_json(record)}, display.result(record))


def train(
    call: Call,
    values: dict[str, Any],
    allow_forgotten: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-forgotten",
            metavar="ID",
            help="Learn again what this request forgot, of the same data or clients in another "
            "federation (`efface forgotten`); kept in the ledger; may be repeated.",
            show_default=False,
        ),
    ] = None,
    image_size: ImageSize = None,
    color: Color = None,
    fit: Fit = None,
    skip_broken: SkipBroken = False,
    metrics_port: MetricsPort = None,
    asked_by: AskedBy = "",
    why: Why = "",
) -> Answer:
    """Train a first version over all clients and put it in service."""
    from server.storage.registry import DEMO_PREFIX

    if str(values.get("federation", "")).startswith(DEMO_PREFIX):
        raise BadSetting(
            f"federation must not begin with {DEMO_PREFIX!r}, got {values['federation']!r}: so "
            "demonstrations are called, which nothing that is forgotten binds"
        )
    dataset = as_read(values.get("dataset", "digits"), image_size, color, fit, skip_broken)
    if dataset != values.get("dataset", "digits"):
        values = {**values, "dataset": dataset}
    values = {**values, "allow-forgotten": ",".join(allow_forgotten or ())}
    settings = settings_for(call, values, mode="train", asked_by=asked_by, why=why)
    return carry_out(call, settings, metrics_port)


def forget(
    call: Call,
    values: dict[str, Any],
    classes: Classes = None,
    named: Clients = None,
    method_options: MethodOptions = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check the request and print its plan: method, rounds, bytes, estimated seconds. "
            "Nothing is written down, no client is asked.",
        ),
    ] = False,
    metrics_port: MetricsPort = None,
    asked_by: AskedBy = "",
    why: Why = "",
) -> Answer:
    """Make a version forget classes or clients, check it, and put the result in service."""
    settings = settings_for(
        call,
        values,
        mode="forget",
        classes=classes,
        clients=named,
        method_options=method_options,
        asked_by=asked_by,
        why=why,
    )
    if dry_run:
        return planned(call, settings)
    return carry_out(call, settings, metrics_port)


def relearn(
    call: Call,
    values: dict[str, Any],
    classes: Classes = None,
    named: Clients = None,
    method_options: MethodOptions = None,
    metrics_port: MetricsPort = None,
    asked_by: AskedBy = "",
    why: Why = "",
) -> Answer:
    """Bring back classes or clients that a version has forgotten."""
    settings = settings_for(
        call,
        values,
        mode="relearn",
        classes=classes,
        clients=named,
        method_options=method_options,
        asked_by=asked_by,
        why=why,
    )
    return carry_out(call, settings, metrics_port)


def settings_for(
    call: Call,
    values: dict[str, Any],
    *,
    mode: str,
    classes: list[str] | None = None,
    clients: list[str] | None = None,
    method_options: list[str] | None = None,
    asked_by: str = "",
    why: str = "",
) -> "RunSettings":
    """Return the settings that the command line means, checked one by one.

    Raises:
        BadSetting: If one breaks its rule.
    """
    from server.requests.classes import joined
    from server.settings import parse

    here = {o.key: o.default_here for o in options.OPTIONS if o.default_here is not None}
    told = {
        "mode": mode,
        "home": call.home,
        "forget-classes": joined(classes or ()),
        "forget-clients": ",".join(clients or ()),
        "method-options": ",".join(method_options or ()),
        "asked-by": asked_by,
        "why": why,
    }
    for name in clients or ():
        if not name.strip() or "," in name:
            raise BadSetting(f"client must be one name without a comma, got {name!r}")
    return parse({**here, **values, **told})


def carry_out(call: Call, settings: "RunSettings", metrics_port: int | None) -> Answer:
    """Run one request and return what it came to."""
    from server.evidence.record import to_json
    from server.requests.intake import AlreadyDone
    from server.runner import run

    with watched(call, metrics_port) as (listener, metrics):
        try:
            record = run(settings, listener)
        except AlreadyDone as done:
            return _nothing_to_do(done)
        count(metrics, record)
    return Answer({"changed": True, **to_json(record)}, display.result(record))


def planned(call: Call, settings: "RunSettings") -> Answer:
    """Return what a request to forget would take; nothing is written down."""
    from server.requests.intake import AlreadyDone, Service
    from server.storage.registry import Registry

    home, ledger = opened(call)
    try:
        plan = Service(home, ledger, Registry(home, ledger, sweep=False)).plan(settings)
    except AlreadyDone as done:
        return _nothing_to_do(done)
    return Answer(plan, display.plan(plan))


def _nothing_to_do(done: Exception) -> Answer:
    text = str(done)
    return Answer({"format": FORMAT, "changed": False, "message": text}, [text])


@contextmanager
def watched(call: Call, metrics_port: int | None) -> Iterator[tuple["Listener", "Metrics | None"]]:
    """Give the listener for a run: the terminal, and Prometheus if a port was named."""
    from server.requests.progress import Listener, Listeners, MetricsListener

    with ExitStack() as stack:
        metrics = None
        watchers: list[Listener] = []
        if metrics_port is not None:
            from server.nodes.metrics import Metrics

            metrics = Metrics()
            server = metrics.serve(metrics_port)
            stack.callback(server.stop)
            call.errors.print(f"metrics: http://{server.host}:{server.port}/metrics", markup=False)
            metrics.request_state("running")
            stack.push(_failed_state(metrics))
            watchers.append(MetricsListener(metrics))
        terminal = stack.enter_context(display.watching(call.errors))
        stack.enter_context(_node_log(terminal))
        yield Listeners([terminal, *watchers]), metrics


class _OneLine(logging.Handler):
    """Shows what a node in this process logs, one line each, without a traceback."""

    def __init__(self, listener: "Listener") -> None:
        super().__init__(logging.WARNING)
        self.listener = listener

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        reason = f": {error}" if error is not None else ""
        self.listener.note(f"node log: {record.getMessage()}{reason}")


@contextmanager
def _node_log(listener: "Listener") -> Iterator[None]:
    """Show the simulated nodes' own logs: whoever runs them here is their operator too."""
    log, handler = logging.getLogger("efface"), _OneLine(listener)
    passed_on = log.propagate
    log.addHandler(handler)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = passed_on


def count(metrics: "Metrics | None", record: "Record") -> None:
    """Show a finished request's state and accuracies to Prometheus."""
    if metrics is None:
        return
    metrics.request_state("done")
    if record.result is None or record.model_version is None:
        return
    # What was relearned is not what is forgotten.
    for kind in ("retain",) if record.relearned else ("forget", "retain"):
        percent = getattr(record.result, f"{kind}_accuracy")
        if percent is not None:
            metrics.accuracy(record.model_version, kind, percent)


def _failed_state(metrics: "Metrics") -> Any:
    """Return what an ExitStack calls at the end: it notes a request that ended in an error."""

    def leave(kind: type[BaseException] | None, *_: object) -> bool:
        if kind is not None:
            metrics.request_state(
                "interrupted" if issubclass(kind, KeyboardInterrupt) else "failed"
            )
        return False

    return leave
