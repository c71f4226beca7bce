"""Federated averaging with scaled updates: some nodes' count less, more, or backwards."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from client.wire import Common
from strategies.rounds import FederatedAveraging, NothingTouched, summed

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
        self._model: ArrayRecord | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Address this round's nodes and keep theta."""
        self._model = arrays
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Add up the scaled updates.

        Raises:
            ClientLost: If fewer nodes answered than must.
            NothingTouched: If they used no example.
        """
        answers = self._by_name(server_round, list(replies))
        used = {n: (c, m) for n, (c, m) in answers.items() if float(m["num-examples"]) > 0}
        if not used or self._model is None:
            raise NothingTouched(
                f"{self.settings.phase} must use at least one example, got none on "
                f"{len(answers)} clients"
            )
        model = scaled_average(
            self._model,
            [next(iter(content.array_records.values())) for content, _ in used.values()],
            [float(metrics["num-examples"]) for _, metrics in used.values()],
            [self.scales.get(name, self.others) for name in used],
        )
        return model, summed([metrics for _, metrics in answers.values()], len(self.failures))


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
