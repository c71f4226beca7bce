"""Ephemeral key pairs, what two nodes derive from them, sealed shares, and signatures.

X25519, HKDF-SHA256, AES-256-GCM and Ed25519, all of `cryptography`. A key serves one purpose of one
sum: purpose, context and both names go into its derivation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from client.errors import AggregationRefused

KEY_BYTES = 32
SIGNATURE_BYTES = 64
# Every key seals once (its context has the drawn keys of both in it), so that the nonce may stand.
_NONCE = bytes(12)


@dataclass(frozen=True)
class PublicKeys:
    """What a node publishes for one sum, 32 bytes each.

    Attributes:
        masking: With it peers agree on pairwise masks.
        sharing: With it they seal shares for the node.
        signature: Of both, by the node's own key, for this context.
    """

    masking: bytes
    sharing: bytes
    signature: bytes

    def signed(self, context: bytes, name: str) -> bytes:
        """Return what the signature is of."""
        return _joined(b"efface sums: keys", context, name.encode(), self.masking, self.sharing)


def new_private_key() -> bytes:
    """Return a new X25519 private key, 32 bytes."""
    return X25519PrivateKey.generate().private_bytes_raw()


def public_key(private: bytes) -> bytes:
    """Return the public half of an X25519 key."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def is_public(raw: bytes) -> bool:
    """Return whether a key can be agreed on with it: not of another length, nor of small order.

    With a point of small order every private key agrees on the same, which everybody knows.
    """
    try:
        X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(raw))
    except ValueError:
        return False
    return True


def agreed(
    private: bytes, public: bytes, context: bytes, purpose: str, names: Sequence[str]
) -> bytes:
    """Return the key that two nodes share, 32 bytes.

    Args:
        private: X25519 private key of one.
        public: Public key of the other.
        context: Hash of what the key is for.
        purpose: One word.
        names: Of both, in an order that both know.

    Raises:
        AggregationRefused: If the public key is none.
    """
    try:
        secret = X25519PrivateKey.from_private_bytes(private).exchange(
            X25519PublicKey.from_public_bytes(public)
        )
    except ValueError as error:  # of the wrong length, or a point of small order
        raise AggregationRefused("public key must be one of X25519, got another") from error
    return derived(secret, context, purpose, *names)


def derived(secret: bytes, context: bytes, purpose: str, *names: str) -> bytes:
    """Return a key derived from a secret for one purpose, 32 bytes."""
    info = _joined(b"efface sums", purpose.encode(), *(name.encode() for name in names))
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=context, info=info).derive(secret)


def seal(key: bytes, text: bytes) -> bytes:
    """Encrypt and authenticate a text with a key that seals nothing else."""
    return AESGCM(key).encrypt(_NONCE, text, None)


def unseal(key: bytes, sealed: bytes, sender: str) -> bytes:
    """Return what `seal` was given.

    Raises:
        AggregationRefused: If it was altered, or sealed with another key or for another context.
    """
    try:
        return AESGCM(key).decrypt(_NONCE, sealed, None)
    except (InvalidTag, ValueError) as error:
        raise AggregationRefused(
            f"shares of {sender} must be those it sealed for this node and this sum, got others"
        ) from error


def sign(key: Ed25519PrivateKey, text: bytes) -> bytes:
    """Return the signature of a text, 64 bytes."""
    return key.sign(text)


def is_signed(public: bytes, signature: bytes, text: bytes) -> bool:
    """Return whether a signature is by the owner of a public key."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, text)
    except (InvalidSignature, ValueError):
        return False
    return True


def survivors_text(context: bytes, survivors: Sequence[str]) -> bytes:
    """Return what nodes sign of the survivors of a sum."""
    return _joined(b"efface sums: survivors", context, *(name.encode() for name in survivors))


def _joined(*parts: bytes) -> bytes:
    """Return parts behind each other so that no two lists of parts give the same."""
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)
