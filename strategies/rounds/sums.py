"""What comes back of the steps of secure aggregation: read as bytes, added up, shared out.

A node that answers in another form than it must counts as one that did not answer.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from client.errors import AggregationRefused
from client.messages import Declaration
from client.secure.fixed_point import UInt64s
from client.secure.keys import KEY_BYTES, SIGNATURE_BYTES, PublicKeys
from client.secure.shares import SHARE_BYTES
from client.secure.vector import APART, MEANS, Shape, Total, forms_from_bytes
from client.secure.work import FORMS, VECTOR
from client.steps.secure import SEALED, SHARES
from client.wire import Form
from strategies.rounds.base import ClientLost
from strategies.rounds.replies import BadReply, plain

SEALED_BYTES: Final = 2 * SHARE_BYTES + 16  # AES-GCM's tag
NUMBER_BYTES: Final = 8  # of a number of a masked vector
NAME_BYTES: Final = 2 * 10  # of a node, about: in the cohort and among those that are left
STEPS: Final = 4  # messages to a node beside the work: keys, shares, confirm, unmask


class SumOutOfRange(ClientLost):
    """A sum cannot be one of answers that keep to the range: nothing of it is used."""

    code = "sum-out-of-range"


def _rows(arrays: ArrayRecord, key: str, size: int) -> list[bytes]:
    """Return the rows of a matrix of bytes; none if it is something else."""
    array = arrays.get(key)
    if array is None or array.dtype != "uint8" or len(array.shape) != 2 or array.shape[1] != size:
        return []
    try:
        return [row.tobytes() for row in plain(array, Form(tuple(array.shape), "uint8"), key)]
    except BadReply:
        return []


def _numbers(array: Array | None, dtype: str) -> "np.ndarray[Any, Any] | None":
    """Return a row of numbers as its node sent it; None if it is something else."""
    if array is None or array.dtype != dtype or len(array.shape) != 1:
        return None
    try:
        return plain(array, Form(tuple(array.shape), dtype), "masked")
    except BadReply:
        return None


def one_row(answers: Mapping[str, ArrayRecord], key: str, size: int) -> dict[str, bytes]:
    """Return the one row that each node answers with; nodes that answer otherwise are left out."""
    found = {name: _rows(arrays, key, size) for name, arrays in answers.items()}
    return {name: rows[0] for name, rows in found.items() if len(rows) == 1}


def sealed_shares(
    answers: Mapping[str, ArrayRecord], names: Sequence[str]
) -> dict[str, dict[str, bytes]]:
    """Return what each node has sealed for each of the others."""
    found = {}
    for name, arrays in answers.items():
        others = [other for other in names if other != name]
        rows = _rows(arrays, SEALED, SEALED_BYTES)
        if len(rows) == len(others):
            found[name] = dict(zip(others, rows, strict=True))
    return found


def revealed_shares(
    answers: Mapping[str, ArrayRecord], names: Sequence[str]
) -> dict[str, dict[str, bytes]]:
    """Return the share of each node's secret that each survivor reveals."""
    found = {name: _rows(arrays, SHARES, SHARE_BYTES) for name, arrays in answers.items()}
    return {
        name: dict(zip(names, rows, strict=True))
        for name, rows in found.items()
        if len(rows) == len(names)
    }


def public_keys(raw: bytes) -> PublicKeys:
    return PublicKeys(raw[:KEY_BYTES], raw[KEY_BYTES : 2 * KEY_BYTES], raw[2 * KEY_BYTES :])


def added(message: str, replies: Sequence[Message]) -> tuple[UInt64s, dict[str, Shape]]:
    """Return the sum of masked vectors, and what its numbers are.

    Raises:
        SumOutOfRange: If one has another form than the others.
    """
    total: UInt64s | None = None
    layout: bytes | None = None
    for reply in replies:
        arrays = next(iter(reply.content.array_records.values()))
        vector, forms = _numbers(arrays.get(VECTOR), "int64"), _numbers(arrays.get(FORMS), "uint8")
        own = b"" if forms is None else forms.tobytes()
        if layout is None:
            layout = own
        if vector is None or own != layout:
            raise SumOutOfRange(f"masked answers to {message} must have one form, got others")
        numbers = vector.view(np.uint64)
        if total is None:
            total = numbers.copy()
        elif numbers.shape != total.shape:
            raise SumOutOfRange(f"masked answers to {message} must have one length, got others")
        else:
            total += numbers
    if total is None:
        raise SumOutOfRange("sum must be of at least one answer, got none")
    try:
        return total, forms_from_bytes(layout or b"[]")
    except AggregationRefused as error:
        raise SumOutOfRange(str(error)) from error


def shared_out(
    declared: Declaration, total: Total, num_nodes: int
) -> tuple[ArrayRecord, dict[str, Any]]:
    """Return what each node's reply holds: added up as replies are, they give the sum again."""
    numbers = {
        name: value
        if name in MEANS
        else [one / num_nodes for one in value]
        if isinstance(value, list)
        else value / num_nodes
        for name, value in total.numbers.items()
    }
    arrays = ArrayRecord()
    for name, array in total.arrays.items():
        part = array if declared.sums == "mean" else array / num_nodes
        arrays[name] = Array(np.asarray(part, dtype=array.dtype))
    return arrays, numbers


def with_content(reply: Message, content: tuple[ArrayRecord, dict[str, Any]]) -> Message:
    """Return a node's reply with its part of the sum in place of what hid it."""
    arrays, numbers = content
    metrics: dict[str, Any] = dict(next(iter(reply.content.metric_records.values())))
    apart: dict[str, Any] = {name: metrics[name] for name in APART if name in metrics}
    shown: dict[str, Any] = {**numbers, **apart}
    reply.content = RecordDict({"arrays": arrays, "metrics": MetricRecord(shown)})
    return reply


def in_sums(declared: Declaration, num_nodes: int, down: float, up: float) -> tuple[float, float]:
    """Return the bytes to and from a node that one answer takes where only sums go up.

    Keys, shares and signatures are counted, and numbers of 64 bits for all that is masked; not the
    settings, which every one of the messages carries.

    Args:
        declared: Of the message.
        num_nodes: Nodes of the sum.
        down, up: Bytes of arrays of the message alone, and of a full answer.
    """
    others = num_nodes - 1
    published = 2 * KEY_BYTES + SIGNATURE_BYTES
    names = 4 * num_nodes * NAME_BYTES  # the cohort in each of the messages; who is left, in most
    number = 8 if declared.arrays in ("class-sums", "effects") else 4
    down += num_nodes * (published + SIGNATURE_BYTES) + others * SEALED_BYTES + names
    steps = published + others * SEALED_BYTES + KEY_BYTES + SIGNATURE_BYTES
    return down, NUMBER_BYTES * up / number + steps + num_nodes * SHARE_BYTES
