"""A node's own data: where it lies, what is held out, and which part a request names."""

import functools
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from client.data import datasets
from client.data.datasets import Data, Examples
from client.data.source import check_site, is_own
from client.data.whole import whole
from client.errors import BadSetting, DataError
from client.learning.spec import ModelSpec
from client.messages import Common, ForgetSpec
from client.policy import Policy, PolicyRefused
from client.seeds import derive, generator
from client.simulation.settings import Simulation
from client.simulation.shares import shares
from client.task import Task

log = logging.getLogger("efface.client")
NodeConfig = Mapping[str, bool | float | int | str]

SIMULATED_STORES: Final = "EFFACE_STORE"
"""Environment variable that our engines set for the nodes they simulate, and nobody else: the
folder of those nodes' stores."""

NODE_CONFIG: Final = '--node-config \'data="npz:/path" store="/path" policy="/path"\''


@dataclass(frozen=True)
class Part:
    """Some examples of a split: an index, so that many nodes share one copy of the inputs.

    Attributes:
        split: Images uint8 `(N, C, H, W)` and labels int64 `(N,)`.
        index: Positions in `split`, int64 `(n,)`.
    """

    split: Examples
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
    data: Data
    train: Part
    heldout: Part
    task: Task

    def inputs(self, part: Part, chosen: Tensor | None = None) -> Tensor:
        """Return prepared inputs of `part`, `(b, ...)`, all or the `chosen`."""
        index = part.index if chosen is None else part.index[chosen]
        return self.task.prepare(part.split.take(index), self.data)

    def pick(self, part: Part, device: torch.device) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """Return a function from positions in `part` to prepared inputs and what they are to give.

        To a GPU, what is in memory travels once, as it is, and a batch is prepared there. On a CPU
        it stays where it is: a copy of each node's part would be all of the data once more.
        """
        wanted = part.split.wanted(part.index).to(device)
        if device.type == "cpu" or not isinstance(part.split.inputs, Tensor):
            return lambda batch: (
                self.task.prepare(part.split.take(part.index[batch.cpu()]).to(device), self.data),
                wanted[batch.to(device)],
            )
        raw = part.split.inputs[part.index].to(device)

        def picked(batch: Tensor) -> tuple[Tensor, Tensor]:
            chosen = batch.to(device)
            return self.task.prepare(raw[chosen], self.data), wanted[chosen]

        return picked


def open_site(settings: Common, node: NodeConfig, policy: Policy | None = None) -> Site:
    """Return the data of the node that `settings` is addressed to.

    A node whose operator names `data` uses that and nothing else. A simulated node takes its share,
    by its `partition-id`, of the data set that the coordinator names, or its own node config: a
    published one, or, where our own engines simulate the node, any file.

    A real site is split once, by its own seed, as its policy says. It leaves classes out of which
    either part has only a handful of examples: whatever is told of the rest with and without such a
    class would be told of that handful.

    Args:
        settings: What the message says.
        node: The node config.
        policy: Of the node; None is one that no site stands behind.

    Raises:
        BadSetting: If the coordinator names a file that this node must not open.
        PolicyRefused: If its model is for other data than a real site has.
        DataError: If the data cannot be read, or do not fit the model.
    """
    task = settings.model_spec.task
    directory = node.get("data-dir") or os.environ.get("EFFACE_DATA_DIR")
    data_dir = Path(str(directory)) if directory else None
    policy = policy or Policy.simulated(settings.client)
    own = node.get("data")
    if own:
        data = _own_data(task, str(own), data_dir)
        _check_fit(data, settings.model_spec, policy)
        index, split_seed = torch.arange(len(data.train.labels)), 0
        if data.validation is not None:
            heldout = Part(data.validation, torch.arange(len(data.validation.labels)))
            return _site(policy, settings, data, Part(data.train, index), heldout)
    else:
        simulation = settings.simulation or Simulation.of_node(node)
        if simulation is None or "partition-id" not in node:
            raise DataError(
                "node config must name data, or a partition-id for a simulated node, got neither; "
                f"start the SuperNode with {NODE_CONFIG}"
            )
        own_source = task.is_own and not simulation.dataset
        if not (
            os.environ.get(SIMULATED_STORES) or simulation.dataset in datasets.NAMES or own_source
        ):
            raise BadSetting(
                f"dataset must be one of {', '.join(datasets.NAMES)} on a node that names no data "
                f"of its own, got {simulation.dataset!r}; its operator names what it holds: "
                f"{NODE_CONFIG}",
                see="efface data list",
            )
        data = whole(task, simulation.dataset, data_dir)
        _check_fit(data, settings.model_spec, policy)
        index, split_seed = _share(simulation, task, data_dir, node), simulation.partition_seed
    share = policy.data.holdout if policy.is_real else settings.holdout
    num_heldout = int(share * len(index))
    draws = generator(split_seed, "holdout", 0, settings.client)
    if policy.is_real:
        # Keyed by its size, too: with one more held out, others are, not the same and one more.
        draws = generator(derive(0, policy.data.split_seed), "holdout", num_heldout, len(index))
    order = torch.randperm(len(index), generator=draws)
    train = Part(data.train, index[order[num_heldout:]])
    heldout = Part(data.train, index[order[:num_heldout]])
    return _site(policy, settings, data, train, heldout)


def _site(policy: Policy, settings: Common, data: Data, train: Part, heldout: Part) -> Site:
    least = policy.answers.min_examples
    train, heldout = (
        part.where(~torch.isin(part.labels, torch.tensor(rare_classes(part.labels, least))))
        if policy.is_real
        else part
        for part in (train, heldout)
    )
    return Site(settings.client, data, train, heldout, settings.model_spec.task)


def rare_classes(labels: Tensor, least: int) -> list[int]:
    """Return the classes of which there are some examples, and fewer than `least`."""
    classes, counts = labels.unique(return_counts=True)
    return [int(c) for c in classes[counts < least].tolist()]


def _share(simulation: Simulation, task: Task, data_dir: Path | None, node: NodeConfig) -> Tensor:
    """Return the positions of a simulated node's examples in the training split."""
    parts = shares(
        task,
        simulation.dataset,
        data_dir,
        simulation.partition,
        simulation.num_clients,
        simulation.max_samples,
        simulation.partition_seed,
    )
    position = int(node["partition-id"])
    if not 0 <= position < len(parts):
        raise DataError(f"partition-id must lie in [0, {len(parts)}), got {position}")
    return parts[position]


def _own_data(task: Task, name: str, data_dir: Path | None) -> Data:
    """Return the operator's data. What is wrong with its name is a path that must not go up."""
    try:
        if is_own(name):
            check_site(name)
        data = whole(task, name, data_dir)
    except BadSetting as error:
        raise DataError(str(error)) from error
    _say(data.notes)
    return data


@functools.lru_cache(maxsize=2)  # once in a process, which may answer many messages
def _say(notes: tuple[str, ...]) -> None:
    for note in notes:
        log.warning("the node's data: %s", note)


def _check_fit(data: Data, spec: ModelSpec, policy: Policy) -> None:
    """Refuse data that are not what the task says, and a task for other data than a site has."""
    task = spec.task
    if policy.is_real:
        _check_policy(data, task, policy)
    if spec.base not in data.fits:
        task.checked(data)
        data.fits.add(spec.base)


def _check_policy(data: Data, task: Task, policy: Policy) -> None:
    if task.num_classes != data.num_classes:
        raise PolicyRefused(
            f"model-classes must be {data.num_classes}, as {policy.name} has, got "
            f"{task.num_classes}; a site that lacks some keeps empty folders for them, or "
            "num_classes in its .npz file"
        )
    shape = data.train.input_shape
    if shape != task.input_shape:
        raise PolicyRefused(
            f"examples must be {shape}, as {policy.name} has them, got {task.input_shape}"
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
