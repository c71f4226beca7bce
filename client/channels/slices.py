"""Slices of channels: cut out of a model, put back, packed in one row for the wire."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from client.channels.layout import Channels, Layer, checked
from client.channels.layout import rows as layout_rows
from client.errors import BadSetting


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
    rows = layout_rows(layers, checked(channels, layers))
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
    rows = dict(layout_rows(layers, checked(channels, layers)))
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


def to_row(slices: Mapping[str, Tensor]) -> Tensor:
    """Return the slices' numbers in one row, `(n,)`: a name and a header each would outweigh them.

    Args:
        slices: As `take` returns them; of one dtype.
    """
    return torch.cat([slice_.flatten() for slice_ in slices.values()])


def from_row(row: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the slices that `to_row` put in a row.

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
