"""Several images in one answer: the last layer's rows are bins, and some hold one example each.

The bins of Fowl et al. 2022, "Robbing the Fed", https://arxiv.org/abs/2110.13057, without a message
that looks for a threshold first: whoever has a few dozen images of the kind knows how they spread
along a direction, and so where the outermost bins hold about one example each.
"""

from statistics import NormalDist
from typing import Any

import numpy as np
import torch

from client.learning.models import build
from tests.attacks import prepared
from tests.attacks.site import SPEC

Array = np.ndarray[Any, Any]
STEEP = 2000.0
LONE = 0.1  # how near to one a bin's number must be
# One step on all examples of class 0; the rows of the classes that are called erased are bins.
ROWS = range(1, 10)
STEP = {"steps": 1, "batch_size": 60_000, "lr": 1.0, "scale": 0, "erased_classes": [*ROWS]}


def cut(known: Array, examples: int, seed: int) -> prepared.State:
    """Return weights that sort about nine of so many examples into bins of about one.

    Args:
        known: Images `(n, 8, 8)` of the same kind, the attacker's own.
        examples: How many there are to be sorted.
        seed: Of the direction.
    """
    direction = np.zeros((16, 4, 4), np.float32)
    direction[4] = np.random.default_rng(seed).normal(size=(4, 4))  # of the image itself
    direction[4] -= direction[4].mean()  # blind to the norm's bias
    state = prepared.shifts()
    scaled = torch.from_numpy(known.astype(np.float32) / 255)
    scaled = ((scaled - scaled.mean()) / scaled.std())[:, None]
    model = build(SPEC, torch.Generator())
    model.load_state_dict(state)
    with torch.no_grad():
        along = model.features(scaled).numpy() @ direction.ravel()
    # The largest of affine functions: each rises faster than the one before, from its edge on.
    bias = 0.0
    for number, row in enumerate(ROWS, start=1):
        beyond = 1 - (len(ROWS) + 1 - number) / examples
        edge = float(along.mean() + along.std() * NormalDist().inv_cdf(beyond))
        bias -= STEEP * edge
        state["classifier.weight"][row] = number * STEEP * torch.from_numpy(direction.ravel())
        state["classifier.bias"][row] = bias
    return state


def images(arrays: dict[str, Array], state: prepared.State, examples: float) -> list[Array]:
    """Return the images of the bins that hold one example, from an answer to `STEP`."""
    weight, bias = prepared.change(arrays, state)
    lone = [row for row in ROWS if abs(-bias[row] * examples - 1) < LONE]
    return [prepared.image(prepared.features(weight[row], bias[row])) for row in lone]
