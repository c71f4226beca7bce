"""Stochastic gradient ascent on the data to forget.

Wu et al., "Federated Unlearning: Guarantee the Right of Clients to Forget", 2022, as QuickDrop
states it (Dhasade et al. 2024, Algorithm 1, line 14).

Departs from the paper: can stop at a given loss of each class, and can leave the last layer,
or the first, as it is. Where no loss can be given at which to stop, the ascent can be held by
clipped gradients and in a ball around where it began, as projected gradient ascent is:
Halimi, Kadhe, Rawat, Baracaldo, "Federated Unlearning: How to Efficiently Erase a Client in FL?",
2022, https://arxiv.org/abs/2207.05521.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from client.errors import Diverged, EffaceError
from client.learning.training import Loss, Trained, minibatches, steps_in, still


def ascend(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    generator: torch.Generator,
    target_losses: Sequence[float] = (),
    freeze: Iterable[nn.Module] = (),
    loss: Loss | None = None,
    least: int = 1,
    clip: float = 0.0,
    radius: float = 0.0,
) -> Trained:
    """Raise the loss on the forget data, in place.

        w <- project(w + lr * clip(grad L(w; B)))

    Args:
        model: From inputs to outputs `(B, K)`.
        images: Normalised images `(n, C, H, W)` float32, n > 0.
        labels: `(n,)` int64.
        epochs: Passes over the images, at most.
        batch_size: Images a step.
        lr: eta_theta while unlearning, positive.
        generator: Orders the images.
        target_losses: Depth of every class, K numbers: a class takes no part in a step whose batch
            has a mean loss of at least this on it, and the ascent stops when none is left. Empty to
            ascend with all classes to the end.
        freeze: Modules of the model that stay as they are, running statistics included.
        loss: Of each example, where the task has one of its own; else cross-entropy.
        least: Images behind a step, at least: of every class that is ascended with, where classes
            have depths of their own.
        clip: Longest gradient of a step, over all weights as one vector; 0 for any.
        radius: Farthest from where it began, as a share of the weights' length there; 0 for any.

    Returns:
        Steps, images and mean loss.

    Raises:
        EffaceError: If there is no image.
        Diverged: If the loss stops being finite.
    """
    if not len(labels):
        raise EffaceError("forget data must hold at least one example, got none on this node")
    model.train()
    still(freeze)
    weights = [p for p in model.parameters() if p.requires_grad]
    centre = [weight.detach().clone() for weight in weights] if radius else []
    depths = torch.tensor(target_losses, device=images.device) if target_losses else None
    losses: list[float] = []
    samples = num_steps = 0
    planned = steps_in(epochs, len(labels), batch_size, least=least)
    for batch in minibatches(len(labels), batch_size, planned, generator, least=least):
        chosen = labels[batch]
        outputs = model(images[batch])
        each = (
            cross_entropy(outputs, chosen, reduction="none")
            if loss is None
            else loss(outputs, chosen)
        )
        total = each.mean()
        losses.append(float(total.detach()))
        if not math.isfinite(losses[-1]):
            raise Diverged(
                f"loss while unlearning must stay finite, got {losses[-1]} after {len(losses)} "
                f"steps; lower the learning rate (now {lr:g})"
            )
        samples += len(batch)
        if depths is not None:
            ascending = _below(each, chosen, depths) & _many(chosen, len(depths), least)
            if not bool(ascending.any()):
                break
            total = each[ascending].mean()
        gradients = torch.autograd.grad(total, weights)
        if clip:
            gradients = _shortened(gradients, clip)
        with torch.no_grad():
            torch._foreach_add_(list[Tensor](weights), gradients, alpha=lr)
            if centre:
                _project(weights, centre, radius * _length(centre))
        num_steps += 1
    return Trained(num_steps, samples, sum(losses) / len(losses))


def _many(labels: Tensor, num_classes: int, least: int) -> Tensor:
    """Return a mask `(n,)` of the examples of whose class there are at least so many."""
    return (torch.bincount(labels, minlength=num_classes) >= least)[labels]


def _below(losses: Tensor, labels: Tensor, depths: Tensor) -> Tensor:
    """Return a mask `(n,)` of the examples whose class has a mean loss below its depth."""
    sums = torch.zeros_like(depths).index_add_(0, labels, losses.detach().to(depths.dtype))
    counts = torch.bincount(labels, minlength=len(depths))
    return (sums < depths * counts)[labels]


def _length(parts: Sequence[Tensor]) -> float:
    """Return the length of tensors taken as one vector."""
    return math.sqrt(sum(float(part.double().square().sum()) for part in parts))


def _shortened(parts: Sequence[Tensor], most: float) -> tuple[Tensor, ...]:
    """Return tensors that are at most so long as one vector."""
    length = _length(parts)
    if length <= most:
        return tuple(parts)
    return tuple(part * (most / length) for part in parts)


def _project(weights: Sequence[Tensor], centre: Sequence[Tensor], most: float) -> None:
    """Put weights that are farther than `most` from the centre on the ball around it."""
    offsets = [weight - start for weight, start in zip(weights, centre, strict=True)]
    if _length(offsets) <= most:
        return
    offsets = list(_shortened(offsets, most))
    for weight, start, offset in zip(weights, centre, offsets, strict=True):
        weight.copy_(start + offset)
