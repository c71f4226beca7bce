"""How much surer a model is of what it was trained on than of what it was not.

Yeom et al., "Privacy Risk in Machine Learning: Analyzing the Connection to Overfitting", CSF 2018,
https://arxiv.org/abs/1709.01604, theorem 1: whoever takes an example for a member with a chance
that falls with its loss, which is bounded, gains as much over guessing as the loss on unseen
examples is above that on the training's. The loss here is one less the true class's probability: it
is bounded, and its mean is a sum, so that no example's own number is needed.
"""

from torch import Tensor


def confidence(losses: Tensor) -> Tensor:
    """Return how sure a model is of each example, 0 to 1, `(n,)`.

    Args:
        losses: In nats: of a classifier minus the logarithm of the true class's probability, which
            is returned. A task's own loss is taken for such a one.
    """
    return (-losses).exp().clamp(max=1.0)


def surer(members: float, others: float) -> float:
    """Return how much surer a model is of members, in points; what an attacker gains over guessing.

    0 tells nothing; less means that the model is less sure of members.

    Args:
        members: Mean confidence in examples that the model was trained on, 0 to 1.
        others: In examples that it was not.
    """
    return 100.0 * (members - others)
