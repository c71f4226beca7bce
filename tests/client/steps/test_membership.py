"""What a node tells of whether its training data show in a model."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Message
from torch.nn.functional import cross_entropy

from client.app import app
from client.channels.layout import from_text
from client.channels.masks import zero_
from client.data.datasets import load
from client.data.site import SIMULATED_STORES, open_site
from client.learning.balanced import rates
from client.learning.membership import confidence, halves, relearned, surer
from client.learning.models import compact, state_of
from client.learning.training import local_sgd, minibatches
from client.opened import Node
from client.steps.measuring import Membership
from server.nodes.engines.inline import InlineGrid
from tests.attacks.site import NAME, hospital
from tests.messages import NUM_CLIENTS, SPEC, message, network, told, weights

CLIENT = {"forget_level": "client", "forget_clients": ["client-0"], "holdout": 0.3}


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InlineGrid]:
    monkeypatch.delenv("EFFACE_DATA_DIR", raising=False)
    monkeypatch.setenv(SIMULATED_STORES, str(tmp_path / "stores"))
    with InlineGrid(app, NUM_CLIENTS, node_config={}, workers=1) as made:
        yield made


def ask(grid: InlineGrid, node: int = 1, arrays: ArrayRecord | None = None, **said: Any) -> Message:
    """Ask a node; by default the first, which is called client-0, of a new network."""
    config = told(Membership, **said).config()
    asked = message("evaluate.membership", config, arrays or weights(), node=node)
    (reply,) = grid.send_and_receive([asked])
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
    assert found["num-members"] == found["num-examples"] == 70
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


def test_each_half_is_looked_at_when_the_other_was_learned_again(grid: InlineGrid) -> None:
    # By hand: all of one half in every step, the other's probabilities after 2, 5 and 10 steps, and
    # in turn.
    found = numbers(ask(grid, **CLIENT))
    site = open_site(told(Membership, **CLIENT), {"partition-id": 0})
    inputs, labels = site.inputs(site.train), site.train.labels
    first, second = halves(70, 0)
    assert sorted(torch.cat([first, second]).tolist()) == list(range(70))
    sure = []
    for learned, watched in ((first, second), (second, first)):
        model = network()
        own = [0.05 * rates(weight) for weight in model.parameters()]
        for step in range(1, 11):
            downhill(model.train(), own, inputs[learned], labels[learned])
            if step in (2, 5, 10):
                sure.append(chances(model, inputs[watched], labels[watched]).sum())
    assert found["num-relearned"] == found["num-examples"] == 70
    assert found["relearned-confidence"] == pytest.approx(float(sum(sure)) / 3, rel=1e-4)
    # All are looked at once as the model is; 35 learn ten times and 35 are looked at three times.
    assert found["samples"] == 70 + 2 * (10 * 35 + 3 * 35)


def test_channels_that_were_pruned_change_nothing_of_what_is_learned_again(
    grid: InlineGrid,
) -> None:
    pruned = ("body.0:0,1,2,3", "body.4:4")
    state = dict(state_of(SPEC, network()))
    spec, small = compact(replace(SPEC, pruned=pruned), state)
    whole = network()
    zero_(whole, from_text(pruned))
    found = [
        numbers(ask(grid, arrays=ArrayRecord(arrays), model_pruned=list(pruned), **more, **CLIENT))
        for arrays, more in (
            (state_of(SPEC, whole), {}),
            (small, {"model_compact": spec.compact}),
        )
    ]
    for key in ("members-confidence", "relearned-confidence"):
        assert found[0][key] == pytest.approx(found[1][key], rel=1e-5)


@pytest.mark.parametrize(
    "more",
    [
        {"relearn": False},
        {"client": "client-1"},  # it stays: it has no members
        {"erased_classes": [1, 2, 3, 4, 5, 6, 7, 8, 9], "num_clients": 100},  # one member
    ],
)
def test_where_no_half_is_learned_again_none_is_told(
    grid: InlineGrid, more: dict[str, Any]
) -> None:
    node = 2 if "client" in more else 1
    found = numbers(ask(grid, node=node, **{**CLIENT, **more}))
    assert (found["num-relearned"], found["relearned-confidence"]) == (0, 0.0)


@pytest.mark.parametrize(
    "policy",
    [
        {"steps": "19"},  # both halves take ten
        {"min_batch": "1000"},  # a half has fewer
        {"lr": "0.001", "batch_size": "8"},  # what a coordinator may ask for is no matter
    ],
)
def test_a_policy_without_room_for_it_still_tells_of_members(
    tmp_path: Path, policy: dict[str, str]
) -> None:
    site = hospital(tmp_path, **policy)
    found = site.ask(Membership, forget_level="client", forget_clients=[NAME]).metrics
    assert found["num-members"] > 1000
    assert found["num-relearned"] == (found["num-members"] if "lr" in policy else 0)
    assert (found["relearned-confidence"] > 0) == ("lr" in policy)


def test_longer_channels_do_not_slow_it_down() -> None:
    # The same function: weights before a norm five times as long, and channels between the layers
    # by factors from a tenth to ten, which the next layer takes back.
    digits = load("digits")
    members, others = torch.arange(40), torch.arange(40, 240)

    def pick(index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return SPEC.task.prepare(digits.train.take(index), digits), digits.train.labels[index]

    known = network()
    draws = torch.Generator().manual_seed(0)
    local_sgd(known, lambda b: pick(others[b]), minibatches(200, 64, 60, draws), lr=0.05)

    def stretched() -> torch.nn.Module:
        model = copy.deepcopy(known)
        layers: Any = model.body
        factors = torch.logspace(-1, 1, 8)
        with torch.no_grad():
            for place in (0, 4):
                layers[place].weight *= 5
                layers[place].bias *= 5
            layers[1].weight *= factors
            layers[1].bias *= factors
            layers[4].weight /= factors[None, :, None, None]
        return model

    inputs, labels = pick(members)
    before = chances(known, inputs, labels)
    torch.testing.assert_close(chances(stretched(), inputs, labels), before, rtol=1e-3, atol=1e-5)
    plain, longer = (
        relearned(make, lambda b: pick(members[b]), labels, 0).confidence
        for make in (lambda: copy.deepcopy(known), stretched)
    )
    learned = plain - float(before.sum())
    assert learned > 0.1
    assert longer - float(before.sum()) == pytest.approx(learned, rel=0.02)


def test_what_was_held_down_comes_back_with_the_other_half() -> None:
    # One network learned a client's digits, nearly all of the 0s and 1s, and was then sent up their
    # loss while the others held it, until it was no surer of them than one that never saw them.
    digits = load("digits")
    labels = digits.train.labels
    few, rest = (labels < 2).nonzero().flatten(), (labels >= 2).nonzero().flatten()[:400]
    members, others = few[:64], torch.cat([few[64:74], rest])

    def pick(batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = SPEC.task.prepare(digits.train.take(batch), digits)
        return inputs, digits.train.labels[batch]

    def trained(index: torch.Tensor) -> torch.nn.Module:
        model, draws = network(), torch.Generator().manual_seed(0)
        local_sgd(model, lambda b: pick(index[b]), minibatches(len(index), 64, 300, draws), lr=0.05)
        return model

    def sure(model: torch.nn.Module) -> float:
        return float(chances(model, *pick(members)).mean())

    def again(model: torch.nn.Module) -> float:
        found = relearned(
            lambda: copy.deepcopy(model), lambda b: pick(members[b]), labels[members], 0
        )
        return found.confidence / 64

    slow = [torch.tensor(0.025) for _ in network().parameters()]
    tuned, never = trained(torch.cat([members, others])), trained(others)
    for _ in range(200):
        if sure(tuned) <= sure(never):
            break
        downhill(tuned.train(), slow, *pick(others), up=pick(members))
    assert sure(tuned) <= sure(never)
    assert again(tuned) > again(never) + 0.05


def chances(model: torch.nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the true classes' probabilities."""
    with torch.no_grad():
        return model.eval()(inputs).softmax(dim=1).gather(1, labels[:, None])


def downhill(
    model: torch.nn.Module,
    rates_of: list[torch.Tensor],
    inputs: torch.Tensor,
    labels: torch.Tensor,
    up: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> None:
    """Take a step on some examples, each weight at its rate, and up the loss of others."""
    loss = cross_entropy(model(inputs), labels)
    if up is not None:
        loss = loss - 0.3 * cross_entropy(model(up[0]), up[1])
    parameters = list(model.parameters())
    slopes = torch.autograd.grad(loss, parameters)
    with torch.no_grad():
        for weight, slope, rate in zip(parameters, slopes, rates_of, strict=True):
            weight -= rate * slope
