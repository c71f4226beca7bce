"""Retraining from scratch: the yardstick that every method is measured against.

The same federated averaging as the original training, from the same initial weights, on the data
that are left (Retrain-Or in Dhasade et al. 2024, section 2.3). Departs from the paper: nothing.
"""

from flwr.app import ArrayRecord

from client.wire import Fit
from strategies.federation import Federation
from strategies.rounds import FederatedAveraging


def train(
    federation: Federation,
    initial: ArrayRecord,
    settings: Fit,
    *,
    phase: str,
    num_rounds: int,
    fraction: float,
    min_share: float,
) -> ArrayRecord:
    """Return `initial` after `num_rounds` of federated averaging.

    Args:
        federation: Runs the rounds.
        initial: Initial weights.
        settings: Local training; what its `forget` names is left out of it.
        phase: "train" or "retrain".
        num_rounds: K.
        fraction: Share of the nodes drawn every round.
        min_share: Share of those that must answer.
    """
    rounds = FederatedAveraging(settings, fraction=fraction, min_share=min_share)
    return federation.run(phase, rounds, initial, num_rounds=num_rounds)
