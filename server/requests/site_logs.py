"""A site's own log beside what it attested, for an auditor who was handed a copy of it."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from client.errors import BadSetting, EffaceError, StoreError
from client.logbook import FOLDER, Logbook
from server.requests import attestations, records
from server.storage.home import Home
from server.storage.ledger import Ledger
from server.storage.seal_check import Problem

SETTLED: Final = "query.settle"  # the message by which a site makes a request last


def problems(home: Home, ledger: Ledger, name: str, store: Path) -> tuple[list[Problem], int]:
    """Return what of a site's log does not verify, and how many lines it has.

    Its chain must be whole; what the site attested must stand in it, and each request that it
    made last must be the ledger's.

    Args:
        home: The coordinator's.
        ledger: The home's.
        name: The site's.
        store: Its store, or a folder with a copy of the store's folder of that name.

    Raises:
        BadSetting: If no log is there, or nobody of that name attested anything.
    """
    folder = store / FOLDER
    if not folder.is_dir():
        raise BadSetting(f"site must name a folder that holds a site's {FOLDER}, got {store}")
    attested = list(_attested(home, ledger, name))
    if not attested:
        raise BadSetting(f"site must be one that attested a request, got {name!r}")
    book = Logbook(store)
    try:
        found = [Problem(f"log of {name}: {text}", file=str(folder)) for text in book.verify()]
        entries = list(book.entries())
    except OSError as error:
        return [Problem(f"log of {name} must be readable, got {error}", file=str(folder))], 0
    if found:
        return found, len(entries)
    settled = {str(one.get("request")): one for one in entries if _settled(one)}
    others = sorted({str(one.get("client")) for one in settled.values()} - {name})
    if others:
        text = f"log of {name} must be that site's own, got one of {', '.join(others)}"
        return [Problem(text, file=str(folder))], len(entries)
    # Older files go as a log grows: it speaks of nothing before its first line.
    older = bool(entries) and entries[0]["number"] > 1
    begins = datetime.fromisoformat(entries[0]["time"]) if older else None
    for request, statement in attested:
        before = begins is not None and datetime.fromisoformat(statement["time"]) < begins
        if statement["request"] not in settled and not before:
            text = f"log of {name} must have that it made {request} last, as it attested, got none"
            found.append(Problem(text, request, file=str(folder)))
    known = {row.token for row in ledger.requests()}
    found += [
        Problem(
            f"log of {name} says that it made {token} last, got no such request in this home: its "
            "row was removed, or another coordinator asked",
            file=str(folder),
        )
        for token in sorted(settled)
        if token not in known
    ]
    return found, len(entries)


def _settled(entry: Mapping[str, Any]) -> bool:
    return (entry.get("message"), entry.get("outcome")) == (SETTLED, "answered")


def _attested(home: Home, ledger: Ledger, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each request that a site attested, with its statement."""
    for row in ledger.requests(state="done"):
        with suppress(EffaceError, StoreError):  # what cannot be read is a problem already
            record = records.read(home, row)
            if record is not None:
                for document in attestations.all_of(home, row, record):
                    if document["statement"]["site"] == name:
                        yield row.id, document["statement"]
