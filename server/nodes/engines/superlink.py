"""The superlink engine: one request is one Flower run on a running `flower-superlink`.

The run is submitted, watched and stopped through the `flwr` command, Flower's stable interface;
the ServerApp then works inside the SuperLink's executor and the ClientApps at the sites. Nothing
here touches a model: the apps are the same on every engine.

    app = stage_app(folder, defaults)
    run_id = submit(app, "lab", {"request": "r0002"})
    result = wait(run_id, "lab", on_poll=progress.refresh, ended=request.ended, deadline=3600.0)
"""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from client.errors import BadSetting, EffaceError

Scalar = str | int | float | bool
PACKAGES = ("client", "server", "strategies")  # what travels to the SuperLink and the sites
ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
COMMAND_SECONDS = 120.0  # one `flwr` command; it takes about one second
ASK_SECONDS = 2.0  # every question is a new `flwr` process, one second of a core
POLL_SECONDS = 0.1  # between two looks at what costs next to nothing: the events, the ledger
QUIET_SECONDS = 15.0  # a run that is silent for longer is asked after: it may have failed
MOST_QUIET_SECONDS = 60.0  # and then less and less often, since a round may be long
OUTAGE_SECONDS = 120.0  # a SuperLink may restart under a run (DEPLOY.md) and the run goes on
LOG_LINES = 20
# flwr's own text for every failure to connect, TLS included.
UNREACHABLE = "Connection to the SuperLink is unavailable"
ANSI = re.compile(r"\x1b\[[0-9;]*m")


class UnreachableError(EffaceError):
    """The SuperLink does not answer; nothing is known about its runs."""

    code = "superlink-unreachable"


class RunFailedError(EffaceError):
    """The run ended without completing, or was stopped; the message holds its last log lines."""

    code = "run-failed"


@dataclass(frozen=True)
class RunResult:
    """How a run ended, as the SuperLink counts it.

    Attributes:
        run_id: Flower's id of the run.
        status: For example "running" or "finished:completed".
        details: Flower's words about a failure, "" if none.
        seconds: Wall time of the run so far.
        bytes_up: Bytes from the nodes to the SuperLink; equal arrays are sent once.
        bytes_down: Bytes from the SuperLink to the nodes.
    """

    run_id: int
    status: str
    details: str
    seconds: float
    bytes_up: int
    bytes_down: int

    @property
    def finished(self) -> bool:
        """Whether the run has ended, in whatever way."""
        return self.status.startswith("finished")


def stage_app(
    destination: Path,
    defaults: Mapping[str, Scalar] | None = None,
    *,
    task: Path | None = None,
) -> Path:
    """Write the Flower app as a folder that `flwr run` accepts, from a checkout or a wheel.

    The folder holds the three packages and a pyproject.toml. Equal code and equal `defaults` give
    an equal bundle, which the SuperLink and the nodes then install once: pass the settings' fixed
    defaults here and a request's own values to `submit`.

    Args:
        destination: Folder to fill; it is created, and must be empty or absent.
        defaults: The run configuration with its default values: every key that `submit` may set.
            None takes those of the project's own pyproject.toml.
        task: Folder with the sources of a user's task, called by their hash; it travels in
            client/own.

    Returns:
        `destination`.

    Raises:
        BadSetting: If `destination` holds files.
    """
    if destination.exists() and any(destination.iterdir()):
        raise BadSetting(f"destination must be an empty folder, got {destination}")
    root = Path(__file__).resolve().parents[3]
    project = _own_project(root)
    if defaults is None:
        defaults = project.get("tool", {}).get("flwr", {}).get("app", {}).get("config", {})
    for package in PACKAGES:
        for source in sorted((root / package).rglob("*.py")):
            target = destination / source.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    if task is not None:
        shutil.copytree(task, destination / "client" / "own" / task.name)
    include = ", ".join(f'"{package}/**/*.py"' for package in PACKAGES)
    (destination / "pyproject.toml").write_text(
        "[project]\n"
        'name = "efface"\n'
        f'version = "{_own_version(project)}"\n'
        'description = "Federated unlearning."\n'
        'license = "Apache-2.0"\n'
        'dependencies = ["flwr==1.39.0"]\n\n'
        "[tool.flwr.app]\n"
        'publisher = "efface"\n'
        f"fab-include = [{include}]\n\n"
        "[tool.flwr.app.components]\n"
        'serverapp = "server.app:app"\n'
        'clientapp = "client.app:app"\n\n'
        "[tool.flwr.app.config]\n" + _toml(defaults),
        encoding="utf-8",
    )
    return destination


def check_connection(connection: str, *, flwr_home: Path | None = None) -> str:
    """Return the address behind `connection`, read from Flower's connection file.

    Args:
        connection: Name of a `[superlink.NAME]` table in `config.toml`.
        flwr_home: Folder of that file; None takes $FLWR_HOME, else ~/.flwr.

    Raises:
        BadSetting: If the file or the name is missing, or the name stands for Flower's own
            simulation, which has no SuperNodes.
    """
    file = _flwr_home(flwr_home) / "config.toml"
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8")).get("superlink", {})
    except FileNotFoundError:
        raise BadSetting(
            f"connection must be named in Flower's connection file, got {connection!r} and no "
            f"{file}; write one with deploy/make_federation.py connection {connection}, or set "
            "FLWR_HOME to the folder that has it"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadSetting(f"{file} must be valid TOML: {error}") from None
    known = {name: entry for name, entry in table.items() if isinstance(entry, dict)}
    if connection not in known:
        raise BadSetting(
            f"connection must be one of {', '.join(sorted(known)) or '(none)'} in {file}, "
            f"got {connection!r}; add a [superlink.{connection}] table with address and "
            "root-certificates"
        )
    address = str(known[connection].get("address", ""))
    if not address or address.startswith(":"):
        raise BadSetting(
            f"connection must have the HOST:PORT of a running SuperLink, got {connection!r} with "
            f"address {address!r}; for a simulation use --engine ray or --engine inline"
        )
    return address


def submit(
    app_dir: Path,
    connection: str,
    run_config: Mapping[str, Scalar],
    *,
    flwr_home: Path | None = None,
) -> int:
    """Start a Flower run of the app and return its id at once.

    Ctrl-C while the run is being started stops it again.

    Args:
        app_dir: Folder with the app's pyproject.toml, for example from `stage_app`.
        connection: Name in Flower's connection file.
        run_config: Values that differ from the app's defaults.
        flwr_home: Folder of the connection file; None takes $FLWR_HOME, else ~/.flwr.

    Raises:
        BadSetting: If the connection, a key, or a value's type is unknown.
        UnreachableError: If nothing answers at the connection's address.
        EffaceError: If the SuperLink refuses the run.
    """
    check_connection(connection, flwr_home=flwr_home)
    run_config = _checked_run_config(app_dir, run_config)
    with tempfile.TemporaryDirectory(prefix="efface-run-") as folder:
        # A file instead of KEY=VALUE words: flwr's own splitting knows no escapes.
        values = Path(folder) / "run-config.toml"
        values.write_text(_toml(run_config), encoding="utf-8")
        arguments = ["run", str(app_dir), connection, "--format", "json"]
        if run_config:
            arguments += ["--run-config", str(values)]
        process = _start(arguments, flwr_home)
        try:
            output = _finish(process, arguments)
        except KeyboardInterrupt:
            # The request may be on its way: learn the run's id before giving up on it.
            answer = _parse(_finish(process, arguments))
            if answer.get("run-id"):
                stop(int(answer["run-id"]), connection, flwr_home=flwr_home)
            raise
    return int(_checked(_parse(output), connection, flwr_home)["run-id"])


def status(run_id: int, connection: str, *, flwr_home: Path | None = None) -> RunResult:
    """Ask the SuperLink how the run stands.

    Raises:
        UnreachableError: If nothing answers at the connection's address.
        EffaceError: If the SuperLink does not know the run.
    """
    answer = _ask(["ls", connection, "--run-id", str(run_id)], connection, flwr_home)
    run = answer["runs"][0]
    details = str(run.get("status-details") or "")
    return RunResult(
        run_id=run_id,
        status=str(run["status"]),
        details="" if details == "N/A" else details,
        seconds=float(run["elapsed"]),
        bytes_up=int(run["network-traffic"]["inbound-bytes"]),
        bytes_down=int(run["network-traffic"]["outbound-bytes"]),
    )


def stop(run_id: int, connection: str, *, flwr_home: Path | None = None) -> None:
    """Stop the run; a run that has already ended is left as it is.

    Flower kills no process for it. The ServerApp ends at its next heartbeat or message (21 s later
    was measured on flwr 1.39.0), and a step that a node has begun goes on to its end there.

    Raises:
        UnreachableError: If nothing answers at the connection's address.
        EffaceError: If the SuperLink refuses while the run goes on.
    """
    try:
        _ask(["stop", str(run_id), connection], connection, flwr_home)
    except UnreachableError:
        raise
    except EffaceError:
        if not status(run_id, connection, flwr_home=flwr_home).finished:
            raise


def wait(
    run_id: int,
    connection: str,
    *,
    on_poll: Callable[[], bool | None] | None = None,
    ended: Callable[[], bool] | None = None,
    complete: Callable[[], bool] | None = None,
    deadline: float = math.inf,
    ask_seconds: float = ASK_SECONDS,
    flwr_home: Path | None = None,
) -> RunResult | None:
    """Wait until the run has completed.

    To ask Flower takes a process of its own, with a second of CPU. With `ended`, Flower is asked
    only when that says yes, or when nothing was heard of the run for 15 seconds, and then after
    ever longer pauses, up to a minute. Without it Flower alone knows, and is asked all the time.

    Ctrl-C, an error in `on_poll` and a passed deadline stop the run first. A SuperLink that does
    not answer is asked again for two minutes: it may be restarting, and then the run goes on.

    Args:
        run_id: As `submit` returned it.
        connection: Name in Flower's connection file.
        on_poll: Called several times a second with `ended`, else after every question; for
            example to move a progress bar. True says that something new was heard of the run.
        ended: Cheap to call; returns whether the run's work is over, as far as the caller can see.
        complete: Called once `ended` is true; returns whether the caller has all that the run was
            for. Flower is not asked then: its ServerApp takes another second or two to end.
        deadline: Seconds from now until the run must have ended.
        ask_seconds: Seconds between two questions to Flower without `ended`, or once that is true.
        flwr_home: Folder of the connection file; None takes $FLWR_HOME, else ~/.flwr.

    Returns:
        How it ended; None where `complete` said that it need not be asked.

    Raises:
        RunFailedError: If the run failed, was stopped, or passed the deadline.
        UnreachableError: If the SuperLink stays away; the run may still be going on there.
    """
    limit = time.monotonic() + deadline
    asking = _Asking(ask_seconds, watched=ended is not None)
    while True:
        try:
            result = None
            heard = bool(on_poll()) if on_poll is not None else False
            over = ended is not None and ended()
            if over and complete is not None and complete():
                if on_poll is not None:
                    on_poll()
                return None
            if asking.due(heard, over):
                try:
                    result = status(run_id, connection, flwr_home=flwr_home)
                    asking.answered()
                except UnreachableError as error:
                    if asking.unanswered() > OUTAGE_SECONDS:
                        error.add_note(f"Run {run_id} may still be going on there.")
                        raise
            if result is not None and result.finished:
                break
            if time.monotonic() > limit:
                raise TimeoutError
            pause = ask_seconds if ended is None else POLL_SECONDS
            time.sleep(min(pause, max(0.0, limit - time.monotonic())))
        except UnreachableError:
            raise
        except BaseException as error:
            _stop_after(error, run_id, connection, flwr_home)
            if isinstance(error, TimeoutError):
                raise RunFailedError(
                    f"run {run_id} must end within {deadline:g} s; it was stopped"
                    + _last_lines(run_id, connection, flwr_home)
                ) from None
            raise
    if on_poll is not None:
        on_poll()  # the last progress is worth showing
    if result.status != "finished:completed":
        raise RunFailedError(
            f"run {run_id} must complete, got {result.status}"
            + (f": {result.details}" if result.details else "")
            + _last_lines(run_id, connection, flwr_home)
        )
    return result


class _Asking:
    """Decides when `wait` asks Flower how the run stands."""

    def __init__(self, ask_seconds: float, *, watched: bool) -> None:
        """Begin now; `watched` says that the caller sees the run by itself."""
        self.ask_seconds, self.watched = ask_seconds, watched
        self.over = False
        self.outage: float | None  # since when the SuperLink has not answered
        self._hear()

    def _hear(self) -> None:
        self.outage = None
        self.pause = QUIET_SECONDS if self.watched else 0.0
        self.next = time.monotonic() + self.pause

    def due(self, heard: bool, over: bool) -> bool:
        """Return whether to ask now, after a look that found these two."""
        if over and not self.over:
            self.next = time.monotonic()
        elif heard and not over:
            self._hear()
        self.over = over
        return time.monotonic() >= self.next

    def answered(self) -> None:
        """Note that Flower was asked and has answered."""
        self.outage = None
        self._rest(min(2 * self.pause, MOST_QUIET_SECONDS))

    def unanswered(self) -> float:
        """Note that Flower was asked in vain; return for how many seconds that has gone on."""
        if self.outage is None:
            self.outage = time.monotonic()
        self._rest(min(self.pause, QUIET_SECONDS))
        return time.monotonic() - self.outage

    def _rest(self, pause: float) -> None:
        self.pause = pause
        wait_for = self.pause if self.watched and not self.over else self.ask_seconds
        self.next = time.monotonic() + wait_for


def _stop_after(error: BaseException, run_id: int, connection: str, flwr_home: Path | None) -> None:
    """Stop the run because of `error`; a failure to do so becomes a note on it."""
    try:
        stop(run_id, connection, flwr_home=flwr_home)
    except EffaceError as trouble:
        error.add_note(
            f"Run {run_id} could not be stopped ({trouble}). "
            f"Stop it when the SuperLink answers: flwr stop {run_id} {connection}"
        )


def _last_lines(run_id: int, connection: str, flwr_home: Path | None) -> str:
    """Return the end of the ServerApp's log as an indented block, "" if there is none."""
    try:
        arguments = ["log", str(run_id), connection, "--show"]
        text = ANSI.sub("", _finish(_start(arguments, flwr_home), arguments))
    except EffaceError:
        return ""  # the failure itself is the message; a missing log must not hide it
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("Using SuperLink")][-LOG_LINES:]
    return "\n  last log lines:\n" + "\n".join(f"    {line}" for line in lines) if lines else ""


def _checked_run_config(app_dir: Path, run_config: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return `run_config` in the types of the app's own table; refuse what that does not have."""
    file = app_dir / "pyproject.toml"
    try:
        project = tomllib.loads(file.read_text(encoding="utf-8"))
        known: dict[str, Any] = project["tool"]["flwr"]["app"].get("config", {})
    except (FileNotFoundError, KeyError):
        raise BadSetting(
            f"app_dir must hold a pyproject.toml with [tool.flwr.app], got {app_dir}"
        ) from None
    values: dict[str, Scalar] = {}
    for key, value in run_config.items():
        if key not in known:
            raise BadSetting(
                f"run_config must use the keys of {file} ({', '.join(sorted(known))}), got {key!r}"
            )
        wanted = type(known[key])
        if wanted is float and type(value) is int:
            value = float(value)  # `lr = 1` means 1.0
        if type(value) is not wanted:
            raise BadSetting(f"{key} must be a {wanted.__name__}, got {value!r}")
        values[key] = value
    return values


def _ask(arguments: list[str], connection: str, flwr_home: Path | None) -> dict[str, Any]:
    """Run a `flwr` command with `--format json` and return its successful answer."""
    arguments = [*arguments, "--format", "json"]
    output = _finish(_start(arguments, flwr_home), arguments)
    return _checked(_parse(output), connection, flwr_home)


def _start(arguments: list[str], flwr_home: Path | None) -> "subprocess.Popen[str]":
    """Start `flwr ARGUMENTS`, out of reach of the terminal's Ctrl-C."""
    beside = Path(sys.executable).parent / "flwr"
    program = str(beside) if beside.exists() else shutil.which("flwr")
    if program is None:
        raise EffaceError(
            f"flwr must be installed beside {sys.executable} or be on PATH; "
            "install Efface again: pip install efface"
        )
    environment = {**os.environ, **ENVIRONMENT, "FLWR_HOME": str(_flwr_home(flwr_home))}
    return subprocess.Popen(
        [program, *arguments],
        stdin=subprocess.DEVNULL,  # never a question to the operator in mid-request
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=environment,
        start_new_session=True,
    )


def _finish(process: "subprocess.Popen[str]", arguments: list[str]) -> str:
    """Return what the command printed on stdout; its stderr when stdout is empty."""
    try:
        output, errors = process.communicate(timeout=COMMAND_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise UnreachableError(
            f"flwr {arguments[0]} must answer within {COMMAND_SECONDS:g} s, got no answer; "
            "check the SuperLink's log"
        ) from None
    return output or errors


def _parse(output: str) -> dict[str, Any]:
    """Return the JSON object in `output`; text without one becomes an error answer."""
    start = output.find("{")
    try:
        answer = json.loads(output[start:]) if start >= 0 else None
    except ValueError:
        answer = None
    if isinstance(answer, dict):
        return answer
    return {"success": False, "error-message": ANSI.sub("", output)}


def _checked(answer: dict[str, Any], connection: str, flwr_home: Path | None) -> dict[str, Any]:
    """Return `answer` if it is a success. flwr exits with 0 either way, so only the text tells."""
    if answer.get("success"):
        return answer
    lines = str(answer.get("error-message", "")).splitlines()
    reason = " ".join(
        line.strip() for line in lines if line.strip() and not line.startswith("Using SuperLink")
    )
    if UNREACHABLE in reason:
        address = check_connection(connection, flwr_home=flwr_home)
        raise UnreachableError(
            f"the SuperLink of connection {connection!r} must answer at {address}, got no "
            "connection; check that flower-superlink runs, that this is its --port (not the Fleet "
            "port) and that root-certificates is the certificate authority it was made with"
        )
    raise EffaceError(f"the SuperLink of connection {connection!r} refused: {reason}")


def _flwr_home(flwr_home: Path | None) -> Path:
    """Return the folder with Flower's connection file, found as flwr finds it."""
    if flwr_home is not None:
        return flwr_home
    named = os.environ.get("FLWR_HOME")
    return Path(named) if named else Path.home() / ".flwr"


def _own_project(root: Path) -> dict[str, Any]:
    """Return the project's pyproject.toml in a checkout, {} beside an installed wheel."""
    file = root / "pyproject.toml"
    if not file.is_file():
        return {}
    project = tomllib.loads(file.read_text(encoding="utf-8"))
    return project if project.get("project", {}).get("name") == "efface" else {}


def _own_version(project: Mapping[str, Any]) -> str:
    """Return Efface's version: a checkout's own, else the installed one."""
    if "project" in project:
        return str(project["project"]["version"])
    try:
        return version("efface")
    except PackageNotFoundError:
        raise EffaceError(
            "efface must be installed, or run from a checkout with its pyproject.toml, "
            "before its app can be sent to a SuperLink"
        ) from None


def _toml(values: Mapping[str, Scalar]) -> str:
    """Return `values` as the lines of a TOML table.

    Raises:
        BadSetting: If a key is not of letters, digits, `_` and `-`, or a value is no scalar.
    """
    return "".join(
        f"{_toml_key(key)} = {_toml_value(key, value)}\n" for key, value in values.items()
    )


def _toml_key(key: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", key):
        raise BadSetting(f"run_config key must be letters, digits, '_' or '-', got {key!r}")
    return key


def _toml_value(key: str, value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            # JSON's escapes are TOML's, but for DEL, which only TOML escapes.
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case _:
            raise BadSetting(f"{key} must be text, a number or true/false, got {value!r}")
