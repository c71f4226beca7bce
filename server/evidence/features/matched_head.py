"""Matched head: Original's row of the last layer, with its features found one by one.

Li et al., "Convergent Learning: Do Different Neural Networks Learn the Same Representations?",
ICLR 2016, https://arxiv.org/abs/1511.07543, section 3.1: each of Original's features is given the
one of the new model that goes with it, one to one, so that the correlations come to most. A network
is the same function with its last features in any order, each longer or shorter; head back then
makes nothing of them, and this measure all (`found_head` has what follows the matching). Features
that may be turned as well, which are those not all above 0, it does not judge.

Shapes: M examples, F and G features of the new model and Original.
"""

import torch
from torch import Tensor

from server.evidence.features.found_head import spreads


def matching(mine_MF: Tensor, goal_MG: Tensor) -> Tensor:  # noqa: N803
    """Return a map `(F, G)` with a single 1 in a row or column at most.

    Args:
        mine_MF: The new model's features, columns centred, float64.
        goal_MG: Original's of the same images, likewise.
    """
    from scipy.optimize import linear_sum_assignment  # only here: it takes a while to load

    alike = (mine_MF / spreads(mine_MF)).T @ (goal_MG / spreads(goal_MG)) / len(mine_MF)
    columns, rows = map(torch.from_numpy, linear_sum_assignment(alike.numpy(), maximize=True))
    found = torch.zeros_like(alike)
    found[columns, rows] = 1.0
    return found
