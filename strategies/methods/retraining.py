"""Retraining from scratch: the yardstick of all other methods.

The same federated averaging as the original training, from the same initial weights, on the data
that are left (Retrain-Or in Dhasade et al. 2024, section 2.3). Departs from the paper: nothing.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from flwr.app import ArrayRecord

from strategies.federation import Federation
from strategies.method import Hyperparameters, Needs
from strategies.parts.participation import as_in_training
from strategies.parts.relearning import OrdinaryRelearning
from strategies.rounds.base import FederatedAveraging


@dataclass(frozen=True)
class Retraining(OrdinaryRelearning, Hyperparameters):
    """The oracle as a method: slow, and forgets by construction."""

    needs: ClassVar[Needs] = Needs(
        own_loss=True,
        levels=frozenset({"class", "client"}),
        target_online=False,
        sums=frozenset({"class", "client"}),
    )

    def forget(self, federation: Federation, model: ArrayRecord) -> ArrayRecord:
        """Return a model that never saw what the request names; `model` is not used."""
        return train(federation, phase="unlearn")


def train(federation: Federation, *, phase: str, **values: Any) -> ArrayRecord:
    """Return the initial weights after all rounds of federated averaging.

    Args:
        federation: Runs the rounds, as many and with as many nodes as its plan says.
        phase: "train", "retrain" or "unlearn".
        values: Settings of `client.steps.training.Fit` beside the ordinary ones; what the request
            names is left out.
    """
    initial = federation.initial()
    told = federation.ordinary(**values)
    rounds = FederatedAveraging(told, rates=federation.plan.rates, **as_in_training(federation))
    return federation.run(phase, rounds, initial, num_rounds=federation.plan.num_rounds)
