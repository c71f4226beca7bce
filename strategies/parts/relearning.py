"""Relearning by ordinary rounds: the class or client is there again, with its real data."""

from dataclasses import replace

from flwr.app import ArrayRecord

from strategies.federation import Federation
from strategies.parts.participation import as_in_training
from strategies.rounds.base import FederatedAveraging


class OrdinaryRelearning:
    """Gives a method its `relearn`: by ordinary rounds."""

    def relearn(self, federation: Federation, model: ArrayRecord) -> ArrayRecord:
        """Return `model` with what the request names put back."""
        return ordinary_relearning(federation, model)


def ordinary_relearning(
    federation: Federation, model: ArrayRecord, *, holder_rounds: int = 4, rounds: int = 2
) -> ArrayRecord:
    """Return `model` with what the request names put back.

    Args:
        federation: Runs the rounds.
        model: The model to start from.
        holder_rounds: Rounds of the holders alone: among all nodes' updates theirs would be
            diluted.
        rounds: Rounds as in training after them.
    """
    told = federation.ordinary(side="all")
    alone = FederatedAveraging(
        replace(told, holders_alone=told.sums_only),  # where nobody knows who they are
        participants=federation.holders(synthetic=False),
    )
    model = federation.run("relearn", alone, model, num_rounds=holder_rounds)
    together = FederatedAveraging(told, **as_in_training(federation, back=True))
    return federation.run("relearn", together, model, num_rounds=rounds)
