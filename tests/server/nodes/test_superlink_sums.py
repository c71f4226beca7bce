"""Secure aggregation on a real SuperLink: every message is a process of its own."""

from pathlib import Path

import numpy as np
import pytest

from server.requests.intake import Service
from server.storage.home import Home
from tests.small_job import train, weights
from tests.superlink_harness import running_federation

NAMES = ["client-0", "client-1", "client-2"]
SUMS = {
    "num_clients": 3,
    "rounds": 1,
    "scale": 0,
    "keep_updates": 0,
    "secure_aggregation": True,
}


@pytest.mark.processes
def test_sums_on_a_superlink_are_those_of_the_inline_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path / "inline", "inline", **SUMS)
    shares = {"sim-dataset": "digits", "sim-num-clients": 3, "sim-partition": "iid"}
    nodes = {
        name: {"partition-id": i, "store": str(tmp_path / "stores" / name), **shares}
        for i, name in enumerate(NAMES)
    }
    home = tmp_path / "home"
    with running_federation(tmp_path / "federation", NAMES, nodes) as running:
        monkeypatch.setenv("FLWR_HOME", str(running.home))
        train(home, "superlink", connection=running.connection, **SUMS)
        assert not any("Traceback" in running.log(name) for name in NAMES)
    here, there = weights(tmp_path / "inline", "v0001"), weights(home, "v0001")
    for name in here:
        np.testing.assert_allclose(there[name], here[name], rtol=1e-3, atol=1e-4)
    card = Service.open(Home(home)).registry.load("v0001")[1]
    assert card["settings"]["secure-aggregation"]
    for name in NAMES:
        left = sorted(path.name for path in (tmp_path / "stores" / name / "_sums").iterdir())
        assert left == ["begun", "revealed.jsonl"]
