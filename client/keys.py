"""Ed25519 keys as policies, orders and secure aggregation write them."""

import base64
import binascii
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_TEXT: Final = "base64 of a 32-byte Ed25519 public key"


def public_key(text: str) -> Ed25519PublicKey:
    """Return the key that base64 text holds.

    Raises:
        ValueError: If it holds none.
    """
    try:
        return Ed25519PublicKey.from_public_bytes(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError, UnsupportedAlgorithm) as error:
        raise ValueError(f"key must be {KEY_TEXT}, got {error}") from error


def is_public_key(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(public_key(value))
    except ValueError:
        return False


def public_text(key: Ed25519PrivateKey | Ed25519PublicKey) -> str:
    """Return a key's public half as base64, as policies hold it."""
    public = key.public_key() if isinstance(key, Ed25519PrivateKey) else key
    return base64.b64encode(public.public_bytes_raw()).decode()


def simulated_key(name: str, population: str) -> Ed25519PrivateKey:
    """Return the key of a simulated node, which whoever knows its name and population can make."""
    derived = HKDF(hashes.SHA256(), 32, salt=None, info=b"efface simulated node")
    return Ed25519PrivateKey.from_private_bytes(derived.derive(f"{population}/{name}".encode()))
