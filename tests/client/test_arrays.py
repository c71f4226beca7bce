"""Arrays are read as numpy reads them, and what numpy refuses is refused."""

import threading
import time

import numpy as np
import pytest
from flwr.app import Array

from client.arrays import numbers, written

VALUES = pytest.mark.parametrize(
    "value",
    [
        np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array(7, dtype=np.int64),
        np.zeros((0, 3), dtype=np.float16),
        np.array([1, 2], dtype=">f8"),
        np.array([True, False]),
        np.arange(24.0).reshape(2, 3, 4).transpose(1, 0, 2),
        np.zeros((3, 0)),
        np.zeros((1, 1), dtype=np.float32),
    ],
)


@VALUES
def test_an_array_is_read_as_numpy_reads_it(value: np.ndarray) -> None:
    array = Array(value)
    for _ in range(2):  # the second time its header is known
        found, wanted = numbers(array), array.numpy()
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
        assert found.tobytes() == wanted.tobytes()


@VALUES
def test_an_array_is_written_as_numpy_writes_it(value: np.ndarray) -> None:
    for _ in range(2):  # the second time its header is known
        found, wanted = written(value), Array(value)
        assert (found.dtype, found.shape, found.stype) == (wanted.dtype, wanted.shape, wanted.stype)
        assert found.data == wanted.data


def _bytes(value: np.ndarray) -> bytes:
    return bytes(Array(value).data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY\x01\x00",
        _bytes(np.arange(4))[:40],
        _bytes(np.arange(4))[:-1],
        _bytes(np.arange(4)).replace(b"'<i8'", b"'|O' "),
        _bytes(np.arange(4)).replace(b"(4,)", b"(-4,"),
        _bytes(np.arange(4)).replace(b"(4,)", b"4   "),
    ],
    ids=["empty", "magic", "half a header", "a byte short", "objects", "unclosed", "no shape"],
)
def test_what_numpy_refuses_is_refused(data: bytes) -> None:
    array = Array("int64", (4,), "numpy.ndarray", data)
    with pytest.raises(Exception) as usual:  # noqa: PT011 - whichever numpy raises
        array.numpy()
    with pytest.raises(type(usual.value)):
        numbers(array)


def test_another_form_is_refused() -> None:
    with pytest.raises(TypeError, match="Unsupported"):
        numbers(Array("int64", (1,), "another", _bytes(np.arange(1))))


def test_threads_have_numpy_read_headers_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    # Python 3.11's parser, which numpy reads headers with, is not made for two at once.
    inside, most = [], []

    def slow(array: Array) -> np.ndarray:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.02)
        inside.pop()
        return np.zeros(3)

    monkeypatch.setattr(Array, "numpy", slow)
    # Their bytes are not those of the form that they say they have: numpy has to read them.
    arrays = [Array("float32", (4,), "numpy.ndarray", _bytes(np.arange(4))) for _ in range(4)]
    readers = [threading.Thread(target=numbers, args=(array,)) for array in arrays]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert most == [1, 1, 1, 1]
