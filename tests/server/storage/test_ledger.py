"""The ledger: what can happen to a request, and what a federation has forgotten.

EFFACE_TEST_DATABASE_URL runs the same facts on another database, which is emptied.
"""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import IntegrityError
from sqlalchemy.schema import CreateIndex, CreateTable

import server.storage.ledger
from client.errors import EffaceError
from server.storage.home import Home
from server.storage.ledger import (
    TRANSITIONS,
    Ledger,
    LedgerError,
    Outcome,
    RequestRow,
    TransitionError,
    UnknownIdError,
    VersionRow,
    VersionState,
    database_url,
)

ROOT = Path(__file__).parents[1]
FEDERATION = "digits iid 10"
START = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Clock:
    """A clock that moves one second a look, until told otherwise."""

    def __init__(self) -> None:
        self.time = START
        self.step = timedelta(seconds=1)

    def __call__(self) -> datetime:
        self.time += self.step
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[Ledger]:
    url = os.environ.get("EFFACE_TEST_DATABASE_URL")
    if url:
        engine = create_engine(url)
        with engine.begin() as connection:
            server.storage.ledger._Base.metadata.drop_all(connection)
        engine.dispose()
    with Ledger.open(url or f"sqlite:///{tmp_path / 'ledger.db'}", clock) as opened:
        yield opened


def train(ledger: Ledger) -> RequestRow:
    return ledger.new_request(kind="train", method="fedavg", federation=FEDERATION)


def forget(ledger: Ledger, classes: list[int], base: str | None = None) -> RequestRow:
    return ledger.new_request(
        kind="forget",
        level="class",
        classes=classes,
        method="quickdrop",
        federation=FEDERATION,
        base_version=base,
    )


def version_of(
    ledger: Ledger, request: RequestRow, state: VersionState = "in-service"
) -> VersionRow:
    return VersionRow(
        id=ledger.next_version_id(),
        parent=request.base_version,
        request=request.id,
        federation=request.federation,
        created=ledger.now(),
        state=state,
        sha256="0" * 64,
        card={"model": "convnet"},
    )


def do(
    ledger: Ledger, request: RequestRow, state: VersionState | None = "in-service"
) -> RequestRow:
    """Carry a request through to done; `state` None makes no version."""
    ledger.start(request.id)
    version = None if state is None else version_of(ledger, request, state)
    return ledger.finish(request.id, Outcome(), version)


def bring_to(ledger: Ledger, request_id: str, state: str) -> None:
    if state == "received":
        return
    ledger.start(request_id)
    if state == "done":
        ledger.finish(request_id, Outcome())
    elif state == "failed":
        ledger.fail(request_id, "two clients left of ten")
    elif state in ("interrupted", "aborted"):
        ledger.interrupt(request_id, "Ctrl-C")
        if state == "aborted":
            ledger.abort(request_id)


def go(ledger: Ledger, request_id: str, state: str) -> RequestRow:
    moves = {
        "running": lambda: ledger.start(request_id),
        "done": lambda: ledger.finish(request_id, Outcome()),
        "failed": lambda: ledger.fail(request_id, "reason"),
        "interrupted": lambda: ledger.interrupt(request_id, "reason"),
        "aborted": lambda: ledger.abort(request_id, "reason"),
    }
    return moves[state]()


def test_a_request_comes_back_as_it_was_written(ledger: Ledger) -> None:
    train_done = do(ledger, train(ledger))
    written = ledger.new_request(
        kind="forget",
        level="client",
        clients=["north", "east", "east"],
        method="quickdrop",
        federation=FEDERATION,
        settings={"seed": 0, "lr": 0.1, "nested": {"a": [1, None]}},
        base_version=train_done.result_version,
        asked_by="dpo@example.org",
        why="article 17, case 12",
    )

    assert ledger.request("r0002") == written
    assert (written.id, written.state, written.clients) == ("r0002", "received", ("east", "north"))
    assert written.settings == {"seed": 0, "lr": 0.1, "nested": {"a": [1, None]}}
    assert (written.asked_by, written.why) == ("dpo@example.org", "article 17, case 12")
    assert written.base_version == "v0001"
    assert written.created.tzinfo is not None
    assert written.created > START
    assert (written.started, written.finished, written.result_version) == (None, None, None)
    assert (written.before, written.after, written.reason) == (None, None, None)


def test_a_finished_request_keeps_its_numbers_and_its_version(ledger: Ledger) -> None:
    request = train(ledger)
    ledger.start(request.id)
    outcome = Outcome(
        seconds={"train": 1.5},
        bytes={"train": {"up": 10, "down": 20}},
        before={"forget_accuracy": 92.1},
        after={"forget_accuracy": 0.0, "loss": float("nan")},
    )

    done = ledger.finish(request.id, outcome, version_of(ledger, request))

    assert done == ledger.request(request.id)
    assert (done.state, done.result_version) == ("done", "v0001")
    assert (done.seconds, done.bytes) == ({"train": 1.5}, {"train": {"up": 10, "down": 20}})
    assert done.before == {"forget_accuracy": 92.1}
    assert done.after == {"forget_accuracy": 0.0, "loss": None}
    assert done.started is not None
    assert done.finished is not None
    assert done.created < done.started < done.finished


@pytest.mark.parametrize("source", list(TRANSITIONS))
@pytest.mark.parametrize("target", [state for state in TRANSITIONS if state != "received"])
def test_only_the_listed_transitions_happen(ledger: Ledger, source: str, target: str) -> None:
    request = train(ledger)
    bring_to(ledger, request.id, source)

    if target in TRANSITIONS[source]:
        assert go(ledger, request.id, target).state == target
    else:
        before = ledger.request(request.id)
        message = rf"request must be .* to become {target}, got r0001 which is {source}"
        with pytest.raises(TransitionError, match=message):
            go(ledger, request.id, target)
        assert ledger.request(request.id) == before


def test_a_refused_transition_says_why_and_what_is_possible(ledger: Ledger) -> None:
    bring_to(ledger, train(ledger).id, "interrupted")

    with pytest.raises(TransitionError) as caught:
        ledger.finish("r0001", Outcome())

    assert str(caught.value) == (
        "request must be running to become done, got r0001 which is interrupted (Ctrl-C). "
        "From interrupted it can go to: running, aborted"
    )


def test_a_resumed_request_keeps_its_first_start_and_loses_the_reason(ledger: Ledger) -> None:
    first = ledger.start(train(ledger).id)
    assert ledger.interrupt("r0001", "Ctrl-C").reason == "Ctrl-C"

    resumed = ledger.start("r0001")

    assert (resumed.started, resumed.reason) == (first.started, None)


def test_an_aborted_request_keeps_why_it_was_stopped(ledger: Ledger) -> None:
    bring_to(ledger, train(ledger).id, "interrupted")

    aborted = ledger.abort("r0001")

    assert aborted.reason == "Ctrl-C"
    assert aborted.finished is not None


def test_requests_of_a_dead_process_become_interrupted(ledger: Ledger) -> None:
    for state in ("running", "done", "received", "running"):
        bring_to(ledger, train(ledger).id, state)

    stopped = ledger.interrupt_running("process 7 died")

    assert [(row.id, row.state) for row in stopped] == [
        ("r0001", "interrupted"),
        ("r0004", "interrupted"),
    ]
    assert [row.state for row in ledger.requests()] == [
        "interrupted",
        "done",
        "received",
        "interrupted",
    ]


def test_a_failed_request_leaves_the_old_version_in_service(ledger: Ledger) -> None:
    do(ledger, train(ledger))
    ledger.start(forget(ledger, [9], "v0001").id)

    failed = ledger.fail("r0002", "1 of 10 clients left, 5 needed", Outcome(seconds={"unlearn": 2}))

    assert (failed.reason, failed.seconds) == ("1 of 10 clients left, 5 needed", {"unlearn": 2})
    in_service = ledger.in_service(FEDERATION)
    assert in_service is not None
    assert in_service.id == "v0001"


def test_a_version_in_service_supersedes_only_its_own_federation(ledger: Ledger) -> None:
    do(ledger, train(ledger))
    do(ledger, ledger.new_request(kind="train", method="fedavg", federation="mnist"))
    do(ledger, forget(ledger, [9], "v0001"), "trial")
    do(ledger, forget(ledger, [9], "v0001"))

    assert [(row.id, row.parent, row.state) for row in ledger.versions()] == [
        ("v0001", None, "superseded"),
        ("v0002", None, "in-service"),
        ("v0003", "v0001", "trial"),
        ("v0004", "v0001", "in-service"),
    ]
    assert [row.id for row in ledger.versions("mnist")] == ["v0002"]
    assert ledger.in_service("svhn") is None


def test_the_database_itself_refuses_two_versions_in_service(ledger: Ledger) -> None:
    do(ledger, train(ledger))
    do(ledger, forget(ledger, [9], "v0001"))

    with pytest.raises(IntegrityError), ledger._write() as session:
        session.execute(text("UPDATE versions SET state = 'in-service'"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "v0007"}, "version id must be v0002, got v0007"),
        ({"request": "r0001"}, "version must belong to r0002 of .*, got r0001 of"),
        ({"federation": "svhn"}, "got r0002 of svhn"),
        ({"state": "best"}, "state must be one of trial, in-service, superseded, got 'best'"),
        ({"parent": "v0009"}, "version must be one of v0001, got 'v0009'. Did you mean v0001"),
    ],
)
def test_a_wrong_version_changes_nothing(
    ledger: Ledger, changes: dict[str, Any], message: str
) -> None:
    do(ledger, train(ledger))
    request = ledger.start(forget(ledger, [9], "v0001").id)
    version = VersionRow(**version_of(ledger, request).__dict__ | changes)

    with pytest.raises(LedgerError, match=message):
        ledger.finish(request.id, Outcome(), version)

    assert ledger.request(request.id) == request
    assert [row.state for row in ledger.versions()] == ["in-service"]


def test_requests_are_filtered_by_federation_and_state(ledger: Ledger) -> None:
    do(ledger, train(ledger))
    train(ledger)
    ledger.new_request(kind="train", method="fedavg", federation="mnist")

    assert [row.id for row in ledger.requests(federation=FEDERATION)] == ["r0001", "r0002"]
    assert [row.id for row in ledger.requests(state="received")] == ["r0002", "r0003"]
    assert [row.id for row in ledger.requests("mnist", "received")] == ["r0003"]
    with pytest.raises(LedgerError, match=r"state must be one of received, .*, got 'stuck'"):
        ledger.requests(state="stuck")  # type: ignore[arg-type]


def test_an_unknown_id_names_the_known_ones(ledger: Ledger) -> None:
    with pytest.raises(UnknownIdError, match=r"got 'v0001': there is no version yet"):
        ledger.version("v0001")
    for _ in range(9):
        train(ledger)

    with pytest.raises(UnknownIdError) as caught:
        ledger.request("r001")

    assert str(caught.value) == (
        "request must be one of r0001, r0002, r0003, ..., r0006, r0007, r0008, r0009, got 'r001'. "
        "Did you mean r0001?"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"kind": "unlearn"},
            "kind must be one of train, forget, relearn, yardstick, verify, got 'unlearn'",
        ),
        ({"kind": "train", "classes": [1]}, r"train must name nothing to forget, .* classes \[1\]"),
        ({"kind": "forget"}, "level must be one of class, client, got None"),
        ({"kind": "forget", "level": "class"}, r"must name classes and no clients, got classes \["),
        (
            {"kind": "relearn", "level": "client", "clients": ["a"], "classes": [1]},
            r"relearn at client level must name clients and no classes, got classes \[1\]",
        ),
        ({"kind": "train", "base_version": "v0001"}, "there is no version yet"),
    ],
)
def test_a_request_that_makes_no_sense_is_not_written(
    ledger: Ledger, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(LedgerError, match=message):
        ledger.new_request(method="quickdrop", federation=FEDERATION, **arguments)

    assert ledger.requests() == []


def test_erased_is_what_was_forgotten_and_not_relearned(ledger: Ledger) -> None:
    def ask(kind: Any, level: Any, **names: Any) -> RequestRow:
        return ledger.new_request(
            kind=kind, level=level, method="quickdrop", federation=FEDERATION, **names
        )

    do(ledger, train(ledger))
    do(ledger, ask("forget", "class", classes=[3, 9]))
    do(ledger, ask("forget", "client", clients=["north", "east"]))
    do(ledger, ask("relearn", "class", classes=[3]))
    do(ledger, ask("relearn", "client", clients=["east"]))
    do(ledger, ask("forget", "class", classes=[9, 5]), None)
    do(ledger, ask("forget", "class", classes=[7]), "trial")  # not in force
    ask("forget", "class", classes=[1])  # not done

    erased = ledger.erased(FEDERATION)

    assert (erased.classes, erased.clients) == ((5, 9), ("north",))
    # r0002 was the first to erase class 9, and is still the answer to "by which request?".
    assert erased.class_requests == {5: "r0006", 9: "r0002"}
    assert erased.client_requests == {"north": "r0003"}
    assert ledger.erased("mnist").classes == ()


def test_erased_follows_the_order_of_finishing_even_if_the_clock_goes_back(
    ledger: Ledger, clock: Clock
) -> None:
    late = forget(ledger, [3])
    do(ledger, forget(ledger, [3]))
    relearn = ledger.new_request(
        kind="relearn", level="class", classes=[3], method="quickdrop", federation=FEDERATION
    )
    clock.step = -timedelta(minutes=1)
    do(ledger, relearn)
    assert ledger.erased(FEDERATION).classes == ()

    do(ledger, late)

    assert ledger.erased(FEDERATION).class_requests == {3: late.id}


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.booleans(), st.sets(st.integers(0, 4), min_size=1)), max_size=6))
def test_erased_equals_a_set_that_grows_and_shrinks(
    tmp_path_factory: pytest.TempPathFactory, story: list[tuple[bool, set[int]]]
) -> None:
    expected: set[int] = set()
    with Ledger.open(f"sqlite:///{tmp_path_factory.mktemp('story') / 'ledger.db'}") as ledger:
        for forgets, classes in story:
            request = ledger.new_request(
                kind="forget" if forgets else "relearn",
                level="class",
                classes=sorted(classes),
                method="quickdrop",
                federation=FEDERATION,
            )
            do(ledger, request, None)
            expected = expected | classes if forgets else expected - classes

        assert set(ledger.erased(FEDERATION).classes) == expected


def test_the_ledger_survives_its_process(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    with Ledger.open(url) as ledger:
        written = do(ledger, train(ledger))

    with Ledger.open(url) as ledger:
        assert ledger.requests() == [written]
        assert train(ledger).id == "r0002"


def test_the_file_is_private_durable_and_checks_its_keys(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with Ledger.open(database_url(home)) as ledger:
        train(ledger)
        with ledger._read() as session:
            pragmas = [
                session.execute(text(f"PRAGMA {name}")).scalar()
                for name in ("journal_mode", "synchronous", "foreign_keys")
            ]
        modes = {path.stat().st_mode & 0o777 for path in tmp_path.glob("ledger.db*")}

    assert pragmas == ["wal", 2, 1]  # 2 is FULL
    assert modes == {0o600}


def test_a_crash_before_the_commit_leaves_no_trace(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    with Ledger.open(url) as ledger:
        do(ledger, train(ledger))
        request = ledger.start(forget(ledger, [9], "v0001").id)
    script = """
import os, sys
from server.storage.ledger import *
ledger = Ledger.open(sys.argv[1])
enter = ledger._enter
ledger._enter = lambda *a: (enter(*a), os._exit(9))
version = VersionRow("v0002", "v0001", "r0002", sys.argv[2], ledger.now(), "in-service", "0", {})
ledger.finish("r0002", Outcome(), version)
"""

    died = subprocess.run([sys.executable, "-c", script, url, FEDERATION], check=False, cwd=ROOT)

    assert died.returncode == 9
    with Ledger.open(url) as ledger:
        assert ledger.request("r0002") == request
        assert [(row.id, row.state) for row in ledger.versions()] == [("v0001", "in-service")]


def test_processes_that_open_and_write_together_get_different_ids(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    script = """
import sys
from server.storage.ledger import Ledger
with Ledger.open(sys.argv[1]) as ledger:
    for _ in range(10):
        print(ledger.new_request(kind="train", method="fedavg", federation="x").id)
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, url], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        for _ in range(3)
    ]
    ids = [line for process in processes for line in process.communicate()[0].split()]

    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sorted(ids) == [f"r{number:04d}" for number in range(1, 31)]


def test_opening_it_twice_in_a_process_loses_nothing_when_another_process_ends(
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    script = """
import sys
from server.storage.ledger import Ledger
with Ledger.open(sys.argv[1]) as ledger:
    ledger.new_request(kind="train", method="fedavg", federation="x")
    print(*[row.id for row in ledger.requests()])
"""

    def elsewhere() -> list[str]:
        command = [sys.executable, "-c", script, url]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        return done.stdout.split()

    with Ledger.open(url) as first:
        train(first)
        with Ledger.open(url):
            assert elsewhere() == ["r0001", "r0002"]
            train(first)
            assert elsewhere() == ["r0001", "r0002", "r0003", "r0004"]


def test_ids_stay_in_sequence_past_four_digits(ledger: Ledger) -> None:
    train(ledger)
    with ledger._write() as session:
        session.execute(text("UPDATE requests SET id = 'r9999', number = 9999"))

    assert train(ledger).id == "r10000"
    assert [row.id for row in ledger.requests()] == ["r9999", "r10000"]


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"not a database at all" * 100)

    message = r"ledger must be a database .*/ledger.db \(file is not a database\).*backup"
    with pytest.raises(LedgerError, match=message):
        Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}")


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="No such file or directory"):
        Ledger.open(f"sqlite:///{tmp_path / 'gone' / 'ledger.db'}")


def test_a_ledger_of_a_newer_program_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    with Ledger.open(url) as ledger, ledger._write() as session:
        session.execute(text("UPDATE ledger_format SET format = 2"))

    with pytest.raises(
        LedgerError, match=r"ledger format must be at most 1, got 2 .* Use that one"
    ):
        Ledger.open(url)


def test_the_environment_names_another_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path)
    monkeypatch.delenv("EFFACE_DATABASE_URL", raising=False)
    assert str(database_url(home)) == f"sqlite:///{tmp_path}/ledger.db"
    monkeypatch.setenv("EFFACE_DATABASE_URL", "postgresql+psycopg://u:secret@host/db")
    assert database_url(home).get_backend_name() == "postgresql"
    monkeypatch.setenv("EFFACE_DATABASE_URL", "secret")
    with pytest.raises(LedgerError, match="EFFACE_DATABASE_URL must be a URL such as") as caught:
        database_url(home)
    assert "secret" not in str(caught.value)


def test_a_missing_driver_is_named_and_the_password_is_not() -> None:
    with pytest.raises(EffaceError, match="must name an installed driver") as caught:
        Ledger.open("postgresql+asyncpg_missing://user:secret@host/efface")

    assert "secret" not in str(caught.value)
    assert "pip install 'psycopg[binary]'" in str(caught.value)


def test_the_tables_compile_for_postgresql() -> None:
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    tables = server.storage.ledger._Base.metadata.tables

    request_table = str(CreateTable(tables["requests"]).compile(dialect=dialect))
    (index,) = (i for i in tables["versions"].indexes if i.name == "one_in_service")

    assert "settings JSON NOT NULL" in request_table
    assert "created TIMESTAMP WITH TIME ZONE NOT NULL" in request_table
    assert "WHERE state = 'in-service'" in str(CreateIndex(index).compile(dialect=dialect))


def test_the_ledger_of_an_older_efface_gets_the_columns_that_it_lacks(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with Ledger.open(f"sqlite:///{path}") as ledger:
        for reason in ("verification failed: forget accuracy 80.0 %", "no answer"):
            row = train(ledger)
            ledger.start(row.id)
            ledger.fail(row.id, reason)
    with sqlite3.connect(path) as old:
        old.execute("ALTER TABLE requests DROP COLUMN reason_code")
    old.close()
    with Ledger.open(f"sqlite:///{path}") as ledger:
        # Which of them is a refused result was told by the first words alone.
        codes = [row.reason_code for row in ledger.requests()]
    assert codes == ["verification-failed", None]
