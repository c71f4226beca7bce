"""What a message has a node do: images, their time, and bytes, from what the node holds.

Beside `client.app`, which does it: each kind of message has its own function here, which is what a
dry run counts (`strategies.rehearsal`). A method with a message of its own registers one in its
file.
"""

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from flwr.app import ArrayRecord
from torch import nn

from client.channels.layout import Layer, from_text, layout
from client.channels.slices import take, to_row
from client.errors import EffaceError
from client.learning.models import ModelSpec, build, state_of, traced
from client.learning.training import images_in, steps_in
from client.steps.ascent import Ascend
from client.steps.channels import Ablation, FitChannels, Representation
from client.steps.measuring import Fisher, Heldout, Membership, Totals
from client.steps.recovery import Descend
from client.steps.store import Condense
from client.steps.training import Fit
from client.wire import MIN_EXAMPLES, Common
from strategies.rounds.channels import arrays_of

FORWARD: Final = 1 / 3  # of the time of an image in training, which goes forward and backward
# Likewise, backward with a graph and once more, as for a diagonal of the Hessian.
SECOND_ORDER: Final = 3.0
DOUBLES: Final = 8  # bytes of a score, float64


@dataclass(frozen=True)
class Holding:
    """What a node is known, or assumed, to hold.

    Attributes:
        forget: Training examples of each class that the request names.
        retain: Of each class, those that stay.
        heldout: Held-out examples that are measured.
        assumed: Whether nobody counted. It may be more, and no batch is taken to be cut short.
    """

    forget: tuple[float, ...]
    retain: tuple[float, ...]
    heldout: float = 0.0
    assumed: bool = False

    def side(self, name: str) -> tuple[float, ...]:
        """Return the examples of each class on a message's `side`."""
        both = tuple(f + r for f, r in zip(self.forget, self.retain, strict=True))
        return {"forget": self.forget, "retain": self.retain, "all": both}[name]


@dataclass(frozen=True)
class Effort:
    """What one message takes.

    Attributes:
        images: That the node uses, or passes through the model; with none it sends no arrays.
        down: Bytes of arrays to it.
        up: Bytes of arrays from it.
        work: Time of an image, in that of one in training.
    """

    images: float
    down: int = 0
    up: int = 0
    work: float = 1.0


@dataclass(frozen=True)
class Network:
    """The model of a message, with any weights; it is built once."""

    spec: ModelSpec

    @functools.cached_property
    def module(self) -> nn.Module:
        """The network itself."""
        return build(self.spec, torch.Generator())

    @functools.cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Its layers; the last is the classifier."""
        return layout(self.module)

    @functools.cached_property
    def arrays(self) -> ArrayRecord:
        """Its parameters and buffers."""
        return arrays_of(state_of(self.spec, self.module))

    @functools.cached_property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return sum(t.nbytes for t in state_of(self.spec, self.module).values())


def ablating(layers: Sequence[Layer]) -> float:
    """Return the work of ablating a model on an image: at most a pass without each channel."""
    return FORWARD * num_channels(layers[:-1])


def num_synthetic(examples: Iterable[float], scale: int) -> int:
    """Return the images that stand for these: one for every s of a class, or fewer."""
    return sum(math.ceil(number / max(1, scale)) for number in examples)


def num_channels(layers: Iterable[Layer]) -> int:
    """Return the channels of these layers together."""
    return sum(layer.num_channels for layer in layers)


@functools.singledispatch
def effort(told: Common, holding: Holding, network: Network) -> Effort:
    """Return what a message has a node do.

    Args:
        told: Its settings.
        holding: What the node has.
        network: The model.
    """
    raise EffaceError(f"message must have its effort declared, got {type(told).__name__}")


@effort.register
def _(told: Fit, holding: Holding, network: Network) -> Effort:
    hessian = told.optimiser == "quasi-newton" and told.curvature == "hessian"
    examples = sum(holding.side(told.side))
    lone = told.side == "forget" and examples < MIN_EXAMPLES
    images = 0.0 if lone else _sgd(told, holding, examples)
    return Effort(images, network.nbytes, network.nbytes, SECOND_ORDER if hessian else 1.0)


@effort.register
def _(told: FitChannels, holding: Holding, network: Network) -> Effort:
    chosen = take(network.module.state_dict(), network.layers, from_text(told.channels))
    slices = to_row(chosen).nbytes
    images = _sgd(told, holding, sum(holding.side("all")))
    return Effort(images, network.nbytes if told.whole else slices, slices)


def _sgd(told: Fit | FitChannels, holding: Holding, examples: float) -> float:
    if not told.steps or not examples:
        return told.epochs * examples
    if holding.assumed:
        return told.steps * told.batch_size
    return images_in(told.steps, round(examples), told.batch_size)


@effort.register
def _(told: Ascend, holding: Holding, network: Network) -> Effort:
    original = told.data == "original"
    images = sum(holding.forget) if original else num_synthetic(holding.forget, told.scale)
    return Effort(told.epochs * images, network.nbytes, network.nbytes)


@effort.register
def _(told: Descend, holding: Holding, network: Network) -> Effort:
    wanted = holding.side(told.side)
    if not any(wanted):
        return Effort(0.0, network.nbytes)  # the model stays with who has nothing to train it on
    small = 0 if told.data == "original" else num_synthetic(wanted, told.scale)
    # Of the originals as many as there are others, or all.
    real = (small or round(sum(wanted))) if told.data.endswith("original") else 0
    images = small + real
    if not images:
        return Effort(0.0, network.nbytes, network.nbytes)
    batch = told.batch_of(images)
    passed = told.epochs * images
    if told.side == "retain" and small and told.holds:
        held = num_synthetic(holding.forget, told.scale)
        passed += images_in(steps_in(told.epochs, images, batch), held, batch)
        if told.hold_beside and held and traced(network.spec).mixes_examples:
            passed += told.epochs * images  # once more, under the running statistics
    return Effort(passed, network.nbytes, network.nbytes)


@effort.register
def _(told: Heldout, holding: Holding, network: Network) -> Effort:
    return Effort(holding.heldout, network.nbytes, work=FORWARD)


@effort.register
def _(told: Membership, holding: Holding, network: Network) -> Effort:
    return Effort(holding.heldout + sum(holding.forget), network.nbytes, work=FORWARD)


@effort.register
def _(told: Condense, holding: Holding, network: Network) -> Effort:
    # No model crosses the wire: random ones are drawn on the node. The synthetic images go through
    # each once in training and once with a graph.
    real = sum(min(number, told.batch_size) for number in holding.retain)
    synthetic = num_synthetic(holding.retain, told.scale)
    steps = told.outer_steps * told.inner_steps
    return Effort(steps * (real + (1 + SECOND_ORDER) * synthetic))


@effort.register
def _(told: Representation, holding: Holding, network: Network) -> Effort:
    most = told.samples_per_class or math.inf
    images = sum(min(most, number) for number in holding.side("all"))
    channels = num_channels(layer for layer in network.layers if layer.convolution)
    return Effort(images, network.nbytes, channels * network.spec.num_classes * DOUBLES, FORWARD)


@effort.register
def _(told: Ablation, holding: Holding, network: Network) -> Effort:
    images = min(told.max_examples, sum(holding.forget))
    up = 2 * num_channels(network.layers[:-1]) * DOUBLES
    return Effort(images, network.nbytes, up, ablating(network.layers))


@effort.register
def _(told: Fisher, holding: Holding, network: Network) -> Effort:
    examples = min(told.max_examples, sum(holding.side(told.side)))
    images = examples * network.spec.num_classes if examples >= MIN_EXAMPLES else 0.0
    up = sum(p.nbytes for p in network.module.parameters() if p.requires_grad)
    return Effort(images, network.nbytes, up)


@effort.register
def _(told: Totals, holding: Holding, network: Network) -> Effort:
    return Effort(0.0)
