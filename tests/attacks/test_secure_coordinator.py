"""A coordinator that lies: it learns nothing beyond a sum, and its nodes tell it off.

The nodes are real ones (client.app); what goes to them and what comes back is the attacker's.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from client.secure import keys
from strategies.rounds.base import ClientLost, FederatedAveraging
from strategies.rounds.secure import SecureGrid
from tests.messages import weights
from tests.sum_grids import Alter, Between, fit_settings, name_of, one_round, open_grid

NAMES = [f"client-{i}" for i in range(4)]


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFACE_STORE", str(tmp_path / "private"))


@pytest.fixture
def grid() -> Iterator[Between]:
    with open_grid(4) as made:
        yield made


def changing(kind: str, change: Callable[[str, ConfigRecord], None]) -> Alter:
    """Return what changes the settings of all messages of a kind, by the node's name."""

    def alter(message: Message) -> Message:
        if message.metadata.message_type == kind:
            config = ConfigRecord(dict(message.content.config_records["config"]))
            change(name_of(message), config)
            arrays = message.content.array_records["arrays"]
            message.content = RecordDict({"arrays": arrays, "config": config})
        return message

    return alter


def refused(grid: Between, words: str, **more: Any) -> None:
    """Run a round that must fail, because nodes refuse with these words; no share may be seen."""
    with pytest.raises(ClientLost, match=words):
        one_round(SecureGrid(grid), **more)


def shares_seen(grid: Between) -> list[str]:
    """Return the names of the nodes that have revealed any share."""
    return [
        f"client-{reply.metadata.src_node_id - 1}"
        for reply in grid.came
        if reply.metadata.message_type == "query.unmask" and not reply.has_error()
    ]


# ---- lies about survivors -----------------------------------------------------------------------


def test_different_survivors_to_different_nodes_unmask_nothing(grid: Between) -> None:
    # Half are told that client-3 has dropped out: theirs would be shares of its masking key, the
    # others' shares of its seed, and both together its vector.
    def lie(name: str, config: ConfigRecord) -> None:
        if name in NAMES[:2]:
            config["survivors"] = NAMES[:3]

    grid.down = changing("query.confirm", lie)
    refused(grid, r"must be signed alike by at least 3 nodes, got 2 that signed what this one did")
    assert shares_seen(grid) == []


def test_a_node_named_dead_is_not_named_alive_to_the_same_nodes(grid: Between) -> None:
    # The attack on Flower's own: one node both alive and dead. Here a node confirms one set, once.
    one_round(SecureGrid(grid))
    again = [
        Message(m.content, dst_node_id=m.metadata.dst_node_id, message_type=m.metadata.message_type)
        for m in (*grid.of("query.confirm"), *grid.of("query.unmask"))
    ]
    for message in again:
        if message.metadata.message_type == "query.confirm":
            message.content.config_records["config"]["survivors"] = NAMES[:3]
    for reply in grid.send_and_receive(again):
        assert reply.has_error()
        assert "must be the one that this node has begun last and not ended" in reply.error.reason


def test_survivors_named_twice_over_are_refused(grid: Between) -> None:
    def lie(_: str, config: ConfigRecord) -> None:
        config["survivors"] = [*NAMES[:3], NAMES[2]]

    grid.down = changing("query.confirm", lie)
    refused(grid, "survivors must be different nodes of the cohort")
    assert shares_seen(grid) == []


def test_a_list_of_survivors_below_t_is_refused(grid: Between) -> None:
    def lie(name: str, config: ConfigRecord) -> None:
        config["survivors"] = sorted({name, "client-0" if name != "client-0" else "client-1"})

    grid.down = changing("query.confirm", lie)
    refused(grid, "survivors must be at least 3 of 4 nodes, got 2")
    assert shares_seen(grid) == []


def test_forged_signatures_do_not_count(grid: Between) -> None:
    def lie(_: str, config: ConfigRecord) -> None:
        config["signatures"] = [bytes(64) for _ in config["names"]]  # type: ignore[union-attr]

    grid.down = changing("query.unmask", lie)
    refused(grid, "must be signed alike by at least 3 nodes, got 0")
    assert shares_seen(grid) == []


def test_the_same_signature_under_many_names_counts_once(grid: Between) -> None:
    def lie(_: str, config: ConfigRecord) -> None:
        signature = config["signatures"][0]  # type: ignore[index]
        config["signatures"] = [signature] * len(config["names"])  # type: ignore[arg-type,list-item]

    grid.down = changing("query.unmask", lie)
    refused(grid, "must be signed alike by at least 3 nodes, got 1")


# ---- lies about keys, context and cohort --------------------------------------------------------


def test_a_swapped_public_key_is_noticed(grid: Between) -> None:
    # The man in the middle: the coordinator's own keys in place of client-3's.
    def lie(_: str, config: ConfigRecord) -> None:
        sent = list(config["keys"])  # type: ignore[arg-type]
        place = list(config["names"]).index("client-3")  # type: ignore[arg-type]
        own = keys.public_key(keys.new_private_key()) + keys.public_key(keys.new_private_key())
        sent[place] = own + sent[place][64:]  # type: ignore[index,operator]
        config["keys"] = sent  # type: ignore[assignment]

    grid.down = changing("query.shares", lie)
    refused(grid, "keys of client-3 must be signed by the key that this node pinned for it")
    assert grid.of("train.fit") == []


def test_invented_nodes_are_no_peers(grid: Between) -> None:
    # A cohort of one honest node and many of the coordinator's own invention.
    def lie(_: str, config: ConfigRecord) -> None:
        config["secure-cohort"] = sorted([*NAMES, "client-4", "client-5", "client-6"])

    grid.down = lambda m: changing(m.metadata.message_type, lie)(m)
    refused(grid, "nodes that have published keys must be at least 5 of 7 nodes, got 4")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lr", 0.2),
        ("seed", 9),
        ("steps", 1),
        ("batch-size", 1),
        ("forget-classes", [1]),
    ],
)
def test_other_settings_than_the_sum_was_begun_for_are_refused(
    grid: Between, key: str, value: Any
) -> None:
    # For one node alone: its part of the sum would be another question's.
    def lie(name: str, config: ConfigRecord) -> None:
        config[key] = value

    grid.down = changing("train.fit", lie)
    refused(grid, "settings and arrays of train.fit must be those that its sum was begun for")


def test_other_weights_than_the_sum_was_begun_for_are_refused(grid: Between) -> None:
    def alter(message: Message) -> Message:
        if message.metadata.message_type == "train.fit":
            config = message.content.config_records["config"]
            message.content = RecordDict({"arrays": weights(99), "config": config})
        return message

    grid.down = alter
    refused(grid, "settings and arrays of train.fit must be those that its sum was begun for")


def test_a_context_is_not_begun_twice(grid: Between) -> None:
    one_round(SecureGrid(grid))
    again = [
        Message(m.content, dst_node_id=m.metadata.dst_node_id, message_type="query.keys")
        for m in grid.of("query.keys")
    ]
    for reply in grid.send_and_receive(again):
        assert reply.has_error()
        assert "must be a new one, got one that this node has begun before" in reply.error.reason


def test_the_work_is_masked_once(grid: Between) -> None:
    # Two vectors under the same masks would give their difference.
    twice: list[Message] = []

    def alter(message: Message) -> Message:
        if message.metadata.message_type == "query.confirm" and not twice:
            for one in grid.of("train.fit"):
                copied = Message(
                    one.content, dst_node_id=one.metadata.dst_node_id, message_type="train.fit"
                )
                twice.append(copied)
            for reply in super(Between, grid).send_and_receive(twice):
                assert reply.has_error()
                assert "each is taken once" in reply.error.reason
        return message

    grid.down = alter
    one_round(SecureGrid(grid))
    assert len(twice) == 4


def test_a_message_of_a_sum_is_not_answered_alone_if_its_secure_part_is_left_out(
    grid: Between,
) -> None:
    def lie(_: str, config: ConfigRecord) -> None:
        for key in [key for key in config if key.startswith("secure-")]:
            del config[key]

    grid.down = changing("train.fit", lie)
    settings = fit_settings(4, sums_only=True)
    refused(grid, "train.fit must be answered in sums here", rounds=FederatedAveraging(settings))


# ---- two sums -----------------------------------------------------------------------------------


def test_a_cohort_that_differs_by_one_node_with_the_same_weights_is_refused(
    grid: Between,
) -> None:
    start = weights()
    one_round(SecureGrid(grid), arrays=start)
    # A grid that remembers nothing, and another request: the difference would be client-3's.
    three = FederatedAveraging(
        fit_settings(4, request="r0002", lr=0.1000001), participants=NAMES[:3]
    )
    refused(
        grid,
        re.escape(
            "got client-3 more or less: the difference of both sums would be an answer alone"
        ),
        rounds=three,
        arrays=start,
    )
    assert one_round(SecureGrid(grid), arrays=start)[1]["num-clients"] == 4


def test_a_node_that_is_said_to_have_dropped_out_late_is_no_other_cohort(grid: Between) -> None:
    start = weights()
    one_round(SecureGrid(grid), arrays=start)

    # The same cohort, but what client-3 answers is left out: its peers would give away its masks.
    def alter(reply: Message) -> Message | None:
        late = reply.metadata.message_type == "train.fit" and reply.metadata.src_node_id == 4
        return None if late else reply

    grid.up = alter
    refused(grid, "nodes of a sum must be those of the one before it", arrays=start)
    assert shares_seen(grid) == NAMES  # of the first sum alone


def test_what_the_coordinator_sees_of_a_failed_round_is_noise(grid: Between) -> None:
    # All but the last step; without shares a masked vector tells nothing: its numbers are spread
    # evenly over 64 bits, whatever they hide.
    def alter(message: Message) -> Message | None:
        return None if message.metadata.message_type == "query.unmask" else message

    grid.down = alter
    with pytest.raises(ClientLost):
        one_round(SecureGrid(grid))
    vectors = [
        arrays["masked"].numpy().view(np.uint64)
        for kind, arrays, _ in grid.seen
        if kind == "train.fit"
    ]
    assert len(vectors) == 4
    for vector in vectors:
        high = (vector >> np.uint64(60)).astype(int)  # 16 bins
        counts = np.bincount(high, minlength=16)
        expected = len(vector) / 16
        # Chi-squared with 15 degrees of freedom is above 60 once in three million times.
        assert ((counts - expected) ** 2 / expected).sum() < 60
    total = np.sum(vectors, axis=0, dtype=np.uint64).view(np.int64)
    assert np.abs(total / 2**62).max() > 1  # not even the sum


def test_arrays_of_no_node_can_be_had_by_asking_for_one_only(grid: Between) -> None:
    one = FederatedAveraging(fit_settings(4, sums_only=True), participants=["client-0"])
    with pytest.raises(Exception, match="at least 3 clients, got 1"):
        one_round(SecureGrid(grid), one)
    with pytest.raises(ClientLost, match="must be answered in sums here"):
        one_round(grid, one, arrays=ArrayRecord(dict(weights().items())))
