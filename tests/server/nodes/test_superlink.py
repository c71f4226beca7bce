"""The same tiny job over gRPC, on a real SuperLink: as in one process."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.nodes.engines import superlink
from server.requests.intake import Service
from server.storage.home import Home
from tests.small_job import CLIENT, FORGET, JOB, TRIAL, forget, weights
from tests.superlink_harness import RunningFederation, running_federation

NAMES = ["client-0", "client-1"]


@dataclass
class Deployed:
    """A coordinator's home, and the SuperLink that its version was trained on."""

    home: Path
    stores: Path
    running: RunningFederation

    def logs(self) -> list[str]:
        return [self.running.log(name) for name in NAMES]


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    folder = tmp_path_factory.mktemp("superlink")
    # No coordinator tells a real node of a simulation; here the nodes' own operator does.
    shares = {"sim-dataset": "digits", "sim-num-clients": 2, "sim-partition": JOB["partition"]}
    nodes = {
        name: {"partition-id": i, "store": str(folder / "stores" / name), **shares}
        for i, name in enumerate(NAMES)
    }
    with running_federation(folder / "federation", NAMES, nodes) as running:
        # `flwr run` alone trains: no efface command, the run config says it all.
        app = superlink.stage_app(folder / "app")
        common = {**JOB, "home": str(folder / "home"), "engine": "superlink"}
        told = {key.replace("_", "-"): value for key, value in common.items()}
        number = superlink.submit(app, running.connection, told, flwr_home=running.home)
        superlink.wait(
            number, running.connection, deadline=1200, ask_seconds=5, flwr_home=running.home
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FLWR_HOME", str(running.home))
            yield Deployed(folder / "home", folder / "stores", running)
    assert not running.left_over()


def assert_close(home: Path, version: str, expected: Path, other: str) -> None:
    found, wanted = weights(home, version), weights(expected, other)
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-3, atol=1e-4)


@pytest.mark.processes
def test_a_superlink_trains_and_replays_updates_as_in_one_process(
    deployed: Deployed, copy: Callable[[str], Path]
) -> None:
    # FedEraser stands for the methods: it needs every client's own update of the training, and asks
    # for more of them. Other methods send the messages of this test and of the next, in some order.
    told = {"method": "federaser", **CLIENT, **TRIAL}
    here = copy("inline")
    assert_close(deployed.home, "v0001", here, "v0001")
    expected = forget(here, "inline", **told)
    connection = deployed.running.connection
    record = forget(deployed.home, "superlink", connection=connection, **told)
    assert not any("Traceback" in log for log in deployed.logs())
    assert (record["engine"], record["base_version"]) == ("superlink", "v0001")
    assert record["rounds"] == expected["rounds"]
    before, after = (weights(deployed.home, v) for v in ("v0001", record["model_version"]))
    assert any(not np.array_equal(before[name], after[name]) for name in before)
    assert_close(deployed.home, record["model_version"], here, expected["model_version"])
    # A trial leaves the version in service, and what the nodes hold.
    assert Service.open(Home(deployed.home)).registry.resolve(None).id == "v0001"


@pytest.mark.processes
def test_a_superlink_with_tls_and_authentication_reaches_the_same_accuracies(
    inline: tuple[Path, dict[str, Any]], deployed: Deployed
) -> None:
    # The last on this federation: from here on its nodes keep class 3 out.
    record = forget(deployed.home, "superlink", connection=deployed.running.connection, **FORGET)
    assert not any("Traceback" in log for log in deployed.logs())

    for phase in ("original", "recovered"):
        for key in ("forget_accuracy", "retain_accuracy"):
            assert record[phase][key] == pytest.approx(inline[1][phase][key], abs=0.5)
    assert record["bytes"]["unlearn"]["up"] > 0
    assert Path(record["report"]).stat().st_size > 1000
    # Synthetic images stay with each node; the coordinator's home holds none.
    assert all(list((deployed.stores / name).glob("r0001-*/*")) for name in NAMES)
    assert not list((deployed.home / "clients").rglob("*.safetensors"))
