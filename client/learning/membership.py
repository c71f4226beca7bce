"""How much surer a model is of what it was trained on than of what it was not.

Yeom et al., "Privacy Risk in Machine Learning: Analyzing the Connection to Overfitting", CSF 2018,
https://arxiv.org/abs/1709.01604, theorem 1, compares mean losses, too, of a loss that is bounded.
Here it is one less the true class's probability, whose mean is a sum, so that no example's own
number is needed. Members and others are different people's examples, of which one side may be
easier by itself: the difference says something only beside that of retrained models.

A model can be tuned until it is as unsure of members as a retrained one and still have in its
weights what it learned from them. So half of the members are learned again for a few steps, and
the confidence in the *other* half is read: what was only held down comes back with them, what was
never learned does not. Then the halves change places. Deeb and Roger, "Do Unlearning Methods Remove
Information from Language Model Weights?", 2024, https://arxiv.org/abs/2410.08827, test language
models so: they train on some facts and ask for others.

Departs from the paper: a few steps in place of training to the end, which would teach the other
half, too, where examples are alike; and the outcome is a mean confidence.
"""

import copy
import functools
import statistics
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn

from client.learning.evaluation import BATCH, losses_of, relearning_curve
from client.learning.training import Pick
from client.seeds import generator

STEPS: Final = (2, 5, 10)  # after how many steps the other half is looked at
LR: Final = 0.02
BATCH_SIZE: Final = 64


def confidence(losses: Tensor) -> Tensor:
    """Return how sure a model is of each example, 0 to 1, `(n,)`.

    Args:
        losses: In nats, of a classifier: minus the logarithm of the true class's probability, which
            is returned. Of a task's own loss it would mean nothing.
    """
    return (-losses).exp().clamp(max=1.0)


def surer(members: float, others: float) -> float:
    """Return how much surer a model is of members, in points: a difference in mean confidence.

    It is to be read beside that of retrained models; below 0 the model is less sure of members.

    Args:
        members: Mean confidence in examples that the model was trained on, 0 to 1.
        others: In examples that it was not.
    """
    return 100.0 * (members - others)


def halves(num_members: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the two halves of the members, as positions, int64; of an odd number one has more.

    Those of n and of n + 1 are unrelated draws.
    """
    order = torch.randperm(num_members, generator=generator(seed, f"halves of {num_members}"))
    return order[: num_members // 2], order[num_members // 2 :]


def relearned(
    model: nn.Module,
    pick: Pick,
    num_members: int,
    seed: int,
    *,
    steps: Sequence[int] = STEPS,
    lr: float = LR,
    batch_size: int = BATCH_SIZE,
    least: int = 1,
    at_once: int | None = None,
) -> float:
    """Return how sure a model is of each half of the members when it has learned the other again.

    Args:
        model: A classifier. Not changed: copies are trained.
        pick: The members, on the model's device.
        num_members: How many there are; 2 or more.
        seed: Sets the halves and the order: the same for all models that are compared.
        steps: Increasing counts of SGD steps.
        lr: Learning rate, positive.
        batch_size: Members a step.
        least: Members behind a step, at least.
        at_once: Members that pass through the model together, at most; None for the usual.

    Returns:
        The sum of the confidence in all members, each in the mean over `steps`.
    """
    size, total = min(BATCH, at_once or BATCH), 0.0
    first, second = halves(num_members, seed)
    for learned, watched in ((first, second), (second, first)):
        total += statistics.fmean(
            relearning_curve(
                copy.deepcopy(model),
                lambda batch, of=learned: pick(of[batch]),  # type: ignore[misc]
                len(learned),
                functools.partial(_sure, pick, watched, size),
                steps=steps,
                lr=lr,
                batch_size=max(batch_size, least),
                generator=generator(seed, "half learned again"),
                least=least,
                at_once=at_once,
            )
        )
    return total


def _sure(pick: Pick, index: Tensor, batch_size: int, model: nn.Module) -> float:
    losses = losses_of(
        model.eval(), lambda batch: pick(index[batch]), len(index), batch_size=batch_size
    )
    return float(confidence(losses).sum())
