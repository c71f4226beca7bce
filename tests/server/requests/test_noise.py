"""A federation that trains under noise: what its record says, and which methods serve."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from client.budget import Mechanism, epsilon
from client.errors import BadSetting
from client.learning.models import NAMES, build
from client.learning.networks import WITHOUT_BATCHNORM
from client.learning.private import check_private
from client.learning.spec import image_model
from client.seeds import generator
from server.evidence.record import PrivacySpent, from_json
from server.report.display import privacy_lines
from server.requests.planning import METHODS
from server.runner import run
from server.settings import RunSettings

SETTINGS: dict[str, Any] = {
    "num_clients": 3,
    "partition": "iid",
    "max_samples": 600,
    "rounds": 2,
    "local_steps": 3,
    "batch_size": 36,  # of 180 examples: a fifth a step
    "lr": 0.2,
    "model_width": 8,
    "model_depth": 1,
    "scale": 0,
    "noise_multiplier": 1.5,
    "engine": "inline",
    "evaluate_every": 0,
}
# Two rounds of three steps, and one look at the held-out part when the training has ended.
TRAINING = [Mechanism(1.5, 0.2, 6), Mechanism(10.0, 1.0, 1)]


class Silent:
    def round(self, done: Any, scores: Any) -> None: ...

    def note(self, text: str) -> None: ...


def ask(home: Path, **more: Any) -> dict[str, Any]:
    run(RunSettings(**{**SETTINGS, "home": str(home), "mode": "train", **more}).check(), Silent())
    newest = max((home / "runs").iterdir())
    document: dict[str, Any] = json.loads((newest / "record.json").read_text())
    return document


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    patch = pytest.MonkeyPatch()
    patch.setenv("EFFACE_STORE", "")  # undone together with what a run puts there
    folder = tmp_path_factory.mktemp("noise") / "home"
    ask(folder)
    yield folder
    patch.undo()


def record_of(home: Path, request: str = "r0001") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((home / "runs" / request / "record.json").read_text())
    return found


def weights(home: Path, version: str = "v0001") -> dict[str, np.ndarray[Any, Any]]:
    return load_file(home / "versions" / version / "model.safetensors")


def test_the_record_says_what_every_clients_answers_have_told(home: Path) -> None:
    privacy = record_of(home)["privacy"]
    expected = {"epsilon": pytest.approx(epsilon(TRAINING, 1e-5)), "delta": 1e-5}
    assert privacy == {f"client-{i}": expected for i in range(3)}
    assert from_json(record_of(home)).privacy["client-0"] == PrivacySpent(**expected)
    (line,) = privacy_lines(from_json(record_of(home)))
    assert line.startswith("Privacy: epsilon ")
    assert line.endswith("at delta 1e-05 for each example of 3 clients")


def test_the_same_seed_gives_the_same_noise(home: Path, tmp_path: Path) -> None:
    ask(tmp_path / "again")
    assert all(np.array_equal(a, weights(tmp_path / "again")[n]) for n, a in weights(home).items())
    ask(tmp_path / "other", seed=1)
    assert not any(
        np.array_equal(a, weights(tmp_path / "other")[n]) for n, a in weights(home).items()
    )


def test_forgetting_adds_to_what_was_told_and_retraining_pays_for_itself(home: Path) -> None:
    before = record_of(home)["privacy"]["client-0"]["epsilon"]
    found = ask(
        home,
        mode="forget",
        forget_classes="3",
        method="puf",
        method_options="rounds=1",
        compare="retrain",
        trial=True,
    )
    assert before < found["privacy"]["client-0"]["epsilon"] < np.inf
    # Retrained is another lineage: what it told is not this version's.
    lineages = {
        one["lineage"]
        for path in (home / "clients").rglob("client-0/budget.json")
        for one in json.loads(path.read_text())["spent"]
    }
    assert len(lineages) == 2


def test_methods_that_look_without_noise_are_refused_before_anything_starts(home: Path) -> None:
    with pytest.raises(BadSetting) as refused:
        ask(home, mode="forget", forget_classes="3", method="fisher", trial=True)
    assert str(refused.value).startswith(
        "message must be one that can be answered under noise, got train.fisher; choose another "
        "method: retraining"
    )
    able = str(refused.value).rpartition(": ")[2].split(", ")
    assert {"retraining", "puf", "not"} <= set(able) < set(METHODS)


@pytest.mark.parametrize(("changed", "said"), [
    ({"scale": 10}, "scale must be 0 with noise-multiplier above 0, got 10: synthetic"),
    ({"precision": "bfloat16"}, "precision must be float32 with noise-multiplier above 0"),
    ({"model": "resnet8"}, "model must be convnet or lenet with noise-multiplier above 0"),
])  # fmt: skip
def test_what_cannot_be_trained_under_noise_is_refused_at_once(
    tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadSetting, match=said):
        ask(tmp_path / "home", **changed)
    assert list((tmp_path / "home" / "versions").iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_the_models_without_batchnorm_are_those_that_can_be_trained(name: str) -> None:
    model = build(image_model(name, 10, 3, 32, 8, 1), generator(0))
    if name in WITHOUT_BATCHNORM:
        check_private(model)
    else:
        with pytest.raises(BadSetting, match="must have no BatchNorm"):
            check_private(model)


def test_without_noise_nothing_is_said(tmp_path: Path, home: Path) -> None:
    found = ask(tmp_path / "plain", noise_multiplier=0.0, rounds=1)
    assert found["privacy"] == {}
    assert privacy_lines(from_json(found)) == []
    assert not list((tmp_path / "plain").rglob("budget*.json"))
