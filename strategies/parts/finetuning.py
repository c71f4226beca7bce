"""Fine-tuning: ordinary rounds on what is retained, until the accuracy is back."""

from flwr.app import ArrayRecord

from strategies.federation import Federation
from strategies.parts.participation import as_in_training
from strategies.rounds.base import FederatedAveraging


def fine_tune(
    federation: Federation,
    model: ArrayRecord,
    *,
    rounds: int,
    wanted: float | None,
    tolerance: float = 0.0,
) -> ArrayRecord:
    """Return `model` after ordinary rounds: nodes with data left, drawn as in training.

    Args:
        federation: Runs the rounds one by one, and measures before each.
        model: The model to start from; not changed.
        rounds: At most so many, at least 0.
        wanted: Retain accuracy in percent on held-out data that ends it; None for none.
        tolerance: Points below it that are accepted.
    """
    fit = FederatedAveraging(federation.ordinary(), **as_in_training(federation))
    for _ in range(rounds):
        if wanted is not None:
            known = federation.accuracies(model).retain
            if known is not None and known >= wanted - tolerance:
                break
        model = federation.run("recover", fit, model, num_rounds=1)
    return model
