"""What was exchanged goes from the SuperLink's files, on a database that flwr itself made."""

import hashlib
import json
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.object_store.sql_object_store import SqlObjectStore
from typer.testing import CliRunner

from client.errors import BadSetting
from server.cli import app
from server.nodes.database import DatabaseBusy, purge

OVER, RUNNING, SILENT = 11, 12, 13
MARKERS = {run: b"marker of run %d " % run * 400 for run in (OVER, RUNNING, SILENT)}
DELETED = b"deleted by flwr " * 400


def stored(store: SqlObjectStore, run: int, marker: bytes) -> str:
    content = b"Array %d\0" % len(marker) + marker  # as flwr writes an object: kind, length, body
    name = hashlib.sha256(content).hexdigest()
    store.verify = False
    store.preregister(run, ObjectTree(object_id=name))
    store.put(name, content)
    return name


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "state.db"
    store = SqlObjectStore(str(path))
    store.initialize()
    for run, marker in MARKERS.items():
        stored(store, run, marker)
    store.delete(stored(store, OVER, DELETED))
    now = datetime.now(UTC)
    rows = [
        (1, OVER, now, now, "completed"),
        (2, RUNNING, None, now + timedelta(seconds=60), ""),
        (3, SILENT, None, now - timedelta(hours=1), ""),
    ]
    with sqlite3.connect(path) as made:
        for task, run, finished, active, status in rows:
            made.execute(
                "INSERT INTO task (task_id, type, run_id, pending_at, finished_at, active_until, "
                "sub_status) VALUES (?, 'flwr-serverapp', ?, ?, ?, ?, ?)",
                (task, run, str(now), finished and str(finished), str(active), status),
            )
    made.close()
    return path


def found(path: Path, marker: bytes) -> bool:
    return any(marker[:200] in file.read_bytes() for file in path.parent.glob("state.db*"))


def test_arrays_of_runs_that_are_over_are_gone_from_the_files(database: Path) -> None:
    assert all(found(database, marker) for marker in (*MARKERS.values(), DELETED))

    told = purge(database)

    assert not found(database, MARKERS[OVER])
    assert not found(database, DELETED)  # flwr's own deletion leaves it in a free page
    assert not found(database, MARKERS[SILENT])  # its process died without a word
    assert found(database, MARKERS[RUNNING])
    assert (told.objects, told.unfinished) == (2, 1)
    assert told.bytes_after <= told.bytes_before
    store = SqlObjectStore(str(database))  # and flwr goes on with it
    store.initialize()
    assert stored(store, RUNNING, b"another") in store


def test_a_second_purge_finds_nothing(database: Path) -> None:
    purge(database)
    assert purge(database).objects == 0


def test_a_log_that_somebody_reads_is_told(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.nodes.database._TRIES", 1)
    monkeypatch.setattr("server.nodes.database._WAIT", 0.1)
    with sqlite3.connect(database) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM objects").fetchone()
        with pytest.raises(DatabaseBusy, match="stop the SuperLink first"):
            purge(database)
    reader.close()
    purge(database)
    assert not found(database, MARKERS[OVER])


@pytest.mark.parametrize("content", [None, b"", b"not a database at all" * 100])
def test_what_is_no_superlinks_database_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "state.db"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadSetting, match="database must be"):
        purge(path)


def test_the_command_says_what_went(database: Path) -> None:
    done = CliRunner().invoke(app, ["superlink", "purge", str(database), "--json"])

    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert (document["objects"], document["unfinished_runs"]) == (2, 1)
