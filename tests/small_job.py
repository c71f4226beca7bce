"""A tiny job on digits, to be run on several engines and compared."""

from pathlib import Path
from typing import Any

import numpy as np

from server.evidence.record import to_json
from server.requests.intake import Service
from server.runner import run
from server.settings import RunSettings
from server.storage.home import Home

JOB: dict[str, Any] = {
    "num_clients": 2,
    "model_width": 8,
    "model_depth": 2,
    "rounds": 2,
    "lr": 0.1,
    "scale": 20,
    "keep_updates": 1,
    "partition": "iid",
}
FORGET = {
    "method": "quickdrop",
    "forget_classes": "3",
    "max_forget_accuracy": 100.0,
    "accept": "not-shown",
    "method_options": "threshold=100,recover-rounds=1",
}
# Of other methods, on v0001 and without a trace of them in service.
TRIAL = {"trial": True, "max_forget_accuracy": 100.0}
CLASS, CLIENT = {"forget_classes": "3"}, {"forget_clients": "client-1"}


class Silent:
    def round(self, done: Any, scores: Any) -> None: ...

    def note(self, text: str) -> None: ...


def weights(home: Path, version: str) -> dict[str, np.ndarray]:
    return Service.open(Home(home)).registry.load(version)[0]


def train(home: Path, engine: str, **more: Any) -> None:
    settings = RunSettings(mode="train", **{**JOB, **more}, home=str(home), engine=engine)
    run(settings.check(), Silent())


def forget(home: Path, engine: str, **more: Any) -> dict[str, Any]:
    told = {**JOB, **(more or FORGET), "home": str(home), "engine": engine}
    return to_json(run(RunSettings(mode="forget", **told).check(), Silent()))
