"""Training under noise: each example's gradient is clipped, and their sum is noised.

Abadi et al., "Deep Learning with Differential Privacy", CCS 2016,
https://arxiv.org/abs/1607.00133, Algorithm 1:

    g <- (sum_i g_i min(1, C / |g_i|) + N(0, z^2 C^2)) / (q n)

Departs from the paper: nothing. Each step's batch is a Poisson sample, which the accountant assumes
(client/budget.py): every example is in it with probability q, whoever else is. The sum is divided
by the batch size that is expected, because the one that was drawn would tell.

What depends on the data and is no such sum must not go up: no loss, no number of images seen.
BatchNorm mixes the examples of a batch, so that no example's gradient is its own: models with it
are refused, unless it is frozen with its running statistics.

Shapes: b examples, K classes, F features.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from client.errors import BadSetting
from client.learning.curvature import NUMBERS_AT_ONCE, example_gradients, parts_of
from client.learning.trace import (
    frozen_norms_still,
    inputs_of,
    keeps_statistics,
    mixes_examples,
    only,
)
from client.learning.training import Pick, Trained, local_sgd

ExampleLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From an example's features (1, F), its logits (1, K) and its label (1,) to its loss.

Features are the input of the network's last linear layer.
"""


# ---- randomness ---------------------------------------------------------------------------------


class Draws(Protocol):
    """Where noise and samples come from."""

    def uniform(self, count: int) -> Tensor:
        """Return numbers from [0, 1), `(count,)`, on the CPU."""

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Return standard normal numbers, float64, on the CPU."""


class DerivedDraws:
    """Numbers that follow from a seed: of simulated nodes, so that the same seed does the same."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def uniform(self, count: int) -> Tensor:
        return torch.rand(count, generator=self.generator, dtype=torch.float64)

    def normal(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)


class SecretDraws:
    """Numbers that nobody can draw again: of real nodes.

    The run's seed comes from the coordinator. Noise that followed from it could be taken off, and a
    sample that follows from it hides nobody: the accountant counts on both being secret. Torch's
    own generator will not do either: its state can be computed from what it gave. So bytes come
    from ChaCha20 under a key of the operating system's.

    Each normal number is half the sum of four, so that the grid of floating-point numbers does not
    tell what was added (Holohan and Braghin 2021, https://arxiv.org/abs/2107.10138, section 4).
    """

    def uniform(self, count: int) -> Tensor:
        return torch.from_numpy(self._words(count).astype(np.float64) * 2.0**-53)

    def normal(self, shape: Sequence[int]) -> Tensor:
        count = math.prod(shape)
        total = np.zeros(count)
        for _ in range(2):  # each gives two by Box and Muller
            # In (0, 1]: the logarithm of 0 is none.
            radius = np.sqrt(-2.0 * np.log((self._words(count) + 1).astype(np.float64) * 2.0**-53))
            angle = 2.0 * math.pi * self.uniform(count).numpy()
            total += radius * np.cos(angle) + radius * np.sin(angle)
        return torch.from_numpy(total / 2.0).reshape(tuple(shape))

    def _words(self, count: int) -> "np.ndarray[tuple[int], np.dtype[np.uint64]]":
        """Return integers from [0, 2^53), each as likely."""
        stream = Cipher(ChaCha20(os.urandom(32), bytes(16)), mode=None).encryptor()
        return np.frombuffer(stream.update(bytes(8 * count)), dtype="<u8") >> np.uint64(11)


# ---- gradients ----------------------------------------------------------------------------------


def of_classes(features: Tensor, logits: Tensor, label: Tensor) -> Tensor:
    """Return the cross-entropy: the ordinary loss."""
    return cross_entropy(logits, label)


def check_private(model: nn.Module) -> None:
    """Refuse a model whose examples have no gradients of their own.

    Raises:
        BadSetting: If it has BatchNorm that is not frozen, or another norm that keeps statistics.
    """
    if mixes_examples(model):
        raise BadSetting(
            "model must have no BatchNorm under noise, got one: it mixes the examples of a batch; "
            "convnet and lenet have none"
        )
    if keeps_statistics(model):
        raise BadSetting(
            "model must keep no running statistics under noise, got a norm layer that does: they "
            "would go up without any; track_running_stats=False makes it keep none"
        )


def clipped_sum(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    loss: ExampleLoss,
    clip_norm: float,
    head: str | None = "classifier",
) -> dict[str, Tensor]:
    """Return the sum over examples of their gradients, each of norm `clip_norm` at most.

        sum_i g_i min(1, C / |g_i|)

    The norm is over all parameters that are trained. An example whose gradient is not finite, or
    too long to be shortened in float32, adds nothing: an error would tell of it.

    Args:
        model: From inputs to logits `(B, K)`, without BatchNorm that is trained. Left unchanged.
            Hooks on its parameters (`client.channels.masks`) hold here, too.
        images: Inputs `(b, ...)`; none gives zeros.
        labels: `(b,)`, given to `loss` as they are.
        loss: Of one example.
        clip_norm: C.
        head: Name of the last linear layer, whose input the loss gets as features; None if there
            is none, for a loss that asks for no features.

    Returns:
        By name of the parameters that are trained.

    Raises:
        EffaceError: If the last layer was not called exactly once.
    """
    parameters = dict(model.named_parameters())
    trained, fixed = parts_of(model)
    # What a hook makes of ones is what it lets through.
    masks = {n: torch.autograd.grad(parameters[n].sum(), parameters[n])[0] for n in trained}

    def of_one(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        with inputs_of(model, head) as seen:
            logits = functional_call(model, {**fixed, **weights}, (image[None],))
        # Without a last layer None, so that a loss which reads them after all fails at once.
        features = cast(Tensor, None) if head is None else only(seen, head)
        return loss(features, logits, label[None])

    gradients = example_gradients(of_one)
    total = {name: torch.zeros_like(w) for name, w in trained.items()}
    if not trained:
        return total
    at_once = max(1, NUMBERS_AT_ONCE // sum(w.numel() for w in trained.values()))
    for some, own in zip(images.split(at_once), labels.split(at_once), strict=True):
        if not len(own):
            continue
        with frozen_norms_still(model):
            each = gradients(trained, some, own)
        found = {name: g * masks[name] for name, g in each.items()}
        # In float64: the square of a large float32 is infinite.
        norms = torch.stack(
            [
                torch.linalg.vector_norm(g.reshape(len(g), -1), dim=1, dtype=torch.float64)
                for g in found.values()
            ]
        ).norm(dim=0)
        factors = (clip_norm / norms.clamp(min=1e-12)).clamp(max=1.0)
        # Below the normal numbers of float32 a factor would be rounded, and its gradient too long.
        exact = norms.isfinite() & (factors >= torch.finfo(torch.float32).tiny)
        factors = torch.where(exact, factors, 0.0)
        for name, g in found.items():
            # In the gradients' type: inputs may be whole numbers.
            total[name] += torch.einsum(
                "b...,b->...", g.nan_to_num(0.0, 0.0, 0.0), factors.to(g.dtype)
            )
    return total


@dataclass(frozen=True)
class Noise:
    """One message's noise, paid for already.

    Attributes:
        multiplier: z, positive.
        clip_norm: C, positive.
        rate: q, in (0, 1].
        num_examples: n.
        draws: Where it comes from.
    """

    multiplier: float
    clip_norm: float
    rate: float
    num_examples: int
    draws: Draws

    @property
    def expected(self) -> float:
        """Return how many examples a batch is expected to have, q n."""
        return self.rate * self.num_examples

    def batches(self, num_steps: int) -> Iterator[Tensor]:
        """Yield Poisson samples of positions, int64; some may be empty."""
        for _ in range(num_steps):
            yield (self.draws.uniform(self.num_examples) < self.rate).nonzero().flatten()

    def noised(self, sums: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        """Return clipped sums with noise, over the expected batch size; masks of `model` hold."""
        parameters = dict(model.named_parameters())
        found = {}
        for name, clipped in sums.items():
            deviation = self.multiplier * self.clip_norm
            noise = deviation * self.draws.normal(clipped.shape)
            noisy = (clipped.double().cpu() + noise) / self.expected
            (mask,) = torch.autograd.grad(parameters[name].sum(), parameters[name])
            found[name] = noisy.to(clipped) * mask
        return found

    def gradients(
        self,
        model: nn.Module,
        loss: ExampleLoss = of_classes,
        *,
        head: str | None = "classifier",
    ) -> Callable[[int, Tensor, Tensor], tuple[list[Tensor | None], Tensor]]:
        """Return what `client.learning.training.local_sgd` asks before every step of `model`."""

        def of_batch(
            step: int, images: Tensor, labels: Tensor
        ) -> tuple[list[Tensor | None], Tensor]:
            sums = clipped_sum(
                model, images, labels, loss=loss, clip_norm=self.clip_norm, head=head
            )
            noisy = self.noised(sums, model)
            names = [name for name, p in model.named_parameters() if p.requires_grad]
            return [noisy.get(name) for name in names], torch.zeros(())

        return of_batch


def private_sgd(
    model: nn.Module,
    pick: Pick,
    noise: Noise,
    num_steps: int,
    *,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    proximal: float = 0.0,
    loss: ExampleLoss = of_classes,
    head: str | None = "classifier",
) -> Trained:
    """Train `model` in place, as `local_sgd`, under noise.

    Args:
        model: From inputs to logits `(B, K)`, without BatchNorm that is trained.
        pick: The data, of `noise.num_examples`; each example stands there once.
        noise: Paid for `num_steps` steps.
        num_steps: T.
        lr: Learning rate, positive.
        momentum: Of SGD, in [0, 1).
        weight_decay: L2 penalty.
        proximal: mu of FedProx.
        loss: Of one example; what is added to its gradient is no more than a sum over examples.
        head: As `clipped_sum`.

    Returns:
        Steps, the images that were expected, and no loss.

    Raises:
        BadSetting: If the model has BatchNorm that is not frozen, or keeps running statistics.
    """
    check_private(model)
    local_sgd(
        model,
        pick,
        noise.batches(num_steps),
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        proximal=proximal,
        gradients=noise.gradients(model, loss, head=head),
    )
    return Trained(num_steps, round(noise.expected * num_steps), 0.0)


def noised_counts(counts: Tensor, most: Tensor, deviation: float, draws: Draws) -> Tensor:
    """Return counts with noise, whole and in [0, most].

    Args:
        counts: Of which one example changes one, by 1: their sensitivity is 1.
        most: Upper bounds that may be known.
        deviation: Standard deviation of the noise.
        draws: Where it comes from.
    """
    noisy = counts.double() + deviation * draws.normal(counts.shape)
    return torch.minimum(noisy.round().clamp(min=0.0), most.double())
