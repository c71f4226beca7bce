"""How large a model is, before any memory is taken for it."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import torch
from torch import Tensor, nn

from client.learning.models import shaped, traced
from client.learning.spec import ModelSpec


@dataclass(frozen=True)
class Size:
    """Numbers that a model takes.

    Attributes:
        parameters: And buffers.
        activations: Outputs of all layers for one example.
    """

    parameters: int
    activations: int


USUAL: Final = 64  # examples of a batch
# Up to here a pass takes so little that it is done: torch's meta device loads a compiler first, for
# more than a second of each client's process.
SMALL: Final = 2**30  # multiplications: parameters times places of the inputs, at most
SMALL_MAP: Final = 2**24  # numbers of one layer's output: places times channels, at most
AT_ONCE: Final = 384 * 2**20  # bytes of all layers' outputs and their gradients in one pass


def at_once(spec: ModelSpec) -> int | None:
    """Return how many examples may pass through a model together in training; None for any number.

    Only maps of large images come near the limit. BatchNorm needs the whole of a batch; others are
    left whole, too, where 64 examples fit.
    """
    if traced(spec).mixes_examples:
        return None
    bytes_each = 2 * 4 * size_of(spec).activations  # float32, forth and back
    fitting = max(1, AT_ONCE // max(1, bytes_each))
    return None if fitting >= USUAL else fitting


@lru_cache(maxsize=16)
def size_of(spec: ModelSpec) -> Size:
    """Return a model's size, before memory is taken for a large one.

    It is that of the layout alone: torch's meta device has no memory, a small model little.

    Raises:
        BadSetting: If the spec is wrong.
    """
    model = shaped(spec).eval()  # in training, dropout would draw from torch's own generator
    numbers = sum(t.numel() for t in model.state_dict().values())
    activations = 0

    def count(layer: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal activations
        activations += output.numel() if isinstance(output, Tensor) else 0

    hooks = [
        layer.register_forward_hook(count)
        for layer in model.modules()
        if not any(True for _ in layer.children())
    ]
    inputs = spec.task.example(2)  # batch norm needs two
    if any(t.is_meta for t in model.state_dict().values()):
        places = len(inputs) * inputs[0, 0].numel()  # no layer of ours makes a map larger
        widest = max(t.shape[0] for t in model.state_dict().values() if t.dim() > 0)
        if places * numbers <= SMALL and places * widest <= SMALL_MAP:
            _zeros(model)
        else:
            inputs = inputs.to("meta")
    try:
        with torch.no_grad():
            model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return Size(numbers, activations // 2)


def _zeros(model: nn.Module) -> None:
    """Give a model of the meta device memory, with zeros in it."""
    state = model.state_dict()
    zeros = {name: torch.zeros(t.shape, dtype=t.dtype) for name, t in state.items()}
    model.load_state_dict(zeros, assign=True)
