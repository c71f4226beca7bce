"""The gradient step of FedOSD, against gradients computed by hand or over all examples at once."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from torch.nn.functional import cross_entropy

from client.app import app
from client.data.site import open_site
from client.messages import Common
from client.steps.fedosd import Gradient, unlearning_cross_entropy
from server.nodes.engines.inline import InlineGrid
from tests.messages import message, network, told, weights

CLASS_3: dict[str, Any] = {"forget_level": "class", "forget_classes": [3]}


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFACE_STORE", str(tmp_path))


def ask(**more: Any) -> Message:
    config = told(Gradient, **CLASS_3, **more).config()
    with InlineGrid(app, 3, workers=1) as grid:
        (reply,) = grid.send_and_receive([message("train.gradient", config, weights())])
    return reply


def test_the_unlearning_loss_falls_with_the_probability_and_never_explodes() -> None:
    # p = 1/2 of two classes: -log(1 - 1/4); p = 1: log 2; p = 0: 0.
    logits = torch.tensor([[0.0, 0.0], [100.0, 0.0], [-100.0, 0.0]], requires_grad=True)
    labels = torch.tensor([0, 0, 0])
    loss = unlearning_cross_entropy(logits, labels, reduction="none")
    expected = torch.tensor([-math.log(0.75), math.log(2), 0.0])
    torch.testing.assert_close(loss.detach(), expected)
    (slope,) = torch.autograd.grad(loss.sum(), logits)
    # p (1 - p) / (2 - p) = (1/4) / (3/2) = 1/6 at p = 1/2, and 0 at both ends.
    torch.testing.assert_close(slope[:, 0], torch.tensor([1 / 6, 0.0, 0.0]))


@pytest.mark.parametrize("side", ["forget", "retain"])
def test_a_node_answers_the_gradient_of_all_its_examples_of_a_side(side: str) -> None:
    content = ask(side=side, batch_size=7).content
    site = open_site(told(Common), {"partition-id": 0})
    part = site.train.where((site.train.labels == 3) == (side == "forget"))
    model = network()
    logits = model(site.inputs(part))
    if side == "retain":
        loss = cross_entropy(logits, part.labels)
    else:
        likely = logits.softmax(1)[:, 3]
        loss = -(1 - likely / 2).log().mean()
    loss.backward()
    metrics = content.metric_records["metrics"]
    assert metrics["num-examples"] == metrics["samples"] == len(part)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        found = torch.from_numpy(content.array_records["arrays"][name].numpy())
        # Batches of 7 are summed in another order.
        torch.testing.assert_close(found, parameter.grad, rtol=1e-3, atol=1e-6)


def test_one_examples_gradient_stays_on_its_node() -> None:
    few: dict[str, Any] = {"max_samples": 30, "holdout": 0.0}
    site = open_site(told(Common, **few), {"partition-id": 0})
    counts = np.bincount(site.train.labels.numpy(), minlength=10)
    label = counts.tolist().index(1)
    config = told(
        Gradient, side="forget", forget_level="class", forget_classes=[label], **few
    ).config()
    with InlineGrid(app, 3, workers=1) as grid:
        (reply,) = grid.send_and_receive([message("train.gradient", config, weights())])
    content = reply.content
    assert content.metric_records["metrics"]["num-examples"] == 0
    assert content.metric_records["metrics"]["loss"] == 0.0
    assert not any(a.numpy().any() for a in content.array_records["arrays"].values())
