"""Private files: written whole or not at all, and destroyed for good. Nodes and server use both."""

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

from client.errors import DiskFull, NotPrivate

TEMPORARY_SUFFIX: Final = ".tmp"
FULL: Final = (errno.ENOSPC, errno.EDQUOT)


def write_atomic(path: Path, data: bytes, *, durable_name: bool = True) -> None:
    """Put `data` in `path`, whole or not at all, mode 0600.

    Args:
        path: File to write or replace. Its folder exists.
        data: The whole content.
        durable_name: Also sync the folder. Without it a power cut may bring the former file
            back, never a mixture: enough for a checkpoint that replaces an older one, and half
            the price.

    Raises:
        DiskFull: If there is no room; what was in `path` before still is.
    """
    with room_for(path):
        descriptor, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY_SUFFIX
        )
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        if durable_name:
            sync_folder(path.parent)


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Say in plain words that a disk is full, while `path` is written.

    Raises:
        DiskFull: In place of the system's error.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise DiskFull(
            f"disk must have room for {path}, got none left ({error.strerror}); free some space, "
            "then give the same command again"
        ) from error


def make_private(folder: Path) -> None:
    """Make a folder and those above it, where they are missing, for their owner alone."""
    # `parents=True` would give the folders above the last one the process's default mode.
    for one in reversed([folder, *folder.parents]):
        if not one.exists():
            one.mkdir(mode=0o700, exist_ok=True)


def check_private(path: Path) -> None:
    """Refuse a file or folder that others than its owner can open.

    Raises:
        NotPrivate: With the command that mends it.
    """
    found = path.stat()
    if stat.S_IMODE(found.st_mode) & 0o077:
        right = "700" if stat.S_ISDIR(found.st_mode) else "600"
        raise NotPrivate(
            f"{path} must be open to its owner alone, got mode "
            f"{stat.S_IMODE(found.st_mode):o}; mend it: chmod {right} {path}"
        )


def private(path: Any, flags: int) -> int:
    """Open a file that is made for its owner alone: an `opener` for `open`."""
    return os.open(path, flags, mode=0o600)


def sync_folder(folder: Path) -> None:
    """Make renames and removals in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def overwrite(path: Path) -> None:
    """Fill a file with zeros and remove it; one that is gone is left at that.

    Best effort: a journalling or copy-on-write file system may keep older blocks.
    """
    try:
        with path.open("r+b") as file:
            fill_with_zeros(file)
    except FileNotFoundError:
        return
    path.unlink(missing_ok=True)


def fill_with_zeros(file: BinaryIO) -> None:
    """Write zeros over all of an open file, and wait until they are on the disk."""
    file.seek(0)
    file.write(bytes(os.fstat(file.fileno()).st_size))
    file.flush()
    os.fsync(file.fileno())
