"""A user's task: a table of scikit-learn's and an MLP with dropout."""

import torch
from sklearn.datasets import load_wine
from torch import nn

from client.task import Data, Examples, Task


class Wine(Task):
    input_shape = (13,)
    class_names = ("barolo", "grignolino", "barbera")
    hidden: int = 16
    dropout: float = 0.1

    def network(self) -> nn.Module:
        return nn.Sequential(
            nn.Linear(13, self.hidden),
            nn.ReLU(),
            nn.Dropout(self.dropout),
            nn.Linear(self.hidden, 3),
        )

    def data(self, source: str) -> Data:
        """Take all rows, or of a source "FIRST/STEP" every STEPth from FIRST."""
        first, _, step = (source or "0/1").partition("/")
        inputs, labels = load_wine(return_X_y=True)
        inputs = ((inputs - inputs.mean(0)) / inputs.std(0)).astype("float32")
        inputs, labels = inputs[int(first) :: int(step)], labels[int(first) :: int(step)]
        test = torch.arange(len(labels)) % 4 == 0
        return Data(Examples(inputs[~test], labels[~test]), Examples(inputs[test], labels[test]))
