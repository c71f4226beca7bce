"""Clients that join, leave and are late: a round does with those that are there, and says so."""

from pathlib import Path

import pytest
from flwr.app import Message
from flwr.proto.node_pb2 import NodeInfo

from client.app import app
from client.steps.ascent import Ascend
from server.nodes.engines.inline import InlineGrid
from server.nodes.federation import GridFederation
from server.nodes.grid import NamedGrid
from server.storage.journal import Journal
from strategies.rounds.base import AscentRounds, ClientLost, FederatedAveraging
from tests.messages import NUM_CLIENTS, values, weights

FIT = {"steps": 1, "batch_size": 32, "lr": 0.1}
NINE = {"forget_level": "class", "forget_classes": [9]}


class Coming(InlineGrid):
    """Nodes of which some are there."""

    there: frozenset[int] = frozenset({0, 1})
    asleep: frozenset[int] = frozenset()  # they never answer

    def get_nodes(self) -> list[NodeInfo]:
        return [n for n in super().get_nodes() if n.node_id - 1 in self.there]

    def pull_messages(self, message_ids: object) -> list[Message]:
        found = super().pull_messages(message_ids)  # type: ignore[arg-type]
        return [m for m in found if m.metadata.src_node_id - 1 not in self.asleep]


class Clock:
    """Time that passes in pauses alone, however busy the machine is."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_clients_join_leave_and_are_late_between_rounds_and_holders_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFFACE_STORE", str(tmp_path / "stores"))
    monkeypatch.setattr("server.nodes.grid.time", Clock())
    with Coming(app, NUM_CLIENTS, node_config={}, workers=2) as inner:
        grid = NamedGrid(inner, round_timeout=60.0, poll_seconds=1.0)
        federation = GridFederation(grid, values(**NINE), Journal(tmp_path / "j", {}))
        federation.training = FIT
        rounds = FederatedAveraging(federation.ordinary())

        def one_round() -> tuple[list[str], list[str]]:
            federation.run("train", rounds, weights(), num_rounds=1)
            part = federation.parts[-1]
            return sorted(part.answered), [str(failure) for failure in part.failures]

        assert one_round() == (["client-0", "client-1"], [])
        inner.there = frozenset({0, 1, 2})  # one joins, which nobody has asked what it holds
        assert one_round() == (["client-0", "client-1", "client-2"], [])
        inner.there = frozenset({1, 2})
        gone = ["client-0: offline: it was not there to be asked"]
        assert one_round() == (["client-1", "client-2"], gone)
        inner.there, inner.asleep = frozenset({0, 1, 2}), frozenset({2})
        late = ["client-2: no answer before the deadline"]
        assert one_round() == (["client-0", "client-1"], late)

        # What all must answer ends with an error that names who did not.
        told = federation.settings(Ascend, phase="unlearn", lr=0.1)
        ascent = AscentRounds(told, participants=["client-0", "client-2"], over_select=1.0)
        with pytest.raises(ClientLost, match="client-2: no answer before the deadline"):
            federation.run("unlearn", ascent, weights(), num_rounds=1)
