"""The outputs of a network's layers on some examples: what the measures look at.

Shapes: N examples, C channels, F features, D numbers of a layer and example.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from client.learning.trace import inputs_of, only
from client.learning.training import Pick
from server.evidence.features.scores import FEATURES

SIDE: Final = 4  # maps are averaged to 4 x 4


@torch.no_grad()
def features(
    model: nn.Module, head: str, pick: Pick, num_examples: int, *, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Return the inputs of the last layer and the labels of `0 .. num_examples - 1`.

    Args:
        model: Left as it is, but for eval mode. No other thread may use it meanwhile.
        head: Name of the last layer, as `Trace` has it.
        pick: From positions to inputs and labels.
        num_examples: N, at least 1.
        batch_size: Examples a pass.

    Returns:
        Features float32 `(N, F)` and labels int64 `(N,)`, on the CPU.
    """
    model.eval()
    rows, labels = [], []
    for batch in torch.arange(num_examples).split(batch_size):
        inputs, wanted = pick(batch)
        with inputs_of(model, head) as seen:
            model(inputs)
        rows.append(only(seen, head).flatten(1).float().cpu())
        labels.append(wanted.cpu())
    return torch.cat(rows), torch.cat(labels)


@torch.no_grad()
def layer_outputs(
    model: nn.Module, head: str, pick: Pick, num_examples: int, *, batch_size: int
) -> dict[str, Tensor]:
    """Return the output of every Conv2d and Linear before the last layer, and the features last.

    Maps `(N, C, height, width)` are averaged to 4 x 4, or left as they are if smaller: those of a
    large image would take gigabytes.

    Args:
        model: Left as it is, but for eval mode. No other thread may use it meanwhile.
        head: Name of the last layer.
        pick: From positions to inputs and labels.
        num_examples: N, at least 1.
        batch_size: Examples a pass.

    Returns:
        By name, in the order of the first calls, float32 `(N, D)` on the CPU.
    """
    model.eval()
    found: dict[str, list[Tensor]] = {}
    for batch in torch.arange(num_examples).split(batch_size):
        inputs, _ = pick(batch)
        with inputs_of(model, head) as seen, _outputs_of(model, head) as outputs:
            model(inputs)
        outputs[FEATURES] = only(seen, head)
        for name, output in outputs.items():
            if output.shape[0] == len(batch):  # else it is not one row an example
                found.setdefault(name, []).append(_flat(output))
    return {name: torch.cat(parts) for name, parts in found.items()}


@contextmanager
def _outputs_of(model: nn.Module, head: str) -> Iterator[dict[str, Tensor]]:
    """Collect what each layer gives at its first call meanwhile."""
    seen: dict[str, Tensor] = {}

    def keeper(name: str) -> Any:
        def keep(layer: nn.Module, given: tuple[Any, ...], output: Tensor) -> None:
            seen.setdefault(name, output.clone())  # an activation may write into it

        return keep

    hooks = [
        module.register_forward_hook(keeper(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and name != head
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _flat(output: Tensor) -> Tensor:
    if output.dim() == 4 and max(output.shape[2:]) > SIDE:
        height, width = output.shape[2:]
        output = adaptive_avg_pool2d(output, (min(SIDE, height), min(SIDE, width)))
    return output.flatten(1).float().cpu()
