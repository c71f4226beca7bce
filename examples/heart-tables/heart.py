"""A table of one's own and a small network: rows of numbers, three classes."""

from torch import nn

from client.task import Task


class Table(Task):
    """Its data are what `Task.data` reads: `table:PATH?label=COLUMN`."""

    input_shape = (13,)  # one for each column of numbers, as `efface data columns` says
    class_names = ("barbera", "barolo", "grignolino")  # in natural order, as in the columns file
    hidden: int = 32  # an option: --task-options hidden=64

    def network(self) -> nn.Module:
        return nn.Sequential(
            nn.Linear(13, self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, len(self.class_names)),
        )
