"""A node's two secrets, shared among its peers: any t of them can put one together, fewer cannot.

Shamir's scheme over GF(2^128), as Flower has it; a share's first 4 bytes are its place, from 1.
"""

from dataclasses import dataclass
from typing import Final

from client.errors import AggregationRefused

PLACE_BYTES: Final = 4
BLOCK_BYTES: Final = 16
SHARE_BYTES: Final = PLACE_BYTES + 3 * BLOCK_BYTES  # of a secret of 32 bytes, with its padding


@dataclass(frozen=True)
class Pair:
    """One peer's shares of a node's secrets. It reveals one of them, never both.

    Attributes:
        seed: Of the seed of the node's own mask, revealed if the node is a survivor.
        masking: Of its masking key, revealed if it dropped out.
    """

    seed: bytes
    masking: bytes

    def to_bytes(self) -> bytes:
        """Return both, as they are sealed."""
        return self.seed + self.masking

    @classmethod
    def from_bytes(cls, raw: bytes, place: int, sender: str) -> "Pair":
        """Return what `to_bytes` gave.

        Args:
            raw: From a peer.
            place: The receiver's, from 1.
            sender: The peer's name.

        Raises:
            AggregationRefused: If they are no shares for that place.
        """
        pair = cls(raw[:SHARE_BYTES], raw[SHARE_BYTES:])
        for share in (pair.seed, pair.masking):
            if len(share) != SHARE_BYTES or int.from_bytes(share[:PLACE_BYTES], "little") != place:
                raise AggregationRefused(f"shares of {sender} must be this node's, got others")
        return pair


def shared(secret: bytes, least: int, number: int) -> list[bytes]:
    """Return so many shares of a secret of 32 bytes, of which `least` put it together."""
    from flwr.common.secure_aggregation.crypto.shamir import create_shares

    return [bytes(share) for share in create_shares(secret, least, number)]
