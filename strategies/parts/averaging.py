"""The weighted mean of models, as federated averaging needs it."""

from collections.abc import Mapping, Sequence

import numpy as np
from flwr.app import Array, ArrayRecord


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
        arrays = [model[name].numpy() for model in models]
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
