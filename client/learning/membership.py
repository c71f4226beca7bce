"""How much surer a model is of what it was trained on than of what it was not.

Yeom et al., "Privacy Risk in Machine Learning: Analyzing the Connection to Overfitting", CSF 2018,
https://arxiv.org/abs/1709.01604, theorem 1, compares mean losses, too, of a loss that is bounded.
Here it is one less the true class's probability, whose mean is a sum, so that no example's own
number is needed. Members and others are different people's examples, of which one side may be
easier by itself: the difference says something only beside that of retrained models.
"""

from torch import Tensor


def confidence(losses: Tensor) -> Tensor:
    """Return how sure a model is of each example, 0 to 1, `(n,)`.

    Args:
        losses: In nats, of a classifier: minus the logarithm of the true class's probability, which
            is returned. Of a task's own loss it would mean nothing.
    """
    return (-losses).exp().clamp(max=1.0)


def surer(members: float, others: float) -> float:
    """Return how much surer a model is of members, in points: a difference in mean confidence.

    It is to be read beside that of retrained models; below 0 the model is less sure of members.

    Args:
        members: Mean confidence in examples that the model was trained on, 0 to 1.
        others: In examples that it was not.
    """
    return 100.0 * (members - others)
