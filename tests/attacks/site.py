"""A hospital with data of its own, and a coordinator that sends it whatever it likes.

The data are scikit-learn's digits: 1,797 images of 8x8 in 10 classes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from sklearn.datasets import load_digits

from client import wire
from client.app import handlers
from client.errors import EffaceError, split_mark
from client.learning.models import build
from client.learning.spec import image_model
from client.messages import Common
from client.settings import Settings
from tests.messages import message
from tests.policies import written_policy

NAME = "site-a"
SPEC = image_model("convnet", num_classes=10, channels=1, image_size=8, width=16, depth=1)
Arrays = dict[str, np.ndarray[Any, Any]]
Metrics = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What came back."""

    metrics: Metrics
    arrays: Arrays

    def __bool__(self) -> bool:
        return bool(self.arrays)


@dataclass
class Hospital:
    """One site, its policy and its store.

    Attributes:
        folder: Where all of it lies.
        images: uint8 `(n, 8, 8)`.
        labels: int64 `(n,)`.
        policy: Path of its policy.
    """

    folder: Path
    images: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]
    policy: Path
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def ask(self, kind: type[Common], arrays: ArrayRecord | None = None, **said: Any) -> Answer:
        """Send a message with settings of any kind and return its answer.

        Raises:
            EffaceError: With what a coordinator is told, if the site refuses or fails.
        """
        told = {**kind.message.example, **_values(), **said}
        config = ConfigRecord()
        for name, value in told.items():
            if isinstance(value, Settings):
                config.update(value.config(prefix=f"{name.replace('_', '-')}-"))
            else:
                config[name.replace("_", "-")] = value
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        context = Context(1, 7, {**self.config}, RecordDict(), {})
        sent = weights() if arrays is None else arrays
        content = handlers()[kind.message.name](
            message(kind.message.name, config, sent, node=7), context
        ).content
        metrics = dict(next(iter(content.metric_records.values())))
        found = next(iter(content.array_records.values()))
        return Answer(metrics, {name: array.numpy() for name, array in found.items()})

    def refusal(self, kind: type[Common], arrays: ArrayRecord | None = None, **said: Any) -> str:
        """Return why the site answers nothing, in the words that a coordinator is told."""
        try:
            answer = self.ask(kind, arrays, **said)
        except EffaceError as error:
            return split_mark(str(error))[1]
        raise AssertionError(f"{kind.message.name} was answered: {answer.metrics}")

    def tried(self, kind: type[Common], arrays: ArrayRecord | None = None, **said: Any) -> Answer:
        """Return the answer to an attack; one of no arrays and zeros where the site refuses."""
        try:
            return self.ask(kind, arrays, **said)
        except EffaceError:
            return Answer({}, {})

    def nearest(self, image: np.ndarray[Any, Any], rows: slice | Any = slice(None)) -> float:
        """Return the highest correlation of an image with one of the site's."""
        flat = self.images[rows].reshape(-1, 64).astype(float)
        flat = (flat - flat.mean(1, keepdims=True)) / flat.std(1, keepdims=True)
        one = image.ravel().astype(float)
        if one.std() == 0:
            return 0.0
        return float((flat @ ((one - one.mean()) / one.std()) / 64).max())


def hospital(
    folder: Path,
    *,
    updates: str = "single",
    keep: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]] | None = None,
    **changes: str,
) -> Hospital:
    """Return a new site on digits with the default policy, but for what is given.

    Args:
        folder: Where it is made.
        updates: "sums", the default of a policy, or "single".
        keep: From labels to the mask of the examples that it has; all of them without.
        changes: Lines of its policy by their key in snake case, as TOML values.
    """
    pixels, labels = load_digits(return_X_y=True)
    images = np.rint(pixels.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    if keep is not None:
        mask = keep(labels)
        images, labels = images[mask], labels[mask]
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "data.npz", train_images=images, train_labels=labels, num_classes=10)
    path = written_policy(folder / "site", NAME, **{"updates": f'"{updates}"', **changes})
    config = {
        "data": f"npz:{folder / 'data.npz'}",
        "store": str(folder / "store"),
        "policy": str(path),
        "device": "cpu",
    }
    return Hospital(folder, images, labels, path, config)


def _values() -> dict[str, Any]:
    return {
        "client": NAME,
        "fingerprint": wire.fingerprint(),
        "request": "r0001",
        "lineage": "r0001",
        "phase": "train",
        "seed": 0,
        **Common.of_model(SPEC),
        "device": "cpu",
        "forget_level": "none",
        "forget_classes": [],
    }


def record(state: dict[str, Any]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(value).copy()) for name, value in state.items()})


def weights(seed: int = 5) -> ArrayRecord:
    """Return an ordinary model's weights."""
    return record(build(SPEC, torch.Generator().manual_seed(seed)).state_dict())
