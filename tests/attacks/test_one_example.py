"""T2: one step on one example, with prepared weights, sent that example."""

from pathlib import Path

import numpy as np
import pytest
import torch

from client.steps.training import Fit
from tests.attacks import prepared
from tests.attacks.site import Hospital, hospital, record

STEP = {"steps": 1, "lr": 1.0, "scale": 0}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    return hospital(tmp_path_factory.mktemp("t2"))


def rebuilt(site: Hospital, **said: object) -> list[float]:
    """Return, for each row of the last layer, how near its image is to one of the site's."""
    state = prepared.shifts()
    answer = site.tried(Fit, record(state), **{**STEP, **said})
    if not answer:
        return []
    weight, bias = prepared.change(answer.arrays, state)
    return [site.nearest(prepared.image(prepared.features(weight[k], bias[k]))) for k in range(10)]


def test_the_attack_works_where_nothing_is_asked_of_batches(tmp_path: Path) -> None:
    # What the defaults are measured against: the same attack on a site without them.
    lax = hospital(tmp_path, min_examples="1", min_batch="1")
    assert max(rebuilt(lax, batch_size=1)) > 0.99


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_a_batch_below_the_policys_is_refused(site: Hospital, batch_size: int) -> None:
    refused = site.refusal(Fit, record(prepared.shifts()), **STEP, batch_size=batch_size)
    assert f"batch-size must be at least 5 at site-a, got {batch_size}" in refused


def test_the_smallest_batch_holds_enough_of_every_class_that_is_in_it(site: Hospital) -> None:
    state = prepared.shifts()
    for seed in range(5):
        answer = site.ask(Fit, record(state), **STEP, batch_size=5, seed=seed)
        _, bias = prepared.change(answer.arrays, state)
        # Of a zero layer: row k of the bias moves by (n_k - n / 10) / n.
        counts = np.rint((bias + 0.1) * answer.metrics["samples"]).astype(int)
        assert set(counts[counts > 0]) <= set(range(5, 100))
        assert counts.sum() == answer.metrics["samples"]


def test_no_image_comes_back_from_the_smallest_batch(site: Hospital) -> None:
    # A row's image is the mean of at least 5 of a class. On digits such a mean is near to some
    # image of its class by itself, so what counts is that it is no nearer than the mean of five
    # that the attacker might have drawn anywhere: no image in particular.
    draws = torch.Generator().manual_seed(1)
    anywhere = []
    for label in range(10):
        rows = np.flatnonzero(site.labels == label)
        chosen = rows[torch.randperm(len(rows), generator=draws)[:5].numpy()]
        anywhere.append(site.nearest(site.images[chosen].mean(0)))
    got = [near for seed in range(3) for near in rebuilt(site, batch_size=5, seed=seed)]
    assert np.mean(got) <= np.mean(anywhere) + 0.02
    assert max(got) <= max(anywhere) + 0.02


def test_by_default_nothing_of_one_site_goes_up(tmp_path: Path) -> None:
    site = hospital(tmp_path, updates="sums")
    for batch_size in (1, 5, 64, 2000):
        refused = site.refusal(Fit, record(prepared.shifts()), **STEP, batch_size=batch_size)
        assert "this site answers in sums only: run with --secure-aggregation" in refused
