"""What was derived from what a request forgot: which versions know it, and what became of the rest.

A version knows what its federation has forgotten since, unless its card says that it has forgotten
it, too. Nothing is written down for that: a relearning lifts it with the erasure itself.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.errors import EffaceError
from client.wire import ForgetSpec
from server.evidence.derived import Left
from server.format import target_text
from server.requests import records, yardstick
from server.requests.classes import card_names
from server.storage.history import History
from server.storage.home import Home
from server.storage.ledger import Erased, Ledger, RequestRow, VersionRow


class KnowsForgotten(EffaceError):
    """A version knows what was forgotten since; whoever wants it all the same must say so."""

    code = "knows-forgotten"


@dataclass(frozen=True)
class Derived(Left):
    """Something that was derived from what a request forgot, and where it is.

    Attributes:
        path: Of what is still there.
    """

    path: Path | None = None

    def pathless(self) -> Left:
        """Return what a certificate may say of it."""
        return Left(self.kind, self.name, self.state, self.at, self.sha256)


# ---- versions -----------------------------------------------------------------------------------


def known(row: VersionRow, erased: Erased) -> tuple[ForgetSpec, tuple[str, ...]]:
    """Return what a version knows of what its federation has forgotten, and by which requests.

    Args:
        row: The version.
        erased: What its federation has forgotten now.
    """
    gone = row.card.get("erased") or {}
    classes = tuple(c for c in erased.classes if c not in gone.get("classes", ()))
    clients = tuple(n for n in erased.clients if n not in gone.get("clients", ()))
    requests = [
        *(erased.class_requests[c] for c in classes),
        *(erased.client_requests[n] for n in clients),
    ]
    level = "class" if classes else "client" if clients else "none"
    return ForgetSpec(level, classes, clients), tuple(dict.fromkeys(requests))


def by_option(requests: Sequence[str]) -> str:
    """Return what allows a version that knows what requests forgot, on the command line."""
    return " ".join(f"--allow-forgotten {one}" for one in requests)


def by_argument(requests: Sequence[str]) -> str:
    """Return what allows it from Python."""
    return f"allow_forgotten={list(requests)!r}"


def check_use(
    ledger: Ledger,
    row: VersionRow,
    allowed: Sequence[str] = (),
    *,
    by: Callable[[Sequence[str]], str] = by_option,
) -> None:
    """Refuse the weights of a version that knows what was forgotten, unless that is allowed.

    Args:
        ledger: The home's.
        row: The version.
        allowed: Requests whose forgetting does not count.
        by: How whoever asks would allow them.

    Raises:
        KnowsForgotten: Naming the requests.
    """
    what, requests = known(row, ledger.erased(row.federation))
    if not set(requests) - set(allowed):
        return
    raise KnowsForgotten(
        f"version must not know what was forgotten, got {row.id}, which knows "
        f"{target_text(vars(what), card_names(row.card))} (forgotten by {', '.join(requests)}); "
        f"take the one in service, or this one all the same: {by(requests)}",
        see="efface models",
    )


# ---- all of it ----------------------------------------------------------------------------------


def of_request(home: Home, ledger: Ledger, row: RequestRow) -> list[Derived]:
    """Return what was derived from what a done request forgot, as it is now.

    Args:
        home: To be read.
        ledger: The home's.
        row: The request. Of a trial nothing is: what it named is not forgotten.
    """
    versions = ledger.versions(row.federation)
    made = [v for v in versions if v.id == row.result_version]
    if row.kind != "forget" or row.state != "done" or not made or made[0].state == "trial":
        return []
    erased = Erased(
        row.classes,
        row.clients,
        dict.fromkeys(row.classes, row.id),
        dict.fromkeys(row.clients, row.id),
    )
    knowing = [v for v in versions if known(v, erased)[1]]
    return [
        *_weights(home, ledger, knowing),
        *_exported(ledger, knowing),
        *(
            Derived(s.content["what"], s.content["name"], "destroyed", s.created)
            for s in ledger.noted("destroyed")
            if s.subject == row.id
        ),
        *_updates(home, row, knowing),
        *(
            Derived("yardstick", path.name, "kept", path=path)
            for path in sorted(home.cache.glob(yardstick.PATTERN))
            if yardstick.known(path, lambda name: erased if name == row.federation else Erased())
        ),
        *_rounds(home, ledger, row, {v.id for v in knowing}),
    ]


def _weights(home: Home, ledger: Ledger, knowing: Sequence[VersionRow]) -> list[Derived]:
    pruned = ledger.pruned()
    return [
        Derived("version", v.id, "destroyed", pruned[v.id], v.sha256)
        if v.id in pruned
        else Derived("version", v.id, "kept", sha256=v.sha256, path=home.versions / v.id)
        for v in knowing
    ]


def _exported(ledger: Ledger, knowing: Sequence[VersionRow]) -> list[Derived]:
    """Return the files that weights were written to; where one is now only its owner knows."""
    ids, found = {v.id for v in knowing}, dict[tuple[str, str], Derived]()
    for seal in ledger.noted("exported"):
        told: Mapping[str, Any] = seal.content
        if told["version"] in ids:
            path, sha256 = Path(told["path"]), str(told["sha256"])
            found[told["path"], sha256] = Derived(
                "exported",
                told["version"],
                "there" if _is_there(path, sha256) else "not there",
                seal.created,
                sha256,
                path,
            )
    return list(found.values())


def _is_there(path: Path, sha256: str) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except OSError:
        return False


def _updates(home: Home, row: RequestRow, knowing: Sequence[VersionRow]) -> list[Derived]:
    found = []
    for name in dict.fromkeys(v.card["updates"] for v in knowing if v.card.get("updates")):
        history = History(home.updates / name)
        there = {client for names in history.clients().values() for client in names}
        if there & set(row.clients) or (row.classes and there):
            found.append(Derived("updates", name, "kept", path=history.folder))
    return found


def _rounds(home: Home, ledger: Ledger, row: RequestRow, knowing: set[str]) -> list[Derived]:
    """Return the requests that can still go on, with rounds that started from what knows it."""
    return [
        Derived("rounds", one.id, "kept", path=home.runs / one.id)
        for one in ledger.requests(row.federation)
        if one.state in ("running", "interrupted")
        and (one.base_version in knowing or (one.kind == "train" and one.created < row.created))
        and any(next((home.runs / one.id).glob(name), None) for name in records.JOURNALS)
    ]
