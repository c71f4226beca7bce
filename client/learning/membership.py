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
half, too, where examples are alike; steps of which no length of channels makes small ones
(`client.learning.balanced`); and the outcome is a mean confidence.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from client.learning.balanced import rates
from client.learning.evaluation import BATCH, losses_of
from client.learning.training import Pick, covering, minibatches
from client.seeds import generator

STEPS: Final = (2, 5, 10)  # after how many steps the other half is looked at
NUM_STEPS: Final = 2 * max(STEPS)  # of both halves
RATE: Final = 0.05  # times a weight's own
BATCH_SIZE: Final = 64


@dataclass(frozen=True)
class Relearned:
    """What came of learning each half again.

    Attributes:
        confidence: Summed over all members, each in the mean over `STEPS`.
        samples: How many examples passed through the model, learned and looked at.
    """

    confidence: float
    samples: int


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
    make: Callable[[], nn.Module],
    pick: Pick,
    labels: Tensor,
    seed: int,
    *,
    least: int = 1,
    few: int = 1,
    at_once: int | None = None,
) -> Relearned:
    """Return how sure a model is of each half of the members when it has learned the other again.

    It learns as in training: running statistics of norms follow what is learned.

    Args:
        make: Makes the model, a classifier, once for each half; it is trained in place.
        pick: The members, on the model's device.
        labels: Theirs, `(n,)` int64 on the CPU; two members or more.
        seed: Sets the halves and the order: the same for all models that are compared.
        least: Members behind a step, at least.
        few: Members of a class behind all steps, at least, where there are any.
        at_once: Members that pass through the model together, at most; None for the usual.
    """
    size, sure, samples = min(BATCH, at_once or BATCH), 0.0, 0
    first, second = halves(len(labels), seed)
    for learned, watched in ((first, second), (second, first)):
        model = make()
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        own = [RATE * rates(weight) for weight in weights]
        draws = generator(seed, "half learned again")
        drawn = minibatches(len(learned), max(BATCH_SIZE, least), max(STEPS), draws, least=least)
        for step, batch in enumerate(covering(drawn, labels[learned], few, draws), start=1):
            _downhill(model, weights, own, pick, learned[batch], size)
            samples += len(batch)
            if step in STEPS:
                sure += _sure(model, pick, watched, size) / len(STEPS)
                samples += len(watched)
    return Relearned(sure, samples)


def _downhill(
    model: nn.Module,
    weights: Sequence[Tensor],
    own: Sequence[Tensor],
    pick: Pick,
    batch: Tensor,
    size: int,
) -> None:
    """Take a step on a batch, `size` examples at a time: w <- w - rate * grad L(w; batch)."""
    model.train()
    gradients = [torch.zeros_like(weight) for weight in weights]
    for part in batch.split(size):
        inputs, wanted = pick(part)
        loss = cross_entropy(model(inputs), wanted, reduction="sum") / len(batch)
        torch._foreach_add_(gradients, torch.autograd.grad(loss, list(weights)))
    with torch.no_grad():
        for weight, rate, gradient in zip(weights, own, gradients, strict=True):
            weight -= rate * gradient


def _sure(model: nn.Module, pick: Pick, index: Tensor, size: int) -> float:
    """Return the summed confidence in some members; what is no number any more counts as none."""
    model.eval()
    losses = losses_of(model, lambda batch: pick(index[batch]), len(index), batch_size=size)
    return float(confidence(losses).nan_to_num(nan=0.0).sum())
