"""Stand-ins of real data: a node's synthetic set, or random real images (the control)."""

import torch
from torch import Tensor

from client.errors import BadSetting
from client.learning.distillation import initialise
from client.node import Node
from client.seeds import generator
from client.store import SyntheticSet


def random_subset(node: Node) -> SyntheticSet:
    """Return random real images, as many of each class as a synthetic set has: its control.

    Those that training with distillation starts from, drawn anew from all of the node's data and
    kept nowhere. The caller takes from them what it may use.
    """
    s = node.settings
    if not s.scale:
        raise BadSetting("scale must be at least 1 for data subset, got 0")
    labels = node.site.train.labels
    draw, few = generator(node.seed, "synthetic", 0, s.client), node.policy.answers.min_examples
    every = torch.ones_like(labels, dtype=torch.bool)
    found = initialise(node.site, every, s.scale, draw, least=few)
    return SyntheticSet(found.images.to(node.device), found.labels.to(node.device))


def synthetic_for(node: Node, side: str, wanted: Tensor) -> SyntheticSet:
    """Return the node's synthetic set; for relearning, with what was destroyed drawn anew."""
    if side == "retain":
        return node.synthetic()
    found = redrawn(node, wanted)
    return SyntheticSet(found.images.to(node.device), found.labels.to(node.device))


def redrawn(node: Node, wanted: Tensor) -> SyntheticSet:
    """Return the stored synthetic set, completed where `wanted` classes have no images left.

    They get new ones, random real images whatever training began with, for noise that is never
    matched would bring nothing back: what a client brings back is its to use again.
    """
    s = node.settings
    labels = node.site.train.labels
    found = node.store.load(s.lineage, model=node.model_name)
    missing = wanted if found is None else wanted & ~torch.isin(labels, found.labels.unique())
    if found is None or bool(missing.any()):
        node.store.make_room(s.lineage)
        draw, few = generator(node.seed, "synthetic", 0, s.client), node.policy.answers.min_examples
        fresh = initialise(node.site, missing, node.scale, draw, least=few)
        found = fresh if found is None else found.joined(fresh)
        if len(found):
            node.save(next_generation(node), found)
    return found


def next_generation(node: Node) -> int:
    """Return the number of the synthetic set that is kept next."""
    numbers = [g.number for g in node.store.generations() if g.lineage == node.settings.lineage]
    return max(numbers, default=0) + 1
