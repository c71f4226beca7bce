"""The same tiny job on every engine: bit for bit on one machine, and over gRPC."""

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
    "rounds": 2,
    "lr": 0.1,
    "scale": 20,
    "partition": "iid",
}
FORGET = {
    "method": "quickdrop",
    "forget_classes": "3",
    "max_forget_accuracy": 100.0,
    "method_options": "threshold=100,recover-rounds=1",
}


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
    common = {**JOB, "home": str(home), "engine": "superlink"}
    with running_federation(tmp_path / "federation", names, nodes) as federation:
        # `flwr run` alone trains: no efface command, the run config says it all.
        app = superlink.stage_app(tmp_path / "app")
        told = {key.replace("_", "-"): value for key, value in common.items()}
        number = superlink.submit(app, federation.connection, told, flwr_home=federation.home)
        superlink.wait(number, federation.connection, deadline=180, flwr_home=federation.home)
        # The efface command's way forgets.
        monkeypatch.setenv("FLWR_HOME", str(federation.home))
        settings = RunSettings(
            mode="forget", connection=federation.connection, **FORGET, **common
        ).check()
        record = run(settings, Silent())
        logs = [federation.log(name) for name in names]
    assert not federation.left_over()
    assert not any("Traceback" in log for log in logs)

    for phase in ("original", "recovered"):
        for key in ("forget_accuracy", "retain_accuracy"):
            assert record[phase][key] == pytest.approx(inline[1][phase][key], abs=0.5)
    assert record["bytes"]["unlearn"]["up"] > 0
    assert Path(record["report"]).stat().st_size > 1000
    # Synthetic images stay with each node; the coordinator's home holds none.
    assert all(list((tmp_path / "stores" / name).glob("r0001-*/*")) for name in names)
    assert not list((home / "clients").rglob("*.safetensors"))
