"""The same tiny job on every engine: bit for bit on one machine, and over gRPC."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.engines import superlink
from server.home import Home
from server.runner import run
from server.service import Service
from server.settings import RunSettings
from tests.superlink_harness import running_federation

JOB: dict[str, Any] = {
    "num_clients": 2,
    "model_width": 8,
    "model_depth": 2,
    "rounds": 3,
    "lr": 0.1,
    "scale": 20,
    "partition": "iid",
}
FORGET = {"forget_classes": "3", "max_forget_accuracy": 100.0, "method_options": "threshold=100"}


class Silent:
    def round(self, done: Any, scores: Any) -> None: ...

    def note(self, text: str) -> None: ...


def weights(home: Path, version: str) -> dict[str, np.ndarray]:
    return Service.open(Home(home)).registry.load(version)[0]


def train_and_forget(home: Path, engine: str, **more: Any) -> dict[str, Any]:
    common = {**JOB, "home": str(home), "engine": engine, **more}
    run(RunSettings(mode="train", **common).check(), Silent())
    return run(RunSettings(mode="forget", **FORGET, **common).check(), Silent())


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    home = tmp_path_factory.mktemp("inline")
    return home, train_and_forget(home, "inline")


def test_inline_twice_gives_the_same_weights_bit_for_bit(
    inline: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    train_and_forget(tmp_path, "inline")
    for version in ("v0001", "v0002"):
        once, again = weights(inline[0], version), weights(tmp_path, version)
        assert list(once) == list(again)
        assert all(np.array_equal(once[name], again[name]) for name in once)


@pytest.mark.processes
def test_ray_gives_the_inline_engines_weights_bit_for_bit(
    inline: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    record = train_and_forget(tmp_path, "ray")
    assert record["engine"] == "ray"
    for version in ("v0001", "v0002"):
        here, there = weights(inline[0], version), weights(tmp_path, version)
        assert all(np.array_equal(here[name], there[name]) for name in here)


@pytest.mark.processes
def test_a_superlink_with_tls_and_authentication_reaches_the_same_accuracies(
    inline: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["client-0", "client-1"]
    nodes = {
        name: {"partition-id": i, "num-partitions": 2, "store": str(tmp_path / "stores" / name)}
        for i, name in enumerate(names)
    }
    home = tmp_path / "home"
    with running_federation(tmp_path / "federation", names, nodes) as federation:
        monkeypatch.setenv("FLWR_HOME", str(federation.home))
        record = train_and_forget(home, "superlink", connection=federation.connection)
        log = federation.log("client-0")
        # `flwr run` alone does it too: no efface command, the run config says it all.
        app = superlink.stage_app(tmp_path / "app")
        told = {"mode": "relearn", "home": str(home), "forget-classes": "3"}
        number = superlink.submit(app, federation.connection, told, flwr_home=federation.home)
        superlink.wait(number, federation.connection, deadline=180, flwr_home=federation.home)
    assert not federation.left_over()
    assert "train.fit" not in log or "Traceback" not in log

    for phase in ("original", "recovered"):
        for key in ("forget_accuracy", "retain_accuracy"):
            assert record[phase][key] == pytest.approx(inline[1][phase][key], abs=0.5)
    assert record["bytes"]["unlearn"]["up"] > 0
    # Synthetic images stay with each node; the coordinator's home holds none.
    assert all((tmp_path / "stores" / name / "r0001").is_dir() for name in names)
    assert not list((home / "clients").rglob("*.safetensors"))
    relearned = json.loads((home / "runs" / "r0003" / "record.json").read_text())
    assert relearned["kind"] == "relearn"
    assert Path(relearned["report"]).stat().st_size > 1000
