"""A message's process as a copy of the executor: nothing has to be started and loaded again.

Python, numpy, torch and flwr take seconds to load; a step on a small model takes milliseconds. So
the executor loads them once, and for each message it forks: the copy goes the way of
`client.operator.gate`, every check included, and ends. Nothing of a message or a bundle is ever
read or imported in the executor itself, so that a copy holds nothing of those before it. The
installed client/ is: a bundle of the same bytes has it at hand (`client.operator.preloaded`).

Where a process must not be copied (`obstacle`), the executor starts a new one for each message, as
it does with `--cold` or EFFACE_WARM=0. The answers are the same.
"""

import gc
import importlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

from client.operator import isolation, preloaded

SWITCH: Final = "EFFACE_WARM"  # 0 in the environment: a new process for each message
# What every bundle of ours imports that is not ours. Importing them starts no thread, opens no
# device and does no arithmetic: `obstacle` looks before each copy.
LOADED: Final = (
    "numpy.random",
    "torch",
    "torch._dynamo",  # torch's meta device, which tells a large model's size, loads it
    "safetensors.torch",
    "cryptography.hazmat.primitives.asymmetric.ec",
    "cryptography.hazmat.primitives.asymmetric.ed25519",
    "cryptography.hazmat.primitives.asymmetric.x25519",
    "cryptography.hazmat.primitives.ciphers.aead",
    "client.operator.gate",
)
_POLL_SECONDS: Final = 0.02
_THREADS: Final = Path("/proc/self/task")
_FILES: Final = Path("/proc/self/fd")


def load(modules: Sequence[str] = LOADED, *, client: bool = True) -> None:
    """Import what messages need, and leave it where copies share its memory.

    Args:
        modules: By name.
        client: Whether the installed client/ is to be at hand, too.
    """
    before = dict(os.environ)
    for name in modules:
        importlib.import_module(name)
    if client:
        preloaded.load()
    for name in set(os.environ) - set(before):
        del os.environ[name]  # torch's compiler sets one, and a new process would not have it
    gc.collect()
    gc.freeze()  # or the first collection in a copy would touch, and so copy, every page


def obstacle() -> str:
    """Return why this process must not be copied; empty if nothing is in the way."""
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH} is 0"
    if not hasattr(os, "fork") or not _THREADS.is_dir():
        return "this system has no fork that Efface knows"
    if (threads := len(list(_THREADS.iterdir()))) != 1:
        # A lock that another thread holds would never open in the copy.
        return f"the executor must have one thread, got {threads}"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "the executor must not have used a GPU"  # no copy could use it again
    return ""


class Copy:
    """A copy of this process at its work; it is waited for and ended as `subprocess.Popen` is."""

    def __init__(self, work: Callable[[], None], folder: Path | None) -> None:
        """Start one.

        Args:
            work: What it does.
            folder: Its working and home folder, and the one of temporary files, for a message that
                goes first where memory is short; None where all that stays as it is.

        Raises:
            OSError: If the system has no room for another process.
        """
        self.returncode: int | None = None
        parent = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        # A signal for the executor must not be taken by a copy that still has its handler.
        waiting = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
        try:
            self.pid = os.fork()
            if self.pid == 0:
                _work(work, folder, parent)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, waiting)

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status, below zero for a signal.

        Raises:
            subprocess.TimeoutExpired: If it is still running after `timeout` seconds.
        """
        limit = None if timeout is None else time.monotonic() + timeout
        while self.returncode is None:
            found, status = os.waitpid(self.pid, 0 if limit is None else os.WNOHANG)
            if found:
                self.returncode = os.waitstatus_to_exitcode(status)
            elif limit is not None and time.monotonic() > limit:
                raise subprocess.TimeoutExpired("copy", timeout or 0.0)
            else:
                time.sleep(_POLL_SECONDS)
        return self.returncode

    def ended(self) -> bool:
        """Return whether it has ended, without waiting."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0.0)
        return self.returncode is not None

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self.returncode is None:  # or the number may be another process's by now
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


def _work(work: Callable[[], None], folder: Path | None, parent: int) -> NoReturn:
    """Do a copy's work; it never returns into the executor's own."""
    status = 1
    try:
        # As a new process has it: no handler, file, folder or random number of the executor's.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
        isolation.end_with(parent)
        isolation.close_memory(False)
        _let_go()
        if folder is not None:
            isolation.first_to_go()
            os.chdir(folder)
            os.environ.update(HOME=str(folder), TMPDIR=str(folder))
            tempfile.tempdir = None
        import numpy  # loaded already
        import torch

        numpy.random.seed()
        torch.default_generator.seed()
        work()
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _let_go() -> None:
    """Put the null device in the place of all open files but output and errors.

    Their numbers stay taken: an object of the executor's that closes one hits no file of the copy.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for name in os.listdir(_FILES):
        number = int(name)
        if number not in (1, 2, null):
            with suppress(OSError):  # the listing's own, closed by now
                os.fstat(number)
                os.dup2(null, number, inheritable=number == 0)
