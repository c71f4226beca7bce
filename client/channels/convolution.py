"""A convolution with fixed weights, for many passes over maps of one size.

Shapes: B images, I input and O output channels, H rows, W columns, T tiles.
"""

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights


class Convolution:
    """A Conv2d in evaluation, for maps of one size, the BatchNorm behind it folded in if given."""

    def __init__(
        self, layer: nn.Conv2d, norm: nn.BatchNorm2d | None, order: torch.memory_format
    ) -> None:
        weight, bias = layer.weight, layer.bias
        if norm is not None:
            mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
            weight, bias = fuse_conv_bn_weights(
                weight, bias, mean, variance, norm.eps, norm.weight, norm.bias
            )
        self.layer, self.bias, self.order = layer, bias, order
        self.weight = weight.detach().contiguous(memory_format=order)
        self.way: Callable[[Tensor], Tensor] | None = None

    def __call__(self, maps: Tensor) -> Tensor:
        """Return (B, O, H', W') for (B, I, H, W)."""
        if self.way is None:
            self.way = self._best_way(*maps.shape[1:])
        return self.way(maps)

    def _best_way(self, channels: int, height: int, width: int) -> Callable[[Tensor], Tensor]:
        x = self.layer
        here = self.weight.device.type == "cpu" and self.order is torch.channels_last
        plain = (x.kernel_size, x.stride, x.dilation, x.groups) == ((3, 3), (1, 1), (1, 1), 1)
        fits = x.padding == (1, 1) and height == width and height % 4 == 0
        if here and plain and fits and channels >= 8 * height:
            return Winograd(self.weight, self.bias, height)
        return partial(self._direct, weight=self.weight, bias=self.bias)

    def _direct(self, maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = self.layer
        return functional.conv2d(maps, weight, bias, x.stride, x.padding, x.dilation, x.groups)

    def adds(self, change: Tensor, inputs: slice) -> Tensor:
        """Return what a change (B, i, H, W) of the channels `inputs` adds to the output."""
        return self._direct(change, self.weight[:, inputs], None)


class Winograd:
    """A 3x3 convolution, stride 1, padding 1, of small square maps of many channels, on a CPU.

    Maps are cut into tiles of 4x4 outputs and the 6x6 inputs under them. Between two transforms,
    taken here of whole maps with their padding, each of the 36 numbers of a tile is a product of
    matrices over the channels. Multiplications for a number of a map, I input channels: 2.25 * I,
    and 7.5 * size for the transforms, instead of 9 * I. Rounding is some ten times as large.

    Args:
        weight: `(O, I, 3, 3)`.
        bias: `(O,)`.
        size: Rows and columns, a multiple of 4.

    Source: Lavin and Gray 2016, section 4, F(4x4, 3x3), https://arxiv.org/abs/1509.09308
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, size: int) -> None:
        self.bias, self.tiles = bias, size // 4
        wide = 6 * self.tiles
        of_inputs = torch.zeros(6, self.tiles, size + 2, dtype=torch.float64)
        of_outputs = torch.zeros(size, 6, self.tiles, dtype=torch.float64)
        for tile in range(self.tiles):
            start = 4 * tile
            of_inputs[:, tile, start : start + 6] = torch.tensor(INPUTS)
            of_outputs[start : start + 4, :, tile] = torch.tensor(OUTPUTS)
        filters = torch.tensor(FILTERS, dtype=torch.float64) / 24
        products = torch.einsum("fr,oirs,gs->fgio", filters, weight.double(), filters)
        products = products[:, None].expand(6, self.tiles, *products.shape[1:]).flatten(0, 2)
        self.of_inputs = of_inputs[:, :, 1:-1].reshape(wide, size).to(weight.dtype)
        self.of_outputs = of_outputs.reshape(size, wide).to(weight.dtype)
        self.products = products.to(weight.dtype)

    def __call__(self, maps: Tensor) -> Tensor:
        """Return (B, O, H, W), rows and columns first in memory, for (B, I, H, W)."""
        batch, channels, size, _ = maps.shape
        wide = 6 * self.tiles
        maps = self.of_inputs @ maps.permute(2, 3, 0, 1).reshape(size, -1)
        maps = self.of_inputs @ maps.view(wide, size, -1)
        maps = maps.view(6 * wide, self.tiles * batch, channels) @ self.products
        maps = self.of_outputs @ maps.view(wide, wide, -1)
        maps = (self.of_outputs @ maps.view(wide, -1)).view(size, size, batch, -1)
        return (maps if self.bias is None else maps.add_(self.bias)).permute(2, 3, 0, 1)


INPUTS = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
FILTERS = ((6, 0, 0), (-4, -4, -4), (-4, 4, -4), (1, 2, 4), (1, -2, 4), (0, 0, 24))  # / 24
OUTPUTS = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
