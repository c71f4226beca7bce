"""What a node tells of whether its training data show in a model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message

from client.app import app
from client.data.site import SIMULATED_STORES, open_site
from client.learning.membership import confidence, surer
from client.opened import Node
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


def test_it_is_a_difference_of_probabilities_in_points() -> None:
    # Of a classifier the loss is -log p; rounding may bring it below 0.
    losses = -torch.tensor([0.9, 0.7, 0.25, 2.0]).log()
    torch.testing.assert_close(confidence(losses), torch.tensor([0.9, 0.7, 0.25, 1.0]))
    assert surer(0.8, 0.5) == pytest.approx(30.0)
    assert surer(0.0, 1.0) == -100.0


def test_sums_go_up_and_no_loss(grid: InlineGrid) -> None:
    found = numbers(ask(grid, **CLIENT))
    site = open_site(told(Membership, **CLIENT), {"partition-id": 0})
    model = network().eval()
    with torch.no_grad():
        chances = model(site.inputs(site.train)).softmax(dim=1)
    sure = float(chances.gather(1, site.train.labels[:, None]).sum())
    assert found["num-members"] == found["num-examples"] == found["samples"] == 70
    assert found["members-confidence"] == pytest.approx(sure, rel=1e-5)
    # What it holds out is none of the others' examples, before it is forgotten as after.
    assert (found["num-others"], found["others-confidence"]) == (0, 0.0)
    # A client that stays says of its held-out examples alone.
    other = {**CLIENT, "client": "client-1"}
    site = open_site(told(Membership, **other), {"partition-id": 1})
    with torch.no_grad():
        probabilities = model(site.inputs(site.heldout)).softmax(dim=1)
    of_another = numbers(ask(grid, node=2, **other))
    assert (of_another["num-members"], of_another["members-confidence"]) == (0, 0.0)
    assert of_another["num-others"] == of_another["num-examples"] == 30
    sure = float(probabilities.gather(1, site.heldout.labels[:, None]).sum())
    assert of_another["others-confidence"] == pytest.approx(sure, rel=1e-5)


def test_what_earlier_requests_erased_is_no_member(grid: InlineGrid) -> None:
    site = open_site(told(Membership, **CLIENT), {"partition-id": 0})
    of_3 = int((site.train.labels == 3).sum())
    found = numbers(ask(grid, **CLIENT, erased_classes=[3]))
    assert of_3 > 0
    assert found["num-members"] == len(site.train) - of_3


def test_of_one_held_out_example_nothing_goes_up(grid: InlineGrid) -> None:
    said = {**CLIENT, "holdout": 0.011, "client": "client-1"}
    found = numbers(ask(grid, node=2, **said))  # of 100
    assert (found["num-others"], found["others-confidence"]) == (0, 0.0)
    assert found["num-examples"] == 0
    assert numbers(ask(grid, **{**CLIENT, "holdout": 0.011}))["num-members"] == 99


def test_under_noise_it_is_refused(grid: InlineGrid) -> None:
    reply = ask(grid, **CLIENT, noise_multiplier=1.0, clip_norm=1.0)
    assert reply.has_error()
    assert "noise" in reply.error.reason


def test_a_task_with_a_loss_of_its_own_has_none(
    grid: InlineGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Node, "loss", property(lambda node: lambda outputs, targets: outputs.sum()))
    reply = ask(grid, **CLIENT)
    assert reply.has_error()
    assert "got a loss of its own" in reply.error.reason
