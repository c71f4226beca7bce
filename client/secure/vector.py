"""An answer as one vector of integers mod 2^64, and a sum of such vectors as an answer again.

First the declared numbers, in the order of their declaration, then the arrays by name. An array of
which the mean is wanted is multiplied by the number of examples, and so is the mean loss; all else
adds up as it is.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from client.errors import AggregationRefused
from client.messages import OF_NOISE
from client.secure.fixed_point import Int64s, UInt64s, check_sum, decode, encode

APART: Final = ("code", "partition")  # tell nothing of a node's examples, and are no sums
EXAMPLES: Final = "num-examples"
MEANS: Final = ("loss",)  # numbers that are means over the node's examples
DTYPES: Final = ("float16", "float32", "float64", "int64", "int32", "uint8")
MOST_ARRAYS: Final = 100_000


class Declared(Protocol):
    """What is read of a message's declaration (`client.messages.Declaration`)."""

    @property
    def up(self) -> Mapping[str, Any]:
        """All numbers that may go up, by name: "scalar" or "per-class"."""

    @property
    def sums(self) -> Any:
        """How arrays add up: "mean" or "sum"."""


@dataclass(frozen=True)
class Shape:
    """An array's form: shape, and dtype as numpy names it."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Total:
    """A sum of answers.

    Attributes:
        numbers: Declared numbers by name, added up; "loss" the mean over all examples.
        arrays: By name: means over all examples, or sums.
    """

    numbers: dict[str, Any]
    arrays: dict[str, NDArray[Any]]

    @property
    def examples(self) -> float:
        return float(self.numbers[EXAMPLES])


def length(declared: Declared, num_classes: int, forms: Mapping[str, Shape]) -> int:
    """Return how many numbers the vector has."""
    numbers = sum(num_classes if kind == "per-class" else 1 for _, kind in _numbers(declared))
    return numbers + sum(form.size for form in forms.values())


def encoded(
    declared: Declared,
    numbers: Mapping[str, float | list[float]],
    arrays: Mapping[str, NDArray[Any]] | None,
    forms: Mapping[str, Shape],
    *,
    num_classes: int,
    num_nodes: int,
) -> UInt64s:
    """Return a node's answer as a vector.

    Args:
        declared: What the message declares.
        numbers: By name; one that is missing counts as 0.
        arrays: By name; None, or any if it has no examples, for zeros.
        forms: Names, shapes and dtypes of the arrays.
        num_classes: Of the model.
        num_nodes: Nodes of the cohort.

    Raises:
        AggregationRefused: If a number or an array is out of range, or not finite.
    """
    vector = np.zeros(length(declared, num_classes, forms), dtype=np.int64)
    examples, at = float(numbers.get(EXAMPLES, 0.0)), 0  # type: ignore[arg-type]
    for name, kind in _numbers(declared):
        values = np.atleast_1d(np.asarray(numbers.get(name, 0.0), dtype=np.float64))
        if kind == "per-class" and name not in numbers:
            values = np.zeros(num_classes)
        weight = examples if name in MEANS else 1.0
        encode(values, weight, num_nodes, name, vector[at : at + values.size])
        at += values.size
    if arrays is not None and examples:
        weight = examples if declared.sums == "mean" else 1.0
        for name in sorted(forms):
            size = forms[name].size
            encode(arrays[name], weight, num_nodes, f"array {name}", vector[at : at + size])
            at += size
    return vector.view(np.uint64)


def decoded(
    declared: Declared, total: UInt64s, forms: Mapping[str, Shape], *, num_classes: int
) -> Total:
    """Return the answer that a sum of vectors holds.

    Raises:
        AggregationRefused: If it cannot be a sum of vectors that `encoded` made.
    """
    signed: Int64s = total.view(np.int64)
    if len(signed) != length(declared, num_classes, forms):
        raise AggregationRefused("sum must be as long as its arrays and numbers, got another")
    check_sum(signed)
    numbers: dict[str, Any] = {}
    at = 0
    for name, kind in _numbers(declared):
        size = num_classes if kind == "per-class" else 1
        found = decode(signed[at : at + size])
        numbers[name] = found.tolist() if kind == "per-class" else float(found[0])
        at += size
    examples = numbers[EXAMPLES]
    if not (examples >= 0 and float(examples).is_integer()):
        raise AggregationRefused(f"sum of num-examples must be a whole number, got {examples:g}")
    for name in MEANS:
        if name in numbers:
            numbers[name] = numbers[name] / examples if examples else 0.0
    arrays: dict[str, NDArray[Any]] = {}
    for name in sorted(forms):
        form = forms[name]
        values = decode(signed[at : at + form.size])
        at += form.size
        if declared.sums == "mean" and examples:
            values /= examples
        if np.issubdtype(np.dtype(form.dtype), np.integer):
            np.rint(values, out=values)
        arrays[name] = values.astype(form.dtype).reshape(form.shape)
    return Total(numbers, {name: arrays[name] for name in forms})


def forms_to_bytes(forms: Mapping[str, Shape]) -> bytes:
    """Return the forms as they go up beside the vector: the model's layout says them, no data."""
    listed = [[name, list(form.shape), form.dtype] for name, form in forms.items()]
    return json.dumps(listed).encode()


def forms_from_bytes(raw: bytes) -> dict[str, Shape]:
    """Return what `forms_to_bytes` gave.

    Raises:
        AggregationRefused: If it is something else.
    """
    try:
        listed = json.loads(raw)
        found = {name: Shape(tuple(shape), dtype) for name, shape, dtype in listed}
        fits = all(
            isinstance(name, str)
            and form.dtype in DTYPES
            and all(type(n) is int and 0 <= n <= 2**40 for n in form.shape)
            for name, form in found.items()
        )
    except (ValueError, TypeError, RecursionError) as error:
        raise AggregationRefused("forms of arrays must be names, shapes and dtypes") from error
    if not fits or len(found) > MOST_ARRAYS or len(found) != len(listed):
        raise AggregationRefused("forms of arrays must be names, shapes and dtypes, got others")
    return found


def _numbers(declared: Declared) -> list[tuple[str, str]]:
    left_out = {*APART, *OF_NOISE}  # a budget is a node's own: its log has it
    return [(name, kind) for name, kind in declared.up.items() if name not in left_out]
