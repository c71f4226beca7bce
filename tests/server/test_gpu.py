"""On a GPU: the same seed gives the same bits, the methods serve, and measuring agrees with a CPU.

Skipped where torch finds none.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord

import efface
from client.learning.models import build
from client.seeds import generator
from client.wire import ForgetSpec
from server.evidence.measures import CPU, Judge, measuring_device
from server.requests.data import server_data
from server.settings import RunSettings

here = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")
SMALL: dict[str, Any] = {
    "num_clients": 2,
    "partition": "iid",
    "model_width": 8,
    "rounds": 4,
    "scale": 20,
    "device": "cuda",
}
SURE: dict[str, Any] = {
    "max_forget_accuracy": 100.0,
    "max_relearning_gap": 100.0,
    "accept": "not-shown",
}


def trained(home: Path, **more: Any) -> tuple[efface.Federation, efface.Version]:
    federation = efface.Federation.inline("digits", home=home, **{**SMALL, **more})
    return federation, federation.train()


def weights(version: efface.Version) -> dict[str, torch.Tensor]:
    return {name: value.cpu() for name, value in version.model().state_dict().items()}


@here
@pytest.mark.parametrize("model", ["convnet", "resnet8"])
def test_the_same_seed_gives_the_same_bits(tmp_path: Path, model: str) -> None:
    found = []
    for name in ("one", "two"):
        federation, version = trained(tmp_path / name, model=model)
        before = weights(version)
        result = federation.forget(class_=3, compare="none", **SURE)
        assert result.version is not None
        found.append((before, weights(result.version)))

    for one, two in zip(*found, strict=True):
        for name, value in one.items():
            assert torch.equal(value, two[name]), name


@here
def test_a_gpu_learns_what_a_cpu_learns(tmp_path: Path) -> None:
    on_gpu = weights(trained(tmp_path / "gpu")[1])
    on_cpu = weights(trained(tmp_path / "cpu", device="cpu")[1])

    for name, value in on_cpu.items():
        gap = (on_gpu[name].double() - value.double()).norm() / value.double().norm().clamp_min(1)
        assert float(gap) < 0.05, name


@here
@pytest.mark.parametrize(
    "method",
    [
        *("quickdrop", "quickdrop-subset", "sga", "puf", "not", "fisher", "class-pruning"),
        *("federaser", "rapid-retraining"),
    ],
)
def test_methods_forget_a_class_on_a_gpu(tmp_path: Path, method: str) -> None:
    federation, _ = trained(tmp_path / "home", keep_updates=2)
    result = federation.forget(class_=3, method=method, compare="none", **SURE)

    assert result.version is not None
    scores = result.version.scores
    assert scores.forget_accuracy is not None
    assert scores.retain_accuracy is not None
    assert scores.retain_accuracy > 20.0


@here
def test_a_client_is_forgotten_on_a_gpu(tmp_path: Path) -> None:
    federation, _ = trained(tmp_path / "home", num_clients=4)

    result = federation.forget(client="client-3", compare="none", **SURE)

    assert result.version is not None


@here
def test_measuring_on_a_gpu_agrees_with_a_cpu() -> None:
    settings = RunSettings(mode="train", dataset="digits", model_width=8).check()
    data = server_data(settings)
    assert data is not None
    spec = settings.model_spec(data)
    model = build(spec, generator(0, "initial weights"))
    arrays = ArrayRecord(model.state_dict())
    forget = ForgetSpec("class", (3,))
    cpu, gpu = (Judge(spec, data, forget, (), measuring_device(told)) for told in ("cpu", "auto"))
    assert gpu.device.type == "cuda"

    one, two = cpu.quick(arrays), gpu.quick(arrays)

    assert one["retain_accuracy"] == pytest.approx(two["retain_accuracy"], abs=0.5)
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-3)
    curves = [judge.relearning(arrays) for judge in (cpu, gpu)]
    assert curves[0] is not None
    assert curves[1] is not None
    assert curves[0]["mean"] == pytest.approx(curves[1]["mean"], abs=5.0)


def test_the_coordinator_measures_on_its_cpu_where_it_has_no_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    assert measuring_device("auto") == measuring_device("cpu") == CPU
    assert measuring_device("cuda:1") == CPU  # the clients' GPU


def test_the_coordinator_takes_a_gpu_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)

    assert measuring_device("cpu") == CPU
    assert measuring_device("auto") == torch.device("cuda:0")
    assert measuring_device("cuda:1") == torch.device("cuda:1")
    assert measuring_device("cuda:7") == torch.device("cuda:0")  # the clients' eighth
