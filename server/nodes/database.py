"""The SuperLink's database (SQLite, flwr 1.39.0): what was exchanged in a run goes when it is over.

Flower keeps every array that was sent in `objects`, and what it deletes stays in free pages of the
file and in its write-ahead log. `purge` deletes the messages and arrays of runs that have ended,
rewrites the file without its free pages and empties the log. Registrations of nodes, runs with
their logs, and bundles stay.

It may be done while the SuperLink runs: rows of unfinished runs are not touched, SQLite's own locks
keep both apart, and the SuperLink waits up to 5 seconds for one. Blocks that the file system has
given back are beyond this: use an encrypted disk.
"""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from client.errors import BadSetting, EffaceError

VARIABLE: Final = "EFFACE_SUPERLINK_DATABASE"
"""Environment variable that names the database, to purge it at the end of each request."""

_TABLES: Final = frozenset(
    {"message_ins", "message_res", "run_objects", "objects", "object_children", "task"}
)
_WAIT: Final = 60.0  # seconds for a lock
_TRIES: Final = 20  # to empty the log, a quarter of a second apart
# A task that stopped sending heartbeats is over, whatever else its row says: flwr lets it miss two
# of 30 seconds.
_SILENT: Final = "datetime(active_until) < datetime('now', '-10 minutes')"
_UNFINISHED: Final = (
    "SELECT run_id FROM task WHERE finished_at IS NULL "
    f"AND NOT (active_until IS NOT NULL AND {_SILENT})"
)


class DatabaseBusy(EffaceError):
    """The SuperLink's database was locked for too long; what was to go is still in its files."""

    code = "database-busy"


@dataclass(frozen=True)
class Purged:
    """What went.

    Attributes:
        messages: Rows of messages.
        objects: Rows of arrays and their parts.
        bytes_before: Size of the database and its log, in bytes.
        bytes_after: The same, after.
        unfinished: Runs that go on, whose messages stay.
    """

    messages: int
    objects: int
    bytes_before: int
    bytes_after: int
    unfinished: int


def purge(path: Path) -> Purged:
    """Delete what was exchanged in runs that are over, from the rows and from the files.

    Args:
        path: The SuperLink's `--database`.

    Raises:
        BadSetting: If it is not the database of a SuperLink of flwr 1.39.
        DatabaseBusy: If a lock was held for too long; the same command goes on.
    """
    if not path.is_file():
        raise BadSetting(f"database must be the SuperLink's file, got {path}, which does not exist")
    before = _size(path)
    with _plainly(path), closing(sqlite3.connect(path, timeout=_WAIT)) as database:
        names = {row[0] for row in database.execute("SELECT name FROM sqlite_master")}
        if missing := sorted(_TABLES - names):
            raise BadSetting(
                f"database must be that of a SuperLink of flwr 1.39, got {path} without "
                f"{', '.join(missing)}"
            )
        database.isolation_level = None  # transactions begin and end where it says so
        database.execute("PRAGMA foreign_keys = ON")
        database.execute("PRAGMA secure_delete = ON")  # pages are zeroed where they were
        database.execute("BEGIN IMMEDIATE")
        unfinished = len({row[0] for row in database.execute(_UNFINISHED)})
        messages = 0
        for table in ("message_ins", "message_res", "task_message"):
            if table in names:
                over = f"DELETE FROM {table} WHERE run_id NOT IN ({_UNFINISHED})"
                messages += database.execute(over).rowcount
        database.execute(f"DELETE FROM run_objects WHERE run_id NOT IN ({_UNFINISHED})")
        objects = database.execute(
            "DELETE FROM objects WHERE object_id NOT IN (SELECT object_id FROM run_objects)"
        ).rowcount
        database.execute("COMMIT")
        database.execute("VACUUM")
        _empty_log(database, path)
    return Purged(messages, objects, before, _size(path), unfinished)


def _empty_log(database: sqlite3.Connection, path: Path) -> None:
    for _ in range(_TRIES):
        busy, *_rest = database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if not busy:
            return
        time.sleep(0.25)
    raise DatabaseBusy(
        f"log of {path} must be emptied, got a SuperLink that is reading it; the same command goes "
        "on, or stop the SuperLink first"
    )


@contextmanager
def _plainly(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise DatabaseBusy(
            f"database {path} must be free to be written, got: {error}; the same command goes on, "
            "or stop the SuperLink first"
        ) from None
    except sqlite3.DatabaseError as error:
        raise BadSetting(f"database must be an SQLite file, got {path}: {error}") from None


def _size(path: Path) -> int:
    files = (path, path.with_name(path.name + "-wal"))
    return sum(file.stat().st_size for file in files if file.exists())
