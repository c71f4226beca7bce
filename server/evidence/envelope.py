"""DSSE envelopes: a payload, its type, and one Ed25519 signature over both.

"Dead Simple Signing Envelope" v1, https://github.com/secure-systems-lab/dsse, by the library
`securesystemslib`.

Reading is strict, beyond what DSSE asks: what a signature does not cover (the key's id, how base64
is written, further fields) may have one form only, so that no byte of meaning changes unseen.
"""

import base64
import json
from typing import Any, Final

from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import Signature, SSlibKey

from client.errors import EffaceError
from client.keys import public_key
from server.storage import keys
from server.storage.keys import Signer

LARGEST: Final = 16 << 20  # bytes of a file that is read at all
MOST_DIGITS: Final = 40  # of a whole number


class InvalidCertificate(EffaceError):
    """A certificate does not verify: it was changed, is of another key, or is none."""

    code = "invalid-certificate"


def sealed(kind: str, payload: bytes, signer: Signer) -> bytes:
    """Return a payload in its signed envelope, as a JSON file holds it."""
    envelope = Envelope(payload, kind, {})
    made = base64.b64decode(signer.sign(envelope.pae())).hex()
    envelope.signatures[signer.fingerprint] = Signature(signer.fingerprint, made)
    return json.dumps(envelope.to_dict(), indent=2).encode() + b"\n"


def opened(data: bytes, kind: str, public: str) -> bytes:
    """Return an envelope's payload, verified.

    Args:
        data: The whole file.
        kind: The only payload type that counts.
        public: The only public key that counts, base64.

    Raises:
        InvalidCertificate: If it is no envelope, or anything in it is not as it was signed.
    """
    document = parsed(data, "file")
    _check_keys(document, {"payload", "payloadType", "signatures"}, "envelope")
    if document["payloadType"] != kind:
        raise InvalidCertificate(
            f"payload type must be {kind}, got {ascii(document['payloadType'])[:80]}"
        )
    signatures = document["signatures"]
    if not isinstance(signatures, list) or len(signatures) != 1:
        raise InvalidCertificate("envelope must hold a list of one signature, got another form")
    _check_keys(signatures[0], {"keyid", "sig"}, "signature")
    if signatures[0]["keyid"] != keys.fingerprint(public):
        raise InvalidCertificate(
            f"signature must be by the key {keys.fingerprint(public)[:12]}..., got one by "
            f"{ascii(signatures[0]['keyid'])[:16]}..."
        )
    payload = _decoded(document["payload"], "payload")
    _decoded(signatures[0]["sig"], "signature")
    name, raw = keys.fingerprint(public), public_key(public).public_bytes_raw()
    key = SSlibKey(name, "ed25519", "ed25519", {"public": raw.hex()})
    try:
        Envelope.from_dict(document).verify([key], threshold=1)
    except VerificationError as error:
        raise InvalidCertificate(
            "signature must be of this content, got one that is not: the file was changed, or "
            "signed with another key"
        ) from error
    return payload


def parsed(data: bytes, what: str) -> dict[str, Any]:
    """Return the one JSON object that bytes hold: UTF-8, no key twice, nothing behind it.

    Raises:
        InvalidCertificate: If they hold anything else.
    """
    if len(data) > LARGEST:
        raise InvalidCertificate(f"{what} must be at most {LARGEST} bytes, got {len(data)}")
    try:
        found = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_once,
            parse_constant=_no_constant,
            parse_int=_whole,
        )
    except RecursionError as error:
        raise InvalidCertificate(
            f"{what} must be one JSON object, got one nested too deep"
        ) from error
    except ValueError as error:
        raise InvalidCertificate(f"{what} must be one JSON object, got {error}") from error
    if not isinstance(found, dict):
        raise InvalidCertificate(f"{what} must be one JSON object, got {type(found).__name__}")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key that stands there twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name}, which is no JSON")


def _whole(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _check_keys(value: Any, wanted: set[str], what: str) -> None:
    if not isinstance(value, dict) or set(value) != wanted:
        raise InvalidCertificate(
            f"{what} must hold {', '.join(sorted(wanted))} and no more, got another form"
        )


def _decoded(text: Any, what: str) -> bytes:
    """Return what base64 holds; it has one way to be written."""
    try:
        found = base64.b64decode(text, validate=True)
        if base64.b64encode(found).decode() == text:
            return found
    except (ValueError, TypeError):
        pass
    raise InvalidCertificate(f"{what} must be base64 in its one form, got another")
