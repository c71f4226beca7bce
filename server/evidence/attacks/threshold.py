"""The loss threshold: whoever has at most the training's mean loss is taken for a member.

Yeom et al., "Privacy Risk in Machine Learning: Analyzing the Connection to Overfitting", CSF 2018,
https://arxiv.org/abs/1709.01604, adversary 1. Without its threshold it is the confidence attack:
the order of losses is that of the true class's probability.
"""

from torch import Tensor

from server.evidence.attacks.success import advantage


def loss_threshold(members: Tensor, others: Tensor) -> float:
    """Return the attacker's advantage, from -1 to 1; 0 tells nothing.

    Args:
        members: Losses of examples that the model was trained on, `(m,)`; their mean is the
            threshold, which the attacker is taken to know.
        others: Losses of examples that it was not, `(n,)`.
    """
    threshold = members.double().mean()
    return advantage(members.double() <= threshold, others.double() <= threshold)
