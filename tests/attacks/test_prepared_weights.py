"""Weights that let one example through, of all there are; by an attacker that has no images.

Whoever has some of the kind needs one message, or one sum: see test_one_answer.py.

The last layer's row of a class that the coordinator calls erased has no label's term. Its logit is
a steep threshold on a projection of the image, so that the row's gradient is the sum over the
examples above the threshold, and its bias their number. A few messages find a threshold with one
example above it. Every answer is made from all of the site's examples: no count of distinct ones,
no batch size and no difference of sets can see it.

It is what noise is for (then it tells of none); `updates = "sums"` hides of which site it is.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from client.steps.training import Fit
from tests.attacks import prepared
from tests.attacks.site import Hospital, hospital, record

ROW = 9
STEEP = 300.0
FULL = {"steps": 1, "batch_size": 60_000, "lr": 10.0, "scale": 0, "erased_classes": [ROW]}


def above(site: Hospital, direction: np.ndarray[Any, Any], threshold: float) -> tuple[int, Any]:
    """Return how many examples are above a threshold, and the last layer's change in the row."""
    state = prepared.shifts()
    seen = torch.from_numpy(direction)
    state["classifier.weight"][ROW] = STEEP * seen
    state["classifier.bias"][ROW] = -STEEP * threshold
    answer = site.tried(Fit, record(state), **FULL)
    if not answer:
        return 0, None
    weight, bias = prepared.change(answer.arrays, state)
    # What the row's bias lost the other rows' gained, and those began at 0: no digit is lost.
    gained = bias.sum() - bias[ROW]
    return round(gained / FULL["lr"] * answer.metrics["num-examples"]), (weight[ROW], -gained)


def search(site: Hospital, seed: int, messages: int = 30) -> tuple[float, int]:
    """Return the best correlation that so many messages reach, and how many it took."""
    draws = np.random.default_rng(seed)
    direction = np.zeros((16, 4, 4), np.float32)
    direction[4] = draws.normal(size=(4, 4))  # of the image itself, unshifted
    direction[4] -= direction[4].mean()  # blind to the norm's bias
    flat = direction.ravel()
    low, high = 0.0, 20.0
    for number in range(1, messages + 1):
        middle = (low + high) / 2
        count, row = above(site, flat, middle)
        if row is None:
            return 0.0, number
        if count == 1:
            return site.nearest(prepared.image(prepared.features(*row))), number
        low, high = (middle, high) if count > 1 else (low, middle)
    return 0.0, messages


def test_by_default_it_gets_no_answer_at_all(tmp_path: Path) -> None:
    assert search(hospital(tmp_path, updates="sums"), 0) == (0.0, 1)


def test_what_it_reaches_where_single_updates_go_up(tmp_path: Path) -> None:
    # Not a promise but a limit, which README states: it works where the operator lets this site's
    # own updates go up. Should it fail one day, the limit is to be taken out there.
    site = hospital(tmp_path, updates="single")
    reached = [search(site, seed) for seed in range(3)]
    for seed, (near, messages) in enumerate(reached):
        print(f"seed {seed}: correlation {near:.3f} after {messages} messages")
    assert max(near for near, _ in reached) > 0.9
