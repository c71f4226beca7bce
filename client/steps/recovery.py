"""Recovery and relearning: SGD on synthetic sets, subsets and originals."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from client.data.sampling import as_many
from client.learning import recovery
from client.learning.synthetic import random_subset, synthetic_for
from client.learning.training import steps_in
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
    freeze_stem: bool = setting(ANY, False)  # descend in all layers but the first


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
    batch_size = settings.batch_size
    if settings.batches:
        batch_size = math.ceil(len(all_labels) / settings.batches)
    least = node.policy.answers.min_batch
    batch_size = max(batch_size, least)
    node.allow(steps_in(settings.epochs, len(all_labels), batch_size, least=least))
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
        freeze_stem=settings.freeze_stem,
        least=least,
    )
    # An original may be in the subset, too, or behind a synthetic image.
    return worked(len(all_labels), done, num_distinct=max(map(len, labels))), model
