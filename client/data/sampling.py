"""Random examples of a part of a node's data."""

import torch
from torch import Tensor

from client.data.site import Part
from client.learning.training import enough


def at_most(part: Part, num_examples: int, draws: torch.Generator, *, least: int = 1) -> Part:
    """Return random examples of `part`, at most so many of each class.

    Here and below, a few more where fewer than `least` would be taken, or left.
    """
    order = torch.randperm(len(part), generator=draws)
    rows = []
    for label in part.labels.unique():
        of_class = order[part.labels[order] == label]
        rows.append(of_class[: enough(num_examples, len(of_class), least)])
    return Part(part.split, part.index[torch.cat(rows).sort().values]) if rows else part


def at_random(part: Part, num_examples: int, draws: torch.Generator, *, least: int = 1) -> Part:
    """Return random examples of `part`, at most so many."""
    num_examples = enough(num_examples, len(part), least)
    if len(part) <= num_examples:
        return part
    order = torch.randperm(len(part), generator=draws)[:num_examples]
    return Part(part.split, part.index[order.sort().values])


def as_many(part: Part, labels: Tensor, draws: torch.Generator, *, least: int = 1) -> Part:
    """Return random examples of `part`, as many of each class as `labels` has, or all it has."""
    rows = []
    for label, count in zip(*labels.unique(return_counts=True), strict=True):
        of_class = (part.labels == label).nonzero().flatten()
        taken = enough(int(count), len(of_class), least)
        rows.append(of_class[torch.randperm(len(of_class), generator=draws)[:taken]])
    index = torch.cat(rows) if rows else torch.empty(0, dtype=torch.int64)
    return Part(part.split, part.index[index])
