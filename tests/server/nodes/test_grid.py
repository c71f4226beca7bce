"""The grid that knows names and deadlines, over nodes that come late, twice, or not at all."""

from pathlib import Path

import pytest
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
        grid = NamedGrid(inner, round_timeout=60, poll_seconds=0.01)
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
