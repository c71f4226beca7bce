"""Recovery as a node answers it: how many batches it makes, and what it holds down."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.app import app
from client.data.site import SIMULATED_STORES
from client.steps.recovery import Descend
from server.nodes.engines.inline import InlineGrid
from tests.messages import NUM_CLIENTS, message, told, weights

SUBSET = {
    "data": "subset+original",
    "scale": 4,
    "lr": 0.1,
    "freeze_head": True,
    "forget_level": "class",
    "forget_classes": [3],
}


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InlineGrid]:
    monkeypatch.setenv(SIMULATED_STORES, str(tmp_path / "stores"))
    with InlineGrid(app, NUM_CLIENTS, node_config={}, workers=1) as made:
        yield made


def recovered(grid: InlineGrid, **said: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return what client-0 says, and the weights that it sends."""
    config = told(Descend, **{**SUBSET, **said}).config()
    (reply,) = grid.send_and_receive([message("train.descend", config, weights())])
    assert not reply.has_error(), reply.error
    arrays = {k: a.numpy() for k, a in reply.content.array_records["arrays"].items()}
    return dict(reply.content.metric_records["metrics"]), arrays


def test_an_epoch_has_as_many_batches_as_are_asked_for(grid: InlineGrid) -> None:
    settings = told(Descend, **SUBSET, batches=2)
    assert (settings.batch_of(33), told(Descend, **SUBSET).batch_of(33)) == (17, 64)
    few, _ = recovered(grid, batches=2)
    many, _ = recovered(grid, batches=5)
    assert (few["num-steps"], many["num-steps"]) == (2, 5)
    assert many["samples"] == few["samples"]


def test_a_node_holds_forgotten_images_down_beside_its_retained_ones(grid: InlineGrid) -> None:
    said, plain = recovered(grid, batches=2)
    held, beside = recovered(grid, batches=2, hold_beside=1.0)
    _, harder = recovered(grid, batches=2, hold_beside=10.0)
    assert held["samples"] > said["samples"]  # the forgotten ones of its subset
    moved = [name for name in plain if not np.array_equal(plain[name], beside[name])]
    assert moved
    assert any(not np.array_equal(beside[name], harder[name]) for name in moved)
