"""Seals: by them it is noticed if a ledger's rows or a request's record were changed by hand.

Whenever a request ends, a seal enters the ledger in the same transaction. It holds the SHA-256 of
the request's row, of the version that it made and of its record, names the seal before it by its
hash, and is signed with the coordinator's key. So no row can be changed, removed, moved or slipped
in without its seal or the chain saying so. The chain begins with a list of what an older Efface
left: those rows are unsigned, but from then on they cannot change unseen either.

    HOME/keys/head.json   the newest seal: a chain that is cut off at its end does not reach it

Whoever holds the key can make a new chain. An auditor therefore pins the public key, and notes
the head, elsewhere (`efface audit --key --head`).
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from client.errors import DiskFull, EffaceError
from server.storage import keys
from server.storage.home import Home, plain, write_json
from server.storage.keys import Signer

Kind = Literal["began", "request", "settled", "pruned", "exported", "destroyed"]

DOMAIN: Final = b"efface seal 1\n"
HEAD: Final = "head.json"
NOTHING_BEFORE: Final = "0" * 64
ENDED: Final = ("done", "failed", "aborted")


class EditedError(EffaceError):
    """What the ledger or a record says does not verify: it was changed by hand, or is damaged."""

    code = "edited"


@dataclass(frozen=True)
class Seal:
    """One link of the chain.

    Attributes:
        number: Its place, from 1.
        kind: `began`, what was there before the first; `request`, one that ended; `settled`, a
            client that did later what it owed a request; `pruned`, a version's weights, destroyed
            by whoever holds the key, and not lost; `exported`, a file that a version's weights
            were written to; `destroyed`, what was derived from what a request forgot.
        subject: The request's id; of weights, that of the request that made them.
        content: What is sealed, as hashes and names.
        created: When, ISO 8601 in UTC.
        before: Hash of the seal before it.
        key: The signing key's public half, base64.
        signature: Of its bytes, base64.
    """

    number: int
    kind: Kind
    subject: str
    content: Mapping[str, Any]
    created: str
    before: str
    key: str
    signature: str = ""

    @property
    def signed(self) -> bytes:
        """The bytes that the signature is made of: all but itself."""
        return DOMAIN + canonical({k: v for k, v in vars(self).items() if k != "signature"})

    @property
    def hash(self) -> str:
        """The SHA-256 that the next seal names."""
        return hashlib.sha256(self.signed).hexdigest()


@dataclass(frozen=True)
class Sealing:
    """What a ledger that is written to needs: a signer, and where the chain's head is noted."""

    signer: Signer
    folder: Path

    @classmethod
    def of(cls, home: Home) -> "Sealing":
        """Return that of a home, whose key is made if it has none."""
        return cls(keys.signer(home.keys), home.keys)

    def check_none_before(self, rows: "Rows") -> None:
        """Check that a ledger without any seal never had one, before a chain begins in it.

        Raises:
            EditedError: If a seal was noted, or a row bears what only a sealed request has.
        """
        head, known = noted_head(self.folder), sealed_once(rows)
        says = [f"{name} ended under one" for name in known]
        if head is not None:
            says.append(f"{HEAD} notes number {head['number']}")
        if not says:
            return
        raise EditedError(
            f"ledger must hold the seals of this home, got none, while {says[0]}: they were "
            "removed, or the ledger is another (EFFACE_DATABASE_URL). Restore it from a backup; "
            "without one, begin in another home"
        )

    def seal(
        self, last: Seal | None, kind: Kind, subject: str, content: Mapping[str, Any], at: datetime
    ) -> Seal:
        """Return the seal that follows `last`."""
        made = Seal(
            number=1 if last is None else last.number + 1,
            kind=kind,
            subject=subject,
            content=plain(content, "seal"),
            created=at.astimezone(UTC).isoformat(),
            before=NOTHING_BEFORE if last is None else last.hash,
            key=self.signer.public,
        )
        return Seal(**{**vars(made), "signature": self.signer.sign(made.signed)})

    def note_head(self, seal: Seal) -> None:
        """Note the newest seal; without room the note stays behind, and is still on the chain."""
        with suppress(OSError, DiskFull):
            write_json(self.folder / HEAD, {"number": seal.number, "hash": seal.hash})


@dataclass(frozen=True)
class Rows:
    """A ledger's content, as seals see it: plain values by id."""

    requests: Mapping[str, Mapping[str, Any]]
    versions: Mapping[str, Mapping[str, Any]]
    pending: Sequence[tuple[str, str, bool]]  # request, client, whether it has settled since
    moved: Sequence[str] = ()  # ids of rows whose place is another than their id says


def canonical(value: Any) -> bytes:
    """Return a value's one form as JSON in ASCII: sorted keys, no space, times in UTC."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_utc).encode()


def _utc(value: Any) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    raise TypeError(f"value must have a JSON form, got a {type(value).__name__}")


def digest(row: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a row's values.

    Those that are null do not count: a column that a later Efface adds changes no digest.
    """
    known = {key: value for key, value in row.items() if value is not None}
    return hashlib.sha256(canonical(known)).hexdigest()


def version_digest(row: Mapping[str, Any]) -> str:
    """Return the SHA-256 of what never changes of a version: all but its state."""
    return digest({key: value for key, value in row.items() if key != "state"})


def sealed_once(rows: Rows) -> list[str]:
    """Return the requests whose rows bear the hash of a record: each of them ended under a seal."""
    return sorted(name for name, row in rows.requests.items() if row.get("record_sha256"))


# ---- what is sealed -----------------------------------------------------------------------------


def beginning(rows: Rows) -> dict[str, Any]:
    """Return the content of a first seal: all that is there."""
    return {
        "requests": {
            name: digest(row) for name, row in rows.requests.items() if row["state"] in ENDED
        },
        "versions": {
            name: [version_digest(row), row["state"]] for name, row in rows.versions.items()
        },
        "pending": [
            list(owed) for owed in sorted(rows.pending) if rows.requests[owed[0]]["state"] in ENDED
        ],
    }


def ending(
    request: Mapping[str, Any], version: Mapping[str, Any] | None, pending: Iterable[str]
) -> dict[str, Any]:
    """Return the content of the seal of a request that ended.

    Args:
        request: Its row, as it stands now.
        version: The row of the version that it made.
        pending: Clients that it owes something.
    """
    made = None if version is None else [version["id"], version_digest(version), version["state"]]
    return {"row": digest(request), "version": made, "pending": sorted(pending)}


def noted_head(folder: Path) -> dict[str, Any] | None:
    """Return the head that was noted in a home's folder of keys, or None.

    Of a note that cannot be read, it is a head that no chain has.
    """
    try:
        found = json.loads((folder / HEAD).read_text())
        return {"number": int(found["number"]), "hash": str(found["hash"])}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return {"number": 0, "hash": ""}
