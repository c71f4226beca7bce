"""The command that judges again what a request to forget made: verify."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from server.cli.command import FORMAT, NOT_VERIFIED, Answer, Call, command
from server.cli.options import OF_COMMAND
from server.cli.reading import opened
from server.format import target_text
from server.report import display

if TYPE_CHECKING:
    from server.evidence.record import Record

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
            help="A request to forget classes, such as r0002, or the version that it made.",
        ),
    ],
) -> Answer:
    """Judge again what a request to forget made, with all retrained models there are by now.

    Checks its record, order and weights against the signatures first, and changes nothing.

    Needs the coordinator's test examples: what only clients can measure is refused.
    """
    from server.requests.verification import limits_of, verified

    home, ledger = opened(call)
    found = verified(home, ledger, request, limits_of(values), str(values.get("data", "")))
    again = found.again
    state = None if again is None or again.verdict is None else again.verdict.state
    document: dict[str, Any] = {
        "format": FORMAT,
        "request": found.request,
        "base_version": found.base,
        "version": found.version,
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
    return Answer(document, _shown(found.request, again, found), exit_code)


def _shown(request: str, again: "Record", found: Any) -> list[Any]:
    target = target_text(None if again.forget is None else vars(again.forget), again.class_names)
    shown: list[Any] = [
        f"{request}, measured again: {target} forgotten from {found.base}, result {found.version}; "
        "record, order and weights are as they were signed",
        display.accuracy_table(again),
    ]
    if again.stock:
        shown.append(display.stock_table(again))
    shown += ["Now", *display.verdict_lines(again)]
    then = display.verdict_lines(found.recorded)
    shown += ["", "In the record", *(then or ["Verdict: none"])]
    shown += [f"note: {note}" for note in found.notes]
    return shown


def _part(record: "Record | None", name: str) -> Any:
    """Return one part of a record as JSON; None where nothing was measured."""
    if record is None:
        return None
    from server.evidence.record import to_json

    return to_json(record)[name]
