"""A client that lies in a sum: it is named, and where enough others are left, the sum goes on.

The nodes are real ones (client.app); what one of them, client-2, answers is the attacker's.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from strategies.rounds.base import ClientLost, FederatedAveraging
from strategies.rounds.secure import SecureGrid
from strategies.rounds.sums import SumOutOfRange
from tests.messages import weights
from tests.sum_grids import Alter, Between, fit_settings, lost, one_round, open_grid

LIAR, NODE = "client-2", 3  # its number on the grid
STEPS = ("query.keys", "query.shares", "train.fit", "query.confirm", "query.unmask")
Change = Callable[[dict[str, Array]], None]


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFACE_STORE", str(tmp_path / "private"))


@pytest.fixture
def grid() -> Iterator[Between]:
    with open_grid(4) as made:
        yield made


def lying(kind: str, change: Change) -> Alter:
    """Return what changes the arrays that client-2 answers to a kind of message."""

    def alter(reply: Message) -> Message:
        asked, node = reply.metadata.message_type, reply.metadata.src_node_id
        if (asked, node) == (kind, NODE) and not reply.has_error():
            arrays = dict(next(iter(reply.content.array_records.values())))
            change(arrays)
            metrics = next(iter(reply.content.metric_records.values()))
            reply.content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics})
        return reply

    return alter


def flipped(key: str, place: int = -1) -> Change:
    """Return what changes one byte of every row."""

    def change(arrays: dict[str, Array]) -> None:
        rows = arrays[key].numpy().copy()
        rows[:, place] ^= 1
        arrays[key] = Array(rows)

    return change


def short(arrays: dict[str, Array]) -> None:
    for key in list(arrays):
        arrays[key] = Array(arrays[key].numpy()[..., :-1])


def nothing(arrays: dict[str, Array]) -> None:
    arrays.clear()


def floats(arrays: dict[str, Array]) -> None:
    for key in list(arrays):
        arrays[key] = Array(arrays[key].numpy().astype(np.float32))


def forms_of_others(arrays: dict[str, Array]) -> None:
    arrays["forms"] = Array(np.frombuffer(b'[["w", [1], "float32"]]', dtype=np.uint8))


def others_mean(grid: Between) -> ArrayRecord:
    """Return what the three honest nodes make without the liar."""
    rest = [f"client-{i}" for i in range(4) if i != NODE - 1]
    return one_round(grid, FederatedAveraging(fit_settings(4), participants=rest))[0]


def same(one: ArrayRecord, other: ArrayRecord) -> bool:
    return all(np.abs(one[n].numpy() - other[n].numpy()).max() <= 1e-6 for n in other)


MALFORMED = [
    *((step, short) for step in STEPS),
    *(("train.fit", change) for change in (nothing, floats, forms_of_others)),
    ("query.shares", nothing),
    ("query.unmask", floats),
]


@pytest.mark.parametrize(("step", "change"), MALFORMED)
def test_a_malformed_answer_is_its_clients_failure_and_the_sum_goes_on(
    grid: Between, step: str, change: Change
) -> None:
    counted = step in ("query.confirm", "query.unmask")  # its numbers are in the sum by then
    expected = one_round(grid)[0] if counted else others_mean(grid)
    grid.up = lying(step, change)
    model, metrics, rounds = one_round(SecureGrid(grid))
    assert same(model, expected)
    assert metrics["num-clients"] == (4 if counted else 3)
    if not counted:
        (failure,) = rounds.failures
        assert failure.client == LIAR
        assert failure.code == "bad-reply"
        assert "must" in failure.reason


@pytest.mark.parametrize(("step", "change"), MALFORMED)
def test_where_it_was_one_too_many_the_error_names_it(
    grid: Between, step: str, change: Change
) -> None:
    grid.up = lying(step, change)
    grid.down = lost("client-0", at="query.keys")
    with pytest.raises(ClientLost, match=rf"{LIAR}: .*must") as caught:
        one_round(SecureGrid(grid))
    assert {(f.client, f.code) for f in caught.value.failures} == {
        ("client-0", "timeout"),
        (LIAR, "bad-reply"),
    }


def test_a_reply_with_no_numbers_is_named(grid: Between) -> None:
    def alter(reply: Message) -> Message:
        if reply.metadata.src_node_id == NODE and reply.metadata.message_type == "query.keys":
            reply.content = RecordDict({"a": ArrayRecord(), "b": ArrayRecord()})
        return reply

    grid.up = alter
    _, _, rounds = one_round(SecureGrid(grid))
    assert [(f.client, f.code) for f in rounds.failures] == [(LIAR, "bad-reply")]


def test_sites_that_are_only_away_leave_a_round_that_can_go_on_later(grid: Between) -> None:
    grid.down = lost("client-1", "client-2", at="train.fit")
    with pytest.raises(ClientLost) as caught:
        one_round(SecureGrid(grid))
    assert [(f.client, f.code) for f in caught.value.failures] == [
        ("client-1", "timeout"),
        ("client-2", "timeout"),
    ]
    assert caught.value.passing


# ---- well-formed, and wrong ----------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 32, -1], ids=["masking", "sharing", "signature"])
def test_keys_that_are_not_signed_by_it_are_named(grid: Between, place: int) -> None:
    grid.up = lying("query.keys", flipped("keys", place))
    with pytest.raises(ClientLost, match=f"keys of {LIAR} must be signed by the key"):
        one_round(SecureGrid(grid))


def test_shares_that_peers_cannot_open_are_named(grid: Between) -> None:
    grid.up = lying("query.shares", flipped("sealed"))
    with pytest.raises(ClientLost, match=f"shares of {LIAR} must be those it sealed"):
        one_round(SecureGrid(grid))


def test_a_wrong_commitment_is_named(grid: Between) -> None:
    grid.up = lying("query.shares", flipped("commitment"))
    with pytest.raises(SumOutOfRange, match=f"shares of {LIAR} must fit together"):
        one_round(SecureGrid(grid))


def test_a_wrong_signature_of_the_survivors_does_not_stop_the_others(grid: Between) -> None:
    expected = one_round(grid)[0]
    grid.up = lying("query.confirm", flipped("signature"))
    model, metrics, _ = one_round(SecureGrid(grid))
    assert same(model, expected)
    assert metrics["num-clients"] == 4


def test_a_wrong_signature_is_named_where_all_are_needed(grid: Between) -> None:
    grid.up = lying("query.confirm", flipped("signature"))
    grid.down = lost("client-0", at="query.keys")
    with pytest.raises(ClientLost, match=rf"got 2 that signed what this one did.*{LIAR} did not"):
        one_round(SecureGrid(grid))


def test_wrong_shares_revealed_by_one_do_not_stop_the_others(grid: Between) -> None:
    expected = one_round(grid)[0]
    grid.up = lying("query.unmask", flipped("shares"))
    assert same(one_round(SecureGrid(grid))[0], expected)


def test_wrong_shares_revealed_are_not_blamed_on_whose_they_are(grid: Between) -> None:
    # With t revealers nobody can be left out, and nobody can tell which of them lied.
    grid.up = lying("query.unmask", flipped("shares"))
    grid.down = lost("client-0", at="query.keys")
    words = r"one of those that revealed them is at fault \(client-1, client-2, client-3\)"
    with pytest.raises(SumOutOfRange, match=words):
        one_round(SecureGrid(grid))


def test_a_masked_vector_of_noise_fails_the_round_and_nobody_is_blamed(grid: Between) -> None:
    def noise(arrays: dict[str, Array]) -> None:
        size = arrays["masked"].shape[0]
        draws = np.random.default_rng(0).integers(-(2**63), 2**63, size)
        arrays["masked"] = Array(draws)

    grid.up = lying("train.fit", noise)
    with pytest.raises(SumOutOfRange, match="must be one of 4 answers that keep to the protocol"):
        one_round(SecureGrid(grid), arrays=weights())


def test_numbers_beside_the_vector_are_not_believed(grid: Between) -> None:
    expected, totals, _ = one_round(grid)

    def alter(reply: Message) -> Message:
        if reply.metadata.src_node_id == NODE and reply.metadata.message_type == "train.fit":
            arrays = next(iter(reply.content.array_records.values()))
            told = dict(next(iter(reply.content.metric_records.values())))
            told |= {"num-examples": 10**9, "loss": 1e9, "samples": 1e9}
            reply.content = RecordDict({"arrays": arrays, "metrics": MetricRecord(told)})
        return reply

    grid.up = alter
    model, metrics, _ = one_round(SecureGrid(grid))
    assert same(model, expected)
    assert metrics["num-examples"] == totals["num-examples"]
