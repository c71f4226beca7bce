"""What the coordinator keeps in its home: ledger, registry, stored updates, requests' notes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

from client.task_folders import look_in
from client.wire import ForgetSpec
from server.requests import planning, records, yardstick
from server.storage import history
from server.storage.history import History
from server.storage.home import Home, write_json
from server.storage.ledger import ERASED_SINCE, Ledger, RequestRow
from server.storage.registry import Registry
from strategies.table import METHODS

WARNINGS: Final = "warnings.json"  # in a request's folder: what was said before it started
CHOSEN: Final = "chosen.json"  # in a request's folder: which method was chosen for it, and why


@dataclass
class Workspace:
    """One home, opened."""

    home: Home
    ledger: Ledger
    registry: Registry

    @classmethod
    def open(cls, home: Home) -> Self:
        """Open a home's ledger and registry, and publish what a stop left unpublished."""
        look_in(home.tasks)
        ledger = Ledger.of(home)
        workspace = cls(home, ledger, Registry(home, ledger))
        records.publish_left(home, ledger)
        workspace.sweep()
        return workspace

    def sweep(self) -> None:
        """Destroy what may not be kept: stored updates, yardsticks, and rounds of requests.

        A stopped request whose data an erasure has named since is given up: its rounds know them,
        and going on, a training would serve a model that does. What goes with an erasure is sealed.
        """
        requests = self.ledger.requests()
        if any(self.home.updates.iterdir()):
            history.sweep(self.home, self.ledger, {row.token: row for row in requests})
        yardstick.sweep(
            self.home.cache,
            self.ledger.erased,
            lambda request, name: self.ledger.note_destroyed(request, "yardstick", name),
        )
        for row in requests:
            state = row.state
            if state == "interrupted":
                erasure = self._erased_since(row, requests)
                if erasure is not None:
                    what = ForgetSpec(str(erasure.level), erasure.classes, erasure.clients)
                    reason = f"{what} was erased since ({erasure.id}), and its rounds know it; "
                    reason += "train again" if row.kind == "train" else "ask anew"
                    state = self.ledger.abort(row.id, reason, code=ERASED_SINCE).state
                    self.ledger.note_destroyed(erasure.id, "rounds", row.id)
            if state in ("failed", "aborted"):
                records.forget_rounds(self.home, row)

    def _erased_since(self, row: RequestRow, requests: list[RequestRow]) -> RequestRow | None:
        """Return the first erasure in service that was done after a request arrived, or None."""
        trials = {v.request for v in self.ledger.versions() if v.state == "trial"}
        for later in requests:
            done = (later.kind, later.state) == ("forget", "done") and later.id not in trials
            same = later.federation == row.federation
            if done and same and later.finished is not None and later.finished > row.created:
                return later
        return None

    def history(self, card: Mapping[str, Any]) -> History | None:
        """Return the updates that a version's training left, or None if there are none."""
        if not card.get("updates"):
            return None
        found = History(self.home.updates / card["updates"])
        return None if found.empty else found

    def note_choice(self, row: RequestRow, chosen: planning.Chosen) -> None:
        """Keep why a request's method was chosen; one that is taken up keeps its first."""
        note = self.home.runs / row.id / CHOSEN
        if not note.exists():
            note.parent.mkdir(mode=0o700, exist_ok=True)
            write_json(note, asdict(chosen))

    def chosen(self, row: RequestRow) -> dict[str, Any] | None:
        """Return why a request's method was chosen; None where the request named it."""
        if row.settings["method"] != planning.AUTO:
            return None
        found: dict[str, Any] = json.loads((self.home.runs / row.id / CHOSEN).read_text())
        return found

    def note_warnings(self, row: RequestRow, warnings: Sequence[str]) -> None:
        """Keep what is to be said of a request before it starts."""
        note = self.home.runs / row.id / WARNINGS
        if warnings or note.exists():
            note.parent.mkdir(mode=0o700, exist_ok=True)
            write_json(note, list(warnings))

    def warnings(self, row: RequestRow) -> list[str]:
        """Return what is to be said of a request before it starts."""
        note = self.home.runs / row.id / WARNINGS
        found: list[str] = json.loads(note.read_text()) if note.exists() else []
        return found

    def absent(self, row: RequestRow) -> tuple[str, ...]:
        """Return the clients that a request can do without.

        They are those that were erased earlier, and those that it names if its method does not ask
        them. Should one come back, every message tells the nodes that it is erased.
        """
        gone = self.ledger.erased(row.federation).clients
        if row.kind not in ("forget", "yardstick") or METHODS[row.method].needs.target_online:
            return tuple(c for c in gone if c not in row.clients)
        return tuple({*gone, *row.clients})
