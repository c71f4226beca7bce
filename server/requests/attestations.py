"""What sites signed of the orders that they carried out, kept and checked.

Those of the sites that a request's end reached are in its record, which is sealed. Of a site that
was offline then:

    runs/r0002/attestations.json   what it signed when it was back; the ledger seals its hash

A record of an earlier Efface has none, and nothing is missing from it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from client import attestation
from client.attestation import BadAttestation, Claim
from client.errors import EffaceError
from server.evidence.record import Record
from server.requests import orders
from server.storage import keys
from server.storage.home import Home, write_json
from server.storage.keys import KeyFileError
from server.storage.ledger import Ledger, RequestRow
from server.storage.seal_check import Checked, Problem

LATE: Final = "attestations.json"


def sha256(document: Mapping[str, Any]) -> str:
    """Return the SHA-256 of an attestation, by which the ledger seals a late one."""
    return hashlib.sha256(attestation.canonical(document)).hexdigest()


def keep_late(home: Home, row: RequestRow, document: Mapping[str, Any]) -> str:
    """Keep what a site signed that was offline when its request ended, in place of any before.

    Returns:
        Its SHA-256.
    """
    path = home.runs / row.id / LATE
    others = [one for one in _late(path) if _site(one) != _site(document)]
    found = sorted([*others, document], key=_site)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    write_json(path, {"format": 1, "attestations": found})
    return sha256(document)


def all_of(home: Home, row: RequestRow, record: Record) -> list[Mapping[str, Any]]:
    """Return what a request's sites signed, by their names.

    Raises:
        EffaceError: If the file of the late ones cannot be read.
    """
    return sorted([*(record.attestations or ()), *_late(home.runs / row.id / LATE)], key=_site)


def problems(
    home: Home, ledger: Ledger, row: RequestRow, record: Record, checked: Checked
) -> list[Problem]:
    """Return what is wrong with a request's attestations, who gave none, and a missing order.

    Args:
        home: Where they are.
        ledger: The home's.
        row: The request, done.
        record: Its record, as it was sealed.
        checked: What the ledger's seals say.
    """
    path, ordered = home.runs / row.id / LATE, home.runs / row.id / orders.NAME
    try:
        found, late = all_of(home, row, record), _late(path)
        if not ordered.exists():
            if record.attestations is None and not late:  # a trial, or of an earlier Efface
                return []
            text = f"order of {row.id}, which its sites were given, must be there, got none"
            return [Problem(text, row.id, file=str(ordered))]
        order = orders.read(ordered)
        pinned = keys.site_keys(home.keys)
    except (EffaceError, KeyFileError) as error:
        return [Problem(str(error), row.id, file=str(path))]
    says = {
        "request": row.token,
        "action": row.kind,
        "order_sha256": hashlib.sha256(order.signed).hexdigest(),
        "tombstone": "kept" if row.kind == "forget" else "lifted",
    }
    wrong: list[Problem] = []
    names: list[str] = []
    for document in found:
        name = _site(document)
        try:
            attestation.check(document, Claim({**says, "site": name}, pinned.get(name, ())))
        except BadAttestation as error:
            wrong.append(Problem(f"attestation of {name!a} for {row.id}: {error}", row.id))
        if name in names:
            wrong.append(Problem(f"{name!a} must attest {row.id} once, got two of it", row.id))
        names.append(name)
    hashes = {_site(document): sha256(document) for document in late}
    sealed = {who: one for (request, who), one in checked.settled.items() if request == row.id}
    for who, wanted in sealed.items():
        if wanted and hashes.get(who) != wanted:
            text = f"attestation of {who!a} for {row.id} must be the one that was sealed, got "
            got = "another one" if who in hashes else "none"
            wrong.append(Problem(text + got, row.id, file=str(path)))
    wrong += [
        Problem(f"attestation of {who!a} for {row.id} must be sealed, got one that is not", row.id)
        for who in sorted(hashes)
        if who not in sealed and not _owed(ledger, row, who)
    ]
    if record.attestations is None:
        return wrong
    return wrong + [
        Problem(f"{who} took part in {row.id} and must have attested it, got nothing", row.id)
        for who in took_part(record)
        if who not in names and not _owed(ledger, row, who) and sealed.get(who) != ""
    ]


def took_part(record: Record) -> Sequence[str]:
    """Return the clients that answered anything of a request, by name."""
    return sorted({one.client for one in record.participation if one.answered and one.client})


def _owed(ledger: Ledger, row: RequestRow, client: str) -> bool:
    return any((p.request, p.client) == (row.id, client) for p in ledger.pending())


def _site(document: Any) -> str:
    """Return whose an attestation says that it is, whatever it is."""
    try:
        return str(document["statement"]["site"])
    except (KeyError, TypeError, IndexError):
        return ""


def _late(path: Path) -> list[Mapping[str, Any]]:
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text())["attestations"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EffaceError(
            f"attestations must be as sites signed them, got {path} that cannot be read ({error}); "
            "restore it from a backup"
        ) from error
    if not isinstance(found, list):
        raise EffaceError(f"attestations must be a list, got another form in {path}")
    return found
