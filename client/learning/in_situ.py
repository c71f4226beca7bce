"""Distillation within a node's training: synthetic images are matched on the way.

Source: Dhasade et al. 2024, "QuickDrop: Efficient Federated Unlearning via Synthetic Data
Generation", section 3.2
"""

import time
from collections.abc import Callable

from torch import Tensor, nn

from client.learning.distillation import Matcher, due, initialise, real_gradients
from client.node import Node
from client.seeds import generator
from client.store import SyntheticSet


class InSitu:
    """Matching's place in the local loop, with its time and its share of the work.

    Attributes:
        matcher: Holds the synthetic set.
        seconds: What distillation has taken so far.
    """

    def __init__(
        self,
        node: Node,
        keep: Tensor,
        *,
        planned: int,
        num_training_steps: int,
        lr: float,
        momentum: float,
        num_steps: int,
        batch: int,
        every: int,
        fraction: float,
        start: str,
    ) -> None:
        """Take up the node's synthetic set, or begin one.

        Args:
            node: Whose data and store.
            keep: Which training examples may be used, bool `(n,)`.
            planned: Images that local training passes through the model.
            num_training_steps: Its steps, in every round.
            lr: Step size on the images.
            momentum: Of these steps, in [0, 1).
            num_steps: Of them at each match.
            batch: Images of a class that a match moves, at most, in turn; 0 for all.
            every: Match at every so-manyth step of training.
            fraction: Largest share of the work that matching may take, in [0, 1].
            start: What a new set is made of, "real" or "noise".
        """
        started = time.perf_counter()
        told = node.settings
        found = node.store.load(told.lineage, model=node.model_name, before=told.server_round)
        if found is None:
            draws = generator(node.seed, "synthetic", 0, told.client)
            few = node.policy.answers.min_examples
            found = initialise(node.site, keep, told.scale, draws, least=few, start=start)
        self.matcher = Matcher(
            SyntheticSet(found.images.to(node.device), found.labels.to(node.device)),
            lr=lr,
            momentum=momentum,
            num_steps=num_steps,
            batch=batch,
            draws=lambda label, times: generator(
                node.seed, f"matched of class {label}", times, told.client
            ),
            turn=(told.server_round - 1) * -(-num_training_steps // every),
        )
        self.every = every
        self.fraction = fraction
        self.planned = float(planned)
        self.spent = 0.0
        self.seconds = time.perf_counter() - started

    def bind(
        self, model: nn.Module
    ) -> Callable[[int, Tensor, Tensor], tuple[list[Tensor], Tensor] | None]:
        """Return what `client.learning.training.local_sgd` asks before every step of `model`.

        It matches the synthetic set to the batch's gradients and returns these with the loss, or
        None where no matching is due.
        """

        def gradients(
            step: int, images: Tensor, labels: Tensor
        ) -> tuple[list[Tensor], Tensor] | None:
            cost = self.matcher.cost(labels)
            if not due(step, self.every, self.fraction, self.spent, self.planned, cost):
                return None
            self.spent += cost
            batch, loss, by_class = real_gradients(model, images, labels)
            started = time.perf_counter()
            self.matcher.match(model, by_class)
            self.seconds += time.perf_counter() - started
            return batch, loss

        return gradients
