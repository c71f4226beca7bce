"""What was measured of one model: accuracies, loss, and how fast it learns the forget set again."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Curve:
    """Forget accuracy in percent after so many steps of relearning, and its mean."""

    steps: tuple[int, ...] = ()
    forget_accuracy: tuple[float | None, ...] = ()
    mean: float | None = None


@dataclass(frozen=True)
class SiteScores:
    """Accuracies in percent on what one client holds out, and of how many examples."""

    client: str | None = None
    forget_accuracy: float | None = None
    retain_accuracy: float | None = None
    forget_count: int | None = None
    retain_count: int | None = None


@dataclass(frozen=True)
class Heldout:
    """Accuracies in percent on data that the clients hold out and never train on.

    Attributes:
        forget_accuracy: Of all clients together.
        retain_accuracy: Likewise.
        forget_median: Median of the clients that hold any of it.
        retain_median: Likewise.
        per_class_median: Likewise, by class.
        sites: By client; empty where no client's own are known.
        decides: Whether a verdict's accuracies are these, not those of the coordinator's test data.
    """

    forget_accuracy: float | None = None
    retain_accuracy: float | None = None
    forget_median: float | None = None
    retain_median: float | None = None
    per_class_median: tuple[float | None, ...] | None = None
    sites: tuple[SiteScores, ...] = ()
    decides: bool = False


@dataclass(frozen=True)
class RoundScores:
    """Scores on test data after one evaluated round of a phase."""

    phase: str | None = None
    round: int | None = None
    forget_accuracy: float | None = None
    retain_accuracy: float | None = None
    loss: float | None = None
    per_class_accuracy: tuple[float | None, ...] | None = None


@dataclass(frozen=True)
class ModelScores:
    """Scores of one model. None is what was not measured; accuracies in percent.

    Attributes:
        forget_accuracy: On the forget set.
        retain_accuracy: On the retain set.
        loss: Mean cross-entropy.
        per_class_accuracy: By class, in order.
        heldout: The same two accuracies on the clients' held-out data.
        relearning_curve: How fast the forget set is learned again; of clients, the classes that
            only they held.
        membership: Of clients: by how many points the model is surer of what they train on than of
            what the other clients hold out (the true class's mean probability). It is of meaning
            beside that of retrained models.
        client_relearning: The same of each half of them, when a copy of the model has learned the
            other half again for a few steps, at the client.
        timeline: Of Retrained: its own rounds.
    """

    forget_accuracy: float | None = None
    retain_accuracy: float | None = None
    loss: float | None = None
    per_class_accuracy: tuple[float | None, ...] | None = None
    heldout: Heldout | None = None
    relearning_curve: Curve | None = None
    membership: float | None = None
    client_relearning: float | None = None
    timeline: tuple[RoundScores, ...] | None = None

    @property
    def curve_mean(self) -> float | None:
        """Mean of the relearning curve, None where it was not measured."""
        return None if self.relearning_curve is None else self.relearning_curve.mean
