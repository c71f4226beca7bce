"""Many replies: few are in memory at a time, and the model is the same whatever their order."""

import contextlib
import gc
import random
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message
from flwr.supercore.task_identity import TaskIdentity

from client.steps.training import Fit
from server.nodes import grid as named_grid
from server.nodes.engines.inline import InlineGrid
from server.nodes.grid import NamedGrid
from strategies.parts.averaging import Aggregation
from strategies.rounds import gathering
from strategies.rounds.arriving import arriving
from strategies.rounds.base import ClientLost, FederatedAveraging
from tests.messages import reply, told

NUMBERS = 1000
ROOM = 5  # answers that may wait
FEW = {"steps": 1, "batch_size": 32, "lr": 0.1}


@pytest.fixture(autouse=True)
def _little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    monkeypatch.setattr(gathering, "WAITING_BYTES", ROOM * 4 * NUMBERS)
    monkeypatch.setattr(named_grid, "HELD_BYTES", ROOM * 4 * NUMBERS)


class Alive:
    """A ClientApp that counts how many of its replies are not yet forgotten."""

    def __init__(self) -> None:
        self.alive = self.most = 0
        self.lock = threading.RLock()

    def __call__(self, message: Message, context: Context) -> Message:
        found = reply(message, update(context.node_id), float(context.node_id))
        weakref.finalize(found.content.array_records["arrays"], self.count, -1)
        self.count(1)
        return found

    def count(self, one: int) -> None:
        with self.lock:
            self.alive += one
            self.most = max(self.most, self.alive)


def update(seed: int, times: float = 1.0) -> ArrayRecord:
    numbers = np.random.default_rng(seed).normal(size=NUMBERS) * times
    return ArrayRecord({"w": Array(numbers.astype(np.float32))})


def start() -> ArrayRecord:
    return ArrayRecord({"w": Array(np.zeros(NUMBERS, np.float32))})


def begun(inner: InlineGrid, **more: Any) -> tuple[FederatedAveraging, NamedGrid, list[Message]]:
    grid = NamedGrid(inner, 60.0, 0.001, under_way=inner.under_way)
    rounds = FederatedAveraging(told(Fit, **FEW), **more)
    return rounds, grid, list(rounds.configure_train(1, start(), ConfigRecord(), grid))


def model_of(rounds: FederatedAveraging, replies: Any) -> bytes:
    found, _ = rounds.aggregate_train(1, replies)
    assert found is not None
    return found["w"].numpy().tobytes()


def test_replies_in_memory_do_not_grow_with_the_clients() -> None:
    most = []
    for num_clients in (60, 240):
        client = Alive()
        with InlineGrid(client, num_clients, workers=2) as inner:
            rounds, grid, messages = begun(inner)
            model_of(rounds, arriving(grid, messages))
            assert len(rounds.answered) == num_clients
            # Those that wait, are made or handed over, and one or two that are being read.
            assert client.most <= ROOM + max(inner.under_way) + 2
        most.append(client.most)
    assert max(most) < 60


def test_whatever_the_order_the_model_has_the_same_bits() -> None:
    with InlineGrid(Alive(), 40) as inner:
        rounds, grid, messages = begun(inner)
        replies = grid.send_and_receive(messages)
        found = {model_of(rounds, replies)}
        for seed in range(3):
            random.Random(seed).shuffle(replies)
            found.add(model_of(rounds, iter(replies)))
    assert len(found) == 1
    # By hand: clients weigh as much as their number.
    weights = np.arange(1, 41)
    models = np.stack([update(n)["w"].numpy() for n in range(1, 41)])
    mean = np.average(models, axis=0, weights=weights)
    np.testing.assert_allclose(np.frombuffer(found.pop(), np.float32), mean, rtol=1e-5, atol=1e-7)


def replied(messages: list[Message], times: dict[int, float]) -> list[Message]:
    return [
        reply(m, update(position, times.get(position, 1.0)), 10)
        for position, m in enumerate(messages)
    ]


def test_what_is_out_of_all_proportion_is_left_out_though_most_are_added_already() -> None:
    with InlineGrid(Alive(), 40) as inner:
        rounds, _, messages = begun(inner)
        # The first to answer, when nobody knows yet how long updates are.
        long = dict.fromkeys(range(ROOM), 1e5)
        found = model_of(rounds, replied(messages, long))
        assert len(rounds.failures) == ROOM
        assert all("1000 times" in failure.reason for failure in rounds.failures)
        assert sorted(rounds.norms) == sorted(rounds.answered)
        assert found == model_of(rounds, replied(messages, long)[ROOM:])


def test_where_more_are_than_can_wait_the_round_fails_and_names_them() -> None:
    with InlineGrid(Alive(), 40) as inner:
        rounds, _, messages = begun(inner)
        with pytest.raises(ClientLost, match="leave these clients out") as caught:
            rounds.aggregate_train(1, replied(messages, dict.fromkeys(range(ROOM + 1), 1e5)))
    assert len(caught.value.failures) == ROOM + 1


def test_updates_are_clipped_before_they_are_added() -> None:
    with InlineGrid(Alive(), 40) as inner:
        rounds, _, messages = begun(inner)
        rounds.aggregation = Aggregation(clip=1.0)
        found = np.frombuffer(model_of(rounds, replied(messages, {})), np.float32)
    models = [update(n)["w"].numpy().astype(np.float64) for n in range(40)]
    mean = np.mean([m / np.linalg.norm(m) for m in models], axis=0)
    np.testing.assert_allclose(found, mean, rtol=1e-4, atol=1e-7)


def test_a_median_has_all_answers_at_the_end() -> None:
    with InlineGrid(Alive(), 40) as inner:
        rounds, _, messages = begun(inner)
        rounds.aggregation = Aggregation("median")
        found = np.frombuffer(model_of(rounds, replied(messages, {})), np.float32)
    expected = np.median(np.stack([update(n)["w"].numpy() for n in range(40)]), axis=0)
    np.testing.assert_array_equal(found, expected.astype(np.float32))


def test_a_kind_of_round_that_combines_in_its_own_way_has_all_answers() -> None:
    class Own(FederatedAveraging):
        def combine(self, used: Any) -> ArrayRecord:
            assert all(len(answer.arrays) for answer in used.values())
            return super().combine(used)

    with InlineGrid(Alive(), 40) as inner:
        _, grid, messages = begun(inner)
        rounds = Own(told(Fit, **FEW))
        rounds.configure_train(1, start(), ConfigRecord(), grid)
        model_of(rounds, replied(messages, {}))


# ---- more are asked than are drawn --------------------------------------------------------------


def test_a_round_ends_with_as_many_answers_as_nodes_were_to_be_drawn() -> None:
    with InlineGrid(Alive(), 40) as inner:
        rounds, _, messages = begun(inner, fraction=0.25, over_select=0.2)
        assert len(messages) == 12  # 10 and a fifth more

        def coming() -> Iterator[Message]:
            yield from replied(messages, {})[2:]
            raise AssertionError("nobody waits for the two that are late")

        found = model_of(rounds, coming())
        assert (len(rounds.answered), rounds.failures) == (10, [])
        assert rounds.not_needed == sorted(set(rounds.asked) - set(rounds.answered))
        assert len(rounds.not_needed) == 2
        mean = np.mean([update(n)["w"].numpy() for n in range(2, 12)], axis=0)
        np.testing.assert_allclose(np.frombuffer(found, np.float32), mean, rtol=1e-5, atol=1e-7)
        # The same nodes as without are among those asked, and with too few answers all count.
        same, _, fewer = begun(inner, fraction=0.25)
        assert set(same.asked) <= set(rounds.asked)
        rounds.aggregate_train(1, iter(replied(messages, {})[:6]))
        assert (len(rounds.failures), rounds.not_needed) == (6, [])
        assert len(fewer) == 10


def test_a_node_that_must_answer_is_never_done_without() -> None:
    with InlineGrid(Alive(), 8) as inner:
        rounds, _, messages = begun(inner, fraction=0.5, over_select=1.0)
        rounds.required = [rounds.asked[-1]]
        rounds.aggregate_train(1, iter(replied(messages, {})))
        assert set(rounds.required) < set(rounds.answered)
        with pytest.raises(ClientLost, match="hold what is to be forgotten"):
            rounds.aggregate_train(1, iter(replied(messages, {})[:-1]))
        rounds.required, rounds.takes_all = [], True
        with pytest.raises(ClientLost, match="must have 8 answers of 8 clients, got 7"):
            rounds.aggregate_train(1, iter(replied(messages, {})[:-1]))


def test_what_comes_too_late_is_thrown_away() -> None:
    client, go_on = Alive(), threading.Event()

    def slow(message: Message, context: Context) -> Message:
        if context.node_id == 1:
            go_on.wait(60.0)
        return client(message, context)

    with InlineGrid(slow, 6, workers=6) as inner:
        rounds, grid, _ = begun(inner, fraction=5 / 6, over_select=0.2)
        messages = list(rounds.configure_train(1, start(), ConfigRecord(), grid))
        with contextlib.closing(arriving(grid, messages)) as replies:
            model_of(rounds, replies)
        assert "client-0" not in rounds.answered
        go_on.set()
    rounds.used = {}
    del replies
    gc.collect()
    assert client.alive == 0
