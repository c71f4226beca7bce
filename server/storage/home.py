"""The server home: one folder holds all that the coordinator keeps, and one process writes to it.

    HOME/lock        who holds the home now
    HOME/ledger.db   the request ledger (server/storage/ledger.py)
    HOME/versions/   weights, one folder a version (server/storage/registry.py)
    HOME/runs/       one folder a request: its record and its journal (server/storage/journal.py)
    HOME/reports/    HTML reports
    HOME/cache/      what can be computed again
    HOME/clients/    the stores of clients simulated on this machine
    HOME/updates/    what clients sent in training, where that is kept (server/storage/history.py)
    HOME/keys/       the coordinator's key (server/storage/keys.py), the newest seal (seals.py)

Folders have mode 0700 and files 0600: weights and records are for the operator alone.
"""

import fcntl
import json
import math
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from client.errors import BadSetting, DiskFull, EffaceError
from client.files import FULL, room_for, write_atomic

FOLDERS = ("versions", "runs", "reports", "cache", "clients", "updates", "keys", "tasks")
POLL_SECONDS = 0.1
PROBE_SECONDS = 0.02


class NoSuchHome(BadSetting):
    """A home that is to be looked at, or to hold a version already, is not there."""

    code = "no-such-home"


class HomeBusy(EffaceError):
    """Another process holds the home; wait for it, or use another home."""

    code = "home-busy"


def plain(value: Any, name: str = "value") -> Any:
    """Return `value` as strict JSON holds it: numbers, text, lists, string-keyed objects, null.

    Tuples become lists, array scalars become numbers, NaN and infinities become null
    (PostgreSQL and strict readers refuse them).

    Args:
        value: What to convert; it is not changed.
        name: What to call it in an error.

    Raises:
        BadSetting: If a part of it has no JSON form. The message says which part.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(part, f"{name}.{key}") for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part, f"{name}[{i}]") for i, part in enumerate(value)]
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return plain(value.item(), name)
    raise BadSetting(
        f"{name} must be a number, text, list, object or null, got a {type(value).__name__}"
    )


def write_json(path: Path, value: Any) -> None:
    """Put `value` in `path` as indented strict JSON, whole or not at all, mode 0600.

    Raises:
        BadSetting: If a part of `value` has no JSON form (see `plain`).
    """
    text = json.dumps(plain(value, path.stem), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomic(path, text.encode() + b"\n")


def home_path(named: str | os.PathLike[str] | None = None) -> Path:
    """Return the home that is meant: the one that is named, else EFFACE_HOME, else ~/.efface."""
    return Path(named or os.environ.get("EFFACE_HOME") or "~/.efface").expanduser().absolute()


@dataclass(frozen=True)
class Holder:
    """Who holds a home, as the holder itself wrote it down."""

    pid: int
    command: str
    since: str  # ISO 8601, UTC
    request: str = ""  # that it is carrying out

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command}) since {self.since}"


class Home:
    """The folder of one server, created on first use, with a lock for one writer at a time."""

    def __init__(
        self, path: Path | str | None = None, *, reading: bool = False, existing: bool = False
    ) -> None:
        """Open the home, creating what is missing.

        Args:
            path: The folder; by default the environment's EFFACE_HOME, or else `~/.efface`.
            reading: Whether it is only to be looked at: then nothing is created or changed.
            existing: Whether it must be a home already, as where a version is to be changed: a
                mistyped name makes no new one.

        Raises:
            NoSuchHome: If it must be a home already and is none; or is only to be looked at, was
                named, and is not there.
            EffaceError: If the folder cannot be created, or is a file.
        """
        named = path or os.environ.get("EFFACE_HOME")
        self.path = home_path(path)
        (
            self.versions,
            self.runs,
            self.reports,
            self.cache,
            self.clients,
            self.updates,
            self.keys,
            self.tasks,
        ) = (self.path / name for name in FOLDERS)
        self._owner: tuple[int, int] | None = None  # (process, thread) that holds the lock
        self._written: tuple[int, dict[str, Any]] | None = None  # its descriptor, and what it says
        if reading:
            if named and not self.path.is_dir():
                raise NoSuchHome(
                    f"home must exist to be read, got no such home: {self.path}. Check --home and "
                    "EFFACE_HOME; `efface train` makes a new one"
                )
            return
        if existing and not self.versions.is_dir():
            raise NoSuchHome(
                f"home must hold a version already, got no home: {self.path}. Train one first: "
                "efface train; or check --home and EFFACE_HOME"
            )
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in FOLDERS:
                (self.path / name).mkdir(mode=0o700, exist_ok=True)
                # An older folder, or one restored from a backup, may be open to others.
                (self.path / name).chmod(0o700)
        except OSError as error:
            raise self._closed(error) from error

    @contextmanager
    def lock(self, wait: float | None = None) -> Iterator[None]:
        """Hold the home for the body of a `with`: no other process or thread holds it meanwhile.

        The thread that holds it may enter again. The kernel frees the lock of a killed process.

        Args:
            wait: Seconds to wait for another holder; `None` and 0 refuse at once, `math.inf`
                waits without end.

        Raises:
            HomeBusy: If another holds it still. The message says who, since when, and what to do.
        """
        if wait is not None and not wait >= 0:
            raise BadSetting(f"wait must be at least 0 seconds, got {wait}")
        me = (os.getpid(), threading.get_ident())
        if self._owner == me:
            yield
            return
        descriptor = self._acquire(wait or 0.0)
        try:
            self._owner = me
            record = {"pid": me[0], "command": _shown(sys.argv), "since": _now()}
            self._written = descriptor, record
            self.working_on("")
            yield
        finally:
            self._owner = self._written = None
            os.ftruncate(descriptor, 0)
            # Explicit, for a forked child shares the descriptor and would keep the lock alive.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def working_on(self, request: str) -> None:
        """Write down which request the holder carries out, for whoever has to wait for it."""
        if self._written is None:
            return
        descriptor, record = self._written
        os.ftruncate(descriptor, 0)
        with suppress(OSError):  # for people; on a full disk the lock holds all the same
            os.pwrite(descriptor, json.dumps({**record, "request": request}).encode(), 0)

    def held(self) -> bool:
        """Return whether a process holds the home now; also if that cannot be told."""
        if self._owner is not None:
            return True
        try:
            descriptor = os.open(self.path / "lock", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(descriptor)
        return False

    @property
    def writable(self) -> bool:
        """Whether this user can write to the home."""
        return os.access(self.path, os.W_OK)

    def holder(self) -> Holder | None:
        """Return who wrote itself down as holder, or None if nobody did."""
        try:
            record = json.loads((self.path / "lock").read_text())
            return Holder(
                int(record["pid"]),
                str(record["command"]),
                str(record["since"]),
                str(record.get("request", "")),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def _acquire(self, wait: float) -> int:
        path = self.path / "lock"
        try:
            with room_for(path):
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._closed(error) from error
        # A reader that looks whether the home is held holds it itself for an instant.
        deadline = time.monotonic() + max(wait, PROBE_SECONDS)
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return descriptor
                except BlockingIOError:
                    left = deadline - time.monotonic()
                    if left <= 0:
                        raise HomeBusy(self._busy(wait)) from None
                time.sleep(min(POLL_SECONDS, max(wait, PROBE_SECONDS) / 4, left))
        except BaseException:
            os.close(descriptor)
            raise

    def _closed(self, error: OSError) -> EffaceError:
        if error.errno in FULL:
            return DiskFull(
                f"disk must have room for {self.path}, got none left ({error.strerror}); free some "
                "space, then give the same command again"
            )
        return EffaceError(
            f"home must be a folder this user can write, got {self.path} ({error.strerror}). "
            "Set EFFACE_HOME to another folder"
        )

    def _busy(self, wait: float) -> str:
        waited = f" (waited {wait:g} s)" if wait else ""
        holder = self.holder()
        remedy = "Wait for it to end, stop it"
        if holder is not None and holder.request:
            remedy = (
                f"{holder.request} is running; wait, or abort it: stop process {holder.pid} "
                "(Ctrl-C where it was started), then efface requests --abort "
                f"{holder.request}"
            )
        return (
            f"home must be held by one process at a time, got {self.path} held by "
            f"{holder or 'a process that has not said its name'}{waited}. "
            f"{remedy}, or set EFFACE_HOME to another folder"
        )


def _shown(words: list[str]) -> str:
    """Return what a process may be called before others: its program and command, and no value.

    What follows may hold a secret, as the token of a Flower process does.
    """
    program = Path(words[0] if words else "").name or "python"
    command = words[1] if len(words) > 1 and re.fullmatch(r"[a-z]+", words[1]) else ""
    return f"{program} {command}".strip()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
