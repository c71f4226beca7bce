"""S2U: scale the leaver down and the others up.

In the rounds before a client leaves, its updates are scaled down and the others' up.

Gao et al., "VeriFi: Towards Verifiable Federated Unlearning", IEEE TDSC 2024,
https://arxiv.org/abs/2205.12709: scale-to-unlearn. Dhasade et al. 2024 (QuickDrop), section 2.3,
compare with it: unlearning and recovery are the same rounds.

    theta <- theta + sum_i |D_i| / |D| * s_i * (theta_i - theta), s_i = down or up

Departs from the paper:
1. The values of the two scales and the number of rounds are not the paper's but were chosen on
   digits.
2. A norm layer's running statistics are scaled by at most 1 (`strategies.rounds.scaling`).
3. Every node takes part, whatever share training drew; the leavers must answer.
4. Relearning is by ordinary rounds.
"""

from dataclasses import dataclass
from typing import ClassVar

from flwr.app import ArrayRecord

from client.wire import at_least, between
from strategies.federation import Federation
from strategies.method import COUNT, Hyperparameters, Needs, option
from strategies.parts.relearning import OrdinaryRelearning
from strategies.rounds.scaling import ScaledAveraging


@dataclass(frozen=True)
class ScaleToUnlearn(OrdinaryRelearning, Hyperparameters):
    """The paper's protocol."""

    down: float = option(0.05, between(0.0, 1.0), "factor on the leavers' updates")
    up: float = option(1.5, at_least(1), "factor on the others' updates")
    rounds: int = option(
        5, COUNT, "rounds with scaled updates, in which the leavers still take part"
    )

    needs: ClassVar[Needs] = Needs(
        own_loss=True, levels=frozenset({"client"}), individual_updates=True, plain_mean=True
    )

    def forget(self, federation: Federation, model: ArrayRecord) -> ArrayRecord:
        """Return `model` without the clients that the request names."""
        # All train on all they have, the leavers included, as if nobody left; the server scales.
        leavers = federation.holders(synthetic=False)
        rounds = ScaledAveraging(
            federation.ordinary(side="all"),
            scales=dict.fromkeys(leavers, self.down),
            others=self.up,
            min_share=federation.plan.min_share,
            required=leavers,
        )
        return federation.run("unlearn", rounds, model, num_rounds=self.rounds)
