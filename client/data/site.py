"""A node's own data: where it lies, what is held out, and which part a request names."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from client.data import datasets
from client.data.datasets import DataSet, Split
from client.errors import BadSetting, DataError
from client.seeds import generator
from client.simulation.shares import shares
from client.wire import Common, ForgetSpec

NodeConfig = Mapping[str, bool | float | int | str]

SIMULATED_STORES: Final = "EFFACE_STORE"
"""Environment variable that our engines set for the nodes they simulate, and nobody else: the
folder of those nodes' stores."""

NODE_CONFIG: Final = '--node-config \'data="npz:/path" store="/path"\''


@dataclass(frozen=True)
class Part:
    """Some examples of a split: an index, so that many nodes share one copy of the images.

    Attributes:
        split: Images uint8 `(N, C, H, W)` and labels int64 `(N,)`.
        index: Positions in `split`, int64 `(n,)`.
    """

    split: Split
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    @property
    def labels(self) -> Tensor:
        return self.split.labels[self.index]

    def where(self, keep: Tensor) -> "Part":
        """Return the examples for which the boolean mask `keep` `(n,)` is true."""
        return Part(self.split, self.index[keep])


@dataclass(frozen=True)
class Site:
    """One node's data. `train` and `heldout` share no example."""

    name: str
    data: DataSet
    train: Part
    heldout: Part

    def images(self, part: Part, chosen: Tensor | None = None) -> Tensor:
        """Return images of `part` as normalised float32 `(b, C, H, W)`, all or the `chosen`."""
        index = part.index if chosen is None else part.index[chosen]
        return datasets.normalise(part.split.images[index], self.data.mean, self.data.std)

    def pick(self, part: Part, device: torch.device) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """Return a function from positions in `part` to normalised images and labels.

        The part travels to `device` once, as uint8; a batch is normalised there.
        """
        images, labels = part.split.images[part.index].to(device), part.labels.to(device)

        def picked(batch: Tensor) -> tuple[Tensor, Tensor]:
            chosen = batch.to(device)
            return (
                datasets.normalise(images[chosen], self.data.mean, self.data.std),
                labels[chosen],
            )

        return picked


def open_site(settings: Common, node: NodeConfig) -> Site:
    """Return the data of the node that `settings` is addressed to.

    A node whose operator names `data` uses that and nothing else. Any other node takes its share,
    by its `partition-id`, of the data set that the coordinator names: a published one, or, where
    our own engines simulate the node, any file.

    Raises:
        BadSetting: If the coordinator names a file that this node must not open.
        DataError: If the data cannot be read, or do not fit the model.
    """
    directory = node.get("data-dir") or os.environ.get("EFFACE_DATA_DIR")
    data_dir = Path(str(directory)) if directory else None
    own = node.get("data")
    if not own and "partition-id" not in node:
        raise DataError(
            "node config must name data, or a partition-id for a simulated node, got neither; "
            f"start the SuperNode with {NODE_CONFIG}"
        )
    if not own and not os.environ.get(SIMULATED_STORES) and settings.dataset not in datasets.NAMES:
        raise BadSetting(
            f"dataset must be one of {', '.join(datasets.NAMES)} on a node that names no data of "
            f"its own, got {settings.dataset!r}; its operator names what it holds: {NODE_CONFIG}",
            see="efface data list",
        )
    data = _own_data(str(own), data_dir) if own else datasets.load(settings.dataset, data_dir)
    _check_fit(data, settings)
    if own:
        index = torch.arange(len(data.train.labels))
    else:
        parts = shares(
            settings.dataset,
            data_dir,
            settings.partition,
            settings.num_clients,
            settings.max_samples,
            settings.partition_seed,
        )
        position = int(node.get("partition-id", 0))
        if not 0 <= position < len(parts):
            raise DataError(f"partition-id must lie in [0, {len(parts)}), got {position}")
        index = parts[position]
    if own and data.validation is not None:
        heldout = Part(data.validation, torch.arange(len(data.validation.labels)))
        return Site(settings.client, data, Part(data.train, index), heldout)
    order = torch.randperm(
        len(index), generator=generator(settings.partition_seed, "holdout", 0, settings.client)
    )
    num_heldout = int(settings.holdout * len(index))
    return Site(
        settings.client,
        data,
        train=Part(data.train, index[order[num_heldout:]]),
        heldout=Part(data.train, index[order[:num_heldout]]),
    )


def _own_data(name: str, data_dir: Path | None) -> DataSet:
    """Return the operator's data. What is wrong with its name is a path that must not go up."""
    try:
        return datasets.load(name, data_dir)
    except BadSetting as error:
        raise DataError(str(error)) from error


def _check_fit(data: DataSet, settings: Common) -> None:
    shape = tuple(data.train.images.shape[1:])
    wanted = (settings.model_channels, settings.model_image_size, settings.model_image_size)
    if shape != wanted:
        raise DataError(
            f"images of {data.name} must have shape {wanted} for this model, got {shape}"
        )
    highest = int(data.train.labels.max()) if len(data.train.labels) else 0
    if highest >= settings.model_classes:
        raise DataError(
            f"labels of {data.name} must lie in [0, {settings.model_classes}) for this model, "
            f"got {highest}"
        )


def forget_mask(labels: Tensor, spec: ForgetSpec, client: str) -> Tensor:
    """Return which examples `spec` names, as a boolean mask `(n,)`.

    Args:
        labels: Labels int64 `(n,)` of examples that `client` holds.
        spec: What to forget.
        client: The node's name.
    """
    if spec.level == "class":
        return torch.isin(labels, torch.tensor(spec.classes, dtype=labels.dtype))
    named = spec.level == "client" and client in spec.clients
    return torch.full_like(labels, named, dtype=torch.bool)


def erased_mask(labels: Tensor, erased: list[ForgetSpec], client: str) -> Tensor:
    """Return which examples lie under any tombstone, as a boolean mask `(n,)`."""
    mask = torch.zeros_like(labels, dtype=torch.bool)
    for spec in erased:
        mask |= forget_mask(labels, spec, client)
    return mask
