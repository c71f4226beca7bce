"""What a node tells of whether its training data show in a model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message
from torch.nn.functional import cross_entropy

from client.app import app
from client.data.site import SIMULATED_STORES, open_site
from client.learning.membership import beaten
from client.steps.measuring import Membership
from server.nodes.engines.inline import InlineGrid
from tests.messages import NUM_CLIENTS, message, network, told, weights

CLIENT = {"forget_level": "client", "forget_clients": ["client-0"], "holdout": 0.3}


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InlineGrid]:
    monkeypatch.delenv("EFFACE_DATA_DIR", raising=False)
    monkeypatch.setenv(SIMULATED_STORES, str(tmp_path / "stores"))
    with InlineGrid(app, NUM_CLIENTS, node_config={}, workers=1) as made:
        yield made


def ask(grid: InlineGrid, node: int = 1, **said: Any) -> Message:
    """Ask a node; by default the first, which is called client-0."""
    config = told(Membership, **said).config()
    (reply,) = grid.send_and_receive([message("evaluate.membership", config, weights(), node=node)])
    return reply


def numbers(reply: Message) -> dict[str, Any]:
    assert not reply.has_error(), reply.error
    assert not reply.content.array_records["arrays"]
    return dict(reply.content.metric_records["metrics"])


def test_a_member_beats_the_others_that_it_is_above_and_half_of_those_it_ties_with() -> None:
    members = torch.tensor([0.0, 1.0, 2.0, 9.0])
    others = torch.tensor([1.0, 2.0, 3.0, 3.0])
    assert beaten(members, others).tolist() == [0.0, 0.125, 0.375, 1.0]


def test_the_area_goes_up_and_no_loss(grid: InlineGrid) -> None:
    found = numbers(ask(grid, **CLIENT))
    site = open_site(told(Membership, **CLIENT), {"partition-id": 0})
    model = network().eval()
    losses = [
        cross_entropy(model(site.inputs(part)), part.labels, reduction="none")
        for part in (site.train, site.heldout)
    ]
    above = (losses[0][:, None] < losses[1][None, :]).double().mean(dim=1).sum()
    assert found["num-members"] == len(site.train) == 70
    assert found["num-examples"] == found["samples"] == 100
    assert found["members-above"] == pytest.approx(float(above), abs=1e-3)
    # Of a client that stays there is nothing to tell.
    of_another = numbers(ask(grid, node=2, **{**CLIENT, "client": "client-1"}))
    assert (of_another["num-members"], of_another["members-above"]) == (0, 0.0)


def test_of_one_held_out_example_nothing_goes_up(grid: InlineGrid) -> None:
    found = numbers(ask(grid, **{**CLIENT, "holdout": 0.011}))  # of 100
    assert (found["num-members"], found["members-above"], found["num-examples"]) == (0, 0.0, 0)


def test_under_noise_it_is_refused(grid: InlineGrid) -> None:
    reply = ask(grid, **CLIENT, noise_multiplier=1.0, clip_norm=1.0)
    assert reply.has_error()
    assert "noise" in reply.error.reason
