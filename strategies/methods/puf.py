"""PUF: step back along the target's own update.

Mora, Mazzocca, Montanari, Bellavista: "Federated Unlearning Made Practical: Seamless Integration
via Negated Pseudo-Gradients", 2025, https://arxiv.org/abs/2504.05822.

Departs from the paper:
1. The target alone takes part in the unlearning round (PUF-Special). PUF-Regular adds the others'
   updates to the same round; here they follow in the recovery.
2. The paper forgets clients, and samples; here classes too: every holder of the class trains on
   its examples of that class alone, as the public code's holders of samples do.
3. A norm layer's running statistics stay as they were: negated, a variance could turn negative.
4. Recovery stops when the accuracy on the clients' held-out data is back, or after the rounds.
   Relearning is by ordinary rounds.
"""

from dataclasses import dataclass
from typing import ClassVar

from flwr.app import ArrayRecord

from client.wire import at_least
from strategies.federation import Federation
from strategies.method import COUNT, PERCENT, RATE, Hyperparameters, Needs, option
from strategies.parts.finetuning import fine_tune
from strategies.parts.relearning import OrdinaryRelearning
from strategies.rounds.scaling import ScaledAveraging


class NegatedRounds(ScaledAveraging):
    """theta <- theta - eta_u * sum_u |D_u| / |D| * Delta_u, over the targets u.

    All of them must answer: the data of one that is lost would stay in the model.
    """

    takes_all = True


@dataclass(frozen=True)
class NegatedPseudoGradients(OrdinaryRelearning, Hyperparameters):
    """The paper's protocol."""

    # The default is that of the public code for PUF-Special.
    eta_u: float = option(2.0, RATE, "factor on the targets' negated update, eta_u")
    unlearn_rounds: int = option(1, COUNT, "rounds of unlearning")
    rounds: int = option(10, at_least(0), "rounds of recovery, at most")
    tolerance: float = option(
        0.0, PERCENT, "percent points of retain accuracy that recovery may leave missing"
    )

    # The server reads no update alone, but the mean of the targets'; of a lone target that is its
    # own, as in every ascent.
    needs: ClassVar[Needs] = Needs(
        own_loss=True,
        levels=frozenset({"class", "client"}),
        plain_mean=True,
        sums=frozenset({"class", "client"}),
    )

    def forget(self, federation: Federation, model: ArrayRecord) -> ArrayRecord:
        """Return `model` without what the request names."""
        wanted = federation.accuracies(model).retain

        # 1. The targets train as in any round, on what is to be forgotten; the server applies the
        #    negative of their pseudo-gradients Delta_u.
        unlearning = NegatedRounds(
            federation.ordinary(side="forget"),
            scales={},
            others=-self.eta_u,
            participants=federation.holders(synthetic=False),
        )
        model = federation.run("unlearn", unlearning, model, num_rounds=self.unlearn_rounds)

        # 2. Ordinary rounds without them.
        return fine_tune(
            federation, model, rounds=self.rounds, wanted=wanted, tolerance=self.tolerance
        )
