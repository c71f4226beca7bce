"""The same tiny job on the engines of one machine: bit for bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.small_job import CLASS, CLIENT, FORGET, TRIAL, forget, train, weights

TASKS = Path(__file__).parents[2] / "tasks"


def test_inline_twice_gives_the_same_weights_bit_for_bit(
    inline: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    train(tmp_path, "inline")
    forget(tmp_path, "inline")
    for version in ("v0001", "v0002"):
        once, again = weights(inline[0], version), weights(tmp_path, version)
        assert list(once) == list(again)
        assert all(np.array_equal(once[name], again[name]) for name in once)


@pytest.mark.processes
def test_ray_gives_the_inline_engines_weights_bit_for_bit(
    inline: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    train(tmp_path, "ray")
    record = forget(tmp_path, "ray")
    assert record["engine"] == "ray"
    for version in ("v0001", "v0002"):
        here, there = weights(inline[0], version), weights(tmp_path, version)
        assert all(np.array_equal(here[name], there[name]) for name in here)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("federaser", CLIENT),
        ("influential-de", {**CLASS, "method_options": "rounds=1"}),
    ],
)
def test_a_method_forgets_the_same_on_ray_bit_for_bit(
    copy: Callable[[str], Path], method: str, told: dict[str, str]
) -> None:
    found = []
    for engine in ("inline", "ray"):
        home = copy(engine)
        record = forget(home, engine, method=method, **told, **TRIAL)
        found.append((weights(home, record["model_version"]), record["recovered"]))
    (here, scores), (there, scores_there) = found
    assert all(np.array_equal(here[name], there[name]) for name in here)
    assert scores == scores_there


@pytest.mark.processes
@pytest.mark.parametrize(
    ("task", "method"), [("tables.py:Wine", "quickdrop"), ("others.py:Words", None)]
)
def test_a_users_task_gives_the_same_on_ray_bit_for_bit(
    tmp_path: Path, task: str, method: str | None
) -> None:
    job = {"task": f"{TASKS / task}", "rounds": 1, "local_steps": 5, "scale": 4 if method else 0}
    job |= {
        "keep_updates": 0,
        "model_width": 32,
        "model_depth": 2,
    }  # no options of the built-in task
    found = []
    for engine in ("inline", "ray"):
        home = tmp_path / engine
        train(home, engine, **job)
        if method:
            forget(home, engine, method=method, **CLIENT, **TRIAL)
        found.append([weights(home, v) for v in ("v0001", "v0002")[: 2 if method else 1]])
    for here, there in zip(*found, strict=True):
        assert all(np.array_equal(here[name], there[name]) for name in here)


@pytest.mark.processes
def test_sums_on_ray_are_those_of_the_inline_engine_bit_for_bit(tmp_path: Path) -> None:
    found = []
    for engine in ("inline", "ray"):
        home = tmp_path / engine
        train(home, engine, num_clients=4, secure_aggregation=True, keep_updates=0)
        record = forget(home, engine, **{**FORGET, "num_clients": 4})
        assert record["settings"]["secure-aggregation"]
        found.append([weights(home, version) for version in ("v0001", "v0002")])
    for here, there in zip(*found, strict=True):
        assert all(np.array_equal(here[name], there[name]) for name in here)
