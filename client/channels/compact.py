"""Channels removed from a model: smaller, with the same outputs."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from client.channels.layout import Channels, Layer, layout, per_channel, prunable


class Spread(nn.Module):
    """Writes the channels that a compact model kept at their places, among zeros.

    Args:
        num_channels: Of the model at full size.
        kept: Channels of the input, in ascending order.
    """

    positions: Tensor

    def __init__(self, num_channels: int, kept: Sequence[int]) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.kept = tuple(kept)
        self.register_buffer("positions", None, persistent=False)
        self.reset_positions()

    def reset_positions(self) -> None:
        """Fill in the positions, on the CPU, where a layout without memory has them too."""
        self.positions = torch.tensor(self.kept, device="cpu")

    def forward(self, maps: Tensor) -> Tensor:
        """Return (B, num_channels, H, W) for (B, kept, H, W)."""
        zeros = maps.new_zeros(len(maps), self.num_channels, *maps.shape[2:])
        # A layout without memory is on another device than the positions.
        return zeros.index_copy(1, self.positions.to(maps.device), maps)


@torch.no_grad()
def shrink_(model: nn.Module, channels: Channels) -> None:
    """Remove `channels` from a model at full size; its new tensors are copies.

    A layer loses its rows. What its channels feed loses the columns that read them, a block of
    H * W where the maps are flattened. What is added to a residual stream keeps its width, for the
    sake of the others: a `Spread` behind the norm fills the gaps with zeros.

    Args:
        model: Any of `client.learning.models`, also without memory. Changed in place.
        channels: What to remove.

    Raises:
        BadSetting: As `prunable`.
    """
    layers = layout(model)
    readers = _readers(layers)
    for name, gone in prunable(channels, layers).items():
        layer = next(layer for layer in layers if layer.name == name)
        kept = [c for c in range(layer.num_channels) if c not in set(gone)]
        owners = dict.fromkeys(tensor.rpartition(".")[0] for tensor in layer.tensors)
        for owner in owners:
            _keep(model.get_submodule(owner), kept)
        if name in readers:
            _read(model.get_submodule(readers[name]), layer.num_channels, kept)
        else:
            norm = [*owners][-1]
            spread = Spread(layer.num_channels, kept)
            model.set_submodule(norm, nn.Sequential(model.get_submodule(norm), spread))


def _readers(layers: Sequence[Layer]) -> dict[str, str]:
    """Return, by layer, the one layer that reads its channels: the next in a chain.

    In a network of residual blocks that is so inside a block alone. The layers that are left out,
    the stem, the last of a block and the shortcut's, write into a stream that several read.
    """
    names = [layer.name for layer in layers]
    blocks = [name.removesuffix(".conv2") for name in names if name.endswith(".conv2")]
    if blocks:
        return {f"{block}.conv1": f"{block}.conv2" for block in blocks}
    return dict(pairwise(names))


def _keep(module: nn.Module, kept: Sequence[int]) -> None:
    """Reduce a layer or a norm to the channels `kept`."""
    for name in per_channel(module):
        _select(module, name, 0, kept)
    if isinstance(module, nn.Conv2d):
        module.out_channels = len(kept)
    elif isinstance(module, nn.Linear):
        module.out_features = len(kept)
    elif isinstance(module, nn.BatchNorm2d):
        module.num_features = len(kept)
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = module.num_groups = len(kept)  # one channel a group


def _read(module: nn.Module, num_channels: int, kept: Sequence[int]) -> None:
    """Reduce the inputs of a layer that reads `num_channels` channels to those `kept`."""
    if isinstance(module, nn.Conv2d):
        _select(module, "weight", 1, kept)
        module.in_channels = len(kept)
    elif isinstance(module, nn.Linear):
        area = module.in_features // num_channels  # H * W where the maps were flattened, else 1
        _select(module, "weight", 1, [c * area + pixel for c in kept for pixel in range(area)])
        module.in_features = len(kept) * area


def _select(module: nn.Module, name: str, dimension: int, kept: Sequence[int]) -> None:
    old = getattr(module, name)
    new = old.detach().index_select(dimension, torch.tensor(kept, device=old.device))
    setattr(module, name, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
