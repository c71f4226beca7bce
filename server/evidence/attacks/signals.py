"""The metric attacks: what one answer of a model gives away, without any other model.

Song and Mittal, "Systematic Evaluation of Privacy Risks of Machine Learning Models", USENIX
Security 2021, https://arxiv.org/abs/2003.10595, section 3: confidence, entropy, and the entropy
modified so that a confident wrong answer is no sign of a member.

Shapes: N examples, K classes.
"""

import torch
from torch import Tensor


def confidence(log_probabilities_NK: Tensor, labels_N: Tensor) -> Tensor:  # noqa: N803
    """Return the true class's log-probability `(N,)`: its order is the probability's."""
    return log_probabilities_NK.gather(1, labels_N[:, None]).squeeze(1)


def negative_entropy(log_probabilities_NK: Tensor) -> Tensor:  # noqa: N803
    """Return sum(p log p) `(N,)`: at most 0, which is a prediction without doubt."""
    p = log_probabilities_NK.double().exp()
    found: Tensor = torch.special.xlogy(p, p)
    return found.sum(dim=1)


def negative_modified_entropy(log_probabilities_NK: Tensor, labels_N: Tensor) -> Tensor:  # noqa: N803
    """Return (1 - p_y) log p_y + sum over others of p_i log(1 - p_i), `(N,)`.

    At most 0, which is the true class without doubt; -inf is a wrong one without doubt.
    """
    p = log_probabilities_NK.double().exp()
    true = torch.zeros_like(p).scatter(1, labels_N[:, None], 1.0).bool()
    of_true = (1 - p) * log_probabilities_NK.double()
    of_others = torch.special.xlogy(p, 1 - p)
    return torch.where(true, of_true, of_others).sum(dim=1)
