"""SGA-Or: ascend on original data, then recover.

Wu, Guo, Wang, Hong, Zhang, Ding: "Federated Unlearning: Guarantee the Right of Clients to Forget",
IEEE Network 36(5), 2022, as Dhasade et al. 2024 (https://arxiv.org/abs/2311.15603), Algorithm 1,
state it and measure it: SGA-Or.

Departs from the paper:
1. Without the elastic weight consolidation that Wu et al. add to the ascent; Algorithm 1 has none.
2. The paper's rounds go on "until convergence". Here a class ascends to a given loss at most, since
   an ascent has no end of its own: at client level to that of a uniform guess, for the others hold
   its classes, too, and deeper these would be lost. At class level the ascent ends when the class
   is forgotten on held-out data, and recovery when the rest is back; or after the rounds.
3. A task with a loss of its own has no guess to go by, and ascends for all its epochs. A loss
   without bound, as a square is, then grows with its own gradient, at any learning rate: there the
   gradient is clipped, and the weights stay in a ball around those before the round, as in the
   projected gradient ascent of Halimi et al. 2022 (https://arxiv.org/abs/2207.05521). Their ball is
   a third of the way to random weights wide; here of the way to none, which a node can measure.
4. Relearning is by ordinary rounds.
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

    unlearn_rounds: int = option(2, COUNT, "rounds of the ascent, at most")
    unlearn_epochs: int = option(
        10, COUNT, "passes over the forget set, D_f, in a round of the ascent, in place of T steps"
    )
    unlearn_lr: float = option(0.02, RATE, "learning rate of the ascent, eta_theta")
    batch_size: int = option(64, COUNT, "examples in a batch of the ascent")
    depth: float = option(
        8.0,
        between(0.0, 1e3),
        "loss at which a class goes no further, in units of a uniform guess's, log K; 0 for no end",
    )
    client_depth: float = option(
        1.0,
        between(0.0, 1e3),
        "loss at which a client's data go no further, in units of log K; 0 for no end",
    )
    clip: float = option(
        5.0,
        at_least(0.0),
        "longest gradient of a step of the ascent on a loss of the task's own; 0 for any",
    )
    radius: float = option(
        0.33,
        at_least(0.0),
        "farthest that such a round of ascent goes, in lengths of the weights; 0 for no end",
    )
    threshold: float = option(
        1.0, PERCENT, "percent of forget accuracy that ends the ascent on a class"
    )
    rounds: int = option(10, at_least(0), "rounds of recovery, at most")
    tolerance: float = option(
        0.0, PERCENT, "percent points of retain accuracy that recovery may leave missing"
    )

    needs: ClassVar[Needs] = Needs(
        own_loss=True, levels=frozenset({"class", "client"}), sums=frozenset({"class", "client"})
    )

    def forget(self, federation: Federation, model: ArrayRecord) -> ArrayRecord:
        """Return `model` without what the request names."""
        wanted = federation.accuracies(model).retain

        # 1. Unlearn: every holder of D_f ascends its loss (line 3).
        classes = federation.forget.level == "class"
        num_classes = federation.spec.num_classes
        own = federation.spec.task.own_loss
        loss = 0.0 if own else (self.depth if classes else self.client_depth)
        loss *= math.log(num_classes)
        ascent = AscentRounds(
            federation.settings(
                Ascend,
                data="original",
                epochs=self.unlearn_epochs,
                lr=self.unlearn_lr,
                batch_size=self.batch_size,
                target_losses=[loss] * num_classes if loss else [],
                clip=self.clip if own else 0.0,
                radius=self.radius if own else 0.0,
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
