"""What becomes of the nodes' models in a round: their weighted mean, or something sturdier."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy.fedtrimmedavg import trim_mean

from client.arrays import numbers

TRIMMED: Final = 0.2  # share of the nodes cut off at either end


def weighted_average(models: Sequence[ArrayRecord], weights: Sequence[float]) -> ArrayRecord:
    """Return sum_i w_i / W * theta_i, tensor by tensor.

    Args:
        models: At least one; the same names, shapes and dtypes, else ValueError.
        weights: One a model, at least 0, of positive sum W.

    Returns:
        A record with the models' dtypes: sums are taken in float64 in the order given; integer
        buffers (BatchNorm's count of batches) are rounded to the nearest integer, not turned into
        floats.

    Source: McMahan et al. 2017, https://arxiv.org/abs/1602.05629, Algorithm 1.
    """
    total = float(sum(weights))
    if not models or total <= 0 or min(weights) < 0:
        raise ValueError(f"weights must be at least 0 and of positive sum, got {list(weights)}")
    first: Mapping[str, Array] = models[0]
    for model in models[1:]:
        if list(model) != list(first):
            raise ValueError("models must hold the same tensors in the same order")
    average = ArrayRecord()
    for name in first:
        arrays = [numbers(model[name]) for model in models]
        if len({(a.shape, a.dtype.str) for a in arrays}) != 1:
            raise ValueError(f"tensor {name} must have one shape and dtype in all models")
        mean = np.zeros(arrays[0].shape, dtype=np.float64)
        part = np.empty_like(mean)
        for array, weight in zip(arrays, weights, strict=True):
            mean += np.multiply(array, weight / total, out=part, dtype=np.float64)
        if np.issubdtype(arrays[0].dtype, np.integer):
            np.rint(mean, out=mean)  # in place: of a 0-d array it would return a scalar
        average[name] = Array(mean.astype(arrays[0].dtype))
    return average


@dataclass(frozen=True)
class Aggregation:
    """How one model is made of the nodes' in an ordinary round of training.

    Attributes:
        kind: "mean", weighted by examples; "median" and "trimmed-mean" count every node alike,
            whatever it says of its examples, number by number (Yin et al. 2018,
            https://arxiv.org/abs/1803.01498).
        clip: Longest update: a longer one is shortened to it before it counts; 0 for none.
    """

    kind: str = "mean"
    clip: float = 0.0

    @property
    def plain(self) -> bool:
        """Whether it is federated averaging as it is by default."""
        return self == PLAIN

    def of(
        self,
        start: ArrayRecord,
        models: Sequence[ArrayRecord],
        weights: Sequence[float],
        norms: Sequence[float],
    ) -> ArrayRecord:
        """Return the new model.

        Args:
            start: The model that the nodes were sent.
            models: Theirs, of its form; at least one.
            weights: Their examples.
            norms: The lengths of their updates.
        """
        if self.clip:
            models = [
                self.clipped(start, model, norm) for model, norm in zip(models, norms, strict=True)
            ]
        if self.kind == "mean":
            return weighted_average(models, weights)
        return ArrayRecord({name: self._middle([m[name] for m in models]) for name in start})

    def clipped(self, start: ArrayRecord, model: ArrayRecord, norm: float) -> ArrayRecord:
        """Return a node's model with its update as long as it may be.

        Args:
            start: The model that it was sent.
            model: Its own.
            norm: The length of its update.
        """
        if not self.clip or norm <= self.clip:
            return model
        return shortened(start, model, self.clip / norm)

    def _middle(self, arrays: Sequence[Array]) -> Array:
        stacked = np.stack([numbers(array) for array in arrays]).astype(np.float64)
        # A fifth of three or four nodes is none: one at either end is cut off there.
        share = 1 / len(arrays) if len(arrays) in (3, 4) else TRIMMED
        found = np.median(stacked, axis=0) if self.kind == "median" else trim_mean(stacked, share)
        dtype = numbers(arrays[0]).dtype
        if np.issubdtype(dtype, np.integer):
            found = np.rint(found)
        return Array(np.asarray(found).astype(dtype))


PLAIN: Final = Aggregation()


def shortened(start: ArrayRecord, end: ArrayRecord, share: float) -> ArrayRecord:
    """Return `start + share * (end - start)` where arrays hold floats, else `end`'s.

    Args:
        start: Where the update begins.
        end: Where it leads; of the same form.
        share: In [0, 1].
    """

    def one(name: str) -> Array:
        before, after = numbers(start[name]), numbers(end[name])
        if before.dtype.kind != "f":
            return end[name]
        moved = before + share * np.subtract(after, before, dtype=np.float64)
        return Array(np.asarray(moved).astype(before.dtype))

    return ArrayRecord({name: one(name) for name in start})
