"""Local training: SGD on a node's own data.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
AISTATS 2017, https://arxiv.org/abs/1602.05629, Algorithm 1, ClientUpdate; with the proximal term
of Li et al., "Federated Optimization in Heterogeneous Networks" (FedProx), MLSys 2020,
https://arxiv.org/abs/1812.06127, section 3.2.

Shapes: B batch, C channels, H height, W width, K classes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from client.learning.descent import Descent

Pick = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From positions `(B,)` to prepared inputs `(B, ...)` and labels `(B,)`, on the device."""


@dataclass(frozen=True)
class Trained:
    """What a local phase did.

    Attributes:
        num_steps: Optimiser steps taken.
        samples: Images passed forward and backward, repeats counted.
        loss: Mean loss over the steps; 0 if none was taken.
    """

    num_steps: int
    samples: int
    loss: float


def minibatches(
    num_examples: int,
    batch_size: int,
    num_steps: int,
    generator: torch.Generator,
    *,
    least: int = 1,
) -> Iterator[Tensor]:
    """Yield `num_steps` batches of positions, int64 `(B,)`, going through the data in epochs.

    Every epoch is a new permutation; its last batch may be smaller, but neither below `least` nor
    a single example left over, with which batch norm cannot train: those join the batch before.
    """
    step = 0
    while step < num_steps:
        order = torch.randperm(num_examples, generator=generator)
        for number in range(_in_epoch(num_examples, batch_size, least)):
            if step == num_steps:
                return
            last = number == _in_epoch(num_examples, batch_size, least) - 1
            yield order[number * batch_size : None if last else (number + 1) * batch_size]
            step += 1


def steps_in(epochs: int, num_examples: int, batch_size: int, *, least: int = 1) -> int:
    """Return the number of batches in `epochs` passes."""
    return epochs * _in_epoch(num_examples, batch_size, least)


def covering(
    batches: Iterable[Tensor], labels: Tensor, least: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Yield batches that leave no class with few examples, neither among theirs nor beside them.

    What training changes in a classifier's row is told apart by class: of a class with one example
    in all batches it would be that example's own gradient, and so would the difference to an answer
    that has one more. A class's missing examples join the last batch.

    Args:
        batches: Positions of each step's batch.
        labels: int64 `(n,)`, of all positions.
        least: Examples of a class that are enough, at least 1, which changes nothing.
        generator: Draws those that join.
    """
    given = list(batches) if least > 1 else batches
    if least > 1 and given:
        used = torch.zeros(len(labels), dtype=torch.bool)
        used[torch.cat(list(given))] = True
        joining = []
        for label in labels[used].unique():
            of_class = labels == label
            total, now = int(of_class.sum()), int((used & of_class).sum())
            free = (~used & of_class).nonzero().flatten()
            missing = enough(now, total, least) - now
            joining.append(free[torch.randperm(len(free), generator=generator)[:missing]])
        *first, last = given
        given = [*first, torch.cat([last, *joining])]
    yield from given


def enough(count: int, total: int, least: int) -> int:
    """Return how many of `total` examples to take where `count` were asked for.

    Never fewer than `least`, and never all but fewer than `least`: two answers must not differ by a
    handful of examples. With `least` 1 it is the count itself.
    """
    if count <= 0:
        return 0
    taken = max(count, least)
    return total if total - taken < least else taken


def images_in(num_steps: int, num_examples: int, batch_size: int) -> int:
    """Return the number of images in the first `num_steps` batches of `minibatches`."""
    if not num_examples:
        return 0
    epochs, steps = divmod(num_steps, _in_epoch(num_examples, batch_size))
    return epochs * num_examples + steps * batch_size


def _in_epoch(num_examples: int, batch_size: int, least: int = 1) -> int:
    batches = -(-num_examples // batch_size)
    left_over = 0 < num_examples % batch_size < max(2, least) and batches > 1 and batch_size > 1
    return batches - 1 if left_over else batches


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return the context in which the forward pass runs: bfloat16 autocast, or nothing."""
    if precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


Loss = Callable[[Tensor, Tensor], Tensor]
"""From outputs `(B, ...)` and targets `(B, ...)` to the loss of each example, `(B,)`."""


def still(modules: Iterable[nn.Module]) -> None:
    """Keep modules as they are in training: their parameters, and their running statistics."""
    for module in modules:
        module.requires_grad_(False).eval()


def proximal_gradients(weights: list[nn.Parameter], centre: list[Tensor], strength: float) -> None:
    """Add the gradient of `strength / 2 * ||w - centre||^2` to the weights' gradients, in place."""
    for weight, start in zip(weights, centre, strict=True):
        if weight.grad is not None:
            weight.grad.add_(weight.detach() - start, alpha=strength)


def local_sgd(
    model: nn.Module,
    pick: Pick,
    batches: Iterator[Tensor],
    *,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    proximal: float = 0.0,
    precision: str = "float32",
    loss: Loss | None = None,
    at_once: int | None = None,
    gradients: Callable[[int, Tensor, Tensor], tuple[Sequence[Tensor | None], Tensor] | None]
    | None = None,
) -> Trained:
    """Train `model` in place.

        w <- w - lr * (grad L(w; B) + proximal * (w - w_0))

    Args:
        model: From inputs `(B, ...)` to outputs `(B, K)`.
        pick: The data.
        batches: Positions of each step's batch.
        lr: Learning rate, positive.
        momentum: Of SGD, in [0, 1).
        weight_decay: L2 penalty.
        proximal: mu of FedProx; the centre is the model as it comes in.
        precision: "float32" or "bfloat16" (autocast of the forward pass).
        loss: Of each example, where the task has one of its own; else cross-entropy.
        at_once: Examples that pass through the model together, at most (`client.learning.sizes`):
            a batch of more is passed in parts, whose gradients add up to the batch's. None for all.
        gradients: Asked at every step with its number, images and labels: a caller that has the
            real gradient already (gradient matching), or another one (under noise), returns it with
            the loss, in the order of the trainable parameters; None leaves the step to this one.

    Returns:
        Steps, images and mean loss.
    """
    model.train()
    weights = [p for p in model.parameters() if p.requires_grad]
    centre = [w.detach().clone() for w in weights] if proximal else []
    descent = Descent(weights, lr=lr, momentum=momentum, weight_decay=weight_decay)
    losses: list[Tensor] = []
    samples = 0
    for step, batch in enumerate(batches):
        images, labels = pick(batch)
        given = gradients(step, images, labels) if gradients is not None else None
        if given is None:
            descent.zero_grad()
            total = torch.zeros((), device=images.device)
            for inputs, wanted in _parts(images, labels, at_once):
                with autocast(images.device, precision):
                    outputs = model(inputs)
                    mean = (
                        cross_entropy(outputs, wanted)
                        if loss is None
                        else loss(outputs, wanted).mean()
                    )
                if len(wanted) < len(labels):
                    mean = mean * (len(wanted) / len(labels))
                mean.backward()
                total = total + mean.detach()
        else:
            known, total = given
            for weight, gradient in zip(weights, known, strict=True):
                weight.grad = gradient
        if proximal:
            proximal_gradients(weights, centre, proximal)
        descent.step()
        losses.append(total.detach())
        samples += len(labels)
    mean_loss = float(torch.stack(losses).double().mean()) if losses else 0.0
    return Trained(len(losses), samples, mean_loss)


def _parts(inputs: Tensor, labels: Tensor, at_once: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a batch in parts of at most so many examples; whole where it is no larger."""
    if at_once is None or len(labels) <= at_once:
        yield inputs, labels
        return
    yield from zip(inputs.split(at_once), labels.split(at_once), strict=True)
