"""The numbers of an array as Flower keeps it, read for less than numpy's own reader takes.

numpy has Python's parser read the header of every array. A round of 200 clients on a model of ten
small arrays spent a quarter of its time there. Headers are few, one for each shape and dtype, so
each is parsed once, by numpy, and kept.
"""

import threading
from functools import lru_cache
from io import BytesIO
from typing import Any, Final

import numpy as np
from flwr.app import Array
from flwr.common.constant import SType
from numpy.lib import format as npy

_MAGIC: Final = b"\x93NUMPY\x01\x00"  # of version 1.0, the only one that is read here
_LENGTH: Final = slice(8, 10)  # of the header that follows, little-endian
_LONGEST: Final = 1024  # bytes of a header that is kept

# One thread at a time: numpy reads a header with `ast.literal_eval`, and Python 3.11's parser
# counts its depth in one place for all threads. Two inline clients that read at the same moment
# may then fail with "AST constructor recursion depth mismatch".
_READING: Final = threading.Lock()


def numbers(array: Array) -> "np.ndarray[Any, np.dtype[Any]]":
    """Return what `array.numpy()` returns, perhaps as a view of its bytes that is not writable.

    Raises:
        TypeError, ValueError: As `array.numpy()` does, if it is none that numpy can read.
    """
    data = array.data
    form = None
    if array.stype == SType.NUMPY and data.startswith(_MAGIC) and len(data) > _LENGTH.stop:
        start = _LENGTH.stop + int.from_bytes(data[_LENGTH], "little")
        form = _form(data[:start]) if start <= min(_LONGEST, len(data)) else None
    if form is not None:
        shape, dtype, count = form
        if len(data) - start == count * dtype.itemsize:
            return np.frombuffer(data, dtype, count, start).reshape(shape)
    with _READING:
        return array.numpy()


@lru_cache(maxsize=4096)
def _form(header: bytes) -> tuple[tuple[int, ...], "np.dtype[Any]", int] | None:
    """Return shape, dtype and how many numbers; None for what numpy must read by itself."""
    stream = BytesIO(header)
    try:
        npy.read_magic(stream)
        with _READING:
            shape, by_column, dtype = npy.read_array_header_1_0(stream)
    except ValueError:
        return None
    count = int(np.prod(shape, dtype=object)) if shape else 1
    if by_column or dtype.hasobject or dtype.names is not None or count < 1 or not dtype.itemsize:
        return None
    return shape, dtype, count
