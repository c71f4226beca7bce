"""Runs a command for a test, and ends it with all that it started when the test is gone.

    python tests/supervisor.py PARENT COMMAND [ARGUMENT ...]

Flower's daemons start each other in sessions of their own, so neither a process group nor a
terminal's Ctrl-C reaches them all. This process adopts every orphan below it (Linux's child
subreaper), so all of them stay its descendants. When process PARENT is gone it kills them at once;
on SIGTERM, SIGINT and SIGHUP it asks the command to end first. It ends as the command does.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
STOPS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
WAKES = STOPS | {signal.SIGCHLD}
POLL_SECONDS = 0.2  # between two looks at whether the parent is there
GRACE_SECONDS = 10.0  # for a command that was asked to end


def supervised(command: Sequence[str | Path]) -> list[str]:
    """Return the command line that runs `command` under a supervisor (Linux only, else as is)."""
    words = [str(word) for word in command]
    if sys.platform != "linux":
        return words
    return [sys.executable, "-I", str(Path(__file__).resolve()), str(os.getpid()), *words]


def descendants(root: int) -> set[int]:
    """Return the ids of all processes below `root`, those that have ended unseen left out."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:  # ended meanwhile
            continue
        if state not in "ZX":
            parents[int(entry.name)] = int(parent)
    found: set[int] = set()
    while new := {pid for pid, parent in parents.items() if parent in {root, *found}} - found:
        found |= new
    return found


def reap(child: int) -> int | None:
    """Collect all children that have ended; return the exit status of `child` if it is one."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if pid == 0:
            return code
        if pid == child:
            ended = os.waitstatus_to_exitcode(status)
            code = ended if ended >= 0 else 128 - ended


def kill_descendants() -> None:
    """Kill until none is left: what one of them starts meanwhile is found by the next look."""
    while found := descendants(os.getpid()):
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        reap(0)
        time.sleep(0.02)


def main(parent: int, command: Sequence[str]) -> int:
    """Run `command` while process `parent` lives; return its exit status."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, WAKES)

    def in_child() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # even if this process is killed
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WAKES)

    child = subprocess.Popen(command, preexec_fn=in_child).pid
    code, limit = None, None
    while code is None and os.getppid() == parent:
        woken = signal.sigtimedwait(WAKES, POLL_SECONDS)
        code = reap(child)
        if code is None and woken is not None and woken.si_signo in STOPS and limit is None:
            os.kill(child, signal.SIGTERM)
            limit = time.monotonic() + GRACE_SECONDS
        if limit is not None and time.monotonic() > limit:
            break
    kill_descendants()
    return 128 + signal.SIGKILL if code is None else code


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
