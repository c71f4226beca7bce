"""A request's record on the disk: safe before the request ends, published when it has.

    runs/r0002/record.pending.json   written just before the ledger's last transaction
    runs/r0002/record.json           the same, with the version that came of it
    reports/r0002.html               the page made from it

The ledger alone says whether the request has ended: a stop between its transaction and the page
loses nothing, and whoever opens the home next publishes what is left.
"""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Final

from client.errors import BadSetting, EffaceError
from server.evidence.record import Record, from_json, to_json
from server.storage.home import Home, write_json
from server.storage.ledger import Ledger, RequestRow

log = logging.getLogger("efface.server")
RECORD: Final = "record.json"
PENDING: Final = "record.pending.json"
JOURNALS: Final = ("journal", "retrain")  # what only a resume needs


def keep(home: Home, record: Record) -> None:
    """Make a record safe before its request ends; it says nothing until then."""
    write_json(home.runs / str(record.request) / PENDING, to_json(record))


def read(home: Home, row: RequestRow) -> Record | None:
    """Return a request's record, or None if it has none.

    Raises:
        EffaceError: If it cannot be read. The message names the file.
    """
    folder = home.runs / row.id
    if row.state in ("done", "failed"):
        pending = _load(folder / PENDING)
        # One that waits beside a failed request counts only if a refusal wrote it: else the request
        # failed after it was written.
        if pending is not None and (row.state == "done" or pending.refused):
            # It was written before its version had a number, and before the request had ended.
            return replace(
                pending,
                model_version=row.result_version,
                started=None if row.started is None else row.started.isoformat(),
                finished=None if row.finished is None else row.finished.isoformat(),
            )
    return _load(folder / RECORD)


def _load(path: Path) -> Record | None:
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
    try:
        return from_json(document)
    except BadSetting as error:
        raise EffaceError(f"{error}: {path}") from error


def publish(home: Home, row: RequestRow) -> Record | None:
    """Write the record and page of a request that has ended, and remove what a resume needs.

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
    write_json(folder / RECORD, to_json(record))
    write_report(record, home.reports / f"{row.id}.html")
    forget_rounds(home, row)
    (folder / PENDING).unlink(missing_ok=True)
    return record


def forget_rounds(home: Home, row: RequestRow) -> None:
    """Remove what a request would need to go on: its rounds may know what is erased later."""
    for name in JOURNALS:
        shutil.rmtree(home.runs / row.id / name, ignore_errors=True)


def publish_left(home: Home, ledger: Ledger) -> None:
    """Publish what a stopped process left pending; what cannot be is noted and stays pending."""
    for path in sorted(home.runs.glob(f"*/{PENDING}")):
        try:
            row = ledger.request(path.parent.name)
            if row.state in ("done", "failed"):
                publish(home, row)
        except Exception as error:  # whatever ails one page must not stop the next request
            log.warning("report of %s is not written yet: %s", path.parent.name, error)
