"""The answer to a message, masked: what `client.node` sends in place of the answer itself."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.errors import AggregationRefused
from client.secure import member
from client.secure.aggregations import Aggregations
from client.secure.context import Context, Secured, digest_of_arrays, digest_of_settings
from client.secure.vector import Declared, Shape, encoded, forms_to_bytes

VECTOR: Final = "masked"  # arrays of a masked answer: the vector, as int64,
FORMS: Final = "forms"  # and what its numbers are, as JSON in UTF-8


def check(context: Context, told: Secured, config: Mapping[str, Any], arrays: Any) -> None:
    """Refuse a message that is not the one that the sum was begun for.

    Args:
        context: Of the sum.
        told: The message's own word on it.
        config: The message's settings as they came.
        arrays: Those that it brings.

    Raises:
        AggregationRefused: If settings or arrays are others.
    """
    if digest_of_settings(config) != context.settings or digest_of_arrays(arrays) != context.model:
        raise AggregationRefused(
            f"settings and arrays of {told.work} must be those that its sum was begun for, got "
            "others"
        )


def masked(
    store: Path,
    context: Context,
    told: Secured,
    declared: Declared,
    numbers: Mapping[str, float | list[float]],
    arrays: Mapping[str, Tensor] | None,
    forms: Mapping[str, Shape],
    *,
    num_classes: int,
) -> dict[str, Tensor]:
    """Return an answer's vector, hidden for everybody but in the sum (steps 5 to 7).

    Args:
        store: The node's.
        context: Of the sum.
        told: Holds what peers sealed for this node.
        declared, numbers, arrays, forms, num_classes: As in `client.secure.vector.encoded`.

    Raises:
        AggregationRefused: If the protocol, or the range of numbers, is not kept to.
    """
    if len(told.senders) != len(told.sealed):
        raise AggregationRefused("sealed shares must be one a sender, got another number")
    sums = Aggregations(store)
    part = sums.part(context)
    vector = encoded(
        declared,
        numbers,
        None if arrays is None else {name: _numpy(one) for name, one in arrays.items()},
        forms,
        num_classes=num_classes,
        num_nodes=len(context.cohort),
    )
    hiding = member.receive(part, dict(zip(told.senders, told.sealed, strict=True)))
    sums.advance(part, hiding)
    member.mask(hiding, vector)
    layout = np.frombuffer(forms_to_bytes(forms), dtype=np.uint8).copy()
    return {VECTOR: torch.from_numpy(vector.view(np.int64)), FORMS: torch.from_numpy(layout)}


def clipped(
    state: Mapping[str, Tensor], sent: Mapping[str, Tensor], longest: float
) -> dict[str, Tensor]:
    """Return a model whose update, as one vector, is at most so long.

    Args:
        state: The model after the node's work.
        sent: The model that came down.
        longest: L2 norm; 0 for any.
    """
    if not longest:
        return dict(state)
    updates = {
        name: (tensor.cpu().double() - sent[name].double())
        for name, tensor in state.items()
        if tensor.is_floating_point()
    }
    norm = float(torch.sqrt(sum((u.square().sum() for u in updates.values()), torch.zeros(()))))
    if norm <= longest:
        return dict(state)
    scale = longest / norm
    return {
        name: (sent[name].double() + scale * updates[name]).to(tensor.dtype)
        if name in updates
        else tensor
        for name, tensor in state.items()
    }


def _numpy(tensor: Tensor) -> NDArray[Any]:
    found: NDArray[Any] = tensor.detach().cpu().contiguous().numpy()
    return found
