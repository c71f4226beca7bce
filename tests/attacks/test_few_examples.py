"""T4: other ways to an answer that one example alone is behind."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.messages import Common
from client.steps.ascent import Ascend
from client.steps.channels import Ablation, FitChannels, Representation
from client.steps.fedosd import Gradient
from client.steps.measuring import Describe, Fisher, Heldout
from client.steps.recovery import Descend
from client.steps.training import Fit
from tests.attacks.site import Hospital, hospital

OTHERS = [c for c in range(10) if c != 3]
NAMED = {"forget_level": "class", "forget_classes": [3]}
REST_ERASED = {"forget_level": "none", "forget_classes": [], "erased_classes": OTHERS}

WAYS: list[tuple[type[Common], dict[str, Any]]] = [
    (Fit, {"side": "forget", "steps": 1, "batch_size": 64, "lr": 1.0, "scale": 0, **NAMED}),
    (Fit, {"side": "retain", "steps": 1, "lr": 1.0, "scale": 0, **REST_ERASED}),
    (Fit, {"side": "all", "steps": 1, "lr": 1.0, "scale": 0, **REST_ERASED}),
    (Fit, {"optimiser": "quasi-newton", "steps": 1, "lr": 1.0, "scale": 0, **REST_ERASED}),
    (Ascend, {"data": "original", "lr": 1.0, **NAMED}),
    (Ascend, {"data": "subset", "scale": 10**9, "lr": 1.0, **NAMED}),
    (Descend, {"data": "original", "side": "forget", "lr": 1.0, **NAMED}),
    (Descend, {"data": "original", "side": "retain", "lr": 1.0, **REST_ERASED}),
    (Descend, {"data": "subset", "side": "forget", "scale": 10**9, "lr": 1.0, **NAMED}),
    (Descend, {"data": "original", "side": "all", "batches": 10**6, "lr": 1.0, **REST_ERASED}),
    (FitChannels, {"steps": 1, "lr": 1.0, "channels": ["classifier:3"], **REST_ERASED}),
    (Gradient, {"side": "forget", **NAMED}),
    (Gradient, {"side": "retain", **REST_ERASED}),
    (Fisher, {"side": "forget", "max_examples": 2, **NAMED}),
    (Ablation, {"max_examples": 1, **NAMED}),
    (Representation, {"samples_per_class": 2, **REST_ERASED}),
]


@pytest.fixture(scope="module", params=[1, 4])
def few(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    """A site with one example of class 3, or four, and all of the others."""
    most = request.param

    def keep(labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return (labels != 3) | (np.cumsum(labels == 3) <= most)  # type: ignore[no-any-return]

    return hospital(tmp_path_factory.mktemp("t4"), keep=keep, holdout="0.0")


@pytest.mark.parametrize("way", range(len(WAYS)))
def test_no_selector_reaches_a_handful(few: Hospital, way: int) -> None:
    kind, said = WAYS[way]
    answer = few.tried(kind, **{"holdout": 0.0, **said})
    assert not answer
    # Refused, or zeros in place of all that would tell of them.
    told = {k: v for k, v in answer.metrics.items() if k not in ("seconds", "partition", "code")}
    assert not np.any([np.sum(value) for value in told.values()])


def test_a_class_of_a_handful_is_not_counted_either(few: Hospital) -> None:
    told = few.ask(Describe, holdout=0.0, **NAMED).metrics
    assert told["num-forget"] == 0
    assert told["count-train-per-class"][3] == 0


def test_ordinary_training_goes_on_without_them(few: Hospital) -> None:
    answer = few.ask(Fit, holdout=0.0, steps=2, batch_size=64, lr=0.1, scale=0)
    assert answer
    assert answer.metrics["num-examples"] == (few.labels != 3).sum()


def test_a_subset_has_several_of_every_class_whatever_the_scale(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    site = hospital(tmp_path_factory.mktemp("t4-subset"))
    told = site.ask(Descend, data="subset", side="forget", scale=10**9, lr=0.1, **NAMED).metrics
    assert told["num-examples"] == 5


def test_held_out_counts_hold_no_handful(tmp_path: Path) -> None:
    # 8 of class 3 are held out, as likely as not in both parts: either has 5 of them, or none.
    def keep(labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return (labels != 3) | (np.cumsum(labels == 3) <= 8)  # type: ignore[no-any-return]

    site = hospital(tmp_path, keep=keep, holdout="0.5")
    told = site.ask(Heldout, holdout=0.5, **NAMED).metrics
    counts = [*told["retain-count-per-class"], *told["forget-count-per-class"]]
    assert all(count == 0 or count >= 5 for count in counts)
    assert site.ask(Describe, holdout=0.5, **NAMED).metrics["num-forget"] in (0, 5, 6, 7, 8)


def test_few_held_out_examples_are_not_scored(tmp_path: Path) -> None:
    site = hospital(tmp_path, keep=lambda labels: np.arange(len(labels)) < 30, holdout="0.1")
    told = site.ask(Heldout, holdout=0.1, **NAMED).metrics
    assert (told["num-examples"], told["samples"]) == (0, 0)
    assert not np.any(told["retain-count-per-class"])
