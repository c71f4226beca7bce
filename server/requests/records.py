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
from typing import Any, Final

from client.errors import EffaceError
from server.storage.home import Home, write_json
from server.storage.ledger import Ledger, RequestRow

log = logging.getLogger("efface.server")
RECORD: Final = "record.json"
PENDING: Final = "record.pending.json"
PHASES: Final = ("train", "retrain", "score", "unlearn", "recover", "relearn")  # of its costs
JOURNALS: Final = ("journal", "retrain")  # what only a resume needs
REFUSED: Final = "verification-failed"  # code of a failed request that has a record


def keep(home: Home, record: dict[str, Any]) -> None:
    """Make a record safe before its request ends; it says nothing until then."""
    write_json(home.runs / record["request"] / PENDING, record)


def read(home: Home, row: RequestRow) -> dict[str, Any] | None:
    """Return a request's record, or None if it has none.

    Raises:
        EffaceError: If it cannot be read. The message names the file.
    """
    folder = home.runs / row.id
    refused = row.state == "failed" and row.reason_code == REFUSED
    pending = folder / PENDING
    left = (row.state == "done" or refused) and pending.exists()
    path = pending if left else folder / RECORD
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise EffaceError(
            f"record must be a readable JSON file, got {path} ({error}); restore it from a backup"
        ) from error
    if not isinstance(record, dict):
        raise EffaceError(f"record must be a JSON object, got {path}; restore it from a backup")
    # A record that waits was written before its version had a number.
    return record | {"model_version": row.result_version} if left else record


def publish(home: Home, row: RequestRow) -> None:
    """Write the record and page of a request that has ended, and remove what a resume needs.

    Two processes may do so at once: both write the same. The pending file goes last, so that a
    stop anywhere leaves the rest to the next.
    """
    from server.report.write import (
        write_report,  # brings Matplotlib along; readers need not have it
    )

    record = read(home, row)
    if record is None:
        return
    folder = home.runs / row.id
    write_json(folder / RECORD, record)
    write_report(record, home.reports / f"{row.id}.html")
    forget_rounds(home, row)
    (folder / PENDING).unlink(missing_ok=True)


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
