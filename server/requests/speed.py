"""How long planned rounds take on a federation: from what a version's training cost."""

import os
from dataclasses import dataclass
from typing import Final

from client.learning.models import ModelSpec
from client.steps.training import Fit
from server.evidence.measures import measuring_device
from server.nodes.engines.inline import side_by_side
from server.nodes.federation import Cost
from server.settings import RunSettings
from strategies.parts.effort import Network
from strategies.rehearsal import PlannedRounds
from strategies.rounds.base import num_drawn
from strategies.rounds.sums import STEPS, in_sums

EVERYBODY: Final = 10**9  # nodes that may work at the same time where each has its own machine


@dataclass(frozen=True)
class Speed:
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


def speed_of(cost: Cost, settings: RunSettings, spec: ModelSpec, trained_on: str) -> Speed:
    """Return how fast a federation is.

    Args:
        cost: Of the version's training.
        settings: Of its training.
        spec: The version's model; in training nothing of it was pruned.
        trained_on: Engine of its training.
    """
    drawn = num_drawn(settings.fraction, settings.num_participants)
    simulated = side_by_side(measuring_device(settings.device).type)
    if trained_on == "ray":
        simulated = max(1, (os.cpu_count() or 1) // settings.threads)
    at_once = EVERYBODY if trained_on == "superlink" else simulated
    working = cost.client_seconds / min(at_once, drawn)
    messages, arrays = cost.rounds * drawn, Network(spec.base).nbytes
    steps, down, up = 1, float(arrays), float(arrays)
    if settings.secure_aggregation:
        down, up = in_sums(Fit.message, drawn, down, up)
        steps += STEPS
    return Speed(
        image=(cost.client_seconds - cost.distill_seconds) / cost.samples,
        beyond=max(0.0, (cost.seconds - cost.keep_seconds - working) / cost.rounds),
        at_once=at_once,
        down=max(0.0, (cost.down / messages - down) / steps),
        up=max(0.0, (cost.up / messages - up) / steps),
    )
