"""The site's own log: every message, what was asked, and what became of it.

    <store>/log/000001.jsonl    a line a message: JSON; each names the SHA-256 of the line before it
    <store>/log/head.json       the newest line's number and SHA-256, and the messages of the day

A line that was altered, put in or taken out breaks the chain, at the end too, where `head.json`
tells. Files are rotated: the oldest go, and the chain begins at the first that is left. It protects
against whoever changes lines, not against one who may write the folder and makes all of it anew:
for that, copy it to another machine (`efface site log --json`).
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from flwr.app import Message

from client.errors import AggregationRefused, BadSetting, StoreError, code_of
from client.files import check_private, make_private, write_atomic
from client.messages import Common
from client.policy import Policy, PolicyRefused
from client.wire import CodeMismatch

FOLDER: Final = "log"
HEAD: Final = "head.json"
FORMAT: Final = 1
FILE_BYTES: Final = 4_000_000
KEPT_FILES: Final = 64
START: Final = "0" * 64
SHOWN: Final = 300  # characters of one value
_OWN: Final = frozenset(spec.name for spec in fields(Common))


@dataclass
class Head:
    """The newest line, and how many messages came on the newest day (UTC)."""

    number: int = 0
    sha256: str = START
    day: str = ""
    today: int = 0


class Logbook:
    """One site's log. Nothing is created before the first message."""

    def __init__(self, store: Path) -> None:
        self.folder = store / FOLDER

    # -- writing ---------------------------------------------------------------------------------

    def count(self) -> int:
        """Count a message that has come, and return how many that makes today."""
        with self._locked() as head:
            day = datetime.now(UTC).date().isoformat()
            head.today = head.today + 1 if head.day == day else 1
            head.day = day
            return head.today

    def write(self, entry: Mapping[str, Any]) -> None:
        """Add a line."""
        with self._locked() as head:
            path = self._current(head)
            line = {
                "number": head.number + 1,
                "before": head.sha256,
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                **entry,
            }
            raw = json.dumps(line, allow_nan=False).encode() + b"\n"
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            with os.fdopen(descriptor, "ab") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            head.number, head.sha256 = head.number + 1, hashlib.sha256(raw).hexdigest()

    @contextmanager
    def _locked(self) -> Iterator[Head]:
        """Yield the head for a change by one process at a time, and write it after."""
        make_private(self.folder)
        descriptor = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        with os.fdopen(descriptor) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            head = self._caught_up(self.head())
            yield head
            write_atomic(self.folder / HEAD, json.dumps(vars(head)).encode(), durable_name=False)

    def _caught_up(self, head: Head) -> Head:
        """Return the head with a line that was written just before a stop, and none half-written.

        A half-written line is cut off: nothing went up for it.
        """
        files = self.files()
        if not files:
            return head
        raw = files[-1].read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) < len(raw):
            os.truncate(files[-1], len(whole))
        last = whole[whole.rfind(b"\n", 0, -1) + 1 :]
        if last and (entry := _parsed(last)) is not None and entry.get("before") == head.sha256:
            head.number, head.sha256 = head.number + 1, hashlib.sha256(last).hexdigest()
        return head

    def _current(self, head: Head) -> Path:
        files = self.files()
        if not files or files[-1].stat().st_size >= FILE_BYTES:
            for old in files[: max(0, len(files) + 1 - KEPT_FILES)]:
                old.unlink()
            return self.folder / f"{head.number + 1:012d}.jsonl"
        return files[-1]

    # -- reading ---------------------------------------------------------------------------------

    def files(self) -> list[Path]:
        """Return the log's files, oldest first; each is called by its first line's number."""
        return sorted(
            (path for path in self.folder.glob("*.jsonl") if path.stem.isdecimal()),
            key=lambda path: int(path.stem),
        )

    def head(self) -> Head:
        """Return what `head.json` says.

        Raises:
            StoreError: If it is damaged, or lost.
        """
        path = self.folder / HEAD
        if not path.exists():
            if self.files():
                raise StoreError(
                    f"{path} must exist beside the log's files, got none: lines may be missing; "
                    f"move {self.folder} away and keep it"
                )
            return Head()
        try:
            return Head(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise StoreError(f"{path} must be JSON of this log, got {error!r}") from error

    def entries(self) -> Iterator[dict[str, Any]]:
        """Yield every line, oldest first; one that is no JSON is passed over."""
        for path in self.files():
            for raw in path.read_bytes().splitlines():
                if (entry := _parsed(raw)) is not None:
                    yield entry

    def verify(self) -> list[str]:
        """Return what is wrong with the chain, a line each; empty if all is well."""
        try:
            head = self.head()
        except StoreError as error:
            return [str(error)]
        problems: list[str] = []
        before: str | None = None
        number = 0
        for path in self.files():
            for raw in path.read_bytes().splitlines(keepends=True):
                entry = _parsed(raw)
                if entry is None:
                    problems.append(f"{path.name}: a line after number {number} is no entry")
                    continue
                first = before is None
                if first and entry["number"] == 1 and entry["before"] != START:
                    problems.append(
                        f"{path.name}: line 1 must begin the chain, got one that does not"
                    )
                if not first and (entry["number"], entry["before"]) != (number + 1, before):
                    problems.append(
                        f"{path.name}: line {entry['number']} must follow line {number} as it was "
                        "written, got a break: lines were altered, put in or taken out"
                    )
                number, before = entry["number"], hashlib.sha256(raw).hexdigest()
        if (number, before or START) != (head.number, head.sha256):
            problems.append(
                f"the last line must be number {head.number} as it was written, got number {number}"
            )
        return problems


def _parsed(raw: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(raw)
    except ValueError:
        return None
    if not isinstance(entry, dict):
        return None
    sound = type(entry.get("number")) is int and isinstance(entry.get("before"), str)
    return entry if sound else None


# ---- one message -------------------------------------------------------------------------------


@dataclass
class Visit:
    """A message at a node; at a simulated one, which keeps no log, nothing happens.

    Attributes:
        notes: What else the log says of it, by name.
    """

    notes: dict[str, Any] = field(default_factory=dict)

    def asked(self, settings: Common) -> None:
        """Note what the message says."""

    def answered(self, answer: Message) -> None:
        """Note what goes up. Nothing may go up before this has returned."""

    def turned_away(self, error: BaseException) -> None:
        """Note that nothing goes up, and why."""


@dataclass
class SiteVisit(Visit):
    """A message at a real site."""

    book: Logbook | None = None
    entry: dict[str, Any] = field(default_factory=dict)

    def asked(self, settings: Common) -> None:
        """Note what the message says: its own settings, and what is to be forgotten."""
        told = {
            key: getattr(settings, key)
            for key in ("client", "request", "lineage", "phase", "server_round", "method")
        }
        own = {s.name: getattr(settings, s.name) for s in fields(settings) if s.name not in _OWN}
        self.entry |= {**told, "forget": str(settings.forget), "model": str(settings.model_spec)}
        if settings.secure is not None:  # the answer is seen in the sum of these alone
            self.entry["in_sum_of"] = _short(", ".join(settings.secure.cohort))
        self.entry["asked"] = {key: _short(value) for key, value in own.items()}

    def answered(self, answer: Message) -> None:
        """Write the line of an answer."""
        content = answer.content
        arrays = next(iter(content.array_records.values()))
        metrics = dict(next(iter(content.metric_records.values())))
        self._write(
            outcome="answered",
            arrays=len(arrays),
            bytes=sum(len(array.data) for array in arrays.values()),
            numbers={k: v for k, v in metrics.items() if not isinstance(v, list)},
        )

    def turned_away(self, error: BaseException) -> None:
        """Write the line of a message that got no answer."""
        refused = isinstance(error, PolicyRefused | BadSetting | CodeMismatch | AggregationRefused)
        self._write(
            outcome="refused" if refused else "failed",
            code=code_of(error),
            why=_short(str(error) or type(error).__name__, 2_000),
        )

    def _write(self, **outcome: Any) -> None:
        assert self.book is not None
        notes = {key: _short(value) for key, value in self.notes.items()}
        self.book.write({**self.entry, **outcome, **({"notes": notes} if notes else {})})


def visit_of(message: Message, node: Mapping[str, Any]) -> Visit:
    """Return a message's place in the node's log, having counted it.

    Raises:
        PolicyError, NotPrivate: If the site's policy or store cannot be used.
        PolicyRefused: If the policy takes no more messages today; the first such one is logged.
    """
    if not node.get("policy") or not node.get("store"):
        return Visit()
    policy, store = Policy.load(Path(str(node["policy"]))), Path(str(node["store"]))
    if store.exists():
        check_private(store)
    book = Logbook(store)
    entry = {"message": message.metadata.message_type, "run": str(message.metadata.run_id)}
    most, today = policy.answers.messages_a_day, book.count()
    if today > most:
        full = PolicyRefused(
            f"messages must be at most {most} a day at {policy.name}, got {today}; its day begins "
            "at midnight UTC"
        )
        if today == most + 1:
            SiteVisit(book=book, entry=entry).turned_away(full)
        raise full
    return SiteVisit(book=book, entry=entry)


def _short(value: Any, most: int = SHOWN) -> Any:
    """Return a value for the log: as it is if short, else its beginning as text."""
    if isinstance(value, list) and any(isinstance(one, bytes) for one in value):
        return f"{len(value)} keys, shares or signatures"
    plain = value if isinstance(value, bool | int | float | str | list | type(None)) else str(value)
    text = json.dumps(plain)
    return plain if len(text) <= most else text[:most] + f"... ({len(text)} characters)"
