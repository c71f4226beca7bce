"""Ledgers without seals, for tests of what is in their rows."""

import sqlite3
from pathlib import Path


def as_if_unsealed(home: Path) -> None:
    """Leave a home's ledger as one without a key left it, so that rows can be changed by hand."""
    with sqlite3.connect(home / "ledger.db") as database:
        database.execute("DELETE FROM seals")
        database.execute("UPDATE requests SET record_sha256 = NULL")
    database.close()
    (home / "keys" / "head.json").unlink()
