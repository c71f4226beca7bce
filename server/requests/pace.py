"""How long planned rounds take on a federation: from what a version's training cost."""

from dataclasses import dataclass

from strategies.rehearsal import PlannedRounds


@dataclass(frozen=True)
class Pace:
    """How fast a federation is, by what a version's training cost.

    Attributes:
        image: Seconds that a node takes for an image, forward and backward.
        beyond: Seconds of a round beyond those.
        at_once: Nodes that work at the same time.
        down, up: Bytes of a message beyond its arrays.
    """

    image: float
    beyond: float = 0.0
    at_once: int = 1
    down: float = 0.0
    up: float = 0.0

    def seconds(self, planned: PlannedRounds, rounds: int) -> float:
        """Return the wall time of so many rounds of a kind."""
        images = planned.samples * planned.work * self.image
        if not planned.clients:
            return rounds * images
        return rounds * (self.beyond + images / min(self.at_once, planned.clients))
