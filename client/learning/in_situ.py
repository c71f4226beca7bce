"""Distillation within a node's training: synthetic images are matched on the way.

Source: Dhasade et al. 2024, "QuickDrop: Efficient Federated Unlearning via Synthetic Data
Generation", section 3.2
"""

import time
from collections.abc import Callable

from torch import Tensor, nn

from client import wire
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

    def __init__(self, node: Node, settings: wire.Fit, keep: Tensor, num_steps: int) -> None:
        """Take up the node's synthetic set, or begin one.

        Args:
            node: Whose data and store.
            settings: What the coordinator told.
            keep: Which training examples may be used, bool `(n,)`.
            num_steps: Of local training.
        """
        started = time.perf_counter()
        self.settings = settings
        found = node.store.load(
            settings.lineage, model=node.model_name, before=settings.server_round
        )
        if found is None:
            start = generator(settings.seed, "synthetic", 0, settings.client)
            found = initialise(node.site, keep, settings.scale, start)
        self.matcher = Matcher(
            SyntheticSet(found.images.to(node.device), found.labels.to(node.device)),
            lr=settings.image_lr,
            momentum=settings.image_momentum,
            num_steps=settings.image_steps,
        )
        self.planned = float(num_steps * min(settings.batch_size, int(keep.sum())))
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
            s = self.settings
            cost = self.matcher.cost(labels)
            if not due(step, s.distill_every, s.distill_fraction, self.spent, self.planned, cost):
                return None
            self.spent += cost
            batch, loss, by_class = real_gradients(model, images, labels)
            started = time.perf_counter()
            self.matcher.match(model, by_class)
            self.seconds += time.perf_counter() - started
            return batch, loss

        return gradients
