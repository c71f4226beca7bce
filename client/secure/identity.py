"""Who a node is to its peers: its signing key, and the public keys that its site pinned."""

from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


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


def simulated(name: str, population: str) -> Identity:
    """Return the identity of a simulated node: all of them can be derived, and none is secret.

    Args:
        name: The node's.
        population: Which simulated nodes belong together (`Simulation.population`).
    """

    def key(of: str) -> Ed25519PrivateKey:
        info = b"efface simulated node\0" + population.encode() + b"\0" + of.encode()
        seed = HKDF(hashes.SHA256(), 32, salt=None, info=info).derive(b"no secret")
        return Ed25519PrivateKey.from_private_bytes(seed)

    return Identity(name, key(name), lambda other: key(other).public_key().public_bytes_raw())
