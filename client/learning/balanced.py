"""Step sizes that do not depend on how long a network's channels are.

A network with ReLUs or norms is the same function when a channel is made longer and what reads it
shorter, or when weights before a norm are made longer. A step of SGD is not the same: its share of
a long weight is small. So whoever serves a model could make it learn as slowly as they like. Here
each weight has a rate of its own that grows with the square of what it is multiplied by:

    w -> a w  makes  gradient -> gradient / a,  rate -> a^2 rate,  step -> a step

for any a of a row (a channel that is written) times any of a column (a channel that is read).

Neyshabur, Salakhutdinov, Srebro, "Path-SGD: Path-Normalized Optimization in Deep Neural Networks",
2015, https://arxiv.org/abs/1506.02617, have steps with the same invariance, and say why. The rows'
and columns' lengths are found as in Sinkhorn and Knopp, "Concerning Nonnegative Matrices and Doubly
Stochastic Matrices", 1967, https://doi.org/10.2140/pjm.1967.21.343.
"""

from typing import Final

import torch
from torch import Tensor

ROUNDS: Final = 50  # of balancing; factors far apart need some tens
_LEAST: Final = 1e-30  # single zeros, which could leave no balance


@torch.no_grad()
def rates(weight: Tensor) -> Tensor:
    """Return a rate for each number of a weight, in a shape that broadcasts to its own.

    Args:
        weight: `(M, N, ...)` with M channels written and N read, `(M,)`, or a single number.

    Returns:
        Of a matrix, r_m * c_n such that squares / (r_m * c_n), summed over what follows, has the
        same sum in each row, 1, and in each column, M / N; about the squared length of a row where
        columns are alike. Rows and columns of zeros count neither there nor in M and N: what
        they multiply is nothing. Of a vector, its squares.
    """
    if weight.dim() < 2:
        return weight.square()
    squares = weight.double().square()
    if weight.dim() > 2:
        squares = squares.flatten(2).sum(2)
    found = torch.zeros_like(squares)
    written, read = (squares.sum(place).nonzero().flatten() for place in (1, 0))
    if len(written):
        squares = squares[written][:, read].clamp(min=_LEAST)
        columns = torch.ones_like(squares[:1])
        for _ in range(ROUNDS):
            rows = (squares / columns).sum(1, keepdim=True)
            columns = (squares / rows).sum(0, keepdim=True) * (len(read) / len(written))
        found[written[:, None], read] = rows * columns
    return found.to(weight.dtype).reshape(*found.shape, *[1] * (weight.dim() - 2))
