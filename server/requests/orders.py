"""Orders: what a request tells the sites to make last, signed once with the coordinator's key.

    runs/r0002/order.json   the order as it was signed

A site that was offline gets the same order later: it is kept, and never made a second time.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from client.errors import EffaceError
from client.orders import order_bytes
from client.wire import ForgetSpec
from server.settings import RunSettings
from server.storage import keys
from server.storage.home import Home, write_json
from server.storage.ledger import RequestRow

NAME: Final = "order.json"


@dataclass(frozen=True)
class Order:
    """What sites are told, when, and by whose signature (see `client.orders.order_bytes`)."""

    request: str  # the request's unique name (`RequestRow.token`)
    action: str
    level: str
    classes: tuple[int, ...]
    clients: tuple[str, ...]
    destroy: bool
    lineage: str
    time: str
    key: str = ""  # base64 of the public key
    signature: str = ""

    @property
    def common(self) -> dict[str, str]:
        """What messages carry of it (see `client.messages.Common`)."""
        return {"order_time": self.time, "order_signature": self.signature}

    @property
    def signed(self) -> bytes:
        """The bytes that the signature is made of."""
        return order_bytes(
            request=self.request,
            action=self.action,
            target=ForgetSpec(self.level, self.classes, self.clients),
            destroy=self.destroy,
            lineage=self.lineage,
            time=self.time,
        )


def order_of(home: Home, row: RequestRow, settings: RunSettings, lineage: str) -> Order:
    """Return the order of a request to forget or relearn; it is signed when it is first wanted.

    Args:
        home: Whose key signs it.
        row: The request.
        settings: The request's own.
        lineage: Of the version that it starts from.

    Raises:
        EffaceError: If the kept one cannot be read, or is of something else.
    """
    told = Order(
        request=row.token,
        action=row.kind,
        level=str(row.level),
        classes=row.classes,
        clients=row.clients,
        destroy=row.kind == "forget" and (settings.destroy or row.level == "client"),
        lineage=lineage,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    path = home.runs / row.id / NAME
    if path.exists():
        found = read(path)
        if _content(found) != _content(told):
            raise EffaceError(
                f"order of {row.id} must be the request's own, got another one in {path}: it was "
                "changed by hand; restore it from a backup, or remove it to have a new one signed"
            )
        return found
    signer = keys.signer(home.keys)
    signature = signer.sign(told.signed)
    made = Order(**{**vars(told), "key": signer.public, "signature": signature})
    path.parent.mkdir(mode=0o700, exist_ok=True)
    write_json(path, {"format": 1, **asdict(made)})
    return made


def problems(path: Path, row: RequestRow, publics: Sequence[str]) -> list[tuple[str, Path]]:
    """Return what of a kept order does not verify, with its file.

    Nothing of one that is not there: `attestations.problems` says whether sites have signed it.
    """
    if not path.exists():
        return []
    try:
        found = read(path)
    except EffaceError as error:
        return [(str(error), path)]
    named = (found.request, found.action, found.level, found.classes, found.clients)
    if named != (row.token, row.kind, row.level, row.classes, row.clients):
        return [(f"order of {row.id} must be the request's own, got another one", path)]
    if found.key not in publics or not keys.verified([found.key], found.signed, found.signature):
        return [
            (
                f"order of {row.id} must be signed by the coordinator's key, got one that is not",
                path,
            )
        ]
    return []


def _content(order: Order) -> dict[str, Any]:
    return {k: v for k, v in vars(order).items() if k not in ("time", "key", "signature")}


def read(path: Path) -> Order:
    """Return a kept order.

    Raises:
        EffaceError: If it cannot be read.
    """
    try:
        found = json.loads(path.read_text())
        found.pop("format")
        lists = {"classes": tuple(found["classes"]), "clients": tuple(found["clients"])}
        return Order(**{**found, **lists})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EffaceError(
            f"order must be as it was signed, got {path} that cannot be read ({error}); restore it "
            "from a backup"
        ) from error
