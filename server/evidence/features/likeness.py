"""How alike two models see the same examples: linear CKA, and the neighbours that they agree on.

Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019,
https://arxiv.org/abs/1905.00414 (equation 3 with a linear kernel). Huh et al., "The Platonic
Representation Hypothesis", ICML 2024, https://arxiv.org/abs/2405.07987 (mutual nearest neighbours).
Neither changes when features are turned, or all made longer.

Shapes: N examples, D and E numbers of an example in one model and the other.
"""

from typing import Final

import torch
from torch import Tensor

NEIGHBOURS: Final = 10


def linear_cka(one_ND: Tensor, other_NE: Tensor) -> float | None:  # noqa: N803
    """Return the linear CKA of two models' outputs on the same examples.

    With centred columns, ||Y'X||^2 / (||X'X|| ||Y'Y||), by way of the N x N products.

    Args:
        one_ND: Any float dtype. Not changed.
        other_NE: Likewise.

    Returns:
        From 0 (nothing in common) to 1 (the same up to a turn and a length); None where either
        model gives the same for all examples.
    """
    one, other = _products(one_ND), _products(other_NE)
    size = one.norm() * other.norm()
    return float((one * other).sum() / size) if size > 0 else None


def neighbour_agreement(one_ND: Tensor, other_NE: Tensor, k: int = NEIGHBOURS) -> float | None:  # noqa: N803
    """Return the mean share of an example's k nearest others that both models name.

    Args:
        one_ND: Any float dtype.
        other_NE: Of the same examples.
        k: Neighbours; at most N - 1 are looked at.

    Returns:
        From 0 to 1 (k / (N - 1) is chance); None with fewer than two examples.
    """
    k = min(k, len(one_ND) - 1)
    if k < 1:
        return None
    one, other = _nearest(one_ND, k), _nearest(other_NE, k)
    common = (one[:, :, None] == other[:, None, :]).sum()
    return float(common) / (k * len(one_ND))


def _products(rows_ND: Tensor) -> Tensor:  # noqa: N803
    """Return the N x N inner products of centred rows, in float64."""
    centred = rows_ND.double() - rows_ND.double().mean(dim=0)
    return centred @ centred.T


def _nearest(rows_ND: Tensor, k: int) -> Tensor:  # noqa: N803
    """Return the positions of each row's k nearest others, `(N, k)`."""
    rows = rows_ND.double()
    far = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    far.fill_diagonal_(float("inf"))
    return far.argsort(dim=1, stable=True)[:, :k]
