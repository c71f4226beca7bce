"""What all commands share: the options --json, --home and --debug, errors, and exit codes.

Exit codes: 0 done, 1 failed, 2 wrong usage or setting, 3 verification failed, 130 stopped (Ctrl-C),
143 stopped (SIGTERM). Standard output carries the answer alone; progress, notes and errors go to
standard error.
"""

import errno
import inspect
import io
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, Final

import click
import typer
from click.core import ParameterSource
from rich.console import Console, RenderableType

from client.errors import INTERRUPTED, BadSetting, DiskFull, EffaceError, code_of
from client.files import FULL
from server.cli import options, process, project
from server.cli.project import METHOD_OPTIONS, Project
from server.format import masked
from server.storage.home import plain

FAILED: Final = 1
USAGE: Final = 2
NOT_VERIFIED: Final = 3
STOPPED: Final = 130
FORMAT: Final = 1  # of the JSON documents; fields only ever get added

OTHER: Final = "Output"
STOPPED_TEXT: Final = (
    "Stopped; what was done so far is kept. The same command again goes on where it was. "
    "`efface requests` shows it if it had begun, `efface requests --abort ID` gives it up."
)
_CLOSED: Final = (errno.EACCES, errno.EPERM, errno.EROFS)
# Codes by which an error has an exit code of its own; all others have FAILED.
_EXIT_CODES: Final = {
    "unknown-id": USAGE,
    "pruned": USAGE,
    "knows-forgotten": USAGE,
    "verification-failed": NOT_VERIFIED,
    "not-shown": NOT_VERIFIED,
    "edited": NOT_VERIFIED,
    INTERRUPTED: STOPPED,
}


@dataclass(frozen=True)
class Call:
    """How a command was called."""

    home: str  # "" for EFFACE_HOME, else ~/.efface
    json: bool
    errors: Console  # standard error
    project: Project = field(default_factory=Project)  # what efface.toml says
    from_file: frozenset[str] = frozenset()  # settings whose value here is efface.toml's


@dataclass(frozen=True)
class Answer:
    """What a command found: one document for programs, and what a person sees."""

    document: dict[str, Any]
    shown: Sequence[RenderableType] = field(default_factory=list)
    exit_code: int = 0
    text: str | None = None  # printed as it is, in place of `shown`: a file's content


_SHARED: Final = (
    Parameter(
        "home",
        Parameter.KEYWORD_ONLY,
        default="",
        annotation=Annotated[
            str,
            typer.Option(
                "--home",
                help="Folder of versions, requests and reports; EFFACE_HOME, efface.toml's or "
                "~/.efface if not given.",
                show_default=False,
                rich_help_panel=OTHER,
            ),
        ],
    ),
    Parameter(
        "config",
        Parameter.KEYWORD_ONLY,
        default="",
        annotation=Annotated[
            str,
            typer.Option(
                "--config",
                metavar="FILE",
                help="File of settings; EFFACE_CONFIG or efface.toml in this folder if not given.",
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
    over: typer.Typer | None = None,
    reads_file: bool = True,
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
        over: Commands under this one: `efface NAME` runs it, `efface NAME INNER` one of those.
        reads_file: Whether it reads efface.toml.
    """

    def register(function: Callable[..., Answer]) -> Callable[..., Answer]:
        own = [
            p.replace(kind=Parameter.KEYWORD_ONLY)
            for p in inspect.signature(function).parameters.values()
            if p.name not in ("call", "values")
        ]
        parameters = [*own, *(options.parameter(o) for o in settings), *_SHARED]

        def work(call: Call, told: dict[str, Any], config: str) -> Answer:
            _check_text({**told, "home": call.home, "config": config})
            found = project.read(config) if reads_file else Project()
            call = replace(call, home=call.home or found.value("home") or "", project=found)
            if not settings:
                return function(call, **told)
            flags = options.given(settings, told)
            values = found.values(name, project.keys_of(name))
            if "method" in flags:  # another method's options mean nothing to it
                values.pop(METHOD_OPTIONS, None)
            call = replace(call, from_file=frozenset(values) - set(flags))
            told = {key: told[key] for key in (p.name for p in own)}
            return function(call, values={**values, **flags}, **told)

        def body(**told: Any) -> None:
            context = click.get_current_context()
            if context.invoked_subcommand is not None:
                _check_alone(context)
                return
            before = context.parent.params if context.parent is not None else {}
            shared = {p.name: told.pop(p.name) or before.get(p.name) or p.default for p in _SHARED}
            call = Call(shared["home"], shared["as_json"], console_for(sys.stderr))
            raise typer.Exit(_carry_out(work, call, told, shared["config"], debug=shared["debug"]))

        body.__name__, body.__doc__ = function.__name__, function.__doc__
        body.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        body.__annotations__ = {p.name: p.annotation for p in parameters}
        if over is None:
            app.command(name, rich_help_panel=group, epilog=epilog)(body)
        else:
            over.callback(invoke_without_command=True, epilog=epilog)(body)
            app.add_typer(over, name=name, rich_help_panel=group)
        return function

    return register


def _check_alone(context: click.Context) -> None:
    """Refuse options of a command that stand before one under it, where nobody would read them."""
    shared = {p.name for p in _SHARED}
    for one in context.command.params:
        told = context.get_parameter_source(str(one.name)) is ParameterSource.COMMANDLINE
        if told and one.name not in shared:
            raise click.UsageError(
                f"{one.opts[0]} must be given without {context.invoked_subcommand}, got both"
            )


def console_for(stream: Any) -> Console:
    """Return a console on `stream` that breaks no words where no terminal is."""
    if stream.isatty():
        return Console(file=stream)
    return Console(file=stream, width=200, soft_wrap=False, highlight=False)


def _carry_out(
    work: Callable[[Call, dict[str, Any], str], Answer],
    call: Call,
    told: dict[str, Any],
    config: str,
    *,
    debug: bool,
) -> int:
    """Run a command, print its answer or its error, and return the exit code."""
    try:
        answer = work(call, told, config)
    except typer.Exit as leave:
        return leave.exit_code
    except (typer.Abort, KeyboardInterrupt) as stop:
        return _complain(call, stop, debug=debug)
    except Exception as error:
        return _complain(call, error, debug=debug)
    return _print(_json(answer.document) if call.json else _rendered(answer), answer.exit_code)


def _check_text(told: dict[str, Any]) -> None:
    """Refuse words that are no UTF-8: neither the ledger nor a JSON document can hold them.

    Raises:
        BadSetting: Naming the option.
    """
    names = {p.name: max(p.opts, key=len) for p in click.get_current_context().command.params}
    for key, value in told.items():
        for text in value.values() if isinstance(value, dict) else [value]:
            for word in text if isinstance(text, list) else [text]:
                if isinstance(word, str | Path) and str(word) != _readable(str(word)):
                    name = names.get(key, key).lstrip("-")
                    raise BadSetting(f"{name} must be text in UTF-8, got {_readable(str(word))!r}")


def _readable(text: str) -> str:
    return text.encode(errors="replace").decode()


def _rendered(answer: Answer) -> str:
    if answer.text is not None:
        return answer.text
    console = console_for(sys.stdout or io.StringIO())
    with console.capture() as captured:
        for part in answer.shown:
            console.print(part, markup=False)
    return captured.get()


def _print(text: str, code: int) -> int:
    """Write the answer and return the exit code: `code`, unless the answer cannot be written."""
    why = process.write_out(text)
    if why is None:
        return code
    print(process.unwritten(why), file=sys.stderr)
    return code or FAILED


def _complain(call: Call, error: BaseException, *, debug: bool) -> int:
    if debug:
        print(masked("".join(traceback.format_exception(error))), end="", file=sys.stderr)
    code, message = exit_code(error), masked(_message(error))
    print(message, file=sys.stderr)
    if code == USAGE:
        print(f"Try: {_hint(error)}", file=sys.stderr)
    if not call.json:
        return code
    stopped = code_of(error) == INTERRUPTED
    kind = "Interrupted" if stopped else type(error).__name__
    document = {
        "format": FORMAT,
        "error": kind,
        "code": _code(error),
        "message": STOPPED_TEXT if stopped else (masked(str(error)) or kind),
        "remedy": (error.remedy if isinstance(error, EffaceError) else "") or None,
        "exit_code": code,
    }
    return _print(_json(document), code)


def _code(error: BaseException) -> str:
    full = isinstance(error, OSError) and error.errno in FULL
    return DiskFull.code if full else code_of(error)


def exit_code(error: BaseException) -> int:
    """Return the exit code that stands for an error."""
    if isinstance(error, BadSetting):
        return USAGE
    if isinstance(error, process.Terminated):
        return process.TERMINATED
    return _EXIT_CODES.get(code_of(error), FAILED)


def _message(error: BaseException) -> str:
    if code_of(error) == INTERRUPTED:
        return STOPPED_TEXT
    if isinstance(error, EffaceError):
        return f"Error: {error}"
    if isinstance(error, typer.Abort):
        return "Nothing was changed."
    if isinstance(error, OSError) and error.errno in FULL:
        where = f" at {error.filename}" if error.filename else ""
        return (
            f"Error: disk must have room, got none left{where} ({error.strerror}); free some space"
        )
    if isinstance(error, OSError) and error.filename and error.errno in _CLOSED:
        return f"Error: {error.filename} must be open to this user, got: {error.strerror}"
    return (
        f"Error: unexpected {type(error).__name__}: {error}. --debug shows where; "
        "a request that was running can be taken up again with the same command"
    )


def _hint(error: BaseException) -> str:
    seen = error.see if isinstance(error, EffaceError) else ""
    return seen or f"{click.get_current_context().command_path} --help"


def _json(document: dict[str, Any]) -> str:
    return (
        json.dumps(plain(document, "answer"), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    )
