"""Recovery and relearning: SGD on synthetic sets, subsets and originals."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from client.data.sampling import as_many
from client.learning import recovery
from client.learning.private import private_sgd
from client.learning.synthetic import random_subset, synthetic_for
from client.learning.training import steps_in, still
from client.messages import CLASS_3, WORK, Common, Declaration
from client.node import Answer, Node, answers, worked
from client.seeds import generator
from client.settings import ANY, at_least, between, one_of, positive, setting


@dataclass(frozen=True, kw_only=True)
class Descend(Common):
    """SGD on little data: recovery (forget data left out) and relearning (put back)."""

    message: ClassVar = Declaration(
        "train.descend",
        example={"lr": 0.02, "hold": 1.0, "hold_features": 1.0, **CLASS_3},
        arrays="model",
        metrics=WORK,
        sums="mean",
        noised=True,
    )

    # A subset is as large as the synthetic set, of random real images instead.
    data: str = setting(
        one_of("synthetic", "synthetic+original", "subset", "subset+original", "original"),
        "synthetic+original",
    )
    side: str = setting(one_of("retain", "forget", "all"), "retain")
    epochs: int = setting(at_least(1), 1)
    batch_size: int = setting(at_least(1), 64)
    batches: int = setting(at_least(0), 0)  # an epoch in so many batches; 0 for batch_size images
    lr: float = setting(positive())
    momentum: float = setting(between(0.0, 0.999), 0.0)
    hold: float = setting(between(0.0, 1e3), 0.0)  # weight of the bounded hold-down term
    hold_features: float = setting(between(0.0, 1e3), 0.0)
    # Weight of what forgotten examples have of their class beyond retained ones like them.
    hold_beside: float = setting(between(0.0, 1e3), 0.0)
    freeze_head: bool = setting(ANY, False)  # descend in all layers but the last
    freeze_stem: bool = setting(ANY, False)  # and, or, in all but the first

    @property
    def holds(self) -> bool:
        """Whether forgotten examples are held down."""
        return bool(self.hold or self.hold_features or self.hold_beside)

    def batch_of(self, examples: int) -> int:
        """Return the size of a batch where an epoch has so many examples."""
        return math.ceil(examples / self.batches) if self.batches else self.batch_size

    def why_not_noised(self) -> str | None:
        """Return why this message cannot be answered under noise, None if it can."""
        if self.data not in ("subset", "original"):
            return (
                f"data must be subset or original under noise, got {self.data}: synthetic images "
                "are made without, and one example may be in a subset and among the originals"
            )
        if self.hold_beside:
            return (
                f"hold-beside must be 0 under noise, got {self.hold_beside:g}: it compares "
                "examples, and a gradient is then not one example's own"
            )
        return super().why_not_noised()


@answers(Descend)
def descend(node: Node, settings: Descend) -> Answer:
    """Train on little data: what is retained, what comes back, or both."""
    wanted = node.side(settings.side, node.site.train.labels)
    if not bool(wanted.any()):
        return worked(0), None
    images, labels = [], []
    held: tuple[Tensor, Tensor] | None = None
    chosen = None
    if settings.data != "original":
        real = settings.data.startswith("subset")
        stand_ins = random_subset(node) if real else synthetic_for(node, settings.side, wanted)
        own = stand_ins.labels.cpu()
        chosen = node.used(stand_ins.where(node.side(settings.side, own).to(node.device)))
        images.append(chosen.images)
        labels.append(chosen.labels)
        if settings.side == "retain":
            down = stand_ins.where((~node.side("retain", own)).to(node.device))
            if len(down) >= node.policy.answers.min_examples:
                held = (down.images, down.labels)
    if settings.data.endswith("original"):
        part = node.site.train.where(wanted)
        if chosen is not None:
            # The same originals in every round: a node keeps 1 + 1 % of its data at hand.
            draw = generator(node.seed, "augment", 0, settings.client)
            part = as_many(part, chosen.labels.cpu(), draw, least=node.policy.answers.min_examples)
        real_images, real_labels = node.examples(part)
        images.append(real_images)
        labels.append(real_labels)
    all_images, all_labels = torch.cat(images), torch.cat(labels)
    model = node.model()
    if not len(all_labels):
        return worked(0), model
    least = node.policy.answers.min_batch
    batch_size = max(settings.batch_of(len(all_labels)), least)
    num_steps = steps_in(settings.epochs, len(all_labels), batch_size, least=least)
    node.allow(num_steps)
    if node.noise_multiplier:
        kept = (all_images, all_labels)
        return _under_noise(node, settings, model, kept, held, batch_size, num_steps)
    done = recovery.descend(
        model,
        all_images,
        all_labels,
        epochs=settings.epochs,
        batch_size=batch_size,
        lr=settings.lr,
        momentum=settings.momentum,
        generator=node.draws(),
        held=held,
        hold=settings.hold,
        hold_features=settings.hold_features,
        hold_beside=settings.hold_beside,
        freeze=node.still(model, head=settings.freeze_head, stem=settings.freeze_stem),
        head=node.needed_head if settings.holds else "",
        least=least,
    )
    # An original may be in the subset, too, or behind a synthetic image.
    return worked(len(all_labels), done, num_distinct=max(map(len, labels))), model


def _under_noise(
    node: Node,
    settings: Descend,
    model: nn.Module,
    kept: tuple[Tensor, Tensor],
    held: tuple[Tensor, Tensor] | None,
    batch_size: int,
    num_steps: int,
) -> Answer:
    """Descend by noised gradients.

    What is held down is drawn with the rest, each example once; each weighs as many times more as
    there are fewer of it, so that the two means count as they do without noise.
    """
    images, labels = kept
    weights = (settings.hold, settings.hold_features)
    share = 1.0
    if held is not None and len(held[1]) and any(weights):
        images = torch.cat([images, held[0]])
        share = len(labels) / len(held[1])
        labels = torch.cat([labels, -1 - held[1]])  # marked, and still a class
    still(node.still(model, head=settings.freeze_head, stem=settings.freeze_stem))
    size = math.ceil(batch_size * len(labels) / len(kept[1]))
    noise = node.noise(len(labels), batch_size=size, num_steps=num_steps)
    # The sum is divided by a batch of both, each mean is over its own.
    both = len(labels) / len(kept[1])
    if noise is None:
        raise ValueError("descent under noise must have noise, got none")

    def loss(features: Tensor, logits: Tensor, label: Tensor) -> Tensor:
        own = torch.where(label < 0, -1 - label, label)
        down = recovery.known(features, logits, own, outputs=weights[0], on_features=weights[1])
        return both * torch.where(label[0] < 0, share * down, cross_entropy(logits, own))

    done = private_sgd(
        model,
        lambda batch: (images[batch], labels[batch]),
        noise,
        num_steps,
        lr=settings.lr,
        momentum=settings.momentum,
        head=node.head,
        loss=loss,
    )
    return worked(len(kept[1]), done), model
