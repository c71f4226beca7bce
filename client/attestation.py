"""Attestations: what a site signs of an order that it carried out, for whoever audits it later.

An attestation names no example and no count of them: it says which order, that the site made it
last, and in how many of its synthetic sets something was destroyed. A site that answers in sums
alone does not tell that number either.
"""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.errors import EffaceError
from client.keys import public_key, public_text

ARRAY: Final = "attestation"  # of a reply: the document as uint8, JSON in UTF-8
MAX_BYTES: Final = 4096
# Before what is signed: no signature for another purpose can be taken for one of these.
DOMAIN: Final = b"efface attestation 1\n"
# Where the number of sets stands, and when the site wrote it, are the site's own to say.
STATEMENT: Final[Mapping[str, tuple[type, ...]]] = {
    "site": (str,),
    "request": (str,),  # its unique name
    "action": (str,),  # "forget" or "relearn"
    "order_sha256": (str,),  # of the order's bytes (`client.orders`)
    "applied": (str,),  # "now", or "before": the site had carried it out already
    "tombstone": (str,),  # "kept", or "lifted"
    "destroyed": (str,),  # "all" synthetic sets, "classes" of them, or "none"
    "sets": (int, type(None)),  # in which something was destroyed; None if the site does not tell
    "code_sha256": (str,),  # of the client's code that ran
    "simulated": (bool,),  # whether no site stands behind it
    "time": (str,),  # of the site's clock, ISO 8601 with its offset from UTC
}


class BadAttestation(EffaceError):
    """An attestation is missing, is none, says something else, or is not signed as it must be."""

    code = "bad-attestation"


@dataclass(frozen=True)
class Claim:
    """What an attestation must say to be the answer to one message.

    Attributes:
        says: Values of the statement by name.
        keys: Public keys of which one must have signed it, base64; empty for any.
    """

    says: Mapping[str, Any]
    keys: Sequence[str] = ()


def made(statement: Mapping[str, Any], key: Ed25519PrivateKey) -> bytes:
    """Return a statement as the document that goes up, signed."""
    signature = base64.b64encode(key.sign(DOMAIN + canonical(statement))).decode()
    return canonical({"statement": statement, "key": public_text(key), "signature": signature})


def read(raw: bytes) -> dict[str, Any]:
    """Return the document that bytes hold, if it is signed by the key in it.

    Returns:
        `statement`, `key` and `signature`.

    Raises:
        BadAttestation: If it is none, or its signature is not of it.
    """
    if len(raw) > MAX_BYTES:
        raise BadAttestation(f"attestation must be at most {MAX_BYTES} bytes, got {len(raw)}")
    try:
        document = json.loads(raw)
        same = canonical(document) == raw
    except (ValueError, RecursionError):
        raise BadAttestation("attestation must be JSON, got what is none") from None
    if not same or not isinstance(document, dict):
        raise BadAttestation("attestation must be a JSON object in its one form, got another")
    check(document)
    return document


def check(document: Mapping[str, Any], claim: Claim | None = None) -> None:
    """Check form and signature of a document, and what it must say.

    Args:
        document: As `read` returns it.
        claim: What it must say; None for anything.

    Raises:
        BadAttestation: Naming what is wrong.
    """
    if not isinstance(document, Mapping) or set(document) != {"statement", "key", "signature"}:
        raise BadAttestation("attestation must hold statement, key and signature alone")
    statement, key, signature = (document[part] for part in ("statement", "key", "signature"))
    _check_form(statement)
    try:
        signed = base64.b64decode(signature, validate=True)
        public = public_key(key)
        one_form = base64.b64encode(signed).decode() == signature and public_text(public) == key
        public.verify(signed, DOMAIN + canonical(statement))
    except (binascii.Error, ValueError, TypeError, InvalidSignature) as error:
        raise BadAttestation(
            f"attestation of {statement['site']!a} must be signed by the key in it, got another "
            "signature"
        ) from error
    if not one_form:
        raise BadAttestation("key and signature must be base64 in its one form, got another")
    if claim is None:
        return
    for name, value in claim.says.items():
        if statement[name] != value:
            raise BadAttestation(
                f"attestation must say {name} {value!a}, got {ascii(statement[name])[:80]}"
            )
    if claim.keys and key not in claim.keys:
        raise BadAttestation(
            f"attestation of {statement['site']!a} must be signed by the key that is known of it, "
            f"got {key}; ask its operator whether the site has a new key"
        )


def _check_form(statement: Any) -> None:
    if not isinstance(statement, Mapping) or set(statement) != set(STATEMENT):
        raise BadAttestation(f"statement must hold {', '.join(STATEMENT)} alone, got another form")
    for name, kinds in STATEMENT.items():
        if type(statement[name]) not in kinds:  # a bool is no int here
            raise BadAttestation(f"{name} must be {kinds[0].__name__}, got another type")
    sets = statement["sets"]
    if sets is not None and not 0 <= sets < 2**53:
        raise BadAttestation("sets must be a number of sets from 0 up, got another")
    if statement["destroyed"] == "none" and sets:
        raise BadAttestation(f"sets must be 0 where nothing is destroyed, got {sets}")
    try:
        aware = datetime.fromisoformat(statement["time"]).utcoffset() is not None
    except ValueError:
        aware = False
    if not aware:
        raise BadAttestation("time must be ISO 8601 with an offset from UTC, got another")


def canonical(value: Any) -> bytes:
    """Return JSON with sorted keys and no spaces: the same bytes for the same content."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
