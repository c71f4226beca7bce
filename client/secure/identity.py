"""Who a node is to its peers: its signing key, and the public keys that its site pinned."""

from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


@dataclass(frozen=True)
class Identity:
    """A node's own name and key, and its peers'.

    Attributes:
        name: By which its peers know it.
        key: Signs for it.
        peer: Returns the Ed25519 public key, 32 bytes, that is pinned for a name; None if none is.
    """

    name: str
    key: Ed25519PrivateKey
    peer: Callable[[str], bytes | None]
