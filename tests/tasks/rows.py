"""A task whose answer can be seen: points in a row, of three kinds."""

import torch

from client.task import Data, Examples, Task


class Row(Task):
    """Points in a row; client 2 alone has those of the last class."""

    input_shape = (2,)
    class_names = ("left", "middle", "right")

    def network(self) -> torch.nn.Module:
        return torch.nn.Linear(2, 3)

    def data(self, source: str) -> Data:
        labels = torch.arange(180) // 60
        noise = torch.randn(180, 2, generator=torch.Generator().manual_seed(0))
        places = torch.tensor([[-3.0, 0.0], [3.0, 0.0], [9.0, 0.0]])
        ids = torch.where(labels == 2, 2, torch.arange(180) % 2)
        return Data(Examples(places[labels] + 0.3 * noise, labels, ids=ids))
