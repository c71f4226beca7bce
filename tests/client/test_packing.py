"""Many arrays as one: what comes out is what went in, and anything else is refused."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from client.packing import FORM, NAME, BadPacking, as_asked, packed, unpacked, with_arrays
from server import runner
from server.nodes.engines.inline import InlineGrid
from server.nodes.grid import NamedGrid
from server.nodes.sizes import size
from tests.small_job import train, weights

RECORD = ArrayRecord(
    {
        "a.weight": Array(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "a.count": Array(np.array(7)),
        "b/☃": Array(np.asfortranarray(np.ones((2, 2), np.float16))),
        "none": Array(np.zeros((0, 3), np.uint8)),
    }
)


def content(arrays: ArrayRecord) -> list[tuple[str, str, tuple[int, ...], str, bytes]]:
    return [(n, a.dtype, tuple(a.shape), a.stype, a.data) for n, a in arrays.items()]


def test_every_byte_comes_back_in_order() -> None:
    one = packed(RECORD)
    assert list(one) == [NAME]
    assert content(unpacked(one)) == content(RECORD)
    assert content(unpacked(RECORD)) == content(RECORD)


@pytest.mark.parametrize("names", [[], ["a.count"]])
def test_there_is_nothing_to_gain_with_one_array_or_none(names: list[str]) -> None:
    few = ArrayRecord({name: RECORD[name] for name in names})
    assert packed(few) is few


def raw(listed: Any, data: bytes = b"", length: int | None = None) -> bytes:
    head = listed if isinstance(listed, bytes) else json.dumps(listed).encode()
    return (len(head) if length is None else length).to_bytes(8, "big") + head + data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 7,
        raw([], length=2**63),
        raw([], length=2**24 + 9),
        raw(b"[" * 100_000),
        raw(b"\xff"),
        raw({"a": 1}),
        raw([["a", "uint8", [1], 1]]),  # less than it lists
        raw([["a", "uint8", [1], 1]], b"12"),  # more
        raw([["a", "uint8", [1], 1], ["a", "uint8", [1], 1]], b"12"),
        raw([[NAME, "uint8", [1], 1]], b"1"),
        raw([["a", "uint8", [-1], 1]], b"1"),
        raw([["a", "uint8", [1], -1]], b""),
        raw([["a", "uint8", [True], 1]], b"1"),
        raw([["a", "uint8", [1.0], 1]], b"1"),
        raw([["a", 8, [1], 1]], b"1"),
        raw([["a", "uint8", [1]]], b"1"),
        raw([["a", "uint8", [1], True]], b"1"),
    ],
)
def test_what_is_no_packed_record_is_refused(data: bytes) -> None:
    with pytest.raises(BadPacking):
        unpacked(ArrayRecord({NAME: Array("uint8", (len(data),), FORM, data)}))


def test_a_packed_record_has_nothing_beside_it_and_is_of_our_form() -> None:
    array = packed(RECORD)[NAME]
    with pytest.raises(BadPacking):
        unpacked(ArrayRecord({NAME: array, "more": array}))
    with pytest.raises(BadPacking):
        unpacked(ArrayRecord({NAME: Array("uint8", (0,), "numpy.ndarray", array.data)}))


def test_an_answer_comes_in_the_form_of_its_question_and_is_counted_as_sent() -> None:
    def answer(message: Message, context: Any) -> Message:
        seen.append(message.content.array_records["arrays"])
        numbers = MetricRecord({"n": 1})
        told = RecordDict({"arrays": RECORD, "metrics": numbers})
        return as_asked(Message(told, reply_to=message), message)

    up = {}
    for packs in (False, True):
        seen: list[ArrayRecord] = []
        with InlineGrid(answer, 2) as inner:
            grid = NamedGrid(inner, 60.0, 0.005, packs=packs)
            told = RecordDict({"arrays": RECORD, "config": ConfigRecord({"a": 1})})
            sent = [Message(told, dst_node_id=node, message_type="train") for node in (1, 2)]
            replies = grid.send_and_receive(sent)
        assert [content(r.content.array_records["arrays"]) for r in replies] == [
            content(RECORD)
        ] * 2
        assert all(message.content is told for message in sent)  # the caller's own is as it was
        assert [list(one) for one in seen] == [[NAME] if packs else list(RECORD)] * 2
        moved = with_arrays(told, packed) if packs else told
        question = Message(moved, dst_node_id=1, message_type="train")
        assert grid.traffic.down == 2 * size(question)
        up[packs] = grid.traffic.up
    assert 0 < up[True] != up[False]


def test_a_reply_that_cannot_be_unpacked_is_its_nodes_failure_alone() -> None:
    def answer(message: Message, context: Any) -> Message:
        bad = ArrayRecord({NAME: Array("uint8", (0,), FORM, b"")})
        arrays = bad if context.node_id == 1 else packed(RECORD)
        return Message(RecordDict({"arrays": arrays}), reply_to=message)

    with InlineGrid(answer, 2) as inner:
        grid = NamedGrid(inner, 60.0, 0.005, packs=True)
        told = RecordDict({"arrays": RECORD})
        sent = [Message(told, dst_node_id=node, message_type="train") for node in (1, 2)]
        bad, good = grid.send_and_receive(sent)
    assert bad.has_error()
    assert bad.metadata.src_node_id == 1
    assert "reply must be readable: packed record must begin" in bad.error.reason
    assert content(good.content.array_records["arrays"]) == content(RECORD)


@pytest.mark.parametrize(
    "more", [{}, {"num_clients": 3, "secure_aggregation": True, "keep_updates": 0, "scale": 0}]
)
def test_packed_or_not_the_weights_are_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    found = []
    for packs in (False, True):
        monkeypatch.setattr(runner, "NamedGrid", partial(NamedGrid, packs=packs))
        train(tmp_path / str(packs), "inline", **more)
        found.append({n: a.tobytes() for n, a in weights(tmp_path / str(packs), "v0001").items()})
    assert found[0] == found[1]
    assert found[0]
