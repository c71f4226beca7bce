"""The command that judges again what a request to forget made: verify."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from server.cli.command import FORMAT, NOT_VERIFIED, Answer, Call, command
from server.cli.options import OF_COMMAND
from server.cli.running import AskedBy, MetricsPort, Why, watched
from server.format import target_text
from server.report import display

if TYPE_CHECKING:
    from server.evidence.record import Record
    from server.requests.verification import Verified

GROUP: Final = "Look"
MEASURED: Final = ("original", "retrained", "recovered", "stock", "features")  # as in a record


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    command(
        app,
        "verify",
        group=GROUP,
        settings=OF_COMMAND["verify"],
        epilog="Example: efface verify r0002",
    )(verify)


def verify(
    call: Call,
    values: dict[str, Any],
    request: Annotated[
        str,
        typer.Argument(
            metavar="REQUEST",
            help="A request to forget, such as r0002, or the version that it made.",
        ),
    ],
    unrecorded: Annotated[
        bool,
        typer.Option(
            "--unrecorded",
            help="Write nothing down; only where no client need be asked. So it is where the home "
            "cannot be written.",
        ),
    ] = False,
    metrics_port: MetricsPort = None,
    asked_by: AskedBy = "",
    why: Why = "",
) -> Answer:
    """Judge again what a request to forget made, with all retrained models there are by now.

    Checks its record, order and weights against the signatures first. What it finds is a request of
    its own, sealed in the ledger; the record that it is about stays, its report and certificate say
    so. Limits wider than its own and the defaults are taken with --unrecorded only.

    Classes are measured on the coordinator's test examples. What a client held, and where only
    clients have data, the clients measure, who must be online.
    """
    from server.runner import verify as judged

    told = {**values, "asked-by": asked_by or str(values.get("asked-by", "")), "why": why}
    with watched(call, metrics_port) as (listener, _):
        found = judged(call.home, request, told, listener, recorded=not unrecorded)
    again = found.again
    state = None if again is None or again.verdict is None else again.verdict.state
    document: dict[str, Any] = {
        "format": FORMAT,
        "request": found.request,
        "base_version": found.base,
        "version": found.version,
        "verification": found.verification,
        "report": found.report,
        "asked_clients": found.asked_clients,
        "passed": state == "passed",
        "problems": [asdict(problem) for problem in found.problems],
        "limits": asdict(found.limits),
        "verdict": _part(again, "verdict"),
        "recorded": _part(found.recorded, "verdict"),
        **{name: _part(again, name) for name in MEASURED},
        "notes": list(found.notes),
    }
    exit_code = 0 if state == "passed" else NOT_VERIFIED
    if again is None:
        shown = [
            f"{found.request} is not judged: it does not verify (`efface audit` checks all):",
            *(problem.sentence for problem in found.problems),
        ]
        return Answer(document, shown, exit_code)
    return Answer(document, _shown(found, again), exit_code)


def _shown(found: "Verified", again: "Record") -> list[Any]:
    target = target_text(None if again.forget is None else vars(again.forget), again.class_names)
    by = "with its clients" if found.asked_clients else "by the coordinator alone"
    shown: list[Any] = [
        f"{found.request}, measured again {by}: {target} forgotten from {found.base}, result "
        f"{found.version}; record, order and weights are as they were signed",
        display.accuracy_table(again),
    ]
    if again.stock:
        shown.append(display.stock_table(again))
    shown += ["Now", *display.verdict_lines(again)]
    then = [] if found.recorded is None else display.verdict_lines(found.recorded)
    shown += ["", "In the record", *(then or ["Verdict: none"])]
    shown += [f"note: {note}" for note in found.notes]
    if found.verification is None:
        shown += ["", "Not written down."]
    else:
        shown += ["", f"Sealed in the ledger as {found.verification}. Report: {found.report}"]
    return shown


def _part(record: "Record | None", name: str) -> Any:
    """Return one part of a record as JSON; None where nothing was measured."""
    if record is None:
        return None
    from server.evidence.record import to_json

    return to_json(record)[name]
