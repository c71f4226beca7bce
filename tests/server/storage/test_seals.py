"""The ledger's seals: what is changed, removed, moved or slipped in by hand is noticed."""

import os
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from server.storage import keys
from server.storage.home import Home
from server.storage.ledger import Ledger, LedgerError, Outcome, VersionRow, _Base, database_url
from server.storage.seal_check import Checked
from server.storage.seals import HEAD, EditedError, Sealing

FEDERATION = "digits, 3 clients"


pytestmark = pytest.mark.usefixtures("surroundings")


def train(ledger: Ledger, state: Any = "in-service", **outcome: Any) -> str:
    row = ledger.new_request(kind="train", method="fedavg", federation=FEDERATION, asked_by="Ada")
    ledger.start(row.id)
    version = VersionRow(
        id=ledger.next_version_id(),
        parent=None,
        request=row.id,
        federation=FEDERATION,
        created=ledger.now(),
        state=state,
        sha256="0" * 64,
        card={"erased": {"classes": []}},
    )
    ledger.finish(row.id, Outcome(seconds={"train": 0.1 + 0.2}, **outcome), version)
    return row.id


def forget(ledger: Ledger, label: int, away: str = "") -> str:
    row = ledger.new_request(
        kind="forget", method="sga", federation=FEDERATION, level="class", classes=[label], why="é"
    )
    ledger.start(row.id)
    if away:
        ledger.note_pending(row.id, [away])
    ledger.fail(row.id, "it did not forget", Outcome(after={"accuracy": 1 / 3, "loss": None}))
    return row.id


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three requests that have ended and one that has not; two versions."""
    home = Home(tmp_path_factory.mktemp("shared") / "home")
    with Ledger.open(f"sqlite:///{home.path}/ledger.db", sealing=Sealing.of(home)) as ledger:
        train(ledger)
        forget(ledger, 3, away="client-1")
        train(ledger, record_sha256="1" * 64)
        ledger.new_request(kind="train", method="fedavg", federation=FEDERATION)
    return home.path


@pytest.fixture
def home(shared: Path, tmp_path: Path) -> Home:
    return Home(shutil.copytree(shared, tmp_path / "home"))


def checked(home: Home, **more: Any) -> Checked:
    with Ledger.look(home) as ledger:
        return ledger.checked(home, **more)


def texts(home: Home, **more: Any) -> list[str]:
    return [problem.text for problem in checked(home, **more).problems]


def by_hand(home: Home, *lines: str) -> None:
    with sqlite3.connect(home.path / "ledger.db") as database:
        for line in lines:
            database.execute(line)
    database.close()


@pytest.mark.parametrize("every", [False, True])
def test_what_nobody_touched_verifies(home: Home, every: bool) -> None:
    found = checked(home, every_signature=every)

    assert found.problems == ()
    assert set(found.sealed) == {"r0001", "r0002", "r0003"}
    assert found.unsigned == frozenset()
    assert len(found.hashes) == 4  # the first says that nothing was there


def test_what_a_client_did_later_is_sealed_too(home: Home) -> None:
    with Ledger.of(home) as ledger:
        ledger.settle_pending("r0002", "client-1")
    assert texts(home) == []


@pytest.mark.parametrize(
    "column",
    [
        *("state = 'done'", "reason = 'none'", "asked_by = 'Eve'", "why = ''", "classes = '[4]'"),
        *("finished = '2020-01-01 00:00:00.000000'", "record_sha256 = 'x'", "after = '{}'"),
        *("base_version = 'v0001'", "reason_code = NULL", "federation = 'another'"),
    ],
)
def test_a_changed_row_is_noticed(home: Home, column: str) -> None:
    by_hand(home, f"UPDATE requests SET {column} WHERE id = 'r0002'")
    assert "row of r0002 was changed after it ended" in texts(home)
    assert {problem.request for problem in checked(home).problems} == {"r0002"}


@pytest.mark.parametrize("gone", ["r0001", "r0002", "r0003"])
def test_a_deleted_row_is_noticed(home: Home, gone: str) -> None:
    by_hand(home, f"DELETE FROM requests WHERE id = '{gone}'")
    assert f"request {gone} has ended, got no row of it" in texts(home)


def test_a_deleted_row_with_its_seal_is_noticed(home: Home) -> None:
    by_hand(
        home,
        "DELETE FROM requests WHERE id = 'r0002'",
        "DELETE FROM seals WHERE subject = 'r0002'",
    )
    (text, *_) = texts(home)
    assert text.startswith("seal 3 must follow the one before it, got number 4 of r0003")


def test_a_chain_without_its_end_is_noticed(home: Home) -> None:
    by_hand(
        home,
        "DELETE FROM versions WHERE id = 'v0002'",
        "UPDATE versions SET state = 'in-service'",
        "DELETE FROM requests WHERE id = 'r0003'",
        "DELETE FROM seals WHERE subject = 'r0003'",
    )
    (text,) = texts(home)
    assert text.startswith("seals must hold the one that head.json notes as the newest, got 3")


def test_a_chain_that_is_gone_is_noticed(home: Home) -> None:
    by_hand(home, "DELETE FROM seals")
    gone = ["seals must reach number 4 of head.json, got none"]
    gone += ["r0003 ended under a seal, got none: seals were removed"]  # it bears a record's hash
    assert texts(home) == gone
    # Nor does it begin anew when the ledger is next written to: that would sign what was edited.
    with pytest.raises(EditedError, match="must hold the seals of this home, got none"):
        Ledger.of(home)
    assert texts(home) == gone
    (home.keys / HEAD).unlink()
    with pytest.raises(EditedError, match="got none, while r0003 ended under one"):
        Ledger.of(home)


def test_a_chain_begins_where_nothing_was_sealed_yet(tmp_path: Path) -> None:
    home = Home(tmp_path)
    Sealing.of(home)  # a key alone, as `efface key` makes it
    Ledger.of(home).close()
    assert texts(home) == []


def test_a_note_of_the_head_that_is_gone_is_noticed(home: Home) -> None:
    (home.keys / HEAD).unlink()
    assert texts(home) == ["head.json must note the newest seal, got no such file: removed"]


def test_seals_that_were_moved_are_noticed(home: Home) -> None:
    by_hand(
        home,
        "UPDATE seals SET number = 9 WHERE number = 2",
        "UPDATE seals SET number = 2 WHERE number = 3",
        "UPDATE seals SET number = 3 WHERE number = 9",
    )
    assert texts(home)[0].startswith("seal 2 must follow the one before it")


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ("content = '{}' WHERE number = 3", "seal 4 must follow"),
        ("content = '[]' WHERE number = 4", "seal 4 must be signed"),
        ("created = '2020' WHERE number = 4", "seal 4 must be signed"),
        ("signature = '' WHERE number = 4", "seal 4 must be signed"),
    ],
)
def test_a_changed_seal_is_noticed(home: Home, change: str, first: str) -> None:
    by_hand(home, f"UPDATE seals SET {change}")
    assert texts(home)[0].startswith(first)


def test_an_audit_looks_at_each_signature(home: Home) -> None:
    by_hand(home, "UPDATE seals SET signature = '' WHERE number = 2")
    assert texts(home) == []  # the last signature covers all hashes before it
    assert texts(home, every_signature=True)[0].startswith("seal 2 must be signed")


def test_a_row_that_was_slipped_in_is_noticed(home: Home) -> None:
    by_hand(home, "UPDATE requests SET state = 'done' WHERE id = 'r0004'")
    assert texts(home) == ["row of r0004 says done, got no seal of it"]


def test_seals_made_with_another_key_are_noticed(home: Home, tmp_path: Path) -> None:
    other = keys.signer(tmp_path / "elsewhere")
    forged = Sealing(other, tmp_path / "elsewhere")
    with Ledger.open(database_url(home), sealing=forged) as ledger:
        forget(ledger, 4)
    assert texts(home)[0].startswith("seal 5 must be signed by the coordinator's key")
    # As an auditor sees it who has pinned the key.
    own = keys.public_keys(home.keys)
    assert texts(home, publics=own)[0].startswith("seal 5 must be signed")
    assert texts(home, publics=[*own, other.public]) == []


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("UPDATE versions SET sha256 = 'f' WHERE id = 'v0001'", "row of v0001 was changed"),
        ("UPDATE versions SET card = '{}' WHERE id = 'v0002'", "row of v0002 was changed"),
        ("UPDATE versions SET state = 'trial' WHERE id = 'v0002'", "version v0002 must be in-serv"),
        ("DELETE FROM versions WHERE id = 'v0001'", "version v0001 has entered, got no row"),
    ],
)
def test_a_changed_version_is_noticed(home: Home, change: str, text: str) -> None:
    by_hand(home, change)
    assert texts(home)[0].startswith(text)


def test_an_older_version_cannot_be_put_in_service_by_hand(home: Home) -> None:
    by_hand(
        home,
        "UPDATE versions SET state = 'superseded' WHERE id = 'v0002'",
        "UPDATE versions SET state = 'in-service' WHERE id = 'v0001'",
    )
    assert texts(home) == [
        "version v0001 must be superseded, got a row that says in-service",
        "version v0002 must be in-service, got a row that says superseded",
    ]


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM pending",
        "UPDATE pending SET settled = '2026-01-01 00:00:00.000000'",
        "INSERT INTO pending VALUES ('r0001', 'client-1', '2026-01-01 00:00:00.000000', NULL)",
    ],
)
def test_what_waits_at_a_client_cannot_be_changed_unseen(home: Home, change: str) -> None:
    by_hand(home, change)
    (text,) = texts(home)
    assert text.startswith("what r000")
    assert text.endswith("client-1 was changed by hand")


@pytest.mark.parametrize("change", ["settings = '{'", "created = 'yesterday'", "classes = 'none'"])
def test_a_row_that_cannot_be_read_is_said(home: Home, change: str) -> None:
    by_hand(home, f"UPDATE requests SET {change} WHERE id = 'r0001'")
    with pytest.raises(EditedError, match="ledger rows must be as they were written"):
        checked(home)


def test_a_note_of_the_head_that_was_changed_is_noticed(home: Home) -> None:
    (home.keys / HEAD).write_text("{}")
    assert "head.json" in texts(home)[0]


def test_a_note_that_a_stop_left_behind_is_still_on_the_chain(home: Home) -> None:
    before = (home.keys / HEAD).read_bytes()
    with Ledger.of(home) as ledger:
        forget(ledger, 5)
    (home.keys / HEAD).write_bytes(before)
    assert texts(home) == []


def test_nothing_ends_in_a_sealed_ledger_without_its_key(home: Home) -> None:
    with (
        Ledger.open(database_url(home)) as ledger,
        pytest.raises(LedgerError, match="must be changed with its home's key"),
    ):
        ledger.abort("r0004")
    assert texts(home) == []


def old_ledger(home: Home) -> None:
    """Leave in `home` what an Efface without seals left."""
    with Ledger.open(database_url(home)) as ledger:
        train(ledger)
        forget(ledger, 3, away="client-1")
        row = ledger.new_request(kind="train", method="fedavg", federation=FEDERATION)
        ledger.start(row.id)
        ledger.note_pending(row.id, ["client-2"])
    by_hand(home, "DROP TABLE seals", "ALTER TABLE requests DROP COLUMN record_sha256")


def test_rows_of_an_older_efface_are_read_and_said_to_be_unsigned(tmp_path: Path) -> None:
    home = Home(tmp_path)
    old_ledger(home)
    assert checked(home).unsigned == {"r0001", "r0002"}

    with Ledger.of(home) as ledger:
        ledger.interrupt_running("gone")
        ledger.abort("r0003")
    found = checked(home)
    assert (found.problems, found.unsigned) == ((), {"r0001", "r0002"})
    assert set(found.sealed) == {"r0003"}


def test_rows_of_an_older_efface_cannot_be_changed_any_more(tmp_path: Path) -> None:
    home = Home(tmp_path)
    old_ledger(home)
    Ledger.of(home).close()
    by_hand(home, "UPDATE requests SET asked_by = 'Eve' WHERE id = 'r0001'", "DELETE FROM pending")
    assert texts(home) == [
        "row of r0001 was changed after the seals began",
        "what r0002 owes to client-1 was changed by hand",
    ]


def test_a_thousand_requests_are_checked_quickly(tmp_path: Path) -> None:
    home = Home(tmp_path)
    sealing = Sealing.of(home)
    with Ledger.open("sqlite://", sealing=sealing) as ledger:
        ledger._sealing = Sealing(sealing.signer, tmp_path / "nowhere")  # no file for each
        for _ in range(1000):
            row = ledger.new_request(kind="train", method="fedavg", federation=FEDERATION)
            ledger.abort(row.id)
        started = time.perf_counter()
        found = ledger.checked(home)
        seconds = time.perf_counter() - started
    assert (len(found.sealed), found.problems) == (1000, ())
    assert seconds < 5  # 0.2 s on a quiet core


@pytest.mark.skipif(
    "EFFACE_TEST_DATABASE_URL" not in os.environ, reason="EFFACE_TEST_DATABASE_URL names none"
)
@pytest.mark.parametrize(
    ("change", "first"),
    [
        ("UPDATE requests SET asked_by = 'Eve' WHERE id = 'r0001'", "row of r0001 was changed"),
        ("UPDATE versions SET sha256 = 'f' WHERE id = 'v0001'", "row of v0001 was changed"),
        ("UPDATE pending SET settled = NULL", "what r0002 owes to client-1"),
        ("DELETE FROM seals WHERE number = 3", "seal 3 must follow"),
    ],
)
def test_a_database_on_a_server_is_sealed_by_the_same_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, first: str
) -> None:
    monkeypatch.setenv("EFFACE_DATABASE_URL", os.environ["EFFACE_TEST_DATABASE_URL"])
    engine, home = create_engine(database_url(Home(tmp_path))), Home(tmp_path)
    with engine.begin() as connection:
        _Base.metadata.drop_all(connection)
    with Ledger.open(database_url(home)) as ledger:  # as an Efface without seals left it
        train(ledger)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE seals"))
        connection.execute(text("ALTER TABLE requests DROP COLUMN record_sha256"))
    with Ledger.of(home) as ledger:
        forget(ledger, 3, away="client-1")
        train(ledger, record_sha256="1" * 64)
        ledger.settle_pending("r0002", "client-1")
    assert texts(home, every_signature=True) == []
    assert checked(home).unsigned == {"r0001"}

    with engine.begin() as connection:
        connection.execute(text(change))
    engine.dispose()
    assert texts(home)[0].startswith(first)
