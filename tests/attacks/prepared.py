"""Prepared weights, and what can be read from the gradients that they give.

Zhu et al. 2019, "Deep Leakage from Gradients", https://arxiv.org/abs/1906.08935, and Fowl et al.
2022, "Robbing the Fed", https://arxiv.org/abs/2110.13057, fitted to a ConvNet of one block: its
kernels are the nine shifts of the image, its norm's large bias lets everything through ReLU, and
the last layer's gradient then holds the pooled shifts of each image, times a number by class.
"""

from typing import Any

import numpy as np
import torch
from numpy.linalg import lstsq

from client.learning.models import build
from tests.attacks.site import SPEC

LIFT = 8.0  # the norm's bias: of 64 normalised pixels none is below -8
Array = np.ndarray[Any, Any]
State = dict[str, torch.Tensor]


def shifts() -> State:
    """Return weights whose last layer sees nine shifts of the image, and knows no class."""
    state = build(SPEC, torch.Generator().manual_seed(0)).state_dict()
    (kernel,) = [name for name, value in state.items() if value.dim() == 4]
    state[kernel].zero_()
    for channel in range(9):
        state[kernel][channel, 0, channel // 3, channel % 3] = 1.0
    state[kernel.replace("weight", "bias")].zero_()
    for name, value in state.items():
        if name.startswith("body.1."):
            value.fill_(1.0 if name.endswith("weight") else LIFT)
    state["classifier.weight"].zero_()
    state["classifier.bias"].zero_()
    return state


def change(answer: dict[str, Array], state: State) -> tuple[Array, Array]:
    """Return what an answer added to the last layer: weight `(10, 256)` and bias `(10,)`."""
    return tuple(  # type: ignore[return-value]
        answer[f"classifier.{part}"].astype(float) - state[f"classifier.{part}"].numpy()
        for part in ("weight", "bias")
    )


def features(weight: Array, bias: Array) -> Array:
    """Return the pooled shifts `(9, 4, 4)` whose gradient this is, up to what `image` undoes."""
    return (weight / bias).reshape(16, 4, 4)[:9] - LIFT


def image(pooled: Array) -> Array:
    """Return the image `(8, 8)` behind pooled shifts, up to its scale: least squares by turns."""
    rows = np.array([_box(c, i, j) for c in range(9) for i in range(4) for j in range(4)])
    spread, mean = np.ones(9), np.zeros(9)
    found = np.zeros((8, 8))
    for _ in range(60):
        told = np.concatenate([(pooled[c] * spread[c] + mean[c]).ravel() for c in range(9)])
        found = lstsq(rows, told, rcond=None)[0].reshape(8, 8)
        for c in range(9):
            moved = _moved(found, c // 3 - 1, c % 3 - 1)
            spread[c], mean[c] = np.sqrt(moved.var() + 1e-5), moved.mean()
        spread /= spread[4]
        mean -= mean[4]
    return found


def _box(channel: int, i: int, j: int) -> Array:
    """Return the pixels that position (i, j) of a pooled shift is the mean of."""
    row = np.zeros((8, 8))
    for a in range(2):
        for b in range(2):
            y, x = 2 * i + a + channel // 3 - 1, 2 * j + b + channel % 3 - 1
            if 0 <= y < 8 and 0 <= x < 8:
                row[y, x] = 0.25
    return row.ravel()


def _moved(one: Array, down: int, right: int) -> Array:
    padded = np.pad(one, 1)
    return padded[1 + down : 9 + down, 1 + right : 9 + right]
