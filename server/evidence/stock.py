"""The stock of retrained models: what was measured of each, and which measures a verdict reads.

Likeness to Retrained (CKA, neighbours) is shown and decides nothing: a result starts from
Original's weights, as number 0 does from Original's first ones, and is like it for that, too.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from server.evidence.features.scores import FeatureScores
from server.evidence.scores import ModelScores

Measure = Literal[
    "forget-accuracy",
    "relearning-curve",
    "head-back",
    "blank-head",
    "class-means",
    "probe",
    "matched-head",
    "turned-head",
    "membership",
    "client-relearning",
]


@dataclass(frozen=True)
class Retraining:
    """One retrained model of the stock.

    Attributes:
        number: 0 is the one with the request's own seed.
        seed: Its seed, the only thing by which it differs from the others.
        scores: Of its outputs.
        features: Of what lies below its last layer; None where that was not measured.
        file: Name of its file in the cache; None in records of an earlier Efface, as `sha256`.
        sha256: Of its weights, by which it is noticed if another model lies there later.
    """

    number: int = 0
    seed: int = 0
    scores: ModelScores = field(default_factory=ModelScores)
    features: FeatureScores | None = None
    file: str | None = None
    sha256: str | None = None

    @property
    def numbers(self) -> dict[str, float | None]:
        """What is shown of it, in percent, by short names."""
        scores, below = self.scores, self.features or FeatureScores()
        return {
            "forget": scores.forget_accuracy,
            "retain": scores.retain_accuracy,
            "relearning": scores.curve_mean,
            "head back": below.head_back,
            "blank head": below.blank_mean,
            "class means": below.class_means,
            "probe": below.probe,
            "matched head": below.matched_head,
            "turned head": below.turned_head,
            **{
                name: value
                for name, value in (
                    ("membership", scores.membership),
                    ("client relearning", scores.client_relearning),
                )
                if value is not None
            },
        }


# Each says something of its own: what is answered, how fast it comes back, from the last layer as
# it was, from an empty one, and of the features without any layer on top. Of clients all but the
# first and the last two are of the classes that only they held.
_READ: Final[Mapping[Measure, Callable[[ModelScores, FeatureScores], float | None]]] = {
    "forget-accuracy": lambda scores, features: scores.forget_accuracy,
    "relearning-curve": lambda scores, features: scores.curve_mean,
    "head-back": lambda scores, features: features.head_back,
    "blank-head": lambda scores, features: features.blank_mean,
    "class-means": lambda scores, features: features.class_means,
    "probe": lambda scores, features: features.probe,
    "matched-head": lambda scores, features: features.matched_head,
    "turned-head": lambda scores, features: features.turned_head,
    "membership": lambda scores, features: scores.membership,
    "client-relearning": lambda scores, features: scores.client_relearning,
}
OF_CLIENTS: Final[tuple[Measure, ...]] = ("membership", "client-relearning")
# Each further measure widens the limits of all, and those of three or four models are wide already.
NEEDED: Final[Mapping[Measure, int]] = {"client-relearning": 5}
REQUIRED: Final[Mapping[str, tuple[Measure, ...]]] = {
    "class": ("forget-accuracy", "relearning-curve"),
    "client": ("forget-accuracy",),
}
# Other features than Original's make nothing of Original's last layer, which is no damage.
UPPER_ONLY: Final[tuple[Measure, ...]] = ("head-back", "matched-head", "turned-head")
# What the features say in whatever basis they are: where none of these tells Original from
# Retrained, a class that is hidden below the last layer would not be seen.
BELOW: Final[tuple[Measure, ...]] = (
    *("blank-head", "class-means", "probe", "matched-head", "turned-head"),
)


def measured(
    level: str, scores: ModelScores | None, features: FeatureScores | None
) -> dict[Measure, float]:
    """Return a model's measures in percent, without those that were not measured.

    Args:
        level: "class" or "client".
        scores: Of its outputs.
        features: Of its features.
    """
    given, below = scores or ModelScores(), features or FeatureScores()
    found = {name: read(given, below) for name, read in _READ.items()}
    return {
        name: value
        for name, value in found.items()
        if value is not None and (name not in OF_CLIENTS or level == "client")
    }


def values(level: str, stock: Sequence[Retraining]) -> dict[Measure, list[float]]:
    """Return by measure what the retrained models have, in their order.

    What fewer have than it needs is left out (`NEEDED`).
    """
    each = [measured(level, one.scores, one.features) for one in stock]
    names = dict.fromkeys(name for found in each for name in found)
    known = {name: [found[name] for found in each if name in found] for name in names}
    return {name: values for name, values in known.items() if len(values) >= NEEDED.get(name, 1)}
