"""Numbers as integers mod 2^64, whose sums are exact in any order."""

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from client.errors import AggregationRefused

UInt64s = NDArray[np.uint64]
Int64s = NDArray[np.int64]
Floats = NDArray[np.float64]

BITS: Final = 24  # behind the point: an error of at most 2^-25 a node
MOST: Final = 2**62  # of a sum, either way: half of what an int64 could hold
_CHUNK: Final = 1 << 18  # numbers at once; they stay in the cache


def limit(num_nodes: int) -> float:
    """Return the largest number that one of so many nodes may send, either way."""
    return MOST / 2 / 2**BITS / num_nodes  # half of it, so that rounding leads none beyond


def encode(values: NDArray[Any], weight: float, num_nodes: int, what: str, into: Int64s) -> None:
    """Write round(weight * x * 2^24) for every x of `values`.

    Args:
        values: Numbers of any dtype and shape.
        weight: Multiplies them.
        num_nodes: Nodes whose numbers are added.
        what: Their name, for the error.
        into: Where to, `(values.size,)`.

    Raises:
        AggregationRefused: If one is not finite, or beyond `limit`.
    """
    flat = values.reshape(-1)
    most = limit(num_nodes) * 2**BITS
    scale = weight * 2**BITS
    for at in range(0, flat.size, _CHUNK):
        part = flat[at : at + _CHUNK].astype(np.float64)
        part *= scale
        np.rint(part, out=part)
        largest = max(part.max(), -part.min()) if part.size else 0.0
        if not largest <= most:  # NaN is not, either
            raise AggregationRefused(
                f"{what} must lie in [{-limit(num_nodes):.3g}, {limit(num_nodes):.3g}] to be added "
                "up, got more; lower the learning rate"
            )
        into[at : at + part.size] = part.astype(np.int64)


def check_sum(total: Int64s) -> None:
    """Refuse a sum that no numbers within `limit` can have.

    Raises:
        AggregationRefused: If it is one: masks were left in it, or a node sent what it must not.
    """
    if total.size and not (total.max() <= MOST and total.min() >= -MOST):
        raise AggregationRefused(
            "sum must lie within the range that nodes keep to, got one that does not: a node sent "
            "what it must not, or not all masks were taken off"
        )


def decode(total: Int64s) -> Floats:
    """Return the numbers whose fixed-point form `total` is."""
    return total.astype(np.float64) * math.ldexp(1.0, -BITS)
