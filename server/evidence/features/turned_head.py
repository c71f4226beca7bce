"""Turned head: Original's row of the last layer, with the new features turned onto Original's.

Schoenemann, "A Generalized Solution of the Orthogonal Procrustes Problem", Psychometrika 1966,
https://doi.org/10.1007/BF02289451: the turn that brings the new model's features nearest to
Original's. It undoes any rotation, not an order alone, and finds the class in another training that
saw it, where single features do not go together; of a model that never saw the class it makes more
than a matching does, too (`found_head` has what follows the turn).

Shapes: M examples, F and G features of the new model and Original.
"""

import torch
from torch import Tensor


def turn(mine_MF: Tensor, goal_MG: Tensor) -> Tensor:  # noqa: N803
    """Return a map `(F, G)` with orthonormal rows, or columns where F is more.

    Args:
        mine_MF: The new model's features, columns centred, float64.
        goal_MG: Original's of the same images, likewise.
    """
    left, _, right = torch.linalg.svd(mine_MF.T @ goal_MG, full_matrices=False)
    found: Tensor = left @ right
    return found
