"""RMIA: an example is a member if the model likes it more than it likes others, for its kind.

Zarifzadeh, Liu and Shokri, "Low-Cost High-Power Membership Inference Attacks", ICML 2024,
https://arxiv.org/abs/2312.03262, the offline attack: references were trained without the example.
It is strong with one or two of them already, and Retrained is one.

Shapes: R reference models, N examples asked about, M others to compare with.
"""

from typing import Final

import torch
from torch import Tensor

GAMMA: Final = 2.0  # how much more likely than another an example must have become
SLOPE: Final = 0.3  # a: how p(x) grows once x is trained on, as the paper has it for CIFAR-10


def rmia(
    asked_N: Tensor,  # noqa: N803
    asked_references_RN: Tensor,  # noqa: N803
    others_M: Tensor,  # noqa: N803
    others_references_RM: Tensor,  # noqa: N803
    *,
    gamma: float = GAMMA,
    slope: float = SLOPE,
) -> Tensor:
    """Return the share of others that each example beats, `(N,)` from 0 to 1, higher for members.

        ratio(x) = p(x | model) / p(x),   p(x) = ((1 + a) mean of p(x | reference) + 1 - a) / 2
        signal(x) = share of z with ratio(x) / ratio(z) >= gamma

    Args:
        asked_N: Probability of the true class under the attacked model.
        asked_references_RN: Under each reference, trained without these; at least one.
        others_M: Of examples that neither the model nor a reference was trained on.
        others_references_RM: Under each reference.
        gamma: At least 1.
        slope: a, from 0 to 1.

    Raises:
        ValueError: If there are no references or others.
    """
    if not len(asked_references_RN) or not len(others_M):
        raise ValueError("references and others must be at least one each, got none")
    asked = asked_N.double() / _usual(asked_references_RN, slope)
    others = (others_M.double() / _usual(others_references_RM, slope)).sort().values
    beaten = torch.searchsorted(others, asked / gamma, right=True)
    return beaten.double() / len(others)


def _usual(references: Tensor, slope: float) -> Tensor:
    return ((1 + slope) * references.double().mean(dim=0) + 1 - slope) / 2
