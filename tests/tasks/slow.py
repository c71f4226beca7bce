"""A user's task whose training waits, where a site's operator names a file to wait for."""

import time
from pathlib import Path

import torch
from torch import Tensor, nn

from client.task import Data, Examples, Task


class Slow(Task):
    input_shape = (4,)
    class_names = ("low", "high")
    gate = ""

    def network(self) -> nn.Module:
        return nn.Linear(4, 2)

    def data(self, source: str) -> Data:
        """Take random rows; "SEED@FILE" trains on them only once that file is there."""
        seed, _, self.gate = source.partition("@")
        inputs = torch.randn(64, 4, generator=torch.Generator().manual_seed(int(seed)))
        labels = (inputs.sum(dim=1) > 0).long()
        return Data(Examples(inputs[:48], labels[:48]), Examples(inputs[48:], labels[48:]))

    def augment(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        while self.gate and not Path(self.gate).exists():
            time.sleep(0.05)
        return inputs
