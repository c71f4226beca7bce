"""Channels of a network: its layers, and how channels are chosen and written.

A layer is a Conv2d or Linear, known by its module path; a channel is one of its outputs, a row of
its weight. With it go its entry of the bias and of the norm behind the layer: where a norm has one
channel a group, as here, a channel behind it depends on that channel alone.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import index

import torch
from torch import Tensor, nn

from client.errors import BadSetting

Channels = Mapping[str, tuple[int, ...]]
"""Chosen channels by layer: sorted, without duplicates, layers in the order of the layout."""


@dataclass(frozen=True)
class Layer:
    """A layer and all that has one entry for each of its channels.

    Attributes:
        name: Module path of the Conv2d or Linear.
        num_channels: Its outputs.
        convolution: Whether it is a Conv2d.
        tensors: Names in the state dict of the tensors whose dimension 0 is the channels: weight,
            bias, and weight, bias, running_mean and running_var of the norm behind it, where they
            exist. `num_batches_tracked` belongs to no channel.
    """

    name: str
    num_channels: int
    convolution: bool
    tensors: tuple[str, ...]


def layout(model: nn.Module) -> tuple[Layer, ...]:
    """Return the layers in the order of the forward pass; the last is the classifier.

    Args:
        model: Any of `client.learning.models`, at full size or compact, also without memory. Not
            changed.
    """
    found: list[Layer] = []
    for name, module in model.named_modules():
        tensors = tuple(f"{name}.{own}" for own in per_channel(module))
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            convolution = isinstance(module, nn.Conv2d)
            found.append(Layer(name, len(module.weight), convolution, tensors))
        elif _is_norm_of(module, found[-1] if found else None):
            found[-1] = replace(found[-1], tensors=found[-1].tensors + tensors)
    return tuple(found)


def _is_norm_of(module: nn.Module, layer: Layer | None) -> bool:
    """Return whether a module is a norm with one entry for each channel of the layer before it."""
    if layer is None or not isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm)):
        return False
    if isinstance(module, nn.GroupNorm):
        return module.num_channels == layer.num_channels
    return module.num_features == layer.num_channels


def per_channel(module: nn.Module) -> list[str]:
    """Return the names of the tensors that `module` itself owns, num_batches_tracked left out."""
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return [name for name, tensor in own if tensor.dim() > 0]


def checked(channels: Channels, layers: Sequence[Layer]) -> dict[str, tuple[int, ...]]:
    """Return `channels` sorted, each once, in the order of `layers`; layers without any left out.

    Raises:
        BadSetting: If a layer is unknown or a channel out of range.
    """
    sizes = {layer.name: layer.num_channels for layer in layers}
    for name, chosen in channels.items():
        if name not in sizes:
            raise BadSetting(f"layer must be one of {', '.join(sizes)}, got '{name}'")
        for channel in chosen:
            if not 0 <= channel < sizes[name]:
                raise BadSetting(f"channel of {name} must lie in [0, {sizes[name]}), got {channel}")
    return {
        name: tuple(sorted({index(channel) for channel in channels[name]}))
        for name in sizes
        if channels.get(name)
    }


def prunable(channels: Channels, layers: Sequence[Layer]) -> dict[str, tuple[int, ...]]:
    """Return what `checked` returns, if all of it may be pruned.

    Raises:
        BadSetting: As `checked`; and if channels of the classifier, the last layer, are among them,
            or all channels of a layer.
    """
    found = checked(channels, layers)
    if layers[-1].name in found:
        raise BadSetting(
            f"pruned layers must come before {layers[-1].name}, whose channels are the classes, "
            f"got '{layers[-1].name}'"
        )
    for layer in layers:
        if len(found.get(layer.name, ())) == layer.num_channels:
            raise BadSetting(
                f"layer {layer.name} must keep at least one channel, got all {layer.num_channels} "
                "pruned; prune fewer"
            )
    return found


def to_text(channels: Channels) -> list[str]:
    """Return one line a layer, such as "body.0:0,3,7"; layers without channels left out."""
    return [f"{name}:{','.join(map(str, chosen))}" for name, chosen in channels.items() if chosen]


def from_text(lines: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the channels that `to_text` wrote. The layers need not exist: see `checked`.

    Raises:
        BadSetting: If a line reads otherwise, or a layer comes twice.
    """
    found: dict[str, tuple[int, ...]] = {}
    for line in lines:
        if not re.fullmatch(r"[^:,\s]+:[0-9]{1,9}(,[0-9]{1,9})*", line):
            raise BadSetting(f"channels must read like body.0:0,3,7, got '{line}'")
        name, _, chosen = line.partition(":")
        if name in found:
            raise BadSetting(f"channels must name a layer once, got '{name}' twice")
        found[name] = tuple(map(int, chosen.split(",")))
    return found


def rows(
    layers: Sequence[Layer], channels: Channels, device: torch.device | str = "cpu"
) -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor with rows of `channels`, by name, and those rows, int64 (k,)."""
    for layer in layers:
        if layer.name in channels:
            places = torch.tensor(channels[layer.name], device=device)
            yield from ((name, places) for name in layer.tensors)
