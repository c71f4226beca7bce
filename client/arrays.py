"""The numbers of Flower's arrays, read where they lie and written in one piece.

`Array.numpy()` has Python's parser read the header of every array of every reply, and copies what
follows it; `Array(numbers)` makes that header anew and copies the numbers twice. Most headers are
those that numpy writes for the form that the array says it has.
"""

import io
import math
import threading
from functools import lru_cache
from typing import Any, Final

import numpy as np
from flwr.app import Array
from flwr.common.constant import SType
from numpy.lib.format import dtype_to_descr, write_array_header_1_0

Numbers = np.ndarray[Any, np.dtype[Any]]

MAGIC: Final = b"\x93NUMPY\x01\x00"


# One thread at a time: numpy reads a header with `ast.literal_eval`, and Python 3.11's parser
# counts its depth in one place for all threads. Two inline clients that read at the same moment
# may then fail with "AST constructor recursion depth mismatch".
_READING: Final = threading.Lock()


def numbers(array: Array) -> Numbers:
    """Return an array's numbers, as `Array.numpy()` does; they may not be written to."""
    found = as_said(array)
    if found is not None:
        return found
    with _READING:
        return array.numpy()


def written(found: Numbers) -> Array:
    """Return what `Array(found)` is, byte for byte.

    Args:
        found: Of any shape and of a dtype without objects.
    """
    if not found.flags.c_contiguous or found.dtype.hasobject:
        return Array(found)
    data = b"".join((_written_header(found.dtype, found.shape), found.data))
    return Array(str(found.dtype), found.shape, SType.NUMPY, data)


@lru_cache(maxsize=4096)
def _written_header(dtype: "np.dtype[Any]", shape: tuple[int, ...]) -> bytes:
    """Return what `numpy.save` writes before an array whose last dimension lies together."""
    header = io.BytesIO()
    form = {"descr": dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    write_array_header_1_0(header, form)
    return header.getvalue()


def as_said(array: Array) -> Numbers | None:
    """Return an array's numbers if its bytes are those of the form that it says it has, or None.

    Neither is a header evaluated nor memory taken for what it claims.
    """
    if array.stype != SType.NUMPY:
        return None
    shape, data = tuple(array.shape), array.data
    try:
        dtype, orders = _headers(array.dtype, shape)
    except (TypeError, ValueError):
        return None
    start = len(MAGIC) + 2 + int.from_bytes(data[len(MAGIC) : len(MAGIC) + 2], "little")
    order: Any = orders.get(data[len(MAGIC) + 2 : start].rstrip(b" \n"))
    count = math.prod(shape)
    if order is None or not data.startswith(MAGIC) or len(data) - start != count * dtype.itemsize:
        return None
    return np.frombuffer(data, dtype, count, start).reshape(shape, order=order)


@lru_cache(maxsize=4096)
def _headers(name: str, shape: tuple[int, ...]) -> tuple["np.dtype[Any]", dict[bytes, str]]:
    """Return a dtype and what numpy writes before an array of it, padding left out, by order.

    Raises:
        TypeError, ValueError: If there is no such form.
    """
    dtype = np.dtype(name)
    if dtype.kind not in "biuf" or any(type(length) is not int or length < 0 for length in shape):
        raise TypeError("array must hold numbers")
    headers = {}
    for order in ("C", "F"):
        parts = f"'descr': {dtype.str!r}, 'fortran_order': {order == 'F'}, 'shape': {shape!r}, "
        headers[f"{{{parts}}}".encode()] = order
    return dtype, headers
