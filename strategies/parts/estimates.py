"""What a request will take: rounds, nodes, images and bytes, before any node is asked.

Every method says it in its `estimate`, beside the protocol that it describes, in these terms. How
long that takes on the federation at hand is `server.requests.planning`'s part.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from client.channels.layout import Layer, layout
from client.channels.slices import take, to_row
from client.learning.models import ModelSpec, build
from client.steps.store import Condense
from strategies.federation import Plan
from strategies.rounds.base import num_drawn

FORWARD: Final = 1 / 3  # of the time of an image in training, which goes forward and backward
# Likewise, work: backward with a graph and once more, as for a diagonal of the Hessian.
SECOND_ORDER: Final = 3.0
DOUBLES: Final = 8  # bytes of a score, float64


@dataclass(frozen=True)
class Stretch:
    """Rounds of one kind.

    Attributes:
        phase: "score", "unlearn", "recover"; "guard" is measuring on held-out data on the way.
        rounds: As planned.
        clients: Nodes asked in a round; 0 for work on the coordinator's machine.
        samples: Images that all of them together pass through the model in a round.
        work: Time of one of these, in that of an image in training.
        down: Bytes of arrays to each node in a round.
        up: Bytes of arrays from each.
        more: Rounds that may be added: after one that is rolled back, or until the accuracy is
            back.
        early: Whether the rounds end before `rounds` where the accuracy is back.
    """

    phase: str
    rounds: int
    clients: int = 0
    samples: float = 0.0
    work: float = 1.0
    down: float = 0.0
    up: float = 0.0
    more: int = 0
    early: bool = False


@dataclass(frozen=True)
class Facts:
    """What is known, or assumed, of a request and of the version that it starts from.

    Attributes:
        level: "class" or "client".
        named: Classes or clients that the request names.
        spec: The model, with the channels that are pruned already.
        model_bytes: Of its arrays.
        clients: Nodes in a round of all.
        holders: Those of them that hold what is to be forgotten.
        keepers: Those that have anything left.
        goes: Training examples that go: a number for each node and class that has any.
        stays: Training examples that stay, likewise.
        heldout: Held-out examples of all nodes.
        per_round: Images that one node passes through the model in a round of training.
        plan: How the version was trained.
        scale: s of its synthetic sets; 0 if it has none.
        stored_rounds: Rounds of the training whose updates are kept.
        server_examples: Examples that the coordinator owns.
    """

    level: str
    named: int
    spec: ModelSpec
    model_bytes: int
    clients: int
    holders: int
    keepers: int
    goes: tuple[float, ...]
    stays: tuple[float, ...]
    heldout: float
    per_round: float
    plan: Plan
    scale: int = 0
    stored_rounds: int = 0
    server_examples: int = 0

    @property
    def forget(self) -> float:
        """Training examples that go."""
        return sum(self.goes)

    @property
    def retain(self) -> float:
        """Training examples that stay."""
        return sum(self.stays)

    @property
    def drawn(self) -> int:
        """Nodes in a round that is open to all (see `strategies.parts.participation`)."""
        if self.plan.fraction >= 1:
            return self.clients
        return num_drawn(self.plan.fraction, self.keepers)

    @property
    def busy(self) -> float:
        """Share of the nodes with data left that such a round asks."""
        return min(1.0, self.drawn / max(1, self.keepers))

    def exchange(
        self, phase: str, rounds: int, *, clients: int, samples: float, **more: Any
    ) -> Stretch:
        """Return rounds in which the whole model goes to `clients` nodes and comes back."""
        both = {"down": self.model_bytes, "up": self.model_bytes}
        return Stretch(phase, rounds, clients, samples, **{**both, **more})

    def training(self, phase: str, rounds: int, **more: Any) -> Stretch:
        """Return rounds as in training, on what is retained."""
        samples = self.busy * self.keepers * self.per_round
        return self.exchange(phase, rounds, clients=self.drawn, samples=samples, **more)

    def measured(self, rounds: int, **more: Any) -> Stretch:
        """Return measurings of a model on the nodes' held-out data."""
        return Stretch(
            "guard",
            rounds,
            self.clients,
            self.heldout,
            FORWARD,
            down=self.model_bytes,
            **more,
        )

    def fine_tuning(self, rounds: int, *, before: int = 1) -> list[Stretch]:
        """Return what `fine_tune` (`strategies.parts`) takes, measured `before` it besides."""
        return [
            self.training("recover", rounds, early=True),
            self.measured(before + rounds, early=True),
        ]

    def condensing(self, outer_steps: int, scale: int) -> Stretch:
        """Return the fine-tuning of synthetic sets over so many random networks."""
        steps = outer_steps * Condense.inner_steps
        images = compact(self.stays, scale)
        real = min(self.retain, self.clients * self.spec.num_classes * Condense.batch_size)
        return Stretch("recover", 1, self.clients, steps * (real + (1 + SECOND_ORDER) * images))

    def layers(self) -> tuple[Layer, ...]:
        """Return the model's layers; the last is the classifier."""
        return layout(build(self.spec, torch.Generator()))

    def slices_bytes(self, counts: Mapping[str, int]) -> int:
        """Return the bytes of the slices of so many channels, by layer."""
        network = build(self.spec, torch.Generator())
        channels = {name: tuple(range(count)) for name, count in counts.items()}
        return to_row(take(network.state_dict(), self.layers(), channels)).nbytes


def compact(examples: Sequence[float], scale: int) -> int:
    """Return the images that stand for these: one for every s of a node and class, or fewer."""
    return sum(math.ceil(number / max(1, scale)) for number in examples)


def num_channels(layers: Sequence[Layer]) -> int:
    """Return the channels of these layers together."""
    return sum(layer.num_channels for layer in layers)
