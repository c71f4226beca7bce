"""Synthetic data in situ: match gradients while the model trains.

Dhasade et al., "QuickDrop: Efficient Federated Unlearning via Synthetic Data Generation",
Middleware 2024, section 3.2 and Algorithm 2; the matching distance and the fine-tuning over random
initialisations are those of Zhao, Mopuri and Bilen, "Dataset Condensation with Gradient
Matching", ICLR 2021, https://arxiv.org/abs/2006.05929.

Departs from the papers: the class-wise real gradients come out of the one backward pass that the
model update needs anyway. Every layer's input and output gradient are kept; a class's gradient is
then the weight gradient of its own rows, and their count-weighted mean is the batch gradient.
Norm layers with running statistics are frozen while the synthetic images pass.

Shapes: B batch, n synthetic images, C channels, H height, W width, K classes, L weight tensors.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.grad import conv2d_weight
from torch.nn.modules.batchnorm import _BatchNorm

from client.data.site import Site
from client.learning.training import enough, minibatches
from client.store import SyntheticSet

EPSILON: Final = 1e-6
# Work of one synthetic image in a matching step against one real image in a training step, in
# passes: forward, backward with graph, and double backward against forward and backward.
MATCHING_COST: Final = 3.0


def initialise(
    site: Site, keep: Tensor, scale: int, generator: torch.Generator, *, least: int = 1
) -> SyntheticSet:
    """Return `ceil(|D^c| / scale)` random real images of every class (Algorithm 2, lines 2 to 7).

    Args:
        site: The node's data.
        keep: Boolean mask over `site.train` of the examples that may be used.
        scale: s, at least 1.
        generator: Draws the images.
        least: Of every class, at least, where it has so many.
    """
    part = site.train.where(keep)
    labels = part.labels
    chosen = []
    for label in labels.unique().tolist():
        of_class = (labels == label).nonzero().flatten()
        count = enough(-(-len(of_class) // scale), len(of_class), least)
        chosen.append(of_class[torch.randperm(len(of_class), generator=generator)[:count]])
    index = torch.cat(chosen) if chosen else torch.empty(0, dtype=torch.int64)
    return SyntheticSet(site.images(part, index).clone(), labels[index].clone())


# ---- class-wise gradients from one pass ---------------------------------------------------------


@dataclass
class Tape:
    """Inputs and outputs of every Conv2d and Linear layer in one forward pass."""

    layers: list[nn.Conv2d | nn.Linear]
    inputs: list[Tensor]
    outputs: list[Tensor]


@contextmanager
def record(model: nn.Module) -> Iterator[Tape]:
    """Record what each weighted layer saw and gave, in the order of the forward pass."""
    tape = Tape([], [], [])

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        tape.layers.append(cast(nn.Conv2d | nn.Linear, layer))
        tape.inputs.append(inputs[0])
        tape.outputs.append(output)

    hooks = [
        layer.register_forward_hook(keep)
        for layer in model.modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    try:
        yield tape
    finally:
        for hook in hooks:
            hook.remove()


def weight_gradient(layer: nn.Conv2d | nn.Linear, inputs: Tensor, outputs: Tensor) -> Tensor:
    """Return the gradient of a layer's weight from some rows of its input and output gradient.

    Differentiable in both, so that the distance can be followed down to the images.
    """
    if isinstance(layer, nn.Linear):
        return outputs.flatten(0, -2).t() @ inputs.flatten(0, -2)
    return conv2d_weight(  # type: ignore[no-any-return]
        inputs,
        layer.weight.shape,
        outputs,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
    )


def real_gradients(
    model: nn.Module, images: Tensor, labels: Tensor
) -> tuple[list[Tensor], Tensor, dict[int, list[Tensor]]]:
    """Return the batch gradient and every class's own, for one forward and one backward pass.

    Args:
        model: The classifier, left unchanged (but for running statistics).
        images: Real images `(B, C, H, W)`.
        labels: `(B,)` int64.

    Returns:
        The gradient of the mean loss in the order of `model.parameters()`; the loss; and by class
        the gradients of its mean loss in the L weight tensors, in the order of the forward pass.
    """
    with record(model) as tape:
        loss = cross_entropy(model(images), labels)
    weights = {id(layer.weight) for layer in tape.layers}
    parameters = list(model.parameters())
    others = [p for p in parameters if id(p) not in weights]
    found = torch.autograd.grad(loss, [*tape.outputs, *others])
    flows, rest = found[: len(tape.outputs)], found[len(tape.outputs) :]

    by_class: dict[int, list[Tensor]] = {}
    batch: list[Tensor] = []
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero().flatten()
        own = [
            weight_gradient(layer, inputs.detach()[rows], flow[rows])
            for layer, inputs, flow in zip(tape.layers, tape.inputs, flows, strict=True)
        ]
        batch = own if not batch else [total + part for total, part in zip(batch, own, strict=True)]
        # The loss is a mean over B rows; a class's own mean is over its n_c rows.
        by_class[label] = [gradient * (len(labels) / len(rows)) for gradient in own]
    ready = {id(layer.weight): g for layer, g in zip(tape.layers, batch, strict=True)}
    ready |= {id(parameter): g for parameter, g in zip(others, rest, strict=True)}
    return [ready[id(p)] for p in parameters], loss, by_class


def synthetic_gradients(
    model: nn.Module, images: Tensor, labels: Tensor
) -> dict[int, list[Tensor]]:
    """Return each class's gradient on synthetic images, differentiable in the images.

    All classes share one forward and one backward pass: the loss is the sum of the classes' means.
    """
    counts = torch.bincount(labels)
    with record(model) as tape, frozen_statistics(model):
        losses = cross_entropy(model(images), labels, reduction="none")
        loss = (losses / counts[labels]).sum()
    flows = torch.autograd.grad(loss, tape.outputs, create_graph=True)
    by_class: dict[int, list[Tensor]] = {}
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero().flatten()
        by_class[label] = [
            weight_gradient(layer, inputs[rows], flow[rows])
            for layer, inputs, flow in zip(tape.layers, tape.inputs, flows, strict=True)
        ]
    return by_class


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Use, and do not change, the running statistics of batch norm layers."""
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
    for layer in layers:
        layer.eval()
    try:
        yield
    finally:
        for layer in layers:
            layer.train()


def distance(synthetic: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    """Return the sum over weight tensors and their output rows of 1 - cosine.

        d = sum_l sum_row 1 - <g_row, h_row> / (|g_row| |h_row| + 1e-6)

    Args:
        synthetic: L gradients of at least 2 dimensions, output rows first.
        real: The same shapes.
    """
    total = torch.zeros((), device=real[0].device)
    for mine, theirs in zip(synthetic, real, strict=True):
        g, h = mine.flatten(1), theirs.flatten(1)
        norms = g.norm(dim=1) * h.norm(dim=1)
        total = total + (1 - (g * h).sum(dim=1) / (norms + EPSILON)).sum()
    return total


# ---- the local loop's part ----------------------------------------------------------------------


class Matcher:
    """Updates a node's synthetic images by the gradients its training computes anyway."""

    def __init__(
        self, synthetic: SyntheticSet, *, lr: float, momentum: float, num_steps: int
    ) -> None:
        """Take a set to improve.

        Args:
            synthetic: On the device; its images are changed in place.
            lr: eta_S.
            momentum: Of the images' SGD; the velocity starts at zero in every round.
            num_steps: varsigma_S, image steps for one real gradient.
        """
        self.synthetic = synthetic
        self.lr, self.momentum, self.num_steps = lr, momentum, num_steps
        self.velocity = torch.zeros_like(synthetic.images)

    def cost(self, labels: Tensor) -> float:
        """Return what a matching step costs, in real images' training passes."""
        present = torch.isin(self.synthetic.labels, labels.unique())
        return MATCHING_COST * self.num_steps * float(present.sum())

    def match(self, model: nn.Module, real: dict[int, list[Tensor]]) -> float:
        """Move the images of the classes in `real` towards its gradients; return the distance."""
        classes = torch.tensor(sorted(real), device=self.synthetic.labels.device)
        rows = torch.isin(self.synthetic.labels, classes).nonzero().flatten()
        if not len(rows):
            return 0.0
        labels = self.synthetic.labels[rows]
        value = 0.0
        for _ in range(self.num_steps):
            images = self.synthetic.images[rows].requires_grad_()
            own = synthetic_gradients(model, images, labels)
            total = torch.stack([distance(own[label], real[label]) for label in own]).sum()
            (gradient,) = torch.autograd.grad(total, images)
            self.velocity[rows] = self.momentum * self.velocity[rows] + gradient
            self.synthetic.images[rows] -= self.lr * self.velocity[rows]
            value = float(total.detach())
        return value


def due(step: int, every: int, fraction: float, spent: float, planned: float, cost: float) -> bool:
    """Return whether to match at `step`.

    Args:
        step: Local step from 0.
        every: Match at every such step.
        fraction: Cap on matching's share of the round's work, in [0, 1].
        spent: Matching work so far this round, in real images' passes.
        planned: Training work of the whole round, in images.
        cost: Work of this matching step.

    The share is counted in passes, not seconds: the same seed must match at the same steps on a
    fast machine and on a slow one.
    """
    if step % every:
        return False
    return spent + cost <= fraction * (planned + spent + cost)


def condense(
    site: Site,
    keep: Tensor,
    synthetic: SyntheticSet,
    new_model: Callable[[torch.Generator], nn.Module],
    generator: torch.Generator,
    *,
    outer_steps: int,
    inner_steps: int,
    batch_size: int,
    image_lr: float,
    lr: float,
) -> SyntheticSet:
    """Fine-tune a synthetic set over random initialisations (QuickDrop section 3.3.2).

    Args:
        site: The node's data.
        keep: Boolean mask over `site.train` of the examples that may be used.
        synthetic: The set to start from.
        new_model: Makes a network with weights drawn from a generator.
        generator: Draws networks and batches.
        outer_steps: F, networks to go through.
        inner_steps: Matching steps on each network, 50 in the paper.
        batch_size: Real images a class and step.
        image_lr: eta_S.
        lr: eta_theta, for the network's step on the synthetic images.

    Returns:
        A new set of the same size.
    """
    part = site.train.where(keep)
    images, labels = synthetic.images.clone(), synthetic.labels
    matcher = Matcher(SyntheticSet(images, labels), lr=image_lr, momentum=0.5, num_steps=1)
    classes = labels.unique().tolist()
    rows = {label: (part.labels == label).nonzero().flatten() for label in classes}
    for _ in range(outer_steps):
        model = new_model(generator)
        weights = list(model.parameters())
        for _ in range(inner_steps):
            real = {}
            for label in classes:
                if not len(rows[label]):
                    continue
                batch = next(minibatches(len(rows[label]), batch_size, 1, generator))
                picked = rows[label][batch]
                batch_images = site.images(part, picked).to(images.device)
                of_class = torch.full((len(picked),), label, device=images.device)
                real[label] = real_gradients(model, batch_images, of_class)[2][label]
            matcher.match(model, real)
            loss = cross_entropy(model(images), labels)
            with torch.no_grad():
                for weight, gradient in zip(
                    weights, torch.autograd.grad(loss, weights), strict=True
                ):
                    weight.sub_(gradient, alpha=lr)
    return SyntheticSet(images, labels)
