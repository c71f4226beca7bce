"""Which examples stand behind an answer, and how two answers' examples are compared.

The sets themselves are not kept: a sketch of 64 numbers is enough to see that two of them differ
by a few examples, and tells nothing of which ones to whoever has not the site's seed.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from torch import Tensor

BUCKETS: Final = 64
Sketch = np.ndarray[tuple[int], np.dtype[np.uint64]]


@dataclass
class Touched:
    """The distinct examples that one answer was computed from.

    Attributes:
        masks: Which rows of a split, by its name: "train", "validation".
        stand_ins: Digests of synthetic images, and of real ones that stand in for them.
    """

    masks: dict[str, Tensor] = field(default_factory=dict)
    stand_ins: set[bytes] = field(default_factory=set)

    def rows(self, name: str, size: int) -> Tensor:
        """Return the mask of a split's rows, to be changed in place: bool `(size,)`."""
        return self.masks.setdefault(name, torch.zeros(size, dtype=torch.bool))

    def images(self, images: Tensor) -> None:
        """Note images `(n, C, H, W)` that belong to no split: synthetic ones, for the most part."""
        self.stand_ins |= {
            hashlib.sha256(row.tobytes()).digest()[:16] for row in images.detach().cpu().numpy()
        }

    @property
    def count(self) -> int:
        """How many there are at least: behind a synthetic image may be one of the real ones."""
        real = sum(int(mask.sum()) for mask in self.masks.values())
        return max(real, len(self.stand_ins))

    def sketch(self, secret: str) -> Sketch:
        """Return 64 numbers, each the XOR of its examples' keyed digests.

        Two sets that differ by d examples differ in at most d of the numbers, and hardly ever in
        fewer where d is small.

        Args:
            secret: The site's seed.
        """
        found = np.zeros(BUCKETS, np.uint64)
        for digest in self._digests(secret.encode()):
            bucket, value = digest[0] % BUCKETS, int.from_bytes(digest[1:9], "big")
            found[bucket] ^= np.uint64(value)
        return found

    def _digests(self, secret: bytes) -> Iterator[bytes]:
        for name, mask in self.masks.items():
            yield from _keyed(secret, (f"{name} {row}".encode() for row in _rows(mask)))
        yield from _keyed(secret, (b"image " + digest for digest in self.stand_ins))


def _rows(mask: Tensor) -> list[int]:
    return [int(row) for row in mask.nonzero().flatten().tolist()]


def _keyed(secret: bytes, texts: Iterable[bytes]) -> Iterator[bytes]:
    key = secret[:64]
    return (hashlib.blake2b(text, digest_size=9, key=key).digest() for text in texts)
