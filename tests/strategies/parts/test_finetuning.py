"""Fine-tuning: ordinary rounds, one by one, that end when the accuracy is back."""

from dataclasses import dataclass
from typing import Any

import pytest
from flwr.app import ArrayRecord

from strategies.federation import Accuracies
from strategies.parts.finetuning import fine_tune
from strategies.rounds.base import FederatedAveraging
from tests.recording import MODEL, Recording, Step


@dataclass
class Recovering(Recording):
    """Its retain accuracy is 90 % and rises by a point with every round of recovery."""

    def accuracies(self, model: ArrayRecord) -> Accuracies:
        self.steps.append(Step("measure", model=model))
        return Accuracies(self.accuracy, 90.0 + self.phases.count("recover"))


def phases(federation: Any, **asked: Any) -> list[str]:
    fine_tune(federation, MODEL, **asked)
    found: list[str] = federation.phases
    return found


def test_rounds_end_when_the_accuracy_is_back() -> None:
    # 90, 91, 92: the third measure is the first within one point of 93.
    found = phases(Recovering(), rounds=9, wanted=93.0, tolerance=1.0)
    assert found == ["measure", "recover", "measure", "recover", "measure"]


def test_rounds_end_when_they_are_used_up() -> None:
    # The model after the last is not measured: nothing would follow from it.
    found = phases(Recovering(), rounds=2, wanted=99.0)
    assert found == ["measure", "recover", "measure", "recover"]


def test_an_accuracy_that_is_there_already_costs_no_round() -> None:
    assert phases(Recovering(), rounds=9, wanted=90.0) == ["measure"]


@pytest.mark.parametrize("rounds", [0, 3])
def test_all_rounds_are_run_where_none_is_wanted(rounds: int) -> None:
    assert phases(Recovering(), rounds=rounds, wanted=None) == ["recover"] * rounds


def test_all_rounds_are_run_where_nothing_is_held_out() -> None:
    found = phases(Recording(retain=None), rounds=2, wanted=93.0)
    assert found == ["measure", "recover", "measure", "recover"]


def test_rounds_are_ordinary_ones_of_all_nodes_on_what_is_retained() -> None:
    federation: Any = Recording()
    fine_tune(federation, MODEL, rounds=1, wanted=None)
    step = federation.first("recover")
    everybody = ["client-0", "client-1", "client-2"]
    assert (type(step.rounds), step.participants) == (FederatedAveraging, everybody)
    assert step.num_rounds == 1
    assert (step.settings, step.settings.side) == (federation.ordinary(), "retain")
    assert step.model is MODEL
