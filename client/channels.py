"""Channels of a network: choosing, cutting out, putting back, zeroing and removing them.

A layer is a Conv2d or Linear, known by its module path; a channel is one of its outputs, a row of
its weight. With it go its entry of the bias and of the norm behind the layer: where a norm has one
channel a group, as here, a channel behind it depends on that channel alone.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import index

import torch
from torch import Tensor, nn

from client.errors import BadSetting
from client.models import ModelSpec, Spread, loaded

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
        model: Any of `client.models`, at full size or compact, also without memory. Not changed.
    """
    found: list[Layer] = []
    for name, module in model.named_modules():
        tensors = tuple(f"{name}.{own}" for own in _per_channel(module))
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            convolution = isinstance(module, nn.Conv2d)
            found.append(Layer(name, len(module.weight), convolution, tensors))
        elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
            found[-1] = replace(found[-1], tensors=found[-1].tensors + tensors)
    return tuple(found)


def _per_channel(module: nn.Module) -> list[str]:
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


def take(
    state: Mapping[str, Tensor], layers: Sequence[Layer], channels: Channels
) -> dict[str, Tensor]:
    """Return the rows of `channels` of every tensor in `Layer.tensors`, as copies.

    Args:
        state: Parameters and buffers by name. Not changed.
        layers: The model's layout.
        channels: k channels of a layer give tensors (k, ...) in its `tensors`.

    Raises:
        BadSetting: As `checked`.
    """
    rows = _rows(layers, checked(channels, layers))
    return {n: state[n].detach().index_select(0, r.to(state[n].device)) for n, r in rows}


def scatter(
    state: Mapping[str, Tensor],
    slices: Mapping[str, Tensor],
    layers: Sequence[Layer],
    channels: Channels,
) -> dict[str, Tensor]:
    """Return `state` with the rows of `channels` replaced by `slices`; the inverse of `take`.

    Args:
        state: Parameters and buffers by name. Not changed: tensors without chosen rows are passed
            on themselves, the others as copies that differ in those rows alone.
        slices: As `take` returns them for the same layers and channels.
        layers: The model's layout.
        channels: What is replaced.

    Raises:
        BadSetting: As `checked`; and if a slice is missing, too many, or of another shape or dtype.
    """
    rows = dict(_rows(layers, checked(channels, layers)))
    if wrong := sorted(slices.keys() ^ rows.keys()):
        raise BadSetting(
            "slices must be those of the chosen channels, no more and no fewer, got a difference "
            f"in {', '.join(wrong)}"
        )
    changed = dict(state)
    for name, places in rows.items():
        old, new = state[name].detach(), slices[name].detach()
        shape = (len(places), *old.shape[1:])
        if new.shape != shape or new.dtype != old.dtype:
            raise BadSetting(
                f"slice {name} must be {old.dtype} of shape {shape}, "
                f"got {new.dtype} of shape {tuple(new.shape)}"
            )
        changed[name] = old.index_copy(0, places.to(old.device), new.to(old.device))
    return changed


def pack(slices: Mapping[str, Tensor]) -> Tensor:
    """Return the slices' numbers in one row, `(n,)`: a name and a header each would outweigh them.

    Args:
        slices: As `take` returns them; of one dtype.
    """
    return torch.cat([slice_.flatten() for slice_ in slices.values()])


def unpack(row: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the slices that `pack` put in a row.

    Args:
        row: `(n,)`.
        like: Slices of the same names, order and shapes.

    Raises:
        BadSetting: If they hold another number of elements.
    """
    sizes = [slice_.numel() for slice_ in like.values()]
    if row.shape != (sum(sizes),):
        raise BadSetting(
            f"slices must be a row of the chosen channels' {sum(sizes)} numbers, got an array of "
            f"shape {tuple(row.shape)}"
        )
    parts = row.split(sizes)
    return {name: part.view(like[name].shape) for name, part in zip(like, parts, strict=True)}


@torch.no_grad()
def zero_(model: nn.Module, channels: Channels) -> None:
    """Make `channels` exactly 0 behind their norm, in training and in evaluation, in place.

    Their weight, bias and norm become 0, the running mean 0 and the running variance 1.

    Behind a ReLU they stay so in training: the gradients of all these are exactly 0. Not so in a
    layer that is added to a residual stream, whose norm's bias gets the stream's gradient: use
    `freeze` before training. Running variances drift, without effect.

    Raises:
        BadSetting: As `checked`.
    """
    layers = layout(model)
    state = model.state_dict()
    device = state[layers[0].tensors[0]].device
    for name, places in _rows(layers, checked(channels, layers), device):
        state[name].index_fill_(0, places, 1 if name.endswith(".running_var") else 0)


def compact(spec: ModelSpec, state: Mapping[str, Tensor]) -> tuple[ModelSpec, dict[str, Tensor]]:
    """Return the smaller model without `spec.pruned`, which computes the same.

    Args:
        spec: Of the model at full size. Its pruned channels count as 0 (`zero_`) whatever they are.
        state: Its parameters and buffers by name, all of them, on the CPU. Not changed.

    Returns:
        The spec of the compact model and its parameters and buffers, copies, for `loaded`.

    Raises:
        BadSetting: If the model is compact already, `state` does not fit it, or `spec.pruned` may
            not be pruned (`prunable`).
    """
    if spec.compact:
        raise BadSetting(f"model must be at full size, got a compact one: {spec}")
    model = loaded(spec, state)
    shrink_(model, from_text(spec.pruned))
    return replace(spec, compact=True), {n: t.clone() for n, t in model.state_dict().items()}


@torch.no_grad()
def shrink_(model: nn.Module, channels: Channels) -> None:
    """Remove `channels` from a model at full size; its new tensors are copies.

    A layer loses its rows. What its channels feed loses the columns that read them, a block of
    H * W where the maps are flattened. What is added to a residual stream keeps its width, for the
    sake of the others: a `Spread` behind the norm fills the gaps with zeros.

    Args:
        model: Any of `client.models`, also without memory. Changed in place.
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
    for name in _per_channel(module):
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


def _rows(
    layers: Sequence[Layer], channels: Channels, device: torch.device | str = "cpu"
) -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor with rows of `channels`, by name, and those rows, int64 (k,)."""
    for layer in layers:
        if layer.name in channels:
            places = torch.tensor(channels[layer.name], device=device)
            yield from ((name, places) for name in layer.tensors)


def freeze(model: nn.Module, channels: Channels) -> None:
    """Keep the parameters of `channels` as they are in training: their gradients become 0.

    With plain, momentum or weight-decayed SGD, parameters that are 0 stay exactly 0.

    Args:
        model: Its parameters get hooks, which both `backward` and `torch.autograd.grad` run.
        channels: What to freeze.
    """
    layers = layout(model)
    parameters = dict(model.named_parameters())
    for name, places in _rows(layers, checked(channels, layers)):
        if name in parameters:  # running statistics are none
            _hook(parameters[name], places, passing=False)


def train_only(model: nn.Module, layers: Sequence[Layer], channels: Channels) -> None:
    """Let training change the parameters of `channels` alone, without weight decay.

    Args:
        model: Its parameters get hooks; those without chosen channels get no gradient at all.
        layers: The model's layout.
        channels: What to train.
    """
    rows = dict(_rows(layers, checked(channels, layers)))
    for name, parameter in model.named_parameters():
        if name in rows:
            _hook(parameter, rows[name], passing=True)
        else:
            parameter.requires_grad_(False)


def _hook(parameter: nn.Parameter, places: Tensor, *, passing: bool) -> None:
    """Have the gradient of a parameter pass at `places` alone, or everywhere else."""
    mask = torch.full((len(parameter), *[1] * (parameter.dim() - 1)), not passing)
    mask = mask.index_fill(0, places, passing).to(parameter.device)
    parameter.register_hook(lambda gradient: gradient * mask)
