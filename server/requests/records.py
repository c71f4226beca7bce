"""A request's record on the disk: safe before the request ends, published when it has.

    runs/r0002/record.pending.json   written just before the ledger's last transaction
    runs/r0002/record.json           the same, with the version that came of it
    runs/r0002/record.signature.json its signature, for whoever has the record and not the ledger
    reports/r0002.html               the page made from it

The ledger alone says whether the request has ended: a stop between its transaction and the page
loses nothing, and whoever opens the home next publishes what is left. That transaction seals the
record's SHA-256 without what only the transaction itself decides; those fields are the row's.

It is long because whoever writes a record and whoever checks one must agree to the byte.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from client.errors import BadSetting, EffaceError
from server.evidence.later import Later
from server.evidence.record import Record, from_json, to_json
from server.storage import keys
from server.storage.home import Home, plain, write_json
from server.storage.keys import Signer
from server.storage.ledger import Ledger, RequestRow
from server.storage.seal_check import Problem
from server.storage.seals import EditedError, canonical

log = logging.getLogger("efface.server")
DOMAIN: Final = b"efface record 1\n"
RECORD: Final = "record.json"
SIGNATURE: Final = "record.signature.json"
PENDING: Final = "record.pending.json"
JOURNALS: Final = ("journal", "retrain", "retrain-*")  # what only a resume needs
DECIDED_LAST: Final = ("model_version", "started", "finished")  # by the ledger's transaction


def keep(home: Home, record: Record) -> str:
    """Make a record safe before its request ends; it says nothing until then.

    Returns:
        Its SHA-256 (`sha256`).
    """
    document = plain(to_json(record), "record")
    write_json(home.runs / str(record.request) / PENDING, document)
    return sha256(document)


def sha256(document: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a record's canonical JSON, without the fields in `DECIDED_LAST`."""
    left = {key: value for key, value in document.items() if key not in DECIDED_LAST}
    return hashlib.sha256(DOMAIN + canonical(left)).hexdigest()


def read(home: Home, row: RequestRow) -> Record | None:
    """Return a request's record, or None if it has none.

    Raises:
        EditedError: If it is not what the ledger has of it. The message names the file.
        EffaceError: If it cannot be read. The message names the file.
    """
    document, path = _document(home, row)
    if document is None:
        return None
    if problem := _unlike(document, row):
        raise EditedError(
            f"record of {row.id} must be as it was when the request ended, got {problem} in {path}:"
            " it was changed by hand, or is damaged; restore it from a backup"
        )
    return _parsed(document, path)


def problems(home: Home, row: RequestRow, publics: Sequence[str]) -> list[tuple[str, Path]]:
    """Return what of a request's record does not verify, each with its file.

    Args:
        home: Where it is.
        row: The ledger's.
        publics: Public keys whose signatures count.
    """
    try:
        document, path = _document(home, row)
    except EffaceError as error:
        return [(str(error), home.runs / row.id / RECORD)]
    if document is None:
        if row.record_sha256 is None:
            return []
        return [(f"record of {row.id} must be there, got none", home.runs / row.id / RECORD)]
    if problem := _unlike(document, row):
        return [
            (f"record of {row.id} must be as it was when the request ended, got {problem}", path)
        ]
    if row.record_sha256 is None or path.name == PENDING:
        return []
    beside = path.with_name(SIGNATURE)
    try:
        note = json.loads(beside.read_text())
        content = _signed(document)
        says = [note[key] for key in ("format", "request", "sha256")]
        signed = says == [1, row.id, hashlib.sha256(content).hexdigest()] and (
            note["key"] in publics and keys.verified([note["key"]], content, note["signature"])
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [(f"signature of {row.id}'s record must be readable, got {error}", beside)]
    if not signed:
        return [
            (
                f"record of {row.id} must be signed by the coordinator's key, got another "
                "signature",
                beside,
            )
        ]
    return []


def problems_of(home: Home, row: RequestRow) -> list[Problem]:
    """Return what of a request's record does not verify by the home's own keys."""
    found = problems(home, row, keys.public_keys(home.keys))
    return [Problem(text, row.id, file=str(path)) for text, path in found]


def verified(home: Home, ledger: Ledger, row: RequestRow) -> Record | None:
    """Return a request's record, or None if it has none; nothing is said of what was edited.

    Raises:
        EditedError: If the request or its record does not verify.
    """
    if edited := [*ledger.checked(home).of(row.id), *problems_of(home, row)]:
        raise EditedError(f"{edited[0].sentence}. No report is made of it; see `efface audit`")
    return read(home, row)


def page(home: Home, ledger: Ledger, row: RequestRow, output: Path | None = None) -> Path:
    """Write a request's HTML report again from its record, and return where it is.

    Args:
        home: Where the record is.
        ledger: The home's.
        row: Of the request.
        output: File to write; the home's own if None.

    Raises:
        EditedError: If the request or its record does not verify.
        BadSetting: If the folder is not there, or a home that cannot be written has no page.
        EffaceError: If the request has no record.
    """
    from server.report.write import write_report  # as in `publish`

    record = verified(home, ledger, row)
    if record is None:
        raise EffaceError(
            f"request {row.id} must have a record, got none in {home.runs / row.id}: "
            f"it is {row.state}" + (f" ({row.reason})" if row.reason else "")
        )
    path = (output or home.reports / f"{row.id}.html").expanduser().absolute()
    if not path.parent.is_dir():
        raise BadSetting(f"output must lie in a folder that exists, got {path}")
    if home.writable:
        publish_left(home, ledger)
    if output or home.writable:
        write_report(record, path, later(home, ledger, row))
    elif not path.is_file():
        raise BadSetting(
            f"output must be named where the home cannot be written, got none for {home.path}; "
            "name a file by --output"
        )
    return path


def later(home: Home, ledger: Ledger, row: RequestRow) -> tuple[Later, ...]:
    """Return what verifications have found of a request since, oldest first."""
    found = []
    for one in ledger.requests(row.federation, state="done"):
        if one.kind != "verify" or one.settings.get("verifies") != row.id:
            continue
        try:
            record = read(home, one)
        except EffaceError:  # which `efface audit` says; the sealed row is there all the same
            record = None
        verdict = None if record is None else record.verdict
        found.append(
            Later(
                request=one.id,
                finished=None if one.finished is None else one.finished.isoformat(),
                asked_by=one.asked_by,
                state=None if verdict is None else verdict.state,
                retrainings=None if verdict is None else verdict.retrainings,
                false_alarms=None if verdict is None else verdict.false_alarms,
                asked_clients=bool(record and record.verifies and record.verifies.asked_clients),
                record_sha256=one.record_sha256,
                limits=None
                if verdict is None
                else ("by-hand" if verdict.false_alarms is None else "by-spread"),
            )
        )
    return tuple(found)


def stock_hashes(home: Home, ledger: Ledger, federation: str) -> dict[str, str]:
    """Return the SHA-256 of retrained models' weights by file, as the newest record has each.

    Args:
        home: Where the records are.
        ledger: The home's.
        federation: Whose.

    Raises:
        EditedError: If a record that may have one is not what the ledger has of it.
        EffaceError: If it cannot be read.
    """
    found: dict[str, str] = {}
    for row in ledger.requests(federation):
        if row.kind in ("forget", "yardstick", "verify") and row.record_sha256 is not None:
            document, path = _document(home, row)
            problem = "none" if document is None else _unlike(document, row)
            if document is None or problem:
                raise EditedError(
                    f"record of {row.id} must be as it was when the request ended, got {problem} "
                    f"in {path}; see `efface audit`"
                )
            for one in document.get("stock", ()):
                if one.get("file") and one.get("sha256"):
                    found[one["file"]] = one["sha256"]
    return found


def _unlike(document: Mapping[str, Any], row: RequestRow) -> str:
    """Return how a record differs from what its row says of it; nothing for those of old."""
    if row.record_sha256 is None:
        return ""
    if (found := sha256(document)) != row.record_sha256:
        return f"the SHA-256 {found[:12]}... instead of {row.record_sha256[:12]}..."
    wanted = _decided(row)
    odd = [key for key in DECIDED_LAST if document.get(key) != wanted[key]]
    return f"another {odd[0]} than the ledger's" if odd else ""


def _decided(row: RequestRow) -> dict[str, str | None]:
    return {
        "model_version": row.result_version,
        "started": None if row.started is None else row.started.isoformat(),
        "finished": None if row.finished is None else row.finished.isoformat(),
    }


def _document(home: Home, row: RequestRow) -> tuple[dict[str, Any] | None, Path]:
    """Return a record as JSON, None if there is none, and the file it is in."""
    folder = home.runs / row.id
    if row.state in ("done", "failed"):
        pending = _load(folder / PENDING)
        # One that waits beside a failed request counts only if a refusal wrote it: else the request
        # failed after it was written.
        if pending is not None and (
            row.state == "done" or _parsed(pending, folder / PENDING).refused
        ):
            # It was written before its version had a number, and before the request had ended.
            return pending | _decided(row), folder / PENDING
    return _load(folder / RECORD), folder / RECORD


def _load(path: Path) -> dict[str, Any] | None:
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise EffaceError(
            f"record must be a readable JSON file, got {path} ({error}); restore it from a backup"
        ) from error
    if not isinstance(document, dict):
        raise EffaceError(f"record must be a JSON object, got {path}; restore it from a backup")
    return document


def _parsed(document: Mapping[str, Any], path: Path) -> Record:
    try:
        return from_json(document)
    except BadSetting as error:
        raise EffaceError(f"{error}: {path}") from error


def _signed(document: Mapping[str, Any]) -> bytes:
    return DOMAIN + canonical(document)


def publish(home: Home, ledger: Ledger, row: RequestRow) -> Record | None:
    """Write the record and page of a request that has ended, and remove what a resume needs.

    The page of a request that a verification is about says so from then on.

    Two processes may do so at once: both write the same. The pending file goes last, so that a
    stop anywhere leaves the rest to the next.

    Returns:
        The record, or None if the request has none.
    """
    from server.report.write import (
        write_report,  # brings Matplotlib along; readers need not have it
    )

    record = read(home, row)
    if record is None:
        return None
    folder = home.runs / row.id
    document, path = _document(home, row)
    if document is not None and path.name == PENDING:
        # As it was sealed: another Efface might word it otherwise.
        write_json(folder / RECORD, document)
        if row.record_sha256 is not None:
            write_json(folder / SIGNATURE, _signature(row.id, document, keys.signer(home.keys)))
    write_report(record, home.reports / f"{row.id}.html", later(home, ledger, row))
    if record.verifies is not None:
        about = ledger.request(str(record.verifies.request))
        if (judged := read(home, about)) is not None:
            path = home.reports / f"{about.id}.html"
            write_report(judged, path, later(home, ledger, about))
    forget_rounds(home, row)
    (folder / PENDING).unlink(missing_ok=True)
    return record


def _signature(request: str, document: Mapping[str, Any], signer: Signer) -> dict[str, Any]:
    """Return what proves a record without the ledger (see docs/json.md)."""
    signed = _signed(document)
    return {
        "format": 1,
        "request": request,
        "sha256": hashlib.sha256(signed).hexdigest(),
        "key": signer.public,
        "signature": signer.sign(signed),
    }


def forget_rounds(home: Home, row: RequestRow) -> None:
    """Remove what a request would need to go on: its rounds may know what is erased later."""
    for name in JOURNALS:
        for folder in (home.runs / row.id).glob(name):
            shutil.rmtree(folder, ignore_errors=True)


def publish_left(home: Home, ledger: Ledger) -> None:
    """Publish what a stopped process left pending; what cannot be is noted and stays pending."""
    for path in sorted(home.runs.glob(f"*/{PENDING}")):
        try:
            row = ledger.request(path.parent.name)
            if row.state in ("done", "failed"):
                publish(home, ledger, row)
        except Exception as error:  # whatever ails one page must not stop the next request
            log.warning("report of %s is not written yet: %s", path.parent.name, error)
