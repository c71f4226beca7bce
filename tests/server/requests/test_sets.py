"""What a training is told of synthetic sets reaches the clients that make them."""

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from client.store import Store
from server.runner import run
from server.settings import RunSettings

JOB: dict[str, Any] = {
    **{"mode": "train", "engine": "inline", "dataset": "digits", "num_clients": 2},
    **{"partition": "iid", "max_samples": 200, "model_width": 4, "rounds": 1, "local_steps": 4},
    **{"batch_size": 16, "distill_every": 2, "image_steps": 2, "evaluate_every": 0},
}


class Quiet:
    def round(self, done: Any, scores: Any) -> None: ...

    def note(self, text: str) -> None: ...


def images(home: Path, **told: Any) -> Tensor:
    """Return the images that client-0 keeps."""
    run(RunSettings(**{**JOB, **told, "home": str(home)}).check(), Quiet())
    store = Store(next((home / "clients").rglob("client-0")))
    newest = store.generations()[-1]
    found = store.load(newest.lineage, model=newest.model)
    assert found is not None
    return found.images


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    return images(tmp_path_factory.mktemp("usual"))


@pytest.mark.parametrize(
    "told",
    [
        {"image_start": "noise"},
        {"image_lr": 0.2},
        {"image_steps": 1},
        {"image_momentum": 0.0},
        {"image_batch": 1},
        {"distill_every": 4},
        {"distill_fraction": 0.0},
    ],
)
def test_each_setting_makes_another_set(
    tmp_path: Path, usual: Tensor, told: dict[str, Any]
) -> None:
    found = images(tmp_path, **told)
    assert found.shape == usual.shape
    assert not found.equal(usual)


def test_the_same_settings_make_the_same_set(tmp_path: Path, usual: Tensor) -> None:
    assert images(tmp_path).equal(usual)
