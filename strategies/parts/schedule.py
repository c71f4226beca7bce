"""The learning rate of a training's rounds: it may fall along half a cosine.

Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017,
https://arxiv.org/abs/1608.03983, equation 5, by rounds and without restarts. Where clients hold
unequal data, federated averaging at a rate that stays does not settle, however long it goes on (Li
et al., "On the Convergence of FedAvg on Non-IID Data", ICLR 2020, https://arxiv.org/abs/1907.02189,
theorem 4).
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Cosine:
    """Rates that fall from round to round.

    Attributes:
        first: eta_max, of round 1, above 0.
        last: eta_min, of the last round, above 0.
        num_rounds: K, at least 1; of one round the rate is `first`.
    """

    first: float
    last: float
    num_rounds: int

    def __call__(self, number: int) -> float:
        """Return the learning rate of a round, from 1."""
        done = (number - 1) / max(1, self.num_rounds - 1)
        return self.last + (self.first - self.last) * (1 + math.cos(math.pi * done)) / 2
