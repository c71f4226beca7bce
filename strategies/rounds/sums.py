"""What comes back of the steps of secure aggregation: read as bytes, added up, shared out.

An answer in another form than it must have is its node's failure: what reads it raises `BadReply`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from client.errors import AggregationRefused
from client.messages import Declaration
from client.secure.fixed_point import UInt64s
from client.secure.keys import KEY_BYTES, SIGNATURE_BYTES, PublicKeys
from client.secure.shares import SHARE_BYTES
from client.secure.vector import APART, MEANS, Shape, Total, forms_from_bytes, length
from client.secure.work import FORMS, VECTOR
from client.steps.secure import COMMITMENT, KEYS, SEALED, SHARES, SIGNATURE
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


def arrays_of(content: RecordDict) -> ArrayRecord:
    """Return the arrays of a reply.

    Raises:
        BadReply: If it holds other records than one of arrays and one of numbers.
    """
    if len(content.array_records) != 1 or len(content.metric_records) != 1 or len(content) != 2:
        raise BadReply(
            "reply must hold one ArrayRecord and one MetricRecord, got "
            f"{len(content.array_records)} and {len(content.metric_records)} in {len(content)} "
            "records"
        )
    return next(iter(content.array_records.values()))


def _matrix(arrays: ArrayRecord, key: str, rows: int, size: int) -> list[bytes]:
    """Return the rows of a matrix of bytes.

    Raises:
        BadReply: If it is something else.
    """
    if key not in arrays:
        raise BadReply(f"reply must hold {key}, got none")
    return [row.tobytes() for row in plain(arrays[key], Form((rows, size), "uint8"), key)]


def _line(arrays: ArrayRecord, key: str, dtype: str) -> "np.ndarray[Any, Any]":
    """Return a row of numbers, of any length.

    Raises:
        BadReply: If it is something else.
    """
    array = arrays.get(key)
    shape = () if array is None else tuple(array.shape)
    if array is None or len(shape) != 1:
        raise BadReply(f"reply must hold one row of numbers called {key}, got another form")
    return plain(array, Form(shape, dtype), key)


def published(arrays: ArrayRecord) -> bytes:
    """Return the keys that a node has published, with its signature."""
    return _matrix(arrays, KEYS, 1, 2 * KEY_BYTES + SIGNATURE_BYTES)[0]


def sealed_shares(arrays: ArrayRecord, others: Sequence[str]) -> tuple[dict[str, bytes], bytes]:
    """Return what a node has sealed for each of the others, and its commitment."""
    rows = _matrix(arrays, SEALED, len(others), SEALED_BYTES)
    return dict(zip(others, rows, strict=True)), _matrix(arrays, COMMITMENT, 1, KEY_BYTES)[0]


def signature(arrays: ArrayRecord) -> bytes:
    """Return a node's signature of the survivors."""
    return _matrix(arrays, SIGNATURE, 1, SIGNATURE_BYTES)[0]


def revealed_shares(arrays: ArrayRecord, names: Sequence[str]) -> dict[str, bytes]:
    """Return the share of each node's secret that one reveals."""
    return dict(zip(names, _matrix(arrays, SHARES, len(names), SHARE_BYTES), strict=True))


def public_keys(raw: bytes) -> PublicKeys:
    return PublicKeys(raw[:KEY_BYTES], raw[KEY_BYTES : 2 * KEY_BYTES], raw[2 * KEY_BYTES :])


@dataclass(frozen=True)
class Masked:
    """A masked answer.

    Attributes:
        vector: Its numbers.
        forms: What they are, as the node says it.
    """

    vector: UInt64s
    forms: bytes


def masked(arrays: ArrayRecord) -> Masked:
    """Return a node's masked answer, whatever its form."""
    return Masked(
        _line(arrays, VECTOR, "int64").view(np.uint64), _line(arrays, FORMS, "uint8").tobytes()
    )


class MaskedSums:
    """Masked answers, added up as they come: whole numbers, whose sum knows no order.

    Answers of each form have a sum of their own.
    """

    def __init__(self) -> None:
        """Begin with no answer."""
        self._sums: dict[tuple[bytes, int], UInt64s] = {}
        self._names: dict[tuple[bytes, int], list[str]] = {}

    def add(self, name: str, answer: Masked) -> None:
        """Take in the answer of the node `name`."""
        way = (answer.forms, len(answer.vector))
        if way in self._sums:
            self._sums[way] += answer.vector
        else:
            self._sums[way] = answer.vector.copy()
        self._names.setdefault(way, []).append(name)

    def in_one_form(
        self, declared: Declaration, num_classes: int
    ) -> tuple[dict[str, Shape], list[str], UInt64s]:
        """Return the form that most answers have, who sent them, and their sum.

        More than two thirds of all nodes are needed, so that it is no other form than honest
        nodes'.

        Args:
            declared: Of the message.
            num_classes: Of the model.
        """
        # Of two that are as frequent, the one whose first name is first.
        ways = sorted(self._names, key=lambda way: (-len(self._names[way]), min(self._names[way])))
        for way in ways:
            try:
                forms = forms_from_bytes(way[0])
            except AggregationRefused:
                continue
            if length(declared, num_classes, forms) == way[1]:
                return forms, sorted(self._names[way]), self._sums[way]
        return {}, [], np.zeros(0, np.uint64)


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
