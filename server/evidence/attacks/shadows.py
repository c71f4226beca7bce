"""Shadow models: an attacker trains models like the one attacked, and learns how members look.

Shokri et al., "Membership Inference Attacks Against Machine Learning Models", S&P 2017,
https://arxiv.org/abs/1610.05820. As in the influential-channels paper (Xu et al. 2024): 20 shadows,
and as attack model a network with hidden layers of 256 and 128 units.

Shapes: N examples, K classes.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from torch import Tensor

from client.seeds import generator

SHADOWS: Final = 20
HIDDEN: Final = (256, 128)
_PASSES: Final = 50  # over the shadows' answers
_FLOOR: Final = -30.0  # of a log-probability: beyond it no two differ

Answers = tuple[Tensor, Tensor]  # log-probabilities (N, K), labels (N,)


@dataclass(frozen=True)
class Shadow:
    """What a shadow model answers for what it was trained on, and for what it was not."""

    members: Answers
    others: Answers


def shadows(
    num_examples: int,
    answers: Callable[[Tensor, int], Callable[[Tensor], Answers]],
    *,
    count: int = SHADOWS,
    seed: int = 0,
) -> list[Shadow]:
    """Return shadows, each trained on its own random half of the attacker's examples.

    Args:
        num_examples: How many the attacker has; at least 2.
        answers: Trains a model on some positions, with a seed, and returns what answers for others.
        count: Shadows.
        seed: Of the halves and of each training.
    """
    if num_examples < 2:
        raise ValueError(f"num_examples must be at least 2, got {num_examples}")
    found = []
    for number in range(count):
        draws = generator(seed, "shadow", number)
        order = torch.randperm(num_examples, generator=draws)
        inside, outside = order[: num_examples // 2], order[num_examples // 2 :]
        ask = answers(inside, number)
        found.append(Shadow(ask(inside), ask(outside)))
    return found


def shadow_attack(found: Sequence[Shadow], asked: Answers, *, seed: int = 0) -> Tensor:
    """Return how likely each example is a member, `(N,)` from 0 to 1.

    Args:
        found: The shadows; at least one.
        asked: What the attacked model answers.
        seed: Of the attack model's training.

    Raises:
        ValueError: If there are no shadows.
    """
    if not found:
        raise ValueError("shadows must be at least one, got none")
    rows = [_looks(part) for one in found for part in (one.members, one.others)]
    told = [
        np.full(len(labels), member)
        for one in found
        for (_, labels), member in ((one.members, 1), (one.others, 0))
    ]
    inputs = np.concatenate(rows)
    mean, spread = inputs.mean(axis=0), inputs.std(axis=0)
    spread[spread == 0] = 1.0
    model: Any = MLPClassifier(HIDDEN, max_iter=_PASSES, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit((inputs - mean) / spread, np.concatenate(told))
    return torch.from_numpy(model.predict_proba((_looks(asked) - mean) / spread)[:, 1])


def _looks(answers: Answers) -> Any:
    """Return what the attack model sees `(N, 1 + K)`: the true class's and the sorted others'."""
    logs, labels = answers
    logs = logs.double().clamp(min=_FLOOR)
    true = logs.gather(1, labels[:, None])
    return torch.cat([true, logs.sort(dim=1, descending=True).values], dim=1).numpy()
