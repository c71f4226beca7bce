"""Rapid retraining: from scratch, by quasi-Newton steps.

Liu, Xu, Yuan, Wang, Li: "The Right to be Forgotten in Federated Learning: An Efficient Realization
with Rapid Retraining", INFOCOM 2022, https://arxiv.org/abs/2203.07320. The server starts again from
the initial weights; every node takes steps that divide the mean gradient by a running mean of the
loss's diagonal curvature, with momentum on both (beta_1, beta_2), so that fewer rounds do. The
curvature is the diagonal of the empirical Fisher information, which costs no more than the
gradient. With `curvature=hessian` it is Hutchinson's estimate of the Hessian's diagonal, as in
Plato's implementation of the paper (TL-System/plato, examples/fedunlearning_baseline).

Departs from the paper:
1. The Fisher information is the square of a batch's mean gradient, not the mean over its examples
   of their squares, for which each would need a gradient of its own; over a convolution's kernel it
   is averaged, as in AdaHessian (Yao et al. 2021). Its running mean D is raised to a power k: with
   k = 1/2 here the divisor is about the size of the gradient, as Adam's is; `hessian-power=1`
   divides by the curvature itself. Learning rate, epsilon and k are not the paper's but were chosen
   on digits and one training on MNIST.
2. It ends when the accuracy on the nodes' held-out data is back, and after as many rounds as the
   original training at the latest; the paper compares the rounds until convergence.
3. The moments start at zero in every round: nothing stays on a node between messages.
"""

from dataclasses import dataclass
from typing import ClassVar

from flwr.app import ArrayRecord

from client.wire import at_least, between, one_of
from strategies.federation import Federation
from strategies.method import PERCENT, RATE, Hyperparameters, Needs, option
from strategies.parts.guard import retained
from strategies.parts.participation import as_in_training
from strategies.parts.relearning import OrdinaryRelearning
from strategies.rounds.base import FederatedAveraging


@dataclass(frozen=True)
class RapidRetraining(OrdinaryRelearning, Hyperparameters):
    """The paper's protocol; local steps and batches are those of the training."""

    # "hessian" wants other steps: lr 0.3 and eps 0.1 did well on digits.
    curvature: str = option(
        "fisher",
        one_of("fisher", "hessian"),
        "fisher for the empirical Fisher information, hessian for Hutchinson's estimate",
    )
    lr: float = option(0.01, RATE, "learning rate, eta")
    beta1: float = option(0.9, between(0.0, 0.999), "decay of the mean gradient, beta_1")
    beta2: float = option(
        0.999, between(0.0, 0.9999), "decay of the mean square of the curvature, beta_2"
    )
    hessian_power: float = option(
        0.5,
        between(0.0, 1.0),
        "power of the curvature in the divisor, k; 1 for the curvature itself",
    )
    eps: float = option(1e-3, RATE, "what is added to the divisor, epsilon")
    rounds: int = option(0, at_least(0), "rounds at most; 0 for as many as in training")
    tolerance: float = option(
        0.0, PERCENT, "percent points of retain accuracy that retraining may leave missing"
    )

    needs: ClassVar[Needs] = Needs(
        levels=frozenset({"class", "client"}),
        target_online=False,
        sums=frozenset({"class", "client"}),
    )

    def forget(self, federation: Federation, model: ArrayRecord) -> ArrayRecord:
        """Return a model that never saw what the request names, as good as `model` on the rest."""
        wanted = retained(federation, model, self.tolerance)
        model = federation.initial()

        # 1. Start again, with diagonal quasi-Newton steps on what is retained.
        told = federation.ordinary(
            optimiser="quasi-newton",
            curvature=self.curvature,
            lr=self.lr,
            beta1=self.beta1,
            beta2=self.beta2,
            hessian_power=self.hessian_power,
            eps=self.eps,
        )
        rounds = FederatedAveraging(told, **as_in_training(federation))

        # 2. Train until the accuracy is back.
        for _ in range(self.rounds or federation.plan.num_rounds):
            model = federation.run("unlearn", rounds, model, num_rounds=1)
            known = federation.accuracies(model).retain
            if wanted is not None and known is not None and known >= wanted:
                break
        return model
