"""A weighted mean of models that come one by one, in any order, with the same bits.

Sums of floats depend on their order. These do not: each number is cut at fixed places into whole
multiples of 2^(32 k), each of which is added up without rounding (Demmel and Nguyen 2015,
https://doi.org/10.1109/TC.2014.2345391). What is kept are three such sums a number, whatever the
count of models.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from flwr.app import Array, ArrayRecord

from client.arrays import numbers

Floats = np.ndarray[Any, np.dtype[np.float64]]

BITS: Final = 32  # of a part
PARTS: Final = 3
MOST: Final = 2**20  # models: parts of 2^32 add up below 2^53, and so without rounding
LOWEST: Final = -3  # part of the largest number, at least: float32 reaches down to 2^-149
BLOCK: Final = 2**14  # numbers at a time, so that they stay in the processor's cache


class RunningMean:
    """sum_i w_i / W * theta_i, tensor by tensor, of models that are given away at once.

    Every w_i * theta_i is rounded to float64, and then to a multiple of 2^-64 of the largest of
    them in its tensor, or finer; the sum of these is exact, and so is W until it is rounded.
    """

    def __init__(self) -> None:
        """Begin with no model."""
        self.weights: list[float] = []
        self._sums: dict[str, _Sum] = {}

    def add(self, model: ArrayRecord, weight: float) -> None:
        """Take a model in.

        Args:
            model: Not kept; names, shapes and dtypes as of the first.
            weight: w_i, at least 0.

        Raises:
            ValueError: If it is of another form, or one of too many.
        """
        if weight < 0 or not math.isfinite(weight):
            raise ValueError(f"weights must be at least 0, got {weight}")
        if len(self.weights) == MOST:
            raise ValueError(f"models of a mean must be at most {MOST}")
        if not self.weights:
            self._sums = {name: _Sum.like(numbers(array)) for name, array in model.items()}
        if list(model) != list(self._sums):
            raise ValueError("models must hold the same tensors in the same order")
        for name, array in model.items():
            found, known = numbers(array), self._sums[name]
            if (found.shape, found.dtype) != (known.shape, known.dtype):
                raise ValueError(f"tensor {name} must have one shape and dtype in all models")
            known.add(found, weight)
        self.weights.append(weight)

    def mean(self) -> ArrayRecord:
        """Return the mean, with the models' dtypes; integers are rounded to the nearest.

        Raises:
            ValueError: If the weights' sum is 0.
        """
        total = math.fsum(self.weights)
        if total <= 0:
            raise ValueError(f"weights must be of positive sum, got {total:g}")
        return ArrayRecord({name: Array(one.over(total)) for name, one in self._sums.items()})


@dataclass
class _Sum:
    """The sum of many arrays of one form.

    Attributes:
        parts: `(PARTS, n)`: whole numbers, of which the p-th counts multiples of
            2^(32 * (top - p)).
        top: None as long as all numbers are zero.
    """

    shape: tuple[int, ...]
    dtype: "np.dtype[Any]"
    parts: Floats
    top: int | None = None

    @classmethod
    def like(cls, array: "np.ndarray[Any, Any]") -> "_Sum":
        """Return an empty sum of arrays such as this one."""
        return cls(array.shape, array.dtype, np.zeros((PARTS, array.size)))

    def add(self, array: "np.ndarray[Any, Any]", weight: float) -> None:
        if not array.size:
            return
        largest = weight * max(float(array.max()), -float(array.min()))
        if not math.isfinite(largest):
            raise ValueError("numbers of a mean must be finite")
        if not largest:
            return
        self._reach(max(LOWEST, (math.frexp(largest)[1] - 1) // BITS))
        flat = array.reshape(-1)
        for here, rest, part in _blocks(flat.size):
            np.multiply(flat[here], weight, out=rest, dtype=np.float64)
            for position, unit in enumerate(self._units()):
                np.multiply(rest, 1 / unit, out=part)
                np.rint(part, out=part)
                self.parts[position, here] += part
                if position < PARTS - 1:
                    part *= unit
                    rest -= part

    def _units(self) -> list[float]:
        assert self.top is not None
        return [math.ldexp(1.0, BITS * (self.top - position)) for position in range(PARTS)]

    def _reach(self, top: int) -> None:
        """Make room for larger numbers; what is too small beside them is let go.

        Had they come first, the same would have been cut off: numbers are rounded at the same
        places, whatever came before.
        """
        if self.top is None or top <= self.top:
            self.top = top if self.top is None else self.top
            return
        for _ in range(min(top - self.top, PARTS)):
            self.parts[1:] = self.parts[:-1].copy()
            self.parts[0] = 0.0
        self.top = top

    def over(self, total: float) -> "np.ndarray[Any, Any]":
        """Return the sum divided by `total`, in the arrays' form."""
        found = np.zeros(self.parts.shape[1])
        if self.top is not None:
            for here, carry, number in _blocks(found.size):
                # One sum has one form: what came in which order may stand in either of two parts.
                carry[:] = 0.0
                below: list[Floats] = []
                for part in self.parts[:0:-1, here]:
                    whole = part + carry
                    np.floor(whole * 2.0**-BITS, out=carry)
                    below.append(whole - carry * 2.0**BITS)
                number[:] = self.parts[0, here] + carry
                for part in reversed(below):
                    number *= 2.0**BITS
                    number += part
                found[here] = number
            found *= self._units()[-1]
            found /= total
        if np.issubdtype(self.dtype, np.integer):
            np.rint(found, out=found)
        return found.reshape(self.shape).astype(self.dtype)


def _blocks(size: int) -> Iterator[tuple[slice, Floats, Floats]]:
    """Yield slices of `size` numbers, each with two arrays for as many."""
    one, other = np.empty(min(BLOCK, size)), np.empty(min(BLOCK, size))
    for start in range(0, size, BLOCK):
        count = min(BLOCK, size - start)
        yield slice(start, start + count), one[:count], other[:count]
