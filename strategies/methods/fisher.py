"""Fisher forgetting: noise on weights the rest do not need.

Golatkar, Achille, Soatto: "Eternal Sunshine of the Spotless Net: Selective Forgetting in Deep
Networks", CVPR 2020, https://arxiv.org/abs/1911.04933. Every parameter gets Gaussian noise,

    S(w) = w + (lambda * sigma_h^2)^(1/4) * F^(-1/4) * n,   n ~ N(0, I)

F the diagonal of the Fisher information of the retained data: what they do not need is drowned, and
with it what else it told. No example of what is forgotten is looked at.

Departs from the paper:
1. F is the mean of the nodes' own, weighted by the examples that they looked at.
2. The noise is clipped: a parameter without information would get an infinite one. (The authors'
   code, https://github.com/AdityaGolatkar/SelectiveForgetting, clips 1 / F, too, but takes its
   square root as the deviation, and averages the variance over a row; `power` 0.5 is nearer to it.)
3. At class level a class's row of the last layer becomes the mean of the others' before the noise.
   The authors' code makes it 0, and a logit of 0 wins wherever all the others are negative.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from flwr.app import ArrayRecord
from torch import Tensor

from client.channels.layout import from_text
from client.channels.masks import zero_
from client.learning.models import loaded, state_of
from client.seeds import generator
from client.steps.measuring import Fisher
from client.wire import at_least, between, tensors
from strategies.federation import Federation
from strategies.method import RATE, Hyperparameters, Needs, option
from strategies.methods.quickdrop_calibrated import head_of, without_directions
from strategies.parts.relearning import OrdinaryRelearning
from strategies.rounds.base import Rounds
from strategies.rounds.channels import arrays_of


class FisherRounds(Rounds):
    """The nodes' Fisher information, averaged by the number of examples behind each.

    The result has one array a parameter, in its shape; buffers have none.
    """

    changes_model = False


@dataclass(frozen=True)
class FisherForgetting(OrdinaryRelearning, Hyperparameters):
    """The paper's procedure: one message to the nodes, the noise on the coordinator's machine."""

    noise: float = option(3e-9, RATE, "strength of the noise, lambda * sigma_h^2")
    power: float = option(
        0.25,
        between(0.0, 1.0),
        "exponent of noise / F in the deviation, F the Fisher information; 1/4 in the paper",
    )
    clip: float = option(0.1, RATE, "largest deviation of a parameter's noise")
    max_examples: int = option(
        64, at_least(2), "examples of each node that F is measured on, at most"
    )

    needs: ClassVar[Needs] = Needs(
        levels=frozenset({"class", "client"}),
        target_online=False,
        head=True,
        sums=frozenset({"class", "client"}),
    )

    def forget(self, federation: Federation, model: ArrayRecord) -> ArrayRecord:
        """Return `model` under noise that hides what the request names."""
        # 1. The nodes measure F on what is retained.
        asked = federation.settings(Fisher, side="retain", max_examples=self.max_examples)
        plan = federation.plan
        rounds = FisherRounds(asked, min_share=plan.min_share)
        information = federation.run("score", rounds, model, num_rounds=1)

        # 2. The coordinator adds the noise.
        def scrub() -> ArrayRecord:
            start = model
            if federation.forget.level == "class":
                gone = np.zeros(federation.spec.num_classes)
                gone[[*federation.forget.classes, *asked.erased_classes]] = 1.0
                start = without_directions(model, gone, head=head_of(federation.spec))
            draws = generator(asked.seed, "unlearn noise", 0)
            network = loaded(federation.spec, self.noisy(start, information, draws))
            if federation.spec.pruned and not federation.spec.compact:
                zero_(network, from_text(federation.spec.pruned))  # they stay without effect
            return arrays_of(state_of(federation.spec, network))

        return federation.locally("unlearn", scrub)

    def noisy(
        self, model: ArrayRecord, information: ArrayRecord, draws: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the model's arrays, those of them that have information under noise.

            w + min((lambda * sigma_h^2 / F)^power, clip) * n

        Args:
            model: Parameters and buffers; not changed.
            information: F, by parameter; at least 0, 0 for the largest noise.
            draws: n, in the order of the model's arrays.
        """
        state = tensors(model)
        measured = tensors(information)
        for name in state:
            if name in measured:
                deviation = (self.noise / measured[name].double()).pow(self.power)
                n = torch.randn(state[name].shape, generator=draws, dtype=torch.float64)
                noise = deviation.clamp(max=self.clip) * n
                state[name] = (state[name].double() + noise).to(state[name].dtype)
        return state
