"""Issuing a certificate: all that a home has of a request, verified, and signed with its key."""

import hashlib
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from client.errors import BadSetting
from client.files import write_atomic
from server.evidence import certificate
from server.evidence.certificate import SHA256, Facts, Version
from server.requests import attestations, audit, derived, orders, records
from server.storage import keys
from server.storage.home import Home
from server.storage.ledger import Ledger, RequestRow, VersionRow
from server.storage.seals import EditedError


def issue(home: Home, ledger: Ledger, row: RequestRow) -> bytes:
    """Return a request's certificate, as the file holds it.

    Args:
        home: Whose key signs it; nothing in it is written.
        ledger: The home's.
        row: The request.

    Raises:
        BadSetting: If the request is not one to forget that is done and sealed.
        EditedError: If the ledger, its record, its order, or weights do not verify.
    """
    if row.kind != "forget" or row.state != "done":
        raise BadSetting(
            f"request must be one to forget that is done, got {row.id}: {row.kind}, {row.state}",
            see="efface requests",
        )
    publics = keys.public_keys(home.keys)
    checked = ledger.checked(home, every_signature=True)
    edited = [*checked.problems, *records.problems_of(home, row)]
    record = None if edited else records.read(home, row)
    if record is not None:
        edited += attestations.problems(home, ledger, row, record, checked)
    if edited:
        raise EditedError(f"{edited[0].sentence}. No certificate is made of it; see `efface audit`")
    seal = checked.sealed.get(row.id)
    path = home.runs / row.id / orders.NAME
    if seal is None or record is None or row.record_sha256 is None or not path.exists():
        why = (
            "a trial" if row.settings.get("trial") else "one that ended before this home had a key"
        )
        raise BadSetting(
            f"request must be sealed, with its record and its order, got {row.id}, {why}",
            see="efface show " + row.id,
        )
    before, after = ledger.version(str(row.base_version)), ledger.version(str(row.result_version))
    wrong = [text for text, _ in orders.problems(path, row, publics)]
    for version in (before, after):
        wrong += [
            problem.sentence
            for problem in audit.of_version(home, version, pruned=version.id in checked.pruned)
        ]
    verifications = records.later(home, ledger, row)
    for one in verifications:
        wrong += [p.sentence for p in records.problems_of(home, ledger.request(one.request))]
    if wrong:
        raise EditedError(f"{wrong[0]}. No certificate is made of it; see `efface audit`")
    order = orders.read(path)
    facts = Facts(
        record=record,
        record_sha256=row.record_sha256,
        before=_version(before, checked.pruned.get(before.id)),
        after=_version(after, checked.pruned.get(after.id)),
        code=str(after.card.get("code", "")),
        task=_task(row),
        data_sha256=after.card.get("data_sha256"),
        order=asdict(order),
        signed=order.signed.decode(),
        seal=seal,
        attestations=attestations.all_of(home, row, record),
        derived=[one.pathless() for one in derived.of_request(home, ledger, row)],
        verifications=verifications,
        waiting=sorted(p.client for p in ledger.pending() if p.request == row.id),
        issued=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return certificate.written(certificate.statement(facts), keys.signer(home.keys))


def write(path: Path, data: bytes) -> Path:
    """Put a certificate, or a page of it, in a file for its owner alone.

    Args:
        path: The file, absolute; `exporting.check_output` has looked at it.
        data: What it is to hold.
    """
    write_atomic(path, data)
    return path


def _version(row: VersionRow, pruned: str | None) -> Version:
    return Version(row.id, row.sha256, row.state, pruned)


def _task(row: RequestRow) -> tuple[str, str]:
    """Return the name of a task of one's own, without the path of its file, and its code's hash."""
    settings: Any = row.settings
    code = str(settings.get("task-code", ""))
    if code and not SHA256.fullmatch(code):
        code = hashlib.sha256(code.encode()).hexdigest()
    return str(settings.get("task", "")).rpartition("/")[2], code
