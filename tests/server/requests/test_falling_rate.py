"""A training whose learning rate falls: which rate each round is told, a stop between or none."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from client.errors import BadSetting
from server.nodes.grid import NamedGrid
from server.runner import run
from server.settings import RunSettings
from tests.small_job import JOB, Silent, forget, train, weights

FALLS: dict[str, Any] = {"rounds": 3, "lr": 0.3, "final_lr": 0.1}
RATES = [0.3, 0.2, 0.1]  # 0.1 + 0.2 (1 + cos a) / 2 at 0, 90 and 180 degrees
Told = dict[str, list[float]]  # by phase, the rate of each round


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    found: Told = defaultdict(list)
    exchanged = NamedGrid._exchanged

    def noted(grid: NamedGrid, sent: list[Message], timeout: float | None) -> Iterator[Any]:
        configs = [m.content.config_records["config"] for m in sent]
        rates = {(str(c["phase"]), float(str(c["lr"]))) for c in configs if "lr" in c}
        for phase, rate in rates:  # one: all nodes of a round are told the same
            found[phase].append(round(rate, 9))
        return exchanged(grid, sent, timeout)

    monkeypatch.setattr(NamedGrid, "_exchanged", noted)
    return found


def test_training_and_retraining_fall_and_later_rounds_go_on_from_there(
    tmp_path: Path, told: Told
) -> None:
    train(tmp_path, "inline", scale=0, keep_updates=0, **FALLS)
    assert told["train"] == RATES
    forget(
        tmp_path,
        "inline",
        method="class-pruning",
        forget_classes="3",
        compare="retrain",
        accept="not-shown",
        max_forget_accuracy=100.0,
        max_relearning_gap=100.0,
    )
    assert told["retrain"] == RATES
    assert set(told["recover"]) == {0.1}


def test_federaser_calibrates_each_round_at_its_own_rate(tmp_path: Path, told: Told) -> None:
    train(tmp_path, "inline", scale=0, keep_updates=2, **FALLS)
    forget(
        tmp_path,
        "inline",
        method="federaser",
        forget_classes="3",
        accept="not-shown",
        max_forget_accuracy=100.0,
        max_relearning_gap=100.0,
    )
    assert told["unlearn"] == [0.3, 0.1]  # rounds 1 and 3


def test_a_training_that_was_stopped_goes_on_at_the_rate_of_its_round(
    tmp_path: Path, told: Told
) -> None:
    class Stops(Silent):
        def round(self, done: Any, scores: Any) -> None:
            if done.number == 2:
                raise KeyboardInterrupt

    job = {**JOB, "scale": 0, "keep_updates": 0, **FALLS, "home": str(tmp_path)}
    settings = RunSettings(mode="train", **job, engine="inline").check()
    with pytest.raises(KeyboardInterrupt):
        run(settings, Stops())
    run(settings, Silent())
    assert told["train"] == [0.3, 0.2, 0.2, 0.1]  # round 2 was not written down


def test_in_sums_all_clients_are_told_the_rate_of_the_round(tmp_path: Path, told: Told) -> None:
    sums = {"secure_aggregation": True, "num_clients": 3}
    train(tmp_path, "inline", scale=0, keep_updates=0, **sums, **FALLS)
    assert sorted(set(told["train"]), reverse=True) == RATES


def test_a_rate_that_ends_where_it_begins_gives_the_weights_of_one_that_stays(
    tmp_path: Path,
) -> None:
    for name, more in (("falls", {"final_lr": 0.3}), ("stays", {})):
        train(tmp_path / name, "inline", scale=0, keep_updates=0, rounds=2, lr=0.3, **more)
    one, other = (weights(tmp_path / name, "v0001") for name in ("falls", "stays"))
    for name in other:
        np.testing.assert_array_equal(one[name], other[name])


def test_a_rate_that_would_rise_is_refused() -> None:
    with pytest.raises(BadSetting, match=r"final-lr must be at most lr, 0\.1, got 0\.2: the rate"):
        RunSettings(lr=0.1, final_lr=0.2).check_training()
