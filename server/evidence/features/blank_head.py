"""A blank head: the forgotten classes' rows of the last layer set to the mean of the others.

Origin: this project. The relearning curve of a model whose last layer was edited starts lower than
its features would let it. With the same blank row in every model, Retrained included, the curve
tells what the features give alone.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn


@torch.no_grad()
def blank_rows(model: nn.Module, head: str, classes: Sequence[int], others: Sequence[int]) -> None:
    """Set rows of the last layer, and their biases, to the mean of others.

    Args:
        model: Changed.
        head: Name of its last layer, a Linear with a row a class.
        classes: Whose rows are set.
        others: Whose rows the mean is of; at least one.
    """
    layer = cast(nn.Linear, model.get_submodule(head))
    layer.weight[list(classes)] = layer.weight[list(others)].mean(dim=0)
    if layer.bias is not None:
        layer.bias[list(classes)] = layer.bias[list(others)].mean()
