"""The Ray engine's grid: clients in actors, whose states come back and whose ends are told."""

import os
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from client.errors import BadSetting
from server.nodes.engines.ray import AHEAD, SHARED_BYTES, RayGrid, places

GIB = 2.0**30
TWO_CARDS = {"Resources": {"CPU": 16.0, "GPU": 2.0, "memory": GIB}}
NO_CARD = {"Resources": {"CPU": 8.0}}
LEFT = {"Resources": {}}


@pytest.mark.parametrize(
    ("machines", "cpus", "gpus", "expected"),
    [
        ([NO_CARD, NO_CARD, LEFT], 1, 0.0, 16),
        ([{"Resources": {"CPU": 2.0}}, {"Resources": {"CPU": 4.0}}], 3, 0.0, 1),  # none on both
        ([TWO_CARDS, NO_CARD], 1, 0.25, 8),
        ([TWO_CARDS], 4, 0.25, 4),  # its cores are fewer than its cards' shares
        ([{"Resources": {"CPU": 8.0, "GPU": 0.3}}], 1, 0.1, 3),
        ([NO_CARD], 1, 0.5, 0),
    ],
)
def test_a_client_has_its_cores_and_its_gpu_on_one_machine(
    machines: list[dict[str, Any]], cpus: int, gpus: float, expected: int
) -> None:
    assert places(machines, cpus, gpus) == expected


app = ClientApp()


@app.query("count")
def count(message: Message, context: Context) -> Message:
    """Count the client's messages in its state; tell what it was sent, and by whom."""
    before = context.state.config_records.get("seen", ConfigRecord({"times": 0}))
    times = int(str(before["times"])) + 1
    context.state["seen"] = ConfigRecord({"times": times})
    arrays = message.content.array_records["arrays"]
    told = {
        "times": times,
        "partition": context.node_config["partition-id"],
        "sum": float(sum(array.numpy().sum() for array in arrays.values())),
        "process": os.getpid(),
        "variable": os.environ.get("EFFACE_TEST_VARIABLE", ""),
    }
    return Message(RecordDict({"told": ConfigRecord(told)}), reply_to=message)


@app.query("fail")
def fail(message: Message, context: Context) -> Message:
    raise ValueError("a client's own fault")


@app.query("die")
def die(message: Message, context: Context) -> Message:
    os._exit(1)


@app.query("wait")
def wait(message: Message, context: Context) -> Message:
    """Answer once a file is there, or note that it was begun."""
    config = message.content.config_records["config"]
    Path(str(config["begun"])).touch()
    while not Path(str(config["file"])).exists():
        time.sleep(0.05)
    return count(message, context)


@pytest.fixture(scope="module")
def grid() -> Iterator[RayGrid]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # or they starve beside the other tests
        told = {"EFFACE_TEST_VARIABLE": "here"}
        import ray

        ray.init(num_cpus=2, include_dashboard=False)
        try:
            with RayGrid(app, 3, environment=told) as started:
                yield started
            assert ray.is_initialized()  # it was there before
        finally:
            ray.shutdown()


def asked(node: int, kind: str, arrays: ArrayRecord | None = None, **config: str) -> Message:
    content = {"arrays": arrays or ArrayRecord(), "config": ConfigRecord(dict(config))}
    return Message(RecordDict(content), node, f"query.{kind}")  # type: ignore[arg-type]


def told_in(reply: Message) -> dict[str, Any]:
    return dict(reply.content.config_records["told"])


@pytest.mark.processes
def test_a_client_answers_with_its_own_state_and_config_and_a_fault_is_its_reply(
    grid: RayGrid,
) -> None:
    assert [node.name for node in grid.get_nodes()] == ["client-0", "client-1", "client-2"]
    for times in (1, 2):
        replies = grid.send_and_receive([asked(node, "count") for node in (1, 2, 3)])
        found = sorted((told_in(r) for r in replies), key=lambda told: told["partition"])
        assert [(t["partition"], t["times"]) for t in found] == [(n, times) for n in range(3)]
        assert {t["variable"] for t in found} == {"here"}
        assert os.getpid() not in {t["process"] for t in found}
    (reply,) = grid.send_and_receive([asked(1, "fail")])
    assert reply.has_error()
    assert reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert reply.error.reason == "<class 'ValueError'>:<'a client's own fault'>"


@pytest.mark.processes
def test_a_large_record_is_stored_once_for_all_its_messages(
    grid: RayGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = ArrayRecord({"w": Array(np.ones(SHARED_BYTES // 4 + 1, np.float32))})
    stored = []
    put = grid._ray.put
    monkeypatch.setattr(grid._ray, "put", lambda value: stored.append(value) or put(value))
    messages = [asked(node, "count", large) for node in (1, 2, 3)]
    sums = {told_in(reply)["sum"] for reply in grid.send_and_receive(messages)}
    assert sums == {SHARED_BYTES // 4 + 1}
    assert stored == [large]
    assert all(message.content.array_records["arrays"] is large for message in messages)


@pytest.mark.processes
def test_each_large_record_of_a_message_is_stored_once_until_it_changes(
    grid: RayGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    def array(value: float) -> Array:
        return Array(np.full(SHARED_BYTES // 4 + 1, value, np.float32))

    def sums() -> set[float]:
        messages = [asked(node, "count", one) for node in (1, 2, 3)]
        for message in messages:
            message.content["more"] = two
        sent, found = set(grid.push_messages(messages)), set()
        while sent:
            for reply in grid.pull_messages(sent):
                sent.remove(reply.metadata.reply_to_message_id)
                found.add(told_in(reply)["sum"])
        return found

    one, two = ArrayRecord({"w": array(1)}), ArrayRecord({"w": array(2)})
    stored = []
    put = grid._ray.put
    monkeypatch.setattr(grid._ray, "put", lambda value: stored.append(value) or put(value))
    assert sums() == {SHARED_BYTES // 4 + 1}
    assert [id(record) for record in stored] == [id(one), id(two)]
    assert grid._shared == {}  # nothing is under way
    places = [grid._stored("arrays", one), grid._stored("arrays", one)]
    assert places[0] is places[1]
    one["w"] = array(3)
    assert grid._stored("arrays", one) is not places[0]
    one["w"].data = array(4).data
    place = grid._stored("arrays", one)
    assert grid._ray.get(place)["w"].numpy()[0] == 4.0


@pytest.mark.processes
def test_an_actor_that_finds_no_place_gets_no_message(grid: RayGrid) -> None:
    # Both cores are the other grid's; of this one's two actors one gets a place, if one is freed.
    grid._ray.kill(grid._actors[1])
    with RayGrid(app, 2) as other:
        assert len(other._actors) == 2
        replies = other.send_and_receive([asked(node, "count") for node in (1, 2) for _ in "abc"])
        assert len({told_in(reply)["process"] for reply in replies}) == 1
        assert len(other._starting) == 1
    # The one that was ended is replaced, at the cost of the first message to it.
    for _ in range(2):
        grid.send_and_receive([asked(node, "count") for node in (1, 2, 3)])


@pytest.mark.processes
def test_a_process_that_ends_takes_one_answer_along_and_another_goes_on(grid: RayGrid) -> None:
    (reply,) = grid.send_and_receive([asked(1, "die")])
    assert reply.error.code == ErrorCode.CLIENT_APP_CRASHED
    assert reply.metadata.src_node_id == 1
    # Its actor comes back: all can be answered for, more than once.
    for _ in range(2):
        replies = grid.send_and_receive([asked(node, "count") for node in (1, 2, 3)])
        assert not any(reply.has_error() for reply in replies)


@pytest.mark.processes
def test_what_nobody_waits_for_any_more_is_not_begun(grid: RayGrid, tmp_path: Path) -> None:
    most = 2 * max(AHEAD)  # that the two actors have
    file, begun = tmp_path / "go", [tmp_path / f"begun-{i}" for i in range(most + 3)]
    late = [
        asked(i % 3 + 1, "wait", file=str(file), begun=str(path)) for i, path in enumerate(begun)
    ]
    sent = grid.push_messages(late)
    while sum(path.exists() for path in begun) < 2:  # an actor may still have to start
        assert grid.pull_messages(sent) == []
    assert grid.pull_messages(sent) == []  # it does not wait for ever: a deadline may pass
    grid.forget(sent)
    file.touch()
    replies = grid.send_and_receive([asked(node, "count") for node in (1, 2, 3)])
    assert sorted(told_in(reply)["partition"] for reply in replies) == [0, 1, 2]
    assert not any(path.exists() for path in begun[most:])


class Elsewhere(ClientApp):
    """An app that no other process can load, as on a machine without its code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (import_module, ("a_module_that_is_not_there",))


@pytest.mark.processes
def test_a_machine_that_cannot_start_a_client_ends_the_run_with_its_reason(grid: RayGrid) -> None:
    grid._ray.kill(grid._actors[1])  # of two cores one is wanted here
    wrong = RayGrid(Elsewhere(), 1)
    with wrong, pytest.raises(BadSetting, match=r"must have this efface .*a_module_that_is_not"):
        wrong.send_and_receive([asked(1, "count")])


@pytest.mark.processes
def test_a_client_that_fits_nowhere_is_refused(grid: RayGrid) -> None:
    with (
        pytest.raises(BadSetting, match=r"a client must fit on a machine, got one of 3 cores"),
        RayGrid(app, 2, cpus=3),
    ):
        pass
