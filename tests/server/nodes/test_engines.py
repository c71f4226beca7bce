"""The same tiny job on the engines of one machine: bit for bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.evidence.record import to_json
from server.requests.intake import Service
from server.runner import run, verify
from server.settings import RunSettings
from server.storage.home import Home
from tests.small_job import CLASS, CLIENT, JOB, TRIAL, Silent, forget, train, weights

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
def test_a_method_that_scores_channels_forgets_the_same_on_ray_bit_for_bit(
    copy: Callable[[str], Path],
) -> None:
    # The test before sends ascents, and those on a SuperLink stored updates.
    told = {"method": "influential-de", **CLASS, "method_options": "rounds=1"}
    found = []
    for engine in ("inline", "ray"):
        home = copy(engine)
        record = forget(home, engine, **told, **TRIAL)
        found.append((weights(home, record["model_version"]), record["recovered"]))
    (here, scores), (there, scores_there) = found
    assert all(np.array_equal(here[name], there[name]) for name in here)
    assert scores == scores_there


@pytest.mark.processes
def test_ray_trains_retrained_models_and_judges_a_client_again_as_inline_does(
    copy: Callable[[str], Path],
) -> None:
    found = []
    for engine in ("inline", "ray"):
        home = copy(engine)
        told = {**JOB, **CLIENT, "home": str(home), "engine": engine, "count": 2}
        stock = to_json(run(RunSettings(mode="yardstick", **told).check(), Silent()))["stock"]
        # Where they were trained does not matter to who reads them.
        kept = forget(home, "inline", **CLIENT, **TRIAL, method="sga", compare="retrain")
        again = verify(str(home), "r0003", {"engine": engine}, Silent())
        assert again.again is not None
        now = to_json(again.again)
        assert (again.verification, now["engine"], now["kind"]) == ("r0004", engine, "verify")
        assert [one["scores"] for one in now["stock"]] == [
            {**one["scores"], "timeline": None} for one in kept["stock"]
        ]
        found.append((stock, now["stock"], now["original"], now["recovered"], now["verdict"]))
    assert found[0] == found[1]
    assert len(found[0][0]) == 2


@pytest.mark.processes
@pytest.mark.parametrize("task", ["tables.py:Wine", "others.py:Words"])
def test_a_users_task_gives_the_same_on_ray_bit_for_bit(tmp_path: Path, task: str) -> None:
    told: dict[str, Any] = {"task": f"{TASKS / task}", "local_steps": 5, "keep_updates": 0}
    if "Words" in task:  # in sums of four nodes, too; no synthetic examples can be made of words
        told |= {"scale": 0, "num_clients": 4, "secure_aggregation": True}
    # No options of the built-in task.
    job = {"rounds": 1, "scale": 4, "model_width": 32, "model_depth": 2, **told}
    found = []
    for engine in ("inline", "ray"):
        home = tmp_path / engine
        train(home, engine, **job)
        found.append(weights(home, "v0001"))
        card = Service.open(Home(home)).registry.load("v0001")[1]
        assert bool(card["settings"]["secure-aggregation"]) == ("Words" in task)
    here, there = found
    assert all(np.array_equal(here[name], there[name]) for name in here)
