"""The last message of a request: an answer that it was applied already must be expected."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from client.app import app
from server.nodes.engines.inline import InlineGrid
from server.nodes.federation import GridFederation
from server.nodes.grid import NamedGrid
from server.storage.journal import Journal
from strategies.rounds.base import ClientLost
from tests.messages import NUM_CLIENTS, values

NINE = {"forget_level": "class", "forget_classes": [9]}


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NamedGrid]:
    monkeypatch.setenv("EFFACE_STORE", str(tmp_path / "stores"))
    with InlineGrid(app, NUM_CLIENTS, node_config={}, workers=1) as inner:
        yield NamedGrid(inner, 60.0)


def federation(grid: NamedGrid, folder: Path, request: str = "r2") -> GridFederation:
    return GridFederation(grid, values(request=request, **NINE), Journal(folder, {}))


def test_a_request_is_applied_once_and_its_answer_is_kept(grid: NamedGrid, tmp_path: Path) -> None:
    first = federation(grid, tmp_path / "j").settle("forget", destroy=False)
    assert {name: m["applied"] for name, m in first.items()} == {
        f"client-{i}": 0.0 for i in range(NUM_CLIENTS)
    }
    assert federation(grid, tmp_path / "j").settle("forget", destroy=False) == first


def test_a_name_that_was_used_before_is_a_failure_each_time(
    grid: NamedGrid, tmp_path: Path
) -> None:
    federation(grid, tmp_path / "other").settle("forget", destroy=False, names=["client-1"])
    for _ in range(2):
        with pytest.raises(ClientLost, match="request must be new to client-1, got the answer"):
            federation(grid, tmp_path / "j").settle("forget", destroy=False)


def test_a_stop_between_the_message_and_its_answer_is_no_surprise(
    grid: NamedGrid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = federation(grid, tmp_path / "j")
    sent = NamedGrid.send_and_receive

    def stop(*told: object, **more: object) -> None:
        sent(*told, **more)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(NamedGrid, "send_and_receive", stop)
    with pytest.raises(KeyboardInterrupt):
        stopped.settle("forget", destroy=False)
    monkeypatch.setattr(NamedGrid, "send_and_receive", sent)
    again = federation(grid, tmp_path / "j").settle("forget", destroy=False)
    assert {m["applied"] for m in again.values()} == {1.0}


def test_one_that_was_offline_may_have_had_it(grid: NamedGrid, tmp_path: Path) -> None:
    federation(grid, tmp_path / "j").settle("forget", destroy=False)
    late = federation(grid, tmp_path / "late")
    told = late.settle("forget", destroy=False, names=["client-2"], again=True)
    assert told["client-2"]["applied"] == 1
