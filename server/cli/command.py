"""What all commands share: the options --json, --home and --debug, errors, and exit codes.

Exit codes: 0 done, 1 failed, 2 wrong usage or setting, 3 verification failed, 130 stopped (Ctrl-C).
Standard output carries the answer alone; progress, notes and errors go to standard error.
"""

import inspect
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from inspect import Parameter
from typing import Annotated, Any, Final

import click
import typer
from rich.console import Console, RenderableType

from client.errors import BadSetting, EffaceError
from server.cli import options
from server.storage.home import plain

FAILED: Final = 1
USAGE: Final = 2
NOT_VERIFIED: Final = 3
STOPPED: Final = 130
FORMAT: Final = 1  # of the JSON documents; fields only ever get added

OTHER: Final = "Output"
STOPPED_TEXT: Final = (
    "Stopped; what was done so far is kept. The same command again goes on where it was. "
    "`efface requests` shows the request, `efface requests --abort ID` gives it up."
)

# First words of an error's message -> the command that shows what would have been right.
_HINTS: Final = (
    ("dataset ", "efface data list"),
    ("data set ", "efface data list"),
    ("data-dir ", "efface data list"),
    ("method ", "efface methods"),
    ("option ", "efface methods"),
    ("version ", "efface models"),
    ("request must be one of", "efface requests"),
    ("relearning ", "efface requests"),
)


@dataclass(frozen=True)
class Call:
    """How a command was called."""

    home: str  # "" for EFFACE_HOME, else ~/.efface
    json: bool
    errors: Console  # standard error


@dataclass(frozen=True)
class Answer:
    """What a command found: one document for programs, and what a person sees."""

    document: dict[str, Any]
    shown: Sequence[RenderableType] = field(default_factory=list)
    exit_code: int = 0


_SHARED: Final = (
    Parameter(
        "home",
        Parameter.KEYWORD_ONLY,
        default="",
        annotation=Annotated[
            str,
            typer.Option(
                "--home",
                help="Folder of versions, requests and reports; EFFACE_HOME or ~/.efface if not "
                "given.",
                show_default=False,
                rich_help_panel=OTHER,
            ),
        ],
    ),
    Parameter(
        "as_json",
        Parameter.KEYWORD_ONLY,
        default=False,
        annotation=Annotated[
            bool,
            typer.Option(
                "--json", help="Print one JSON document (docs/json.md).", rich_help_panel=OTHER
            ),
        ],
    ),
    Parameter(
        "debug",
        Parameter.KEYWORD_ONLY,
        default=False,
        annotation=Annotated[
            bool,
            typer.Option("--debug", help="Show an error's traceback.", rich_help_panel=OTHER),
        ],
    ),
)


def command(
    app: typer.Typer,
    name: str,
    *,
    group: str | None = None,
    settings: Sequence[options.Option] = (),
    epilog: str | None = None,
) -> Callable[[Callable[..., Answer]], Callable[..., Answer]]:
    """Register a function as a command of `app`.

    The function takes `call: Call` first, then `values: dict` of settings by kebab-case key if
    there are `settings`, then its own options; it returns an `Answer`.

    Args:
        app: Where to register it.
        name: The command's name.
        group: Heading in the list of commands.
        settings: Settings that it takes as options.
        epilog: An example, shown under the help.
    """

    def register(function: Callable[..., Answer]) -> Callable[..., Answer]:
        own = [
            p.replace(kind=Parameter.KEYWORD_ONLY)
            for p in inspect.signature(function).parameters.values()
            if p.name not in ("call", "values")
        ]
        parameters = [*own, *(options.parameter(o) for o in settings), *_SHARED]

        def body(**told: Any) -> None:
            call = Call(told.pop("home"), told.pop("as_json"), console_for(sys.stderr))
            debug = told.pop("debug")
            if settings:
                values = options.given(settings, told)
                told = {key: told[key] for key in (p.name for p in own)} | {"values": values}
            raise typer.Exit(_carry_out(function, call, told, debug=debug))

        body.__name__, body.__doc__ = function.__name__, function.__doc__
        body.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        body.__annotations__ = {p.name: p.annotation for p in parameters}
        app.command(name, rich_help_panel=group, epilog=epilog)(body)
        return function

    return register


def console_for(stream: Any) -> Console:
    """Return a console on `stream` that breaks no words where no terminal is."""
    if stream.isatty():
        return Console(file=stream)
    return Console(file=stream, width=200, soft_wrap=False, highlight=False)


def _carry_out(
    function: Callable[..., Answer], call: Call, told: dict[str, Any], *, debug: bool
) -> int:
    """Run a command, print its answer or its error, and return the exit code."""
    try:
        answer = function(call, **told)
    except typer.Exit as leave:
        return leave.exit_code
    except (typer.Abort, KeyboardInterrupt) as stop:
        return _complain(call, stop, debug=debug)
    except Exception as error:
        return _complain(call, error, debug=debug)
    if call.json:
        _print_json(answer.document)
    else:
        console = console_for(sys.stdout)
        for part in answer.shown:
            console.print(part, markup=False)
    return answer.exit_code


def _complain(call: Call, error: BaseException, *, debug: bool) -> int:
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    code, message = exit_code(error), _message(error)
    print(message, file=sys.stderr)
    if code == USAGE:
        print(f"Try: {_hint(str(error))}", file=sys.stderr)
    if call.json:
        kind = "Interrupted" if code == STOPPED else type(error).__name__
        text = STOPPED_TEXT if code == STOPPED else (str(error) or kind)
        _print_json({"format": FORMAT, "error": kind, "message": text, "exit_code": code})
    return code


def exit_code(error: BaseException) -> int:
    """Return the exit code that stands for an error."""
    if isinstance(error, BadSetting):
        return USAGE
    if isinstance(error, KeyboardInterrupt):
        return STOPPED
    # By name: their modules bring SQLAlchemy or torch along, and any of them may never be loaded.
    names = {kind.__name__ for kind in type(error).__mro__}
    if "UnknownIdError" in names:
        return USAGE
    if "VerificationFailed" in names:
        return NOT_VERIFIED
    if "Interrupted" in names:
        return STOPPED
    return FAILED


def _message(error: BaseException) -> str:
    if exit_code(error) == STOPPED:
        return STOPPED_TEXT
    if isinstance(error, EffaceError):
        return f"Error: {error}"
    if isinstance(error, typer.Abort):
        return "Nothing was changed."
    return (
        f"Error: unexpected {type(error).__name__}: {error}. --debug shows where; "
        "a request that was running can be taken up again with the same command"
    )


def _hint(message: str) -> str:
    for start, command_line in _HINTS:
        if message.startswith(start):
            return command_line
    return f"{click.get_current_context().command_path} --help"


def _print_json(document: dict[str, Any]) -> None:
    text = json.dumps(plain(document, "answer"), indent=2, ensure_ascii=False, allow_nan=False)
    print(text)
