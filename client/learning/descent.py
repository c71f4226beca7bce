"""Stochastic gradient descent as `torch.optim.SGD` does it on a CPU, operation by operation.

That class takes a compiler along (`torch._dynamo`), which every process of a client would load for
a second or two and never use.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


class Descent:
    """The steps of one training: with momentum they remember the steps before.

    Attributes:
        weights: What is changed, in place, by their gradients.
    """

    def __init__(
        self,
        weights: Iterable[Tensor],
        *,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        """Begin.

        Args:
            weights: Leaves that require a gradient.
            lr: Learning rate, positive.
            momentum: In [0, 1).
            weight_decay: L2 penalty.
        """
        self.weights = list(weights)
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self._before: list[Tensor | None] = [None] * len(self.weights)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for weight in self.weights:
            weight.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Change every weight that has a gradient: `w -= lr * v` with `v = m * v + g + decay * w`.

        The first `v` is the gradient itself.
        """
        for number, weight in enumerate(self.weights):
            change = weight.grad
            if change is None:
                continue
            if self.weight_decay:
                change = change.add(weight, alpha=self.weight_decay)
            if self.momentum:
                before = self._before[number]
                if before is None:
                    before = self._before[number] = change.detach().clone()
                else:
                    before.mul_(self.momentum).add_(change)
                change = before
            weight.add_(change, alpha=-self.lr)
