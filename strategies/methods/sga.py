"""SGA-Or: ascend the loss on the original forget data, then ordinary rounds on the rest.

Wu, Guo, Wang, Hong, Zhang, Ding: "Federated Unlearning: Guarantee the Right of Clients to Forget",
IEEE Network 36(5), 2022, as Dhasade et al. 2024 (https://arxiv.org/abs/2311.15603), Algorithm 1,
state it and measure it: SGA-Or.

Departs from the paper:
1. Without the elastic weight consolidation that Wu et al. add to the ascent; Algorithm 1 has none.
2. The paper's rounds go on "until convergence". Here a class ascends to a given loss at most, since
   an ascent has no end of its own: at client level to that of a uniform guess, for the others hold
   its classes, too, and deeper these would be lost. At class level the ascent ends when the class
   is forgotten on held-out data, and recovery when the rest is back; or after the rounds.
3. Relearning is by ordinary rounds.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from flwr.app import ArrayRecord

from client.steps.ascent import Ascend
from client.wire import at_least, between
from strategies.federation import Federation
from strategies.method import COUNT, PERCENT, RATE, Hyperparameters, Needs, option
from strategies.parts.finetuning import fine_tune
from strategies.parts.relearning import OrdinaryRelearning
from strategies.rounds.base import AscentRounds


@dataclass(frozen=True)
class GradientAscent(OrdinaryRelearning, Hyperparameters):
    """The paper's protocol."""

    unlearn_rounds: int = option(2, COUNT)  # at most
    unlearn_epochs: int = option(10, COUNT)  # T while unlearning, in passes over D_f
    unlearn_lr: float = option(0.02, RATE)  # eta_theta while unlearning
    batch_size: int = option(64, COUNT)
    # Loss at which a class ascends no further, in units of a uniform guess's, log K; 0 for no end.
    depth: float = option(8.0, between(0.0, 1e3))
    client_depth: float = option(1.0, between(0.0, 1e3))  # the same at client level
    threshold: float = option(1.0, PERCENT)  # forget accuracy that ends the ascent on a class
    # Recovery: rounds at most, and points of retain accuracy that it may leave missing.
    rounds: int = option(10, at_least(0))
    tolerance: float = option(0.0, PERCENT)

    needs: ClassVar[Needs] = Needs(
        levels=frozenset({"class", "client"}), sums=frozenset({"class", "client"})
    )

    def forget(self, federation: Federation, model: ArrayRecord) -> ArrayRecord:
        """Return `model` without what the request names."""
        wanted = federation.accuracies(model).retain

        # 1. Unlearn: every holder of D_f ascends its loss (line 3).
        classes = federation.forget.level == "class"
        num_classes = federation.spec.num_classes
        loss = (self.depth if classes else self.client_depth) * math.log(num_classes)
        ascent = AscentRounds(
            federation.settings(
                Ascend,
                data="original",
                epochs=self.unlearn_epochs,
                lr=self.unlearn_lr,
                batch_size=self.batch_size,
                target_losses=[loss] * num_classes if loss else [],
            ),
            participants=federation.holders(synthetic=False),
        )
        for _ in range(self.unlearn_rounds):
            model = federation.run("unlearn", ascent, model, num_rounds=1)
            known = federation.accuracies(model).forget
            # A client's data are like the others': they are not forgotten at zero accuracy.
            if classes and known is not None and known <= self.threshold:
                break

        # 2. Recover: all descend on D without D_f (line 4).
        return fine_tune(
            federation, model, rounds=self.rounds, wanted=wanted, tolerance=self.tolerance
        )
