"""Local training as a site answers it: what the synthetic sets that it leaves begin as."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.app import app
from client.data.site import SIMULATED_STORES, open_site
from client.learning.distillation import initialise
from client.seeds import generator
from client.steps.training import Fit
from client.store import Store, SyntheticSet
from server.nodes.engines.inline import InlineGrid
from tests.messages import NUM_CLIENTS, message, told, weights

STEPS = {"steps": 4, "batch_size": 32, "lr": 0.1, "scale": 10, "server_round": 1}


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InlineGrid]:
    monkeypatch.setenv(SIMULATED_STORES, str(tmp_path / "stores"))
    with InlineGrid(app, NUM_CLIENTS, node_config={}, workers=1) as made:
        yield made


def trained(
    grid: InlineGrid, tmp_path: Path, **said: Any
) -> tuple[SyntheticSet, dict[str, np.ndarray]]:
    """Return the set that client-0 keeps, and the weights that it sends."""
    settings = told(Fit, **{**STEPS, **said})
    (reply,) = grid.send_and_receive([message("train.fit", settings.config(), weights())])
    assert not reply.has_error(), reply.error
    (folder,) = (tmp_path / "stores").glob("*/client-0")
    found = Store(folder).load(settings.lineage, model=str(settings.model_spec.base))
    assert found is not None
    return found, {k: a.numpy() for k, a in reply.content.array_records["arrays"].items()}


def start(kind: str) -> SyntheticSet:
    """Return what client-0 begins with."""
    site = open_site(told(Fit, **STEPS), {"partition-id": 0})
    every = torch.ones(len(site.train), dtype=torch.bool)
    return initialise(site, every, 10, generator(0, "synthetic", 0, "client-0"), start=kind)


@pytest.mark.parametrize("kind", ["real", "noise"])
def test_the_set_begins_as_it_is_told(grid: InlineGrid, tmp_path: Path, kind: str) -> None:
    # Without a match it stays what it began as.
    found, _ = trained(grid, tmp_path, image_start=kind, distill_fraction=0.0)
    assert torch.equal(found.images, start(kind).images)
    assert torch.equal(found.labels, start(kind).labels)


def test_matching_changes_noise_and_goes_on_from_it(grid: InlineGrid, tmp_path: Path) -> None:
    first, _ = trained(grid, tmp_path, image_start="noise", image_lr=1.0)
    assert not torch.equal(first.images, start("noise").images)
    second, _ = trained(grid, tmp_path, image_start="noise", server_round=2, distill_fraction=0.0)
    assert torch.equal(second.images, first.images)


def test_a_match_moves_a_few_images_of_a_class_and_the_next_round_the_others(
    grid: InlineGrid, tmp_path: Path
) -> None:
    few = {"image_lr": 1.0, "image_batch": 1, "distill_every": 4}  # a match a round
    begun = start("real")
    before, moved = begun.images, torch.zeros(len(begun.labels), dtype=torch.bool)
    most = int(begun.labels.bincount().max())
    assert most > 1
    for server_round in range(1, most + 1):
        found, _ = trained(grid, tmp_path, server_round=server_round, **few)
        changed = (found.images != before).flatten(1).any(1)
        assert begun.labels[changed].bincount().max() == 1
        assert not (moved & changed & (begun.labels.bincount()[begun.labels] == most)).any()
        before, moved = found.images, moved | changed
    largest = int(begun.labels.bincount().argmax())
    assert moved[begun.labels == largest].all()  # each has had its turn


def test_real_images_are_the_default_and_the_model_is_the_same_with_either(
    grid: InlineGrid, tmp_path: Path
) -> None:
    usual, sent = trained(grid, tmp_path)
    named, sent_named = trained(grid, tmp_path, image_start="real", lineage="r0002")
    noise, sent_noise = trained(grid, tmp_path, image_start="noise", lineage="r0003")
    assert torch.equal(usual.images, named.images)
    assert not torch.equal(usual.images, noise.images)
    for name, array in sent.items():
        assert np.array_equal(array, sent_named[name])
        # The gradients that training takes come out of the match alike.
        assert np.array_equal(array, sent_noise[name])
