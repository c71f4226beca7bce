"""Original's row of the last layer on features in another basis, once the basis is found.

What the measures `matched_head` and `turned_head` share: each finds, on images of the *retained*
classes alone, what became of Original's features, and here Original's row reads it beside the new
model's own rows. Each feature counts as much as the two models agree on it there: a model that
never saw the class agrees in part, and the row comes to little.

Rows are taken relative to the mean of the retained rows, and the new model's are brought to the
scale of Original's. Neither changes an answer: a last layer made louder hides nothing.

Shapes: N examples, M retained examples, F and G features of the new model and Original, K classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

MOST: Final = 4096  # features of either model: finding a basis takes their third power of steps
_LITTLE: Final = 1e-6  # of the mean spread: a feature with less is always the same

Layer = tuple[Tensor, Tensor | None]
"""Weight `(K, F)` and bias `(K,)` of a last layer; None is a bias of 0."""
Basis = Callable[[Tensor, Tensor], Tensor]
"""From features of the same images, `(M, F)` and `(M, G)` with centred columns, to a map `(F, G)`
from the first to where the second's are."""


@dataclass(frozen=True)
class Shown:
    """What a basis is found on.

    Attributes:
        own: The new model's features of images of retained classes, `(M, F)`.
        original: Original's of the same images, `(M, G)`.
        last: The new model's last layer.
        first: Original's.
        classes: Whose rows are put back.
        retained: Whose rows stay.
    """

    own: Tensor
    original: Tensor
    last: Layer
    first: Layer
    classes: Sequence[int]
    retained: Sequence[int]

    @property
    def in_order(self) -> bool:
        """Whether no feature is below 0 in either model, as after a ReLU.

        Only an order of its own, and a length for each, then give the same function again: any
        other invertible map takes some features below 0.
        """
        return bool(min(self.own.min(), self.original.min()) >= 0)

    @property
    def suited(self) -> bool:
        """Whether there are two images or more, and no model has more than `MOST` features."""
        return len(self.own) > 1 and max(self.own.shape[1], self.original.shape[1]) <= MOST


def accuracy(
    features_NF: Tensor,  # noqa: N803
    labels_N: Tensor,  # noqa: N803
    shown: Shown,
    basis: Basis,
) -> float | None:
    """Return the accuracy in percent with the rows of the classes found in another basis.

    Args:
        features_NF: The new model's, float32.
        labels_N: int64.
        shown: What the basis is found on.
        basis: Finds it.

    Returns:
        Percent; None without examples, or where `shown` is not suited.
    """
    if not len(labels_N) or not shown.suited:
        return None
    weight, bias = rows(shown, basis)
    guessed = (features_NF.double() @ weight.T + bias).argmax(dim=1)
    return 100.0 * int((guessed == labels_N).sum()) / len(labels_N)


def rows(shown: Shown, basis: Basis) -> tuple[Tensor, Tensor]:
    """Return the last layer that the new model's features are read with.

    Args:
        shown: What the basis is found on.
        basis: Finds it.

    Returns:
        Float64 `(K, F)` and `(K,)`. Classes that are neither forgotten nor retained are never
        named.
    """
    kept, named = list(shown.retained), list(shown.classes)
    own, own_bias = _centred(shown.last, kept)
    first, first_bias = _centred(shown.first, kept)
    mean, goal_mean = shown.own.double().mean(dim=0), shown.original.double().mean(dim=0)
    mine, goal = shown.own.double() - mean, shown.original.double() - goal_mean

    to_original = basis(mine, goal)
    to_original = to_original * agreement(mine @ to_original, goal)
    found = first @ to_original.T
    size = float((mine @ own[kept].T).std())
    scale = float((goal @ first[kept].T).std()) / size if size > 0 else 1.0
    weight, bias = torch.zeros_like(own), torch.full_like(own_bias, -torch.inf)
    weight[kept], bias[kept] = own[kept] * scale, own_bias[kept] * scale
    weight[named] = found[named]
    bias[named] = (first_bias + first @ goal_mean - found @ mean)[named]
    return weight, bias


def agreement(mine_MG: Tensor, goal_MG: Tensor) -> Tensor:  # noqa: N803
    """Return by column the slope of the second on the first, times the variance they share, `(G,)`.

    That is their squared correlation, from 0 to 1. Columns are centred. It is 1 where both are the
    same, and 0 where either is always the same, or they go against each other.
    """
    spread, goal_spread = spreads(mine_MG), spreads(goal_MG)
    together = (mine_MG * goal_MG).mean(dim=0)
    correlation = (together / (spread * goal_spread)).clamp(min=0.0)
    return correlation**2 * together.clamp(min=0.0) / spread**2


def spreads(columns_MG: Tensor) -> Tensor:  # noqa: N803
    """Return the standard deviation of centred columns; infinite where one is always the same."""
    found = columns_MG.square().mean(dim=0).sqrt()
    return found.where(found > _LITTLE * found.mean(), torch.inf)


def _centred(layer: Layer, kept: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return weight and bias relative to the mean of the retained rows, in float64."""
    weight = layer[0].detach().double()
    bias = torch.zeros_like(weight[:, 0]) if layer[1] is None else layer[1].detach().double()
    return weight - weight[kept].mean(dim=0), bias - bias[kept].mean()
