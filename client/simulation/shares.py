"""Shares of a data set that simulated nodes hold."""

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from client.data.whole import whole
from client.errors import DataError
from client.seeds import generator
from client.simulation.partition import partition
from client.task import Task


@lru_cache(maxsize=8)  # one process serves many nodes on the inline and Ray engines
def shares(
    task: Task,
    dataset: str,
    data_dir: Path | None,
    spec: str,
    num_clients: int,
    max_samples: int,
    seed: int,
) -> tuple[Tensor, ...]:
    """Return every simulated node's positions in the training split."""
    train = whole(task, dataset, data_dir).train
    chosen = torch.arange(len(train.labels))
    if max_samples:
        if max_samples > len(chosen):
            raise DataError(f"max-samples must be at most {len(chosen)}, got {max_samples}")
        order = torch.randperm(len(chosen), generator=generator(seed, "subset", 0))
        chosen = order[:max_samples].sort().values
    parts = partition(
        spec,
        train.labels[chosen],
        num_clients,
        generator(seed, "partition", 0),
        ids=None if train.ids is None else train.ids[chosen],
    )
    return tuple(chosen[share] for share in parts)
