"""What a home says of itself, checked: ledger, records, orders, attestations and weights.

Nothing is written. What does not verify is listed, never mended.
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from client.errors import EffaceError
from server.requests import attestations, orders, records, yardstick
from server.storage import keys
from server.storage.home import Home
from server.storage.ledger import Ledger, RequestRow, VersionRow
from server.storage.registry import CARD_NAME, WEIGHTS_NAME
from server.storage.seal_check import Checked, Problem

CHUNK_BYTES = 1 << 20


@dataclass
class Audit:
    """What was found.

    Attributes:
        ledger: What the seals say of the rows.
        problems: All that does not verify.
        counts: Seals, requests, records, orders, attestations, versions and retrained models
            looked at; how many of the versions are pruned; how many retrained models no record has:
            of those a verdict reads number 0 at most, where records have others.
    """

    ledger: Checked
    problems: list[Problem] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


def audit(home: Home, ledger: Ledger, *, publics: Sequence[str] = (), head: str = "") -> Audit:
    """Check all that a home keeps.

    Args:
        home: To be read.
        ledger: Its ledger.
        publics: The only public keys that count, as the auditor has them; the home's if none.
        head: Hash of a seal that the auditor noted earlier: it must still be on the chain.
    """
    trusted = list(publics) or keys.public_keys(home.keys)
    found = ledger.checked(home, publics=publics, every_signature=True)
    done = Audit(found, list(found.problems), {"seals": len(found.hashes)})
    if head and head not in found.hashes:
        done.problems.append(Problem(f"seals must hold {head[:12]}... as noted, got none of it"))
    kinds = ("requests", "records", "orders", "attestations", "versions", "pruned", "retrained")
    done.counts |= dict.fromkeys(kinds, 0)
    for row in ledger.requests():
        done.counts["requests"] += 1
        done.counts["records"] += (home.runs / row.id / records.RECORD).exists()
        wrong = records.problems(home, row, trusted)
        path = home.runs / row.id / orders.NAME
        done.counts["orders"] += path.exists()
        wrong += orders.problems(path, row, trusted)
        done.problems += [Problem(text, row.id, file=str(file)) for text, file in wrong]
        if not wrong:
            _attested(home, ledger, row, done)
        if row.id in found.unsigned:
            done.problems += _signed_once(home, row)
    done.problems += _without_rows(home)
    done.problems += _retrained(home, ledger, done)
    for version in ledger.versions():
        done.counts["versions"] += 1
        pruned = version.id in found.pruned
        done.counts["pruned"] += pruned
        done.problems += of_version(home, version, pruned=pruned)
    return done


def _signed_once(home: Home, row: RequestRow) -> list[Problem]:
    """Return what shows that a request without a seal had one: what only a later Efface signs."""
    beside = home.runs / row.id / records.SIGNATURE
    if beside.exists():
        text = f"{row.id} must have a seal, for its record was signed, got none: removed"
        return [Problem(text, row.id, file=str(beside))]
    with suppress(EffaceError):  # a record that cannot be read is a problem already
        record = records.read(home, row)
        if record is not None and record.attestations:
            text = f"{row.id} must have a seal, for sites attested it, got none: removed"
            return [Problem(text, row.id, file=str(home.runs / row.id / records.RECORD))]
    return []


def _without_rows(home: Home) -> list[Problem]:
    """Return what requests left that the ledger does not know: their rows were removed.

    Versions are not looked at: a stop leaves their files as well, until the home is written to.
    """
    left = sorted(path for path in home.runs.glob("r[0-9]*") if path.is_dir())
    with Ledger.look(home) as now:  # once more, after the folders: a row is there before its own
        known = {row.id for row in now.requests()}
    return [
        Problem(f"what {path.name} left must have a row of it, got none: removed", file=str(path))
        for path in left
        if path.name not in known
    ]


def _retrained(home: Home, ledger: Ledger, done: Audit) -> list[Problem]:
    """Compare the retrained models that are kept with what the records have of them."""
    found, known = [], set[str]()
    for federation in sorted({row.federation for row in ledger.requests()}):
        sealed: dict[str, str] = {}
        with suppress(EffaceError):  # a record that does not verify is a problem already
            sealed = records.stock_hashes(home, ledger, federation)
        known |= set(sealed)
        for path in sorted(home.cache / name for name in sealed):
            if path.exists():
                done.counts["retrained"] += 1
                try:
                    yardstick.loaded(path, sealed)
                except EffaceError as error:
                    found.append(Problem(str(error)))
    there = {path.name for path in home.cache.glob(yardstick.PATTERN)}
    done.counts["unrecorded"] = len(there - known)
    return found


def _attested(home: Home, ledger: Ledger, row: RequestRow, done: Audit) -> None:
    """Check what the sites signed of a request whose record and order verify."""
    if row.kind not in ("forget", "relearn") or row.state != "done":
        return
    record = records.read(home, row)
    if record is None:
        return
    wrong = attestations.problems(home, ledger, row, record, done.ledger)
    done.problems += wrong
    with suppress(EffaceError):  # a file that cannot be read is a problem already
        done.counts["attestations"] += len(attestations.all_of(home, row, record))


def of_version(home: Home, row: VersionRow, *, pruned: bool) -> list[Problem]:
    """Compare a version's files with its row; of pruned weights a seal says that they are gone."""
    folder = home.versions / row.id
    found = []
    try:
        if not pruned and (got := _sha256(folder / WEIGHTS_NAME)) != row.sha256:
            text = (
                f"weights of {row.id} must have the SHA-256 {row.sha256[:12]}..., got {got[:12]}..."
            )
            found.append((text, folder / WEIGHTS_NAME))
    except OSError as error:
        text = f"weights of {row.id} must be readable, got {error.strerror}"
        found.append((text, folder / WEIGHTS_NAME))
    try:
        beside = json.loads((folder / CARD_NAME).read_text())
        if (beside["sha256"], beside["card"]) != (row.sha256, dict(row.card)):
            text = f"card of {row.id} must be the ledger's, got another one"
            found.append((text, folder / CARD_NAME))
    except (OSError, ValueError, KeyError, TypeError) as error:
        text = f"card of {row.id} must be readable, got {error}"
        found.append((text, folder / CARD_NAME))
    return [Problem(text, row.request, row.id, str(path)) for text, path in found]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(CHUNK_BYTES):
            digest.update(part)
    return digest.hexdigest()
