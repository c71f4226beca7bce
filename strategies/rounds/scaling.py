"""Federated averaging with scaled updates: some nodes' count less, more, or backwards."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from flwr.app import Array, ArrayRecord

from client.wire import Common
from strategies.rounds.base import FederatedAveraging, Used, examples_of

STATISTICS: Final = ("running_mean", "running_var", "num_batches_tracked")


class ScaledAveraging(FederatedAveraging):
    """FedAvg in which a node's update counts as often as its scale says, or with its sign turned.

        theta <- theta + sum_i |Z_i| / |Z| * s_i * (theta_i - theta)

    With every s_i = 1 this is FedAvg. A norm layer's running statistics are scaled by s_i clipped
    to [0, 1]: extrapolated, a variance could turn negative.
    """

    def __init__(
        self, settings: Common, *, scales: Mapping[str, float], others: float = 1.0, **more: Any
    ) -> None:
        """Args as in `Rounds`, and:

        Args:
            settings: What every node is told.
            scales: s_i by the nodes' names.
            others: s_i of the nodes that `scales` does not name.
            more: Arguments of `Rounds`.
        """
        super().__init__(settings, **more)
        self.scales = scales
        self.others = others

    def combine(self, used: Mapping[str, Used]) -> ArrayRecord:
        """Add up the scaled updates."""
        models = [answer.arrays for answer in used.values()]
        scales = [self.scales.get(name, self.others) for name in used]
        return scaled_average(self.sent, models, examples_of(used), scales)


def scaled_average(
    model: ArrayRecord,
    models: Sequence[ArrayRecord],
    weights: Sequence[float],
    scales: Sequence[float],
) -> ArrayRecord:
    """Return theta + sum_i w_i / W * s_i * (theta_i - theta), tensor by tensor.

    Args:
        model: theta; not changed.
        models: theta_i, at least one; the same names, shapes and dtypes as theta, else ValueError.
        weights: w_i, at least 0, of positive sum W.
        scales: s_i, any finite numbers; for running statistics they are clipped to [0, 1].

    Returns:
        A record with theta's dtypes; sums are taken in float64 in the order given.
    """
    total = float(sum(weights))
    if not models or total <= 0 or min(weights) < 0:
        raise ValueError(f"weights must be at least 0 and of positive sum, got {list(weights)}")
    if any(list(other) != list(model) for other in models):
        raise ValueError("models must hold the same tensors in the same order")
    result = ArrayRecord()
    for name in model:
        start = model[name].numpy()
        end = start.astype(np.float64)
        for other, weight, scale in zip(models, weights, scales, strict=True):
            array = other[name].numpy()
            if (array.shape, array.dtype) != (start.shape, start.dtype):
                raise ValueError(f"tensor {name} must have one shape and dtype in all models")
            if name.rpartition(".")[2] in STATISTICS:
                scale = min(max(scale, 0.0), 1.0)
            end += weight / total * scale * np.subtract(array, start, dtype=np.float64)
        if np.issubdtype(start.dtype, np.integer):
            np.rint(end, out=end)
        result[name] = Array(end.astype(start.dtype))
    return result
