"""A record of arrays as one array on the wire.

Flower moves every array as objects of their own, with questions and answers for each: a network of
130 arrays takes some hundred times as many of them as one array does. A coordinator that packs what
it sends gets the answers packed; what is not packed is read as it is. The bytes of each array stay
what they were.

    8 bytes                        length of the list, big-endian
    list, JSON in UTF-8            [[name, dtype, shape, length in bytes], ...]
    the arrays' bytes, one after another, as Flower keeps a numpy array
"""

import json
from collections.abc import Callable
from typing import Final

from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.common.constant import SType

from client.errors import EffaceError

NAME: Final = ".packed"  # no network has it: the part of a name before a dot is never empty
FORM: Final = "efface.packed"
_LENGTH: Final = 8
_LONGEST_LIST: Final = 2**24  # bytes


class BadPacking(EffaceError):
    """A packed record is not what it must be; nothing of it is used."""

    code = "bad-packing"


def packed(arrays: ArrayRecord) -> ArrayRecord:
    """Return a record with one array for all; as it is where there is little to gain."""
    if len(arrays) < 2 or any(array.stype != SType.NUMPY for array in arrays.values()):
        return arrays
    listed = [
        [name, array.dtype, list(array.shape), len(array.data)] for name, array in arrays.items()
    ]
    head = json.dumps(listed, separators=(",", ":")).encode()
    parts = [len(head).to_bytes(_LENGTH, "big"), head, *(a.data for a in arrays.values())]
    data = b"".join(parts)
    return ArrayRecord({NAME: Array("uint8", (len(data),), FORM, data)})


def is_packed(arrays: ArrayRecord) -> bool:
    """Return whether a record came as one array."""
    return NAME in arrays


def unpacked(arrays: ArrayRecord) -> ArrayRecord:
    """Return the arrays of a packed record; another one as it is.

    What they hold is as little believed as that of arrays that came one by one.

    Raises:
        BadPacking: If the record is not the list and the bytes that it names, no more, no less.
    """
    if not is_packed(arrays):
        return arrays
    if len(arrays) != 1 or arrays[NAME].stype != FORM:
        raise BadPacking(f"packed record must hold one array kept as {FORM}, got {len(arrays)}")
    data = memoryview(arrays[NAME].data)
    start = _LENGTH + int.from_bytes(data[:_LENGTH], "big")
    if not _LENGTH <= start <= min(len(data), _LENGTH + _LONGEST_LIST) or len(data) < _LENGTH:
        raise BadPacking(f"packed record must begin with its list, got {len(data)} bytes")
    try:
        listed = json.loads(bytes(data[_LENGTH:start]))
    except (ValueError, RecursionError):
        raise BadPacking("packed record must begin with a list in JSON, got another") from None
    found: dict[str, Array] = {}
    for name, dtype, shape, length in _entries(listed):
        if name in found or name == NAME or length > len(data) - start:
            raise BadPacking(f"packed record must hold what it lists, got {len(data)} bytes")
        found[name] = Array(dtype, shape, SType.NUMPY, bytes(data[start : start + length]))
        start += length
    if start != len(data):
        raise BadPacking(f"packed record must hold what it lists alone, got {len(data)} bytes")
    return ArrayRecord(found)


def as_asked(answer: Message, question: Message) -> Message:
    """Return an answer in the form that its question came in."""
    if any(map(is_packed, question.content.array_records.values())):
        answer.content = with_arrays(answer.content, packed)
    return answer


def with_arrays(content: RecordDict, change: Callable[[ArrayRecord], ArrayRecord]) -> RecordDict:
    """Return a message's content with each of its records of arrays changed, all else the same."""
    return RecordDict(
        {
            name: change(record) if isinstance(record, ArrayRecord) else record
            for name, record in content.items()
        }
    )


def _entries(listed: object) -> list[tuple[str, str, tuple[int, ...], int]]:
    """Return the list of a packed record, once it is known to be one."""
    if not isinstance(listed, list):
        raise BadPacking(f"list of a packed record must be one, got {type(listed).__name__}")
    for entry in listed:
        match entry:
            case [str(), str(), list(shape), int(length)] if length >= 0 and all(
                type(one) is int and one >= 0 for one in [*shape, length]
            ):
                continue
        raise BadPacking("list of a packed record must name arrays, got something else in it")
    return [(name, dtype, tuple(shape), length) for name, dtype, shape, length in listed]
