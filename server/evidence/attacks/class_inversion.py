"""Model inversion: an input that a model takes for a class, made from the model alone.

Fredrikson, Jha and Ristenpart, "Model Inversion Attacks that Exploit Confidence Information and
Basic Countermeasures", CCS 2015, https://doi.org/10.1145/2810103.2813677, algorithm 1 without its
optional denoising. Descent on 1 - p(class) from black; the best input seen counts. Where a model
gives a class next to no probability, that has next to no gradient: the attack then ends where it
began, which says that this attack finds nothing and not that nothing is there. `log_cost` descends
on -log p instead, whose gradient does not vanish.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Inverted:
    """What the attack made.

    Attributes:
        inputs: `(1, ...)`, within the bounds.
        probability: That the model gives the class for it, 0 to 1.
        steps: Of descent that were made.
    """

    inputs: Tensor
    probability: float
    steps: int


def inverted(
    network: nn.Module,
    label: int,
    low: Tensor,
    high: Tensor,
    *,
    steps: int = 5000,
    patience: int = 100,
    enough: float = 0.99,
    lr: float = 0.1,
    log_cost: bool = False,
) -> Inverted:
    """Return an input that the network takes for a class.

    Args:
        network: From `(1, ...)` to logits `(1, K)`. It is evaluated; its parameters stay.
        label: The class.
        low: Least value of each entry, `(1, ...)`: black. The attack starts there.
        high: Largest value of each entry.
        steps: At most so many (alpha).
        patience: Ends after so many steps that make it no better than the best of as many before
            (beta).
        enough: Ends at this probability (1 - gamma).
        lr: Step as a share of the range of an entry, against the gradient as it is (lambda).
        log_cost: Descend on -log p.
    """
    network.eval()
    span = high - low
    share = torch.zeros_like(low)  # of the range: all entries move alike whatever their scale
    best, most, best_step = share, -math.inf, 0
    for step in range(steps + 1):
        share = share.detach().requires_grad_()
        logits = network(low + share * span)
        log_p = logits.log_softmax(1)[0, label]
        reached = float(log_p.detach())
        if reached > most:
            best, most, best_step = share.detach(), reached, step
        if most >= math.log(enough) or step - best_step >= patience:
            break
        cost = -log_p if log_cost else 1 - log_p.exp()
        (gradient,) = torch.autograd.grad(cost, share)
        share = (share - lr * gradient).clamp(0, 1)
    return Inverted(low + best * span, math.exp(most), step)
