"""Synthetic data in situ: match gradients while the model trains.

Dhasade et al., "QuickDrop: Efficient Federated Unlearning via Synthetic Data Generation",
Middleware 2024, section 3.2 and Algorithm 2; the matching distance and the fine-tuning over random
initialisations are those of Zhao, Mopuri and Bilen, "Dataset Condensation with Gradient
Matching", ICLR 2021, https://arxiv.org/abs/2006.05929.

Departs from the papers: the class-wise real gradients come out of the one backward pass that the
model update needs anyway. Every layer's input and output gradient are kept; a class's gradient is
then the weight gradient of its own rows, and their count-weighted mean is the batch gradient.
That holds for ordinary Conv2d and Linear layers. A network with trained weights of another kind
(attention, 1-d convolutions, adapters, layers that are called more than once) takes one backward
pass a class. Norm layers with running statistics are frozen while the synthetic images pass.
A match may move a few images of each class, in turn: what it takes then does not grow with the
sets. These may begin as noise.

Inputs may have any shape, but must be floating-point numbers: the gradient goes down to them.

It is long because of the two ways to a class's gradient, which must agree.

Shapes: B batch, n synthetic images, K classes, L weight tensors.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.functional import cross_entropy
from torch.nn.grad import conv2d_weight
from torch.nn.modules.batchnorm import _NormBase

from client.data.site import Site
from client.errors import BadSetting
from client.learning.attention import ByFormula, differentiated_twice
from client.learning.trace import is_plain
from client.learning.training import enough, minibatches
from client.store import SyntheticSet

EPSILON: Final = 1e-6
REAL, NOISE = STARTS = ("real", "noise")
START: Final = REAL  # unless a training is told; pyproject and `--help` say the same, tested
# Work of one synthetic image in a matching step against one real image in a training step, in
# passes: forward, backward with graph, and double backward against forward and backward.
MATCHING_COST: Final = 3.0


def initialise(
    site: Site,
    keep: Tensor,
    scale: int,
    generator: torch.Generator,
    *,
    least: int = 1,
    start: str = REAL,
) -> SyntheticSet:
    """Return `ceil(|D^c| / scale)` images of every class to begin with (Algorithm 2, lines 2 to 7).

    Random real ones as in the paper, or noise of mean 0 and spread 1: where inputs are prepared to
    these, as the built-in task's are, it has the mean and spread of the data set's pixels. Noise
    depends on how many examples there are of each class and on their shape, on nothing else.

    Args:
        site: The node's data.
        keep: Boolean mask over `site.train` of the examples that may be used.
        scale: s, at least 1.
        generator: Draws the images.
        least: Of every class, at least, where it has so many.
        start: "real" or "noise".

    Raises:
        BadSetting: If noise is to stand for inputs that are not floating-point numbers.
    """
    part = site.train.where(keep)
    labels = part.labels
    chosen = []
    for label in labels.unique().tolist():
        of_class = (labels == label).nonzero().flatten()
        count = enough(-(-len(of_class) // scale), len(of_class), least)
        chosen.append(of_class[torch.randperm(len(of_class), generator=generator)[:count]])
    index = torch.cat(chosen) if chosen else torch.empty(0, dtype=torch.int64)
    images = site.inputs(part, index)
    if start == NOISE:
        check_inputs(images)
        noise = torch.randn(images.shape, generator=generator, dtype=images.dtype)
        return SyntheticSet(noise, labels[index].clone())
    return SyntheticSet(images.clone(), labels[index].clone())


# ---- class-wise gradients from one pass ---------------------------------------------------------


@dataclass
class Tape:
    """Inputs and outputs of every Conv2d and Linear layer in one forward pass.

    With how often each had been written to by then.
    """

    layers: list[nn.Conv2d | nn.Linear]
    inputs: list[Tensor]
    outputs: list[Tensor]
    versions: list[tuple[int, int]]

    def is_intact(self) -> bool:
        """Return whether nothing was written into afterwards, as `ReLU(inplace=True)` does."""
        now = [(x._version, y._version) for x, y in zip(self.inputs, self.outputs, strict=True)]
        return now == self.versions


@contextmanager
def record(model: nn.Module) -> Iterator[Tape]:
    """Record what each weighted layer saw and gave, in the order of the forward pass.

    Only layers of the ordinary kind whose weight is trained.
    """
    tape = Tape([], [], [], [])

    def keep(
        layer: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor
    ) -> None:
        tape.layers.append(cast(nn.Conv2d | nn.Linear, layer))
        seen = inputs[0] if inputs else named["input"]
        tape.inputs.append(seen)
        tape.outputs.append(output)
        tape.versions.append((seen._version, output._version))

    hooks = [
        layer.register_forward_hook(keep, with_kwargs=True)
        for layer in model.modules()
        if is_plain(layer) and cast(nn.Linear, layer).weight.requires_grad
    ]
    try:
        yield tape
    finally:
        for hook in hooks:
            hook.remove()


def _weights(model: nn.Module, tape: Tape) -> list[nn.Parameter]:
    """Return the L trained tensors of 2 dimensions and more, in the order of the forward pass.

    Those of other kinds of layers, which leave no mark there, follow in the model's order.
    """
    seen = [cast(nn.Parameter, layer.weight) for layer in tape.layers]
    return list(
        dict.fromkeys([*seen, *(p for p in model.parameters() if p.requires_grad and p.dim() > 1)])
    )


def _follows(model: nn.Module, tape: Tape, loss: Tensor, num_examples: int) -> bool:
    """Return whether each class's gradients follow from the tape.

    Each trained tensor of 2 dimensions or more must be the weight of a recorded layer, used once,
    and the rows of what that layer saw and gave must be the examples.

    Args:
        model: That was run.
        tape: Of the pass.
        loss: With its graph.
        num_examples: B.
    """
    if len(_weights(model, tape)) != len(tape.layers) or not tape.is_intact():
        return False
    for layer, inputs, output in zip(tape.layers, tape.inputs, tape.outputs, strict=True):
        if not output.requires_grad or len(output) != num_examples:
            return False
        if isinstance(layer, nn.Conv2d):
            if inputs.dim() != 4:  # a map without a batch
                return False
        # The examples may come second, (places, B, F): not if no other dimension has their number.
        elif inputs.dim() < 2 or num_examples in inputs.shape[1:-1]:
            return False
    uses = _uses(loss)
    return all(uses.get(layer.weight) == 1 for layer in tape.layers)


def _uses(loss: Tensor) -> dict[Tensor, int]:
    """Return how often each tensor that `loss` depends on is read by an operation."""
    found: dict[Tensor, int] = {}
    seen: set[Node] = set()
    waiting = [cast(Node, loss.grad_fn)]
    while waiting:
        node = waiting.pop()
        for reader, _ in node.next_functions:
            if reader is None:
                continue
            if (leaf := getattr(reader, "variable", None)) is not None:
                found[leaf] = found.get(leaf, 0) + 1
            elif reader not in seen:
                seen.add(reader)
                waiting.append(reader)
    return found


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
    model: nn.Module, inputs: Tensor, labels: Tensor
) -> tuple[list[Tensor], Tensor, dict[int, list[Tensor]]]:
    """Return the batch gradient and every class's own, for one forward and one backward pass.

    Or one backward pass a class, where the network has other layers than Conv2d and Linear.

    Args:
        model: The classifier, left unchanged (but for running statistics).
        inputs: Real examples `(B, ...)`, of a floating-point dtype.
        labels: `(B,)` int64.

    Returns:
        The gradient of the mean loss in the order of the trainable parameters; the loss; and by
        class the gradients of its mean loss in the L weight tensors, in the order of the forward
        pass. Where batch norm mixes the examples, a class's gradient is what its own outputs do to
        the weights in the first case, and what its loss does in the second: they differ by what
        passes through the batch's statistics.

    Raises:
        BadSetting: If the inputs are not floating-point numbers, or no tensor of 2 dimensions or
            more is trained.
    """
    check_inputs(inputs)
    with record(model) as tape:
        loss = cross_entropy(logits := model(inputs), labels)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not _weights(model, tape):
        raise BadSetting(
            "network must train a tensor of at least 2 dimensions to be distilled, got none"
        )
    if not _follows(model, tape, loss, len(labels)):
        return _real_by_class(parameters, _weights(model, tape), logits, labels)
    weights = {id(layer.weight) for layer in tape.layers}
    others = [p for p in parameters if id(p) not in weights]
    found = torch.autograd.grad(loss, [*tape.outputs, *others], materialize_grads=True)
    flows, rest = found[: len(tape.outputs)], found[len(tape.outputs) :]

    by_class: dict[int, list[Tensor]] = {}
    batch: list[Tensor] = []
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero().flatten()
        own = [
            weight_gradient(layer, seen.detach()[rows], flow[rows])
            for layer, seen, flow in zip(tape.layers, tape.inputs, flows, strict=True)
        ]
        batch = own if not batch else [total + part for total, part in zip(batch, own, strict=True)]
        # The loss is a mean over B rows; a class's own mean is over its n_c rows.
        by_class[label] = [gradient * (len(labels) / len(rows)) for gradient in own]
    ready = {id(layer.weight): g for layer, g in zip(tape.layers, batch, strict=True)}
    ready |= {id(parameter): g for parameter, g in zip(others, rest, strict=True)}
    return [ready[id(p)] for p in parameters], loss, by_class


def _real_by_class(
    parameters: Sequence[nn.Parameter],
    weights: Sequence[nn.Parameter],
    logits: Tensor,
    labels: Tensor,
) -> tuple[list[Tensor], Tensor, dict[int, list[Tensor]]]:
    """Return what `real_gradients` returns, by one backward pass a class.

    Args:
        parameters: All that are trained.
        weights: Those of 2 dimensions and more.
        logits: `(B, K)`, with their graph.
        labels: `(B,)`.
    """
    losses = cross_entropy(logits, labels, reduction="none")
    by_class: dict[int, list[Tensor]] = {}
    batch = [torch.zeros_like(p) for p in parameters]
    position = {id(p): place for place, p in enumerate(parameters)}
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero().flatten()
        own = torch.autograd.grad(
            losses[rows].mean(), parameters, retain_graph=True, materialize_grads=True
        )
        for total, gradient in zip(batch, own, strict=True):
            total.add_(gradient, alpha=len(rows) / len(labels))
        by_class[label] = [own[position[id(weight)]] for weight in weights]
    return batch, losses.mean(), by_class


def synthetic_gradients(
    model: nn.Module, inputs: Tensor, labels: Tensor
) -> dict[int, list[Tensor]]:
    """Return each class's gradient on synthetic examples, differentiable in these.

    All classes share one forward and one backward pass: the loss is the sum of the classes' means.
    Where the network has other layers than Conv2d and Linear, each class has a backward pass.

    Args:
        model: The classifier, left unchanged.
        inputs: `(n, ...)`, of a floating-point dtype, with `requires_grad`.
        labels: `(n,)` int64.

    Raises:
        BadSetting: If the inputs are not floating-point numbers.
    """
    check_inputs(inputs)
    counts = torch.bincount(labels)
    with record(model) as tape, frozen_statistics(model), ByFormula():
        losses = cross_entropy(model(inputs), labels, reduction="none")
        loss = (losses / counts[labels]).sum()
    follows = _follows(model, tape, loss, len(labels))
    flows = torch.autograd.grad(loss, tape.outputs, create_graph=True) if follows else ()
    weights = _weights(model, tape)
    by_class: dict[int, list[Tensor]] = {}
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero().flatten()
        if follows:
            by_class[label] = [
                weight_gradient(layer, seen[rows], flow[rows])
                for layer, seen, flow in zip(tape.layers, tape.inputs, flows, strict=True)
            ]
        else:
            by_class[label] = list(
                torch.autograd.grad(
                    losses[rows].mean(), weights, create_graph=True, materialize_grads=True
                )
            )
    return by_class


def check_inputs(inputs: Tensor) -> None:
    """Refuse inputs that no gradient can flow to.

    Raises:
        BadSetting: If they are not floating-point numbers.
    """
    if not inputs.is_floating_point():
        raise BadSetting(
            f"inputs must be floating-point numbers to be distilled, got {inputs.dtype}; "
            "choose a method without synthetic data"
        )


def check_distillable(model: nn.Module, inputs: Tensor) -> None:
    """Refuse, before any work, a network or inputs that cannot be distilled, by trying it once.

    Args:
        model: Left unchanged.
        inputs: A few examples `(B, ...)` on the model's device; their values are of no account.

    Raises:
        BadSetting: If the inputs are not floating-point numbers, no tensor of 2 dimensions or more
            is trained, or an operation has no second derivative.
    """
    labels = torch.zeros(len(inputs), dtype=torch.int64, device=inputs.device)
    with frozen_statistics(model):
        _, _, real = real_gradients(model, inputs, labels)
    Matcher(SyntheticSet(inputs.clone(), labels), lr=0.0, momentum=0.0, num_steps=1).match(
        model, real
    )


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Use, and do not change, the running statistics of norm layers that keep any."""
    layers = [m for m in model.modules() if isinstance(m, _NormBase) and m.training]
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
        self,
        synthetic: SyntheticSet,
        *,
        lr: float,
        momentum: float,
        num_steps: int,
        batch: int = 0,
        draws: Callable[[int, int], torch.Generator] | None = None,
        turn: int = 0,
    ) -> None:
        """Take a set to improve.

        Args:
            synthetic: On the device; its images are changed in place.
            lr: eta_S.
            momentum: Of the images' SGD; the velocity starts at zero in every round.
            num_steps: varsigma_S, image steps for one real gradient.
            batch: Images of a class that a match moves, at most, in turn; 0 for all.
            draws: Returns what a class's order is drawn from, of a class and of how often all of
                its images had their turn before; not needed where all are moved.
            turn: How many matches earlier rounds may have had.

        Raises:
            BadSetting: If the inputs are not floating-point numbers.
            ValueError: If there is a batch and nothing to draw an order from.
        """
        check_inputs(synthetic.images)
        self.synthetic = synthetic
        self.lr, self.momentum, self.num_steps = lr, momentum, num_steps
        self.batch, self.draws, self.turn = batch, draws, turn
        if batch and draws is None:
            raise ValueError("draws must be given with a batch, got None")
        self.velocity = torch.zeros_like(synthetic.images)

    def cost(self, labels: Tensor) -> float:
        """Return what a matching step costs, in real images' training passes."""
        own = self.synthetic.labels
        counts = torch.bincount(own[torch.isin(own, labels)])
        moved = counts.clamp(max=self.batch) if self.batch else counts
        return MATCHING_COST * self.num_steps * float(moved.sum())

    def match(self, model: nn.Module, real: dict[int, list[Tensor]]) -> float:
        """Move the images of the classes in `real` towards its gradients; return the distance.

        Raises:
            BadSetting: If a part of the network cannot be differentiated twice.
        """
        rows = self._rows(sorted(real))
        if not len(rows):
            return 0.0
        labels = self.synthetic.labels[rows]
        value = 0.0
        for _ in range(self.num_steps):
            images = self.synthetic.images[rows].requires_grad_()
            own = synthetic_gradients(model, images, labels)
            total = torch.stack([distance(own[label], real[label]) for label in own]).sum()
            with differentiated_twice():
                (gradient,) = torch.autograd.grad(total, images)
            self.velocity[rows] = self.momentum * self.velocity[rows] + gradient
            self.synthetic.images[rows] -= self.lr * self.velocity[rows]
            value = float(total.detach())
        return value

    def _rows(self, classes: Sequence[int]) -> Tensor:
        """Return which images this match moves, as positions, int64: the next of each class."""
        labels = self.synthetic.labels
        wanted = torch.tensor(classes, dtype=torch.int64, device=labels.device)
        rows = torch.isin(labels, wanted).nonzero().flatten()
        if not self.batch or self.draws is None:
            return rows
        chosen = [rows[:0]]
        for label in labels[rows].unique().tolist():
            own = rows[labels[rows] == label]
            # All have had their turn after so many matches; then each class has a new order, so
            # that what a match more or less passes over is not the same again and again.
            times, now = divmod(self.turn, -(-len(own) // self.batch))
            order = torch.randperm(len(own), generator=self.draws(label, times)).to(own.device)
            chosen.append(own[order[now * self.batch : (now + 1) * self.batch]])
        self.turn += 1
        return torch.cat(chosen).sort().values


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
                batch_images = site.inputs(part, picked).to(images.device)
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
