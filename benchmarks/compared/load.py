"""What every system of `benchmarks/compare.py` is given: the same data, network and local epoch.

Only torch, numpy and psutil are needed, and `client.learning.networks`, which needs torch alone: a
system may have an environment of its own.
"""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, Self

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

WEIGHT: Final = "weight:"  # before the name of each, in the file of a run
ROOT: Final = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from client.learning.networks import convnet  # noqa: E402


@dataclass(frozen=True)
class Load:
    """One measurement's work.

    Attributes:
        dataset: "digits" or "mnist".
        data_dir: Where the files of the latter lie.
        data: File with all examples and the clients' parts, of `examples`.
        clients: All take part in every round.
        rounds: The first one warms up.
        images: Training images of all clients together.
        batch: Images a step of SGD.
        lr: Its rate.
        width: Channels of the two convolutions.
        cores: Clients that work at the same time, where the system can, on a thread each.
    """

    dataset: str
    data_dir: str
    data: str
    clients: int
    rounds: int
    images: int
    batch: int
    lr: float
    width: int
    cores: int

    @classmethod
    def read(cls, text: str) -> Self:
        """Return a load as `text` wrote it."""
        return cls(**json.loads(text))

    def text(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self))


@dataclass
class Clock:
    """When rounds ended, by the clock and in processor seconds of this process and those below."""

    ends: list[float] = field(default_factory=list)
    spent: list[float] = field(default_factory=list)

    def round(self) -> None:
        """A round has ended."""
        self.ends.append(time.perf_counter())
        self.spent.append(processor_seconds())

    def finish(self, weights: Mapping[str, np.ndarray[Any, Any]], file: Path) -> None:
        """Write what was measured, and the weights of the last round, by name."""
        named = {WEIGHT + name: array for name, array in weights.items()}
        np.savez(file, ends=np.array(self.ends), spent=np.array(self.spent), **named)


def named(model: nn.Module) -> dict[str, np.ndarray[Any, Any]]:
    """Return a network's weights by name."""
    return {name: weight.detach().numpy() for name, weight in model.named_parameters()}


def processor_seconds() -> float:
    """Return the processor seconds so far of this process, its living children, and those ended."""
    total = 0.0
    own = psutil.Process()
    for process in [own, *own.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.Error:  # ended meanwhile
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def network(width: int, image: Tensor, num_classes: int) -> nn.Module:
    """Return the ConvNet of two convolutions for images like `image`, `(C, H, H)`."""
    torch.manual_seed(0)
    return convnet(
        SimpleNamespace(  # type: ignore[arg-type]
            net="convnet",
            num_classes=num_classes,
            channels=image.shape[0],
            image_size=image.shape[1],
            width=width,
            depth=2,
        )
    )


@dataclass(frozen=True)
class Examples:
    """The data of all clients.

    Attributes:
        images: Prepared, float32 `(N, C, H, H)`.
        labels: int64 `(N,)`.
        parts: Positions of each client's.
    """

    images: Tensor
    labels: Tensor
    parts: list[Tensor]

    @classmethod
    def of(cls, load: Load) -> Self:
        """Return the examples of a load."""
        with np.load(load.data) as kept:
            order, ends = torch.from_numpy(kept["order"]), kept["ends"]
            images, labels = torch.from_numpy(kept["images"]), torch.from_numpy(kept["labels"])
        starts = [0, *ends[:-1]]
        return cls(images, labels, [order[a:b] for a, b in zip(starts, ends, strict=True)])

    def network(self, width: int) -> nn.Module:
        """Return the network for them."""
        return network(width, self.images[0], int(self.labels.max()) + 1)


def epoch(model: nn.Module, images: Tensor, labels: Tensor, part: Tensor, load: Load) -> None:
    """Train `model` in place for one epoch of `part`, shuffled, as a plain PyTorch script does."""
    model.train()
    descent = torch.optim.SGD(model.parameters(), lr=load.lr)
    for batch in part[torch.randperm(len(part))].split(load.batch):
        descent.zero_grad()
        cross_entropy(model(images[batch]), labels[batch]).backward()
        descent.step()
