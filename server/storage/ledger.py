"""The request ledger: who asked for what, what was done, and which version came of it.

SQLite in the server home by default, PostgreSQL by EFFACE_DATABASE_URL. Rows leave this module as
frozen dataclasses. Every change is one transaction; a version enters together with the end of its
request, or not at all. Whoever only looks reads a copy in memory (`Ledger.read`), so that a home
can be read that cannot be written. What ends is sealed in the same transaction
(server/storage/seals.py).

It is long because the tables, the rows that leave and the transactions between them are one rule:
what is not done here cannot happen to a request.
"""

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from sqlalchemy import (
    JSON,
    URL,
    Connection,
    DateTime,
    Dialect,
    Engine,
    ForeignKey,
    Index,
    create_engine,
    delete,
    event,
    func,
    inspect,
    make_url,
    select,
    text,
    update,
)
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import StaticPool
from sqlalchemy.types import TypeDecorator

from client.errors import INTERRUPTED, DiskFull, EffaceError
from client.files import FULL
from server.format import masked
from server.storage import keys, seal_check, seals
from server.storage.home import Home, plain
from server.storage.seal_check import Checked
from server.storage.seals import EditedError, Rows, Seal, Sealing

Kind = Literal["train", "forget", "relearn", "yardstick", "verify"]
Level = Literal["class", "client"]
RequestState = Literal["received", "running", "done", "failed", "interrupted", "aborted"]
VersionState = Literal["trial", "in-service", "superseded"]

KINDS: tuple[str, ...] = ("train", "forget", "relearn", "yardstick", "verify")
LEVELS: tuple[str, ...] = ("class", "client")
VERSION_STATES: tuple[str, ...] = ("trial", "in-service", "superseded")

# A request's whole life. What is not listed cannot happen.
TRANSITIONS: Mapping[str, tuple[str, ...]] = {
    "received": ("running", "aborted"),
    "running": ("done", "failed", "interrupted"),
    "interrupted": ("running", "aborted"),
    "done": (),
    "failed": (),
    "aborted": (),
}

# Codes of reasons that no error stands for; the others are those of `client.errors`.
PROCESS_GONE = "process-gone"  # it was killed, or its machine went down
GIVEN_UP = "given-up"  # by the operator
ERASED_SINCE = "erased-since"  # a stopped training knows what was erased after it began

GONE = "the process that ran it ended without a word"  # the reason of PROCESS_GONE
LEDGER_FORMAT = 1
NEW_ID_ATTEMPTS = 20
SQLITE_ROOM = 256 * 1024  # bytes that SQLite's files beside the database need at least, and more
CREATION_LOCK = 0xEFFACE  # any number that no other program on the database uses


class LedgerError(EffaceError):
    """The ledger cannot be opened, or was asked for something its rules forbid."""

    code = "ledger-error"


class UnknownIdError(LedgerError):
    """No request or version has this id."""

    code = "unknown-id"


class TransitionError(LedgerError):
    """A request cannot go from its state to the one asked for."""

    code = "wrong-state"


@dataclass(frozen=True)
class RequestRow:
    """One request. Times are UTC; mappings are to be read, not changed."""

    id: str  # r0001, r0002, ... in the order of arrival
    kind: Kind
    level: Level | None
    classes: tuple[int, ...]
    clients: tuple[str, ...]
    method: str
    settings: Mapping[str, Any]
    federation: str  # data set, partition and clients, as one text
    base_version: str | None
    result_version: str | None
    state: RequestState
    reason: str | None  # why it failed, was interrupted or aborted
    asked_by: str
    why: str
    created: datetime
    started: datetime | None  # first start, also after a resume
    finished: datetime | None
    seconds: Mapping[str, float]  # wall seconds by phase
    bytes: Mapping[str, Any]  # {"up": n, "down": n} by phase
    before: Mapping[str, Any] | None  # evaluation of the base version
    after: Mapping[str, Any] | None  # evaluation of the result
    reason_code: str | None = None  # the reason's kind, for programs; None in rows of old
    record_sha256: str | None = None  # of its record (server.requests.records); None in rows of old

    @property
    def token(self) -> str:
        """The request's name for the nodes: unique even when a coordinator starts a new home."""
        return f"{self.id}-{self.created:%Y%m%dT%H%M%S%f}"


@dataclass(frozen=True)
class VersionRow:
    """One set of global weights, as the ledger knows it."""

    id: str  # v0001, v0002, ...
    parent: str | None
    request: str
    federation: str
    created: datetime
    state: VersionState
    sha256: str  # of the weights file, hexadecimal
    card: Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What a finished request measured."""

    seconds: Mapping[str, float] = field(default_factory=dict)
    bytes: Mapping[str, Any] = field(default_factory=dict)
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None
    record_sha256: str | None = None


@dataclass(frozen=True)
class Erased:
    """What a federation must not learn again, and the request that erased each part."""

    classes: tuple[int, ...] = ()
    clients: tuple[str, ...] = ()
    class_requests: Mapping[int, str] = field(default_factory=dict)
    client_requests: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Pending:
    """What a done request still has to bring to a client that was offline."""

    request: str
    client: str
    since: datetime


class _Utc(TypeDecorator[datetime]):
    """A time in UTC. SQLite keeps no zone, so it is put back on reading."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class _Base(DeclarativeBase):
    type_annotation_map = {  # noqa: RUF012 (SQLAlchemy reads it as it stands)
        datetime: _Utc,
        dict[str, Any]: JSON(none_as_null=True),
        list[int]: JSON,
        list[str]: JSON,
    }


class _Format(_Base):
    """One row: which tables these are, so that an older program refuses a newer ledger."""

    __tablename__ = "ledger_format"
    format: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


class _Request(_Base):
    __tablename__ = "requests"
    id: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(unique=True)
    kind: Mapped[str]
    level: Mapped[str | None]
    classes: Mapped[list[int]]
    clients: Mapped[list[str]]
    method: Mapped[str]
    settings: Mapped[dict[str, Any]]
    federation: Mapped[str] = mapped_column(index=True)
    base_version: Mapped[str | None] = mapped_column(
        ForeignKey("versions.id", name="fk_requests_base_version", use_alter=True)
    )
    result_version: Mapped[str | None] = mapped_column(
        ForeignKey("versions.id", name="fk_requests_result_version", use_alter=True)
    )
    state: Mapped[str] = mapped_column(index=True)
    reason: Mapped[str | None]
    asked_by: Mapped[str]
    why: Mapped[str]
    created: Mapped[datetime]
    started: Mapped[datetime | None]
    finished: Mapped[datetime | None]
    seconds: Mapped[dict[str, Any]]
    bytes: Mapped[dict[str, Any]]
    before: Mapped[dict[str, Any] | None]
    after: Mapped[dict[str, Any] | None]
    reason_code: Mapped[str | None]
    record_sha256: Mapped[str | None]


class _Version(_Base):
    __tablename__ = "versions"
    id: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(unique=True)
    parent: Mapped[str | None] = mapped_column(ForeignKey("versions.id"))
    request: Mapped[str] = mapped_column(ForeignKey("requests.id"))
    federation: Mapped[str]
    created: Mapped[datetime]
    state: Mapped[str]
    sha256: Mapped[str]
    card: Mapped[dict[str, Any]]
    __table_args__ = (
        # The database itself refuses a second version in service.
        Index(
            "one_in_service",
            "federation",
            unique=True,
            sqlite_where=text("state = 'in-service'"),
            postgresql_where=text("state = 'in-service'"),
        ),
    )


class _Pending(_Base):
    """A client that a request's end has not reached; `settled` is when it has."""

    __tablename__ = "pending"
    request: Mapped[str] = mapped_column(ForeignKey("requests.id"), primary_key=True)
    client: Mapped[str] = mapped_column(primary_key=True)
    since: Mapped[datetime]
    settled: Mapped[datetime | None]


class _Seal(_Base):
    """One link of the chain (server/storage/seals.py)."""

    __tablename__ = "seals"
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    kind: Mapped[str]
    subject: Mapped[str]
    content: Mapped[dict[str, Any]]
    created: Mapped[str]
    before: Mapped[str]
    key: Mapped[str]
    signature: Mapped[str]


_Row = TypeVar("_Row", _Request, _Version)


def database_url(home: Home) -> URL:
    """Return where the ledger of `home` lives: EFFACE_DATABASE_URL, or else HOME/ledger.db."""
    chosen = os.environ.get("EFFACE_DATABASE_URL")
    if chosen:
        return _parse(chosen)
    return URL.create("sqlite", database=str(home.path / "ledger.db"))


class Ledger:
    """Requests and versions. Safe to read beside a writer; one process at a time writes."""

    def __init__(
        self, engine: Engine, clock: Callable[[], datetime], sealing: Sealing | None = None
    ) -> None:
        """Use `Ledger.of` or `Ledger.open` instead, which also create and check the tables."""
        self._engine = engine
        self._sealing = sealing
        self._writer = engine.execution_options(efface_writes=True)
        self._clock = clock
        self._noted: Mapping[str, Any] | None = None  # of a copy: the head, noted before it
        self.is_copy = False  # of a file, in memory: what is changed in it is changed nowhere else

    @classmethod
    def of(cls, home: Home) -> Self:
        """Open the ledger of a home to write to it: what ends is sealed with the home's key.

        Raises:
            LedgerError: As for `open`.
            KeyFileError: If the home's key cannot be used.
        """
        return cls.open(database_url(home), sealing=Sealing.of(home))

    @classmethod
    def open(
        cls,
        url: URL | str,
        clock: Callable[[], datetime] | None = None,
        sealing: Sealing | None = None,
    ) -> Self:
        """Open the ledger at `url`, creating its tables if there are none.

        Args:
            url: SQLAlchemy URL, such as `sqlite:////srv/efface/ledger.db` or
                `postgresql+psycopg://user@host/efface`.
            clock: Where the time comes from; the system's by default.
            sealing: Seals what ends. Without it nothing can end in a ledger that has seals.

        Raises:
            LedgerError: If there is no such database or driver, the file is not a database, or a
                newer Efface wrote it. The message never shows the password.
        """
        parsed = _parse(url)
        shown = masked(parsed.render_as_string())
        try:
            engine = _engine(parsed)
            ledger = cls(engine, clock or (lambda: datetime.now(UTC)), sealing)
            found = ledger._prepare()
        except (ImportError, NoSuchModuleError) as error:
            raise LedgerError(
                f"database URL must name an installed driver, got {shown} ({masked(str(error))}). "
                "For PostgreSQL: pip install 'psycopg[binary]' and postgresql+psycopg://..."
            ) from error
        except OSError as error:
            if error.errno in FULL:
                raise DiskFull(_no_room(parsed, error)) from error
            raise LedgerError(_unusable(parsed, error)) from error
        ledger._check_format(found, shown)
        return ledger

    @classmethod
    def read(cls, url: URL | str) -> Self:
        """Open the ledger at `url` to look at it: nothing is written, and no file made.

        A ledger in a file is read whole into memory, as it stands now; where there is no file yet
        it is an empty one. One on a server is opened as always.

        Raises:
            LedgerError: As for `open`.
        """
        parsed = _parse(url)
        if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
            return cls.open(url)
        try:
            memory = _snapshot(Path(str(parsed.database)))
        except (OSError, sqlite3.Error) as error:
            raise LedgerError(_unusable(parsed, error)) from error
        engine = create_engine("sqlite://", creator=lambda: memory, poolclass=StaticPool)
        _begin_by_hand(engine)
        ledger = cls(engine, lambda: datetime.now(UTC))
        ledger.is_copy = True
        ledger._check_format(ledger._prepare(), masked(parsed.render_as_string()))
        return ledger

    @classmethod
    def look(cls, home: Home) -> Self:
        """Open the ledger of a home to look at it (see `read`); an empty one if there is no home.

        Raises:
            LedgerError: As for `open`.
        """
        noted = seals.noted_head(home.keys)  # before the copy: the chain only ever grows
        ledger = cls.read(database_url(home) if home.path.is_dir() else "sqlite://")
        ledger._noted = noted
        return ledger

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def now(self) -> datetime:
        """Return the ledger's time, UTC."""
        return self._clock().astimezone(UTC)

    # ---- requests ----

    def new_request(
        self,
        *,
        kind: Kind,
        method: str,
        federation: str,
        level: Level | None = None,
        classes: Sequence[int] = (),
        clients: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
        base_version: str | None = None,
        asked_by: str = "",
        why: str = "",
    ) -> RequestRow:
        """Write down a request as received, under the next id.

        Raises:
            LedgerError: If kind or level is unknown, or the request does not name what its level
                asks for: classes at class level, clients at client level, nothing to train.
            UnknownIdError: If there is no such base version.
        """
        if kind not in KINDS:
            raise LedgerError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        _check_target(kind, level, classes, clients)
        if base_version is not None:
            self.version(base_version)
        for _ in range(NEW_ID_ATTEMPTS):
            try:
                with self._write() as session:
                    number = _next_number(session, _Request)
                    row = _Request(
                        id=f"r{number:04d}",
                        number=number,
                        kind=kind,
                        level=level,
                        classes=sorted({int(c) for c in classes}),
                        clients=sorted(set(clients)),
                        method=method,
                        settings=plain(settings or {}, "settings"),
                        federation=federation,
                        base_version=base_version,
                        state="received",
                        asked_by=asked_by,
                        why=why,
                        created=self.now(),
                        seconds={},
                        bytes={},
                    )
                    session.add(row)
                    session.flush()
                    return _request_row(row)
            except IntegrityError:
                # Another process took the number (PostgreSQL only; SQLite lets one writer in).
                continue
        raise LedgerError(f"no free request id after {NEW_ID_ATTEMPTS} attempts; try again")

    def start(self, request_id: str) -> RequestRow:
        """Mark a received or interrupted request as running."""
        with self._write() as session:
            row = self._move(session, request_id, "running")
            row.started = row.started or self.now()
            row.reason = row.reason_code = None
            return _request_row(row)

    def fail(
        self,
        request_id: str,
        reason: str,
        outcome: Outcome | None = None,
        *,
        code: str = EffaceError.code,
    ) -> RequestRow:
        """Mark a running request as failed for good; `outcome` says what it cost all the same."""
        with self._write() as session:
            row = self._move(session, request_id, "failed")
            row.reason, row.reason_code = masked(reason), code
            row.finished = self._after_last(session)
            _write_outcome(row, outcome or Outcome())
            self._seal_end(session, row)
            return _request_row(row)

    def interrupt(self, request_id: str, reason: str, *, code: str = INTERRUPTED) -> RequestRow:
        """Mark a running request as stopped half-way; it can be started again or aborted."""
        with self._write() as session:
            row = self._move(session, request_id, "interrupted")
            row.reason, row.reason_code = masked(reason), code
            return _request_row(row)

    def interrupt_running(self, reason: str) -> list[RequestRow]:
        """Mark every running request as interrupted.

        For the process that has just taken the home's lock: whoever ran them has died without
        a word, for else it would hold the lock.
        """
        with self._write() as session:
            found = session.scalars(select(_Request).where(_Request.state == "running")).all()
            for row in found:
                moved = self._move(session, row.id, "interrupted")
                moved.reason, moved.reason_code = reason, PROCESS_GONE
            return [_request_row(row) for row in found]

    def abort(
        self, request_id: str, reason: str | None = None, *, code: str = GIVEN_UP
    ) -> RequestRow:
        """Give a received or interrupted request up; its base version stays as it was."""
        with self._write() as session:
            row = self._move(session, request_id, "aborted")
            row.reason = masked(reason) if reason else row.reason
            row.reason_code = code if reason else row.reason_code or code
            row.finished = self._after_last(session)
            self._seal_end(session, row)
            return _request_row(row)

    def finish(
        self, request_id: str, outcome: Outcome, version: VersionRow | None = None
    ) -> RequestRow:
        """Mark a running request as done and enter the version it made, in one transaction.

        A version that enters in service supersedes the one that was.

        Args:
            request_id: A running request.
            outcome: What it measured.
            version: The new version, its weights already safe on the disk. Its id must be
                `next_version_id()`.

        Raises:
            TransitionError: If the request is not running.
            LedgerError: If the version does not belong to the request or has the wrong id.
        """
        with self._write() as session:
            row = self._move(session, request_id, "done")
            row.finished = self._after_last(session)
            _write_outcome(row, outcome)
            if version is not None:
                self._enter(session, row, version)
                row.result_version = version.id
            self._seal_end(session, row)
            return _request_row(row)

    def request(self, request_id: str) -> RequestRow:
        """Return one request.

        Raises:
            UnknownIdError: If there is none of this id; the message names the known ones.
        """
        with self._read() as session:
            return _request_row(_known(session, _Request, request_id))

    def requests(
        self, federation: str | None = None, state: RequestState | None = None
    ) -> list[RequestRow]:
        """Return the requests in order of arrival, of one federation or state if given."""
        query = select(_Request).order_by(_Request.number)
        if federation is not None:
            query = query.where(_Request.federation == federation)
        if state is not None:
            if state not in TRANSITIONS:
                raise LedgerError(f"state must be one of {', '.join(TRANSITIONS)}, got {state!r}")
            query = query.where(_Request.state == state)
        with self._read() as session:
            return [_request_row(row) for row in session.scalars(query)]

    def erased(self, federation: str) -> Erased:
        """Return what `federation` has forgotten and not relearned, and by which requests.

        Done forget requests count in the order they were finished; a later done relearn request
        lifts what it names, and nothing else. A request whose result is a mere trial changes
        nothing in service and does not count.
        """
        query = (
            select(_Request)
            .outerjoin(_Version, _Version.id == _Request.result_version)
            .where(_Request.federation == federation, _Request.state == "done")
            .where(_Request.kind.in_(("forget", "relearn")))
            .where(_Version.id.is_(None) | (_Version.state != "trial"))
            .order_by(_Request.finished)
        )
        classes: dict[int, str] = {}
        clients: dict[str, str] = {}
        with self._read() as session:
            for row in session.scalars(query):
                if row.kind == "forget":
                    # The first request that erased a thing stays the one that answers for it.
                    classes = dict.fromkeys(row.classes, row.id) | classes
                    clients = dict.fromkeys(row.clients, row.id) | clients
                else:
                    for name in row.classes:
                        classes.pop(name, None)
                    for name_ in row.clients:
                        clients.pop(name_, None)
        return Erased(tuple(sorted(classes)), tuple(sorted(clients)), classes, clients)

    # ---- what clients that were offline still have to do ----

    def note_pending(self, request_id: str, clients: Sequence[str]) -> None:
        """Write down the clients that a request's end does not reach, in place of any before.

        They count as soon as the request is done: a stop in between says nothing wrong.
        """
        with self._write() as session:
            _known(session, _Request, request_id)
            session.execute(delete(_Pending).where(_Pending.request == request_id))
            session.add_all(
                _Pending(request=request_id, client=name, since=self.now(), settled=None)
                for name in sorted(set(clients))
            )

    def settle_pending(self, request_id: str, client: str, attestation: str = "") -> None:
        """Write down that a client has done what it owed a request.

        Args:
            request_id: The request.
            client: Who owed it.
            attestation: SHA-256 of what the client signed of it.
        """
        with self._write() as session:
            session.execute(
                update(_Pending)
                .where(_Pending.request == request_id, _Pending.client == client)
                .values(settled=self.now())
            )
            signed = {"attestation": attestation} if attestation else {}
            self._seal(session, "settled", request_id, {"client": client, **signed})

    def pending(self) -> list[Pending]:
        """Return what done requests still owe to clients that were offline, oldest first."""
        query = (
            select(_Pending)
            .join(_Request, _Request.id == _Pending.request)
            .where(_Request.state == "done", _Pending.settled.is_(None))
            .order_by(_Request.finished, _Pending.client)
        )
        with self._read() as session:
            return [Pending(p.request, p.client, p.since) for p in session.scalars(query)]

    # ---- versions ----

    def versions(self, federation: str | None = None) -> list[VersionRow]:
        """Return the versions in order of entry, of one federation if given."""
        query = select(_Version).order_by(_Version.number)
        if federation is not None:
            query = query.where(_Version.federation == federation)
        with self._read() as session:
            return [_version_row(row) for row in session.scalars(query)]

    def version(self, version_id: str) -> VersionRow:
        """Return one version.

        Raises:
            UnknownIdError: If there is none of this id; the message names the known ones.
        """
        with self._read() as session:
            return _version_row(_known(session, _Version, version_id))

    def in_service(self, federation: str) -> VersionRow | None:
        """Return the version that `federation` uses now, or None before the first."""
        query = select(_Version).where(
            _Version.federation == federation, _Version.state == "in-service"
        )
        with self._read() as session:
            row = session.scalar(query)
            return None if row is None else _version_row(row)

    def next_version_id(self) -> str:
        """Return the id that the next version will have."""
        with self._read() as session:
            return f"v{_next_number(session, _Version):04d}"

    def note_pruned(self, version_id: str) -> None:
        """Seal that a version's weights are destroyed for room, before they are.

        Raises:
            UnknownIdError: If there is no such version.
            LedgerError: If it is in service, or the ledger is opened without its home's key.
        """
        if self._sealing is None:
            raise LedgerError(
                "pruning must be sealed with the home's key, got none: open the ledger by its home"
            )
        with self._write() as session:
            row = _known(session, _Version, version_id)
            if row.state == "in-service":
                raise LedgerError(f"version to prune must not serve, got {row.id}, which is in use")
            self._seal(session, "pruned", row.request, {"version": row.id, "sha256": row.sha256})

    def pruned(self) -> dict[str, str]:
        """Return when each version's weights were pruned, ISO 8601, of those that have none."""
        return seal_check.pruned(self.noted("pruned"))

    def note_exported(self, version_id: str, *, path: str, sha256: str) -> None:
        """Seal that a version's weights are written to a file, before they are.

        Args:
            version_id: The version.
            path: The file, whole.
            sha256: Of the file.
        """
        with self._write() as session:
            row = _known(session, _Version, version_id)
            content = {"version": row.id, "path": path, "sha256": sha256}
            self._seal(session, "exported", row.request, content)

    def note_destroyed(self, request_id: str, what: str, name: str) -> None:
        """Seal that what was derived from what a request forgot is destroyed, before it is.

        Said twice, it is noted once: what a stop left is destroyed later.

        Args:
            request_id: The request that forgot it.
            what: What it is, such as "yardstick".
            name: Its own in the home.
        """
        content = {"what": what, "name": name}
        if any((s.subject, s.content) == (request_id, content) for s in self.noted("destroyed")):
            return
        with self._write() as session:
            self._seal(session, "destroyed", _known(session, _Request, request_id).id, content)

    def noted(self, kind: seals.Kind) -> list[Seal]:
        """Return the seals of one kind, in order."""
        query = select(_Seal).where(_Seal.kind == kind).order_by(_Seal.number)
        with self._read() as session:
            return [_seal(one) for one in session.scalars(query)]

    # ---- seals ----

    def checked(
        self, home: Home, *, publics: Sequence[str] = (), every_signature: bool = False
    ) -> Checked:
        """Compare all rows with their seals, as they stand at one moment.

        Args:
            home: Whose key made the seals, and where the newest was noted.
            publics: The only public keys that count; the home's if none.
            every_signature: See `seal_check.check`.

        Raises:
            EditedError: If a row cannot be read at all.
            KeyFileError: If the home's public key cannot be read.
        """
        known = list(publics) or keys.public_keys(home.keys)
        head = self._noted if self.is_copy else seals.noted_head(home.keys)
        with self._read() as session:
            if self._engine.dialect.name == "postgresql":
                session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            chain = [_seal(one) for one in session.scalars(select(_Seal).order_by(_Seal.number))]
            rows = _rows(session)
        return seal_check.check(chain, rows, known, head, every_signature=every_signature)

    # ---- inside a transaction ----

    def _prepare(self) -> int:
        """Make the tables that are missing, and the columns that an older Efface did not have.

        Returns:
            The format that the database says it has.
        """
        with self._write() as session:
            connection = session.connection()
            if connection.dialect.name == "postgresql":
                # Two processes that create the same table at once: one would fail.
                session.execute(select(func.pg_advisory_xact_lock(CREATION_LOCK)))
            _Base.metadata.create_all(connection)
            _add_columns(connection)
            found = session.scalar(select(_Format.format))
            if found is None:
                session.add(_Format(format=LEDGER_FORMAT))
            if self._sealing is not None and self._last_seal(session) is None:
                rows = _rows(session)
                self._sealing.check_none_before(rows)
                self._seal(session, "began", "", seals.beginning(rows))
            return LEDGER_FORMAT if found is None else found

    def _check_format(self, found: int, shown: str) -> None:
        if found > LEDGER_FORMAT:
            self._engine.dispose()
            raise LedgerError(
                f"ledger format must be at most {LEDGER_FORMAT}, got {found} in {shown}: "
                "a newer Efface wrote it. Use that one"
            )

    @contextmanager
    def _read(self) -> Iterator[Session]:
        with self._clear_errors(), Session(self._engine) as session:
            yield session

    @contextmanager
    def _write(self) -> Iterator[Session]:
        with self._clear_errors(), Session(self._writer) as session:
            with session.begin():
                yield session
            sealed: Seal | None = session.info.get("sealed")
        if sealed is not None and self._sealing is not None:
            self._sealing.note_head(sealed)

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise  # a broken rule, not a broken database
        except DBAPIError as error:
            if _is_full(self._engine.url, error.orig):
                raise DiskFull(_no_room(self._engine.url, error.orig)) from error
            raise LedgerError(_unusable(self._engine.url, error.orig)) from error
        except EffaceError:
            raise
        except ValueError as error:  # what was written into a column is no JSON, or no time
            raise EditedError(
                f"ledger rows must be as they were written, got one that cannot be read ({error}): "
                "it was changed by hand, or is damaged; restore the ledger from a backup"
            ) from error

    def _seal_end(self, session: Session, row: _Request) -> None:
        """Seal a request that has just ended, with the version that it made."""
        session.flush()
        session.refresh(row)  # as it will be read
        version = None
        if row.result_version is not None:
            made = session.get_one(_Version, row.result_version)
            session.refresh(made)
            version = vars(_version_row(made))
        owed = session.scalars(select(_Pending.client).where(_Pending.request == row.id))
        self._seal(session, "request", row.id, seals.ending(vars(_request_row(row)), version, owed))

    def _seal(
        self, session: Session, kind: seals.Kind, subject: str, content: Mapping[str, Any]
    ) -> None:
        if session.connection().dialect.name == "postgresql":
            # Two processes that seal at once: their seals would take the same number.
            session.execute(select(func.pg_advisory_xact_lock(CREATION_LOCK)))
        last = self._last_seal(session)
        if self._sealing is None:
            if last is None:
                return
            raise LedgerError(
                "ledger with seals must be changed with its home's key, got none: open it by its "
                "home"
            )
        made = self._sealing.seal(last, kind, subject, content, self.now())
        session.add(_Seal(**vars(made)))
        session.flush()
        session.info["sealed"] = made

    def _last_seal(self, session: Session) -> Seal | None:
        found = session.scalar(select(_Seal).order_by(_Seal.number.desc()).limit(1))
        return None if found is None else _seal(found)

    def _move(self, session: Session, request_id: str, state: RequestState) -> _Request:
        row = _known(session, _Request, request_id)
        sources = [source for source, targets in TRANSITIONS.items() if state in targets]
        # The condition is part of the update, so that of two processes only one succeeds.
        moved = session.execute(
            update(_Request)
            .where(_Request.id == request_id, _Request.state.in_(sources))
            .values(state=state)
            .returning(_Request.id)
            .execution_options(synchronize_session=False)
        ).all()
        session.refresh(row)
        if not moved:
            raise TransitionError(
                f"request must be {' or '.join(sources)} to become {state}, "
                f"got {request_id} which is {row.state}"
                + (f" ({row.reason})" if row.reason else "")
                + f". From {row.state} it can go to: {', '.join(TRANSITIONS[row.state]) or 'none'}"
            )
        return row

    def _after_last(self, session: Session) -> datetime:
        """Return now, or just after the last finish if the clock went back.

        `erased` depends on the order in which requests were finished.
        """
        last: datetime | None = session.scalar(select(func.max(_Request.finished)))
        now = self.now()
        return now if last is None else max(now, last + timedelta(microseconds=1))

    def _enter(self, session: Session, request: _Request, version: VersionRow) -> None:
        number = _next_number(session, _Version)
        if version.id != f"v{number:04d}":
            raise LedgerError(f"version id must be v{number:04d}, got {version.id}")
        if (version.request, version.federation) != (request.id, request.federation):
            raise LedgerError(
                f"version must belong to {request.id} of {request.federation}, got "
                f"{version.request} of {version.federation}"
            )
        if version.state not in VERSION_STATES:
            raise LedgerError(
                f"version state must be one of {', '.join(VERSION_STATES)}, got {version.state!r}"
            )
        if version.parent is not None:
            _known(session, _Version, version.parent)
        if version.state == "in-service":
            session.execute(
                update(_Version)
                .where(_Version.federation == version.federation, _Version.state == "in-service")
                .values(state="superseded")
            )
        values = {entry.name: getattr(version, entry.name) for entry in fields(version)}
        session.add(_Version(number=number, **values | {"card": plain(version.card, "card")}))
        # The request's foreign key points at this row: it must be there first.
        session.flush()


def _check_target(
    kind: str, level: str | None, classes: Sequence[int], clients: Sequence[str]
) -> None:
    named = f"classes {list(classes)}, clients {list(clients)}"
    if kind == "train":
        if level or classes or clients:
            raise LedgerError(f"train must name nothing to forget, got level {level}, {named}")
    elif level not in LEVELS:
        raise LedgerError(f"level must be one of {', '.join(LEVELS)}, got {level!r}")
    elif level == "class" and (clients or not classes):
        raise LedgerError(f"{kind} at class level must name classes and no clients, got {named}")
    elif level == "client" and (classes or not clients):
        raise LedgerError(f"{kind} at client level must name clients and no classes, got {named}")


def _parse(url: URL | str) -> URL:
    try:
        return make_url(url)
    except ArgumentError as error:
        raise LedgerError(
            "EFFACE_DATABASE_URL must be a URL such as sqlite:////srv/efface/ledger.db or "
            "postgresql+psycopg://user@host/efface, got one that cannot be read"
        ) from error


def _no_room(url: URL, cause: object) -> str:
    return masked(
        f"disk must have room for the ledger, got none left for {url.render_as_string()} "
        f"({cause}); free some space, then give the same command again"
    )


def _unusable(url: URL, cause: object) -> str:
    return masked(
        f"ledger must be a database that can be used, got {url.render_as_string()} ({cause}). "
        "Check the path or server, or restore the ledger from a backup"
    )


def _is_full(url: URL, cause: BaseException | None) -> bool:
    name = getattr(cause, "sqlite_errorname", "")
    if name.startswith(("SQLITE_IOERR", "SQLITE_CANTOPEN")) and url.database:
        # For want of room beside the database it says no more than that.
        folder = Path(url.database).parent
        return folder.is_dir() and shutil.disk_usage(folder).free < SQLITE_ROOM
    return name == "SQLITE_FULL" or getattr(cause, "sqlstate", "") == "53100"


def _add_columns(connection: Connection) -> None:
    """Add the columns that tables of an older Efface lack; an old program reads them still."""
    for table in _Base.metadata.sorted_tables:
        there = {column["name"] for column in inspect(connection).get_columns(table.name)}
        for column in table.columns:
            if column.name not in there:
                kind = column.type.compile(connection.dialect)
                connection.exec_driver_sql(
                    f"ALTER TABLE {table.name} ADD COLUMN {column.name} {kind}"
                )
                if column.name == "reason_code":
                    # Rows of that time tell a refused result by these words alone.
                    connection.execute(
                        update(_Request)
                        .where(_Request.state == "failed")
                        .where(_Request.reason.startswith("verification failed: "))
                        .values(reason_code="verification-failed")
                    )


def _snapshot(path: Path) -> sqlite3.Connection:
    """Return a copy in memory of the database at `path`, an empty one if there is no file."""
    memory = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
    if not path.exists():
        if not path.parent.is_dir():
            raise FileNotFoundError(f"no folder {path.parent}")
        return memory
    try:
        _copy(path, memory)
    except sqlite3.OperationalError:
        # Where nothing can be written, SQLite may miss the file that its readers share.
        with tempfile.TemporaryDirectory() as folder:
            for end in ("", "-wal"):
                if (there := path.with_name(path.name + end)).exists():
                    shutil.copyfile(there, Path(folder) / there.name)
            _copy(Path(folder) / path.name, memory)
    return memory


def _copy(path: Path, memory: sqlite3.Connection) -> None:
    source = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=30)
    try:
        source.backup(memory)
    finally:
        source.close()


def _engine(url: URL) -> Engine:
    if url.get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True)
    if url.database and url.database != ":memory:":
        # SQLite would create it readable by all; its -wal and -shm files copy this mode. A file
        # that is there is not opened: closing it would free the locks of all this process's
        # connections (https://sqlite.org/howtocorrupt.html, 2.2), and another process that ends
        # would take the -wal file away from under them.
        with suppress(FileExistsError):
            os.close(os.open(url.database, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    engine = create_engine(url, connect_args={"timeout": 30})

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _: object) -> None:
        connection.isolation_level = None  # transactions are begun below, not by the driver
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    _begin_by_hand(engine)
    return engine


def _begin_by_hand(engine: Engine) -> None:
    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("efface_writes")
        # A writer takes its lock before it reads: a lock taken later may be refused at once.
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _known(session: Session, table: type[_Row], row_id: str) -> _Row:
    row = session.get(table, row_id)
    if row is not None:
        return row
    known: list[str] = list(session.scalars(select(table.id).order_by(table.number)))
    what = "request" if table is _Request else "version"
    see = "efface requests" if table is _Request else "efface models"
    if not known:
        raise UnknownIdError(
            f"{what} must be a known id, got {row_id!r}: there is no {what} yet", see=see
        )
    close = get_close_matches(row_id, known, n=1)
    listed = ", ".join(known if len(known) <= 8 else [*known[:3], "...", *known[-4:]])
    raise UnknownIdError(
        f"{what} must be one of {listed}, got {row_id!r}"
        + (f". Did you mean {close[0]}?" if close else ""),
        see=see,
    )


def _next_number(session: Session, table: type[_Request] | type[_Version]) -> int:
    return (session.scalar(select(func.max(table.number))) or 0) + 1


def _write_outcome(row: _Request, outcome: Outcome) -> None:
    row.seconds = plain(outcome.seconds, "seconds")
    row.bytes = plain(outcome.bytes, "bytes")
    row.before = plain(outcome.before, "before")
    row.after = plain(outcome.after, "after")
    row.record_sha256 = outcome.record_sha256


def _request_row(row: _Request) -> RequestRow:
    values = {entry.name: getattr(row, entry.name) for entry in fields(RequestRow)}
    values |= {"classes": tuple(row.classes), "clients": tuple(row.clients)}
    return RequestRow(**values)


def _version_row(row: _Version) -> VersionRow:
    return VersionRow(**{entry.name: getattr(row, entry.name) for entry in fields(VersionRow)})


def _seal(row: _Seal) -> Seal:
    return Seal(**{entry.name: getattr(row, entry.name) for entry in fields(Seal)})


def _rows(session: Session) -> Rows:
    """Return all that seals speak of."""
    requests = session.scalars(select(_Request).order_by(_Request.number)).all()
    versions = session.scalars(select(_Version).order_by(_Version.number)).all()
    return Rows(
        {row.id: vars(_request_row(row)) for row in requests},
        {row.id: vars(_version_row(row)) for row in versions},
        [(p.request, p.client, p.settled is not None) for p in session.scalars(select(_Pending))],
        [
            *(row.id for row in requests if row.id != f"r{row.number:04d}"),
            *(row.id for row in versions if row.id != f"v{row.number:04d}"),
        ],
    )
