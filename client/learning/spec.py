"""Which model to build: its name and sizes."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class ModelSpec:
    """Which model to build.

    Attributes:
        name: One of `NAMES`.
        num_classes: At least 2.
        channels: 1 or 3.
        image_size: Rows, equal to columns; at least 8.
        width: Filters of each convolution. ConvNet only; the other models have their paper's.
        depth: Blocks. ConvNet only.
        pruned: Channels that are 0 for good, in the text form of `client.channels.layout`.
        compact: Whether those channels are left out: the same outputs from a smaller model.

    The last two are no part of its text, which names the model that they were pruned from.
    """

    name: str
    num_classes: int
    channels: int = 3
    image_size: int = 32
    width: int = 128
    depth: int = 3
    pruned: tuple[str, ...] = field(default=(), repr=False)
    compact: bool = field(default=False, repr=False)

    @classmethod
    def of_card(cls, card: Mapping[str, Any]) -> "ModelSpec":
        """Return the model that a version's card describes, as JSON holds it."""
        return cls(**{**card, "pruned": tuple(card.get("pruned", ()))})

    @property
    def base(self) -> "ModelSpec":
        """Return the model before anything was pruned."""
        return replace(self, pruned=(), compact=False)
