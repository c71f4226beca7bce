"""A federation in memory that only writes down what methods ask of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord

from client.learning.models import ModelSpec
from client.steps.store import Condense
from client.steps.training import Fit
from client.wire import ForgetSpec
from strategies.federation import Accuracies, Plan
from strategies.rounds.base import NothingTouched
from tests.messages import SPEC, values

MODEL = ArrayRecord(
    {
        "body.weight": Array(np.array([1.0, 2.0], dtype=np.float32)),
        "classifier.weight": Array(np.arange(20, dtype=np.float32).reshape(10, 2)),
        "classifier.bias": Array(np.arange(10, dtype=np.float32)),
    }
)


INITIAL = ArrayRecord({name: Array(np.zeros_like(MODEL[name].numpy())) for name in MODEL})


@dataclass
class Step:
    phase: str
    settings: Any = None
    participants: Any = None
    rounds: Any = None
    num_rounds: int = 0
    model: Any = None


@dataclass
class Recording:
    """A federation that writes down what is asked of it and returns the model as it was."""

    forget: ForgetSpec = field(default_factory=lambda: ForgetSpec("class", (3,)))
    accuracy: float | None = 0.0
    retain: float | None = 99.0
    erased_clients: tuple[str, ...] = ()
    nobody: bool = False
    asked_for_synthetic: list[bool] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def settings(self, kind: Any, **more: Any) -> Any:
        return kind(
            **values(
                forget_level=self.forget.level,
                forget_classes=list(self.forget.classes),
                forget_clients=list(self.forget.clients),
                **more,
            )
        ).check()

    def holders(self, *, synthetic: bool) -> list[str]:
        if self.nobody:
            raise NothingTouched("nobody holds it")
        self.steps.append(Step("holders", synthetic))
        return ["client-0", "client-2"]

    def run(self, phase: str, rounds: Any, model: ArrayRecord, *, num_rounds: int) -> ArrayRecord:
        self.steps.append(
            Step(phase, rounds.settings, rounds.participants, rounds, num_rounds, model)
        )
        return model

    @property
    def spec(self) -> ModelSpec:
        return SPEC

    def ordinary(self, **more: Any) -> Fit:
        fit: Fit = self.settings(Fit, **{"steps": 1, "lr": 0.1, **more})
        return fit

    def locally(
        self,
        phase: str,
        work: Callable[[], ArrayRecord],
        *,
        samples: int = 0,
        effort: float = 1.0,
        changes_model: bool = True,
    ) -> ArrayRecord:
        # Unlike nodes' work, the server's own is done.
        model = work()
        self.steps.append(Step(phase, samples, model=model))
        return model

    def keepers(self, *, synthetic: bool = False, back: bool = False) -> list[str]:
        self.asked_for_synthetic.append(synthetic)
        clients, classes = set(self.erased_clients), set()
        if back:
            clients -= set(self.forget.clients)
        else:
            clients |= set(self.forget.clients)
            classes |= set(self.forget.classes)
        return [
            name
            for name, counts in self.class_counts().items()
            if name not in clients and sum(n for c, n in enumerate(counts) if c not in classes)
        ]

    def class_counts(self) -> dict[str, list[float]]:
        # Of class 0 client-0 has all, of class 1 three quarters, of class 2 a half.
        rest = [1.0] * 7
        return {
            "client-0": [8.0, 6.0, 2.0, *[0.0] * 7],
            "client-1": [0.0, 2.0, 1.0, *rest],
            "client-2": [0.0, 0.0, 1.0, *rest],
        }

    def accuracies(self, model: ArrayRecord) -> Accuracies:
        self.steps.append(Step("measure", model=model))
        return Accuracies(self.accuracy, self.retain)

    def say(self, text: str) -> None:
        self.said.append(text)

    def condense(self, settings: Condense) -> None:
        self.steps.append(Step("condense", settings))

    @property
    def plan(self) -> Plan:
        return Plan(num_rounds=7, fraction=0.5, min_share=0.25)

    def initial(self) -> ArrayRecord:
        return INITIAL

    @property
    def phases(self) -> list[str]:
        return [step.phase for step in self.steps]

    def first(self, phase: str) -> Step:
        return next(step for step in self.steps if step.phase == phase)
