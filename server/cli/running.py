"""The commands that work with the clients: demo, train, forget, relearn.

It is long because each command declares its options with their help, beside what it prints.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from client.errors import BadSetting
from server.cli import options
from server.cli.command import FORMAT, OTHER, Answer, Call, command
from server.cli.options import DEMO_METHOD, OF_COMMAND, REQUEST
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
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Check the request and print its plan: method, rounds, bytes, estimated seconds. "
        "Nothing is written down, no client is asked.",
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
Force = Annotated[bool, typer.Option("--force", help="Write over a file that is there.")]
MetricsPort = Annotated[
    int | None,
    typer.Option(
        "--metrics-port",
        help="Answer Prometheus on this port of this machine while the command runs; 0 for any.",
        show_default=False,
        rich_help_panel=OTHER,
    ),
]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    command(
        app,
        "demo",
        group=GROUP,
        settings=OF_COMMAND["demo"],
        epilog="Example: efface demo --class 3 --seed 1",
    )(demo)
    command(
        app,
        "train",
        group=GROUP,
        settings=OF_COMMAND["train"],
        epilog="Example: efface train --dataset npz:scans.npz --num-clients 4 --rounds 20",
    )(train)
    command(
        app,
        "forget",
        group=GROUP,
        settings=OF_COMMAND["forget"],
        epilog="Example: efface forget --class 9 --method auto --dry-run; then with --by 'Data "
        "protection' --why 'Request 2026-17'",
    )(forget)
    command(
        app,
        "relearn",
        group=GROUP,
        settings=OF_COMMAND["relearn"],
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

    if not values.get("task"):  # whatever serves another task is the default there
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
    from server.requests.asked import check_federation

    check_federation(str(values.get("federation", "")))
    read = as_read(values.get("dataset", ""), image_size, color, fit, skip_broken)
    if read != values.get("dataset", ""):
        values = {**values, "dataset": read}
    values = {**values, "allow-forgotten": ",".join(allow_forgotten or ())}
    settings = settings_for(call, values, mode="train", asked_by=asked_by, why=why)
    return carry_out(call, settings, metrics_port)


def forget(
    call: Call,
    values: dict[str, Any],
    classes: Classes = None,
    named: Clients = None,
    method_options: MethodOptions = None,
    dry_run: DryRun = False,
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
    from server.requests.asked import asked

    here = {o.key: o.default_here for o in options.OPTIONS if o.default_here is not None}
    # What the command line does not say, efface.toml may: options of the method, who asks.
    if not method_options:
        method_options = list(filter(None, [str(values.get("method-options", ""))]))
    try:
        return asked(
            {**here, **values},
            mode=mode,
            home=call.home,
            classes=classes or (),
            clients=clients or (),
            options=method_options,
            asked_by=asked_by or str(values.get("asked-by", "")),
            why=why,
        )
    except BadSetting as error:
        key = str(error).partition(" ")[0]
        if key not in call.from_file:
            raise
        raise BadSetting(f"{error}, in {call.project.path}") from error


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
    from server.requests.intake import AlreadyDone
    from server.runner import plan as planned_request

    try:
        plan = planned_request(settings)
    except AlreadyDone as done:
        return _nothing_to_do(done)
    return Answer(plan, display.plan(plan))


def _nothing_to_do(done: Exception) -> Answer:
    text = str(done)
    return Answer({"format": FORMAT, "changed": False, "message": text}, [text])


@contextmanager
def watched(call: Call, metrics_port: int | None) -> Iterator[tuple["Listener", "Metrics | None"]]:
    """Give the listener for a run: the terminal, and Prometheus if a port was named."""
    from server.requests.progress import Listener, Listeners, MetricsListener, node_log

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
        stack.enter_context(node_log(terminal))
        yield Listeners([terminal, *watchers]), metrics


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
