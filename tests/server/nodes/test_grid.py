"""The grid that knows names and deadlines, over nodes that come late, twice, or not at all."""

import threading
from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo

from client.app import app
from server.nodes.engines.inline import InlineGrid
from server.nodes.grid import ClientsMissing, NamedGrid
from server.requests.intake import Service
from server.runner import name_nodes
from server.settings import RunSettings
from server.storage.home import Home


class Unnamed(InlineGrid):
    """Nodes without names, as Flower's simulation has them; none is online at the first look."""

    looks = 0

    def get_nodes(self) -> list[NodeInfo]:
        self.looks += 1
        return [NodeInfo(node_id=n) for n in self.contexts] if self.looks > 1 else []


def test_simulated_nodes_are_named_by_their_partition_even_if_they_come_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFFACE_STORE", str(tmp_path / "stores"))
    service = Service.open(Home(tmp_path / "home"))
    settings = RunSettings(mode="train", num_clients=3, engine="ray").check()
    request = service.prepare(settings)
    with Unnamed(app, 3) as inner:
        grid = NamedGrid(inner, round_timeout=300, poll_seconds=0.01)
        name_nodes(grid, service, request)
        assert [node.name for node in grid.get_nodes()] == ["client-0", "client-1", "client-2"]


def test_waiting_for_clients_ends_and_says_who_is_there() -> None:
    with InlineGrid(app, 2) as inner:
        grid = NamedGrid(inner, round_timeout=1, poll_seconds=0.01)
        with pytest.raises(
            ClientsMissing, match=r"must be at least 3, got 2 after 0.05 s \(client-0, client-1\)"
        ):
            grid.wait_for(3, 0.05)
        grid.wait_for(3, 0.05, without=["client-7"])  # one that has left is not waited for
        with pytest.raises(ClientsMissing, match="at least 2 beside client-1, got 1"):
            grid.wait_for(3, 0.05, without=["client-1"])  # nor does it stand for another


def test_two_nodes_of_one_name_are_refused() -> None:
    with InlineGrid(app, 2) as inner:
        twins = [NodeInfo(node_id=n, name="hospital-a") for n in inner.contexts]
        inner.get_nodes = lambda: twins  # type: ignore[method-assign]
        grid = NamedGrid(inner, round_timeout=1, poll_seconds=0.01)
        with pytest.raises(ClientsMissing, match="unique, got two nodes called hospital-a"):
            grid.wait_for(2, 1)


def test_while_clients_work_it_is_told_how_many_have_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("server.nodes.grid.TELL_SECONDS", 0.0)
    gates, heard = [threading.Event() for _ in range(3)], []

    def answer(message: Message, context: Context) -> Message:
        gates[context.node_id - 1].wait(30)
        return Message(RecordDict(), reply_to=message)

    def told(come: int, of: int) -> None:
        heard.append((come, of))
        for gate in gates[: come + 1]:
            gate.set()

    with InlineGrid(answer, 3, workers=3) as inner:
        gates[0].set()
        grid = NamedGrid(inner, 60.0, 0.005, on_answers=told)
        sent = [Message(RecordDict(), dst_node_id=n, message_type="query.test") for n in (1, 2, 3)]
        assert len(grid.send_and_receive(sent)) == 3
    assert heard == [(1, 3), (2, 3)]
