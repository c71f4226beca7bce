"""Orders: what a coordinator tells a site to make last, as bytes that it signs.

A site takes an order to lift a tombstone or to destroy images from those coordinators alone whose
keys its operator pinned.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from cryptography.exceptions import InvalidSignature

from client.keys import public_key
from client.messages import ForgetSpec
from client.policy import PolicyRefused

# Before what is signed: no signature for another purpose can be taken for one of these.
DOMAIN: Final = b"efface order 1\n"


def order_bytes(
    *, request: str, action: str, target: ForgetSpec, destroy: bool, lineage: str, time: str
) -> bytes:
    """Return the bytes of an order, the same for the same content everywhere.

    Args:
        request: The request's unique name.
        action: "forget" or "relearn".
        target: What is to be forgotten, or comes back. The order of classes and clients, and one
            named twice, make no difference.
        destroy: Whether synthetic images of it go for good.
        lineage: Of the version that the request started from.
        time: When it was given, ISO 8601 with its offset from UTC.

    Returns:
        `DOMAIN`, then JSON in UTF-8: keys sorted, no spaces.

    Raises:
        PolicyRefused: If `time` is no such time.
    """
    try:
        if datetime.fromisoformat(time).utcoffset() is None:
            raise ValueError("no offset")
    except ValueError as error:
        raise PolicyRefused(
            f"order's time must be ISO 8601 with an offset from UTC, got {time!r}"
        ) from error
    return _bytes(request, action, target, destroy, lineage, time)


def order_sha256(
    *, request: str, action: str, target: ForgetSpec, destroy: bool, lineage: str, time: str
) -> str:
    """Return the SHA-256 of an order's bytes, hexadecimal; of one that nobody signed, too."""
    return hashlib.sha256(_bytes(request, action, target, destroy, lineage, time)).hexdigest()


def _bytes(
    request: str, action: str, target: ForgetSpec, destroy: bool, lineage: str, time: str
) -> bytes:
    content = {
        "action": action,
        "classes": sorted(set(target.classes)),
        "clients": sorted(set(target.clients)),
        "destroy": destroy,
        "level": target.level,
        "lineage": lineage,
        "request": request,
        "time": time,
    }
    return DOMAIN + json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def verify(order: bytes, signature: str, keys: Sequence[str]) -> str:
    """Return which of a site's pinned keys signed an order.

    Args:
        order: As `order_bytes` makes it.
        signature: Base64 of an Ed25519 signature.
        keys: Base64 of public keys.

    Raises:
        PolicyRefused: If none of them did.
    """
    try:
        signed = base64.b64decode(signature, validate=True)
    except ValueError as error:
        raise PolicyRefused("order's signature must be base64, got what is none") from error
    for text in keys:
        try:
            public_key(text).verify(signed, order)
        except InvalidSignature:
            continue
        return text
    raise PolicyRefused(
        "order must be signed by a key that this site pinned ([keys] coordinators of its policy), "
        "got another signature"
    )
