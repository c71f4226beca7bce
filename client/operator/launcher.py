"""Start a site's SuperNode and executor apart, keep them running, and end both.

A child that ends is started again after a pause that doubles, but for one that says that a person
has to mend something first (`client.operator.part`). One reason is so usual that it is
put into words: for up to a minute after a SuperNode was killed, the coordinator takes it for
connected and refuses it with code 2004, as it does an unregistered key.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from client.errors import kind_of, split_mark
from client.operator.bundles import visible
from client.operator.folder import SiteFolder
from client.operator.part import UNFIT

NODE: Final = "node"
EXECUTOR: Final = "executor"
PARTS: Final = (NODE, EXECUTOR)
REFUSED: Final = "[code: 2004]"  # flwr's, of a SuperNode that the SuperLink does not let in
REFUSED_TEXT: Final = (
    "the coordinator did not let this node in: its key is not registered, or the coordinator still "
    "takes the SuperNode that ran before for connected (up to a minute after it was killed)"
)
FIRST_PAUSE: Final = 1.0  # seconds
LONGEST_PAUSE: Final = 30.0
STEADY: Final = 60.0  # a child that lived so long starts again without a long pause
GRACE: Final = 20.0
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")
# What a child sees of the environment; whatever else the operator's shell holds is not for it.
_KEPT: Final = (
    "PATH", "LANG", "TZ", "PYTHONPATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "TMPDIR",
)  # fmt: skip
_KEPT_STARTS: Final = ("LC_", "OMP_", "MKL_", "NVIDIA_", "EFFACE_", "FLWR_SUPEREXEC_", "GRPC_")


@dataclass
class _Child:
    name: str
    command: list[str]
    process: "subprocess.Popen[str] | None" = None
    started: float = 0.0
    due: float = 0.0
    pause: float = FIRST_PAUSE
    refused: bool = False
    last: str = ""  # line of its log
    reader: threading.Thread | None = field(default=None, repr=False)


def environment() -> dict[str, str]:
    """Return what the children see of this process's environment."""
    found = {k: v for k, v in os.environ.items() if k in _KEPT or k.startswith(_KEPT_STARTS)}
    return {
        **found,
        "PYTHONUNBUFFERED": "1",
        # Or numpy starts threads as it is loaded, and a process with threads cannot be copied.
        "OPENBLAS_NUM_THREADS": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }


def run(
    folder: Path,
    *,
    parts: Sequence[str] = PARTS,
    user: str = "",
    strict: bool = False,
    cold: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Run the parts of a site until this process is interrupted.

    Args:
        folder: The site's folder.
        parts: `node`, `executor`, or both.
        user: The executor's user; needs root.
        strict: End the executor if it is not fully apart.
        cold: Have the executor start a new process for each message.
        say: Takes each line of the log.

    Raises:
        EffaceError: If a part cannot start with what it finds; both parts have ended then.
        KeyboardInterrupt: When the process is told to end; both parts have ended then.
    """
    site = SiteFolder.load(folder)
    children = [
        _Child(part, _command(part, site.folder, user, strict=strict, cold=cold)) for part in parts
    ]
    try:
        while True:
            now = time.monotonic()
            for child in children:
                if child.process is None and now >= child.due:
                    _start(child, say)
                elif child.process is not None and child.process.poll() is not None:
                    _ended(child, say)
            time.sleep(0.1)
    finally:
        _stop(children)


def _command(part: str, folder: Path, user: str, *, strict: bool, cold: bool) -> list[str]:
    command = [sys.executable, "-P", "-m", f"client.operator.{part}", str(folder)]
    command += ["--parent", str(os.getpid())]
    if user:
        command += ["--user", user]
    if part == EXECUTOR:
        command += ["--strict"] * strict + ["--cold"] * cold
    return command


def _start(child: _Child, say: Callable[[str], None]) -> None:
    process = subprocess.Popen(
        child.command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="backslashreplace",
        env=environment(),
        start_new_session=True,  # a terminal's Ctrl-C comes to the launcher, which asks in turn
    )
    child.process, child.started, child.refused = process, time.monotonic(), False

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            child.refused |= REFUSED in line
            child.last = line.strip()
            # A run's names come from the coordinator and end in the log: they move no cursor.
            say(f"{child.name}: {visible(_COLOUR.sub('', line.rstrip()))}")

    child.reader = threading.Thread(target=read, daemon=True)
    child.reader.start()


def _ended(child: _Child, say: Callable[[str], None]) -> None:
    assert child.process is not None
    if child.reader is not None:
        child.reader.join(1.0)
    if child.process.returncode == UNFIT:
        code, text = split_mark(child.last)
        raise kind_of(code)(text)
    now = time.monotonic()
    if now - child.started >= STEADY:
        child.pause = FIRST_PAUSE
    why = REFUSED_TEXT if child.refused else f"exit status {child.process.returncode}"
    say(f"{child.name}: ended ({why}); starting again in {child.pause:.0f} s")
    child.process, child.due = None, now + child.pause
    child.pause = min(2 * child.pause, LONGEST_PAUSE)


def _stop(children: Sequence[_Child]) -> None:
    """End all: politely first, by force after a while."""
    running = [child.process for child in children if child.process is not None]
    for process in running:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    for process in running:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for child in children:
        if child.reader is not None:
            child.reader.join(1.0)
