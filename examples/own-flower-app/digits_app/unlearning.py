"""What Efface has to know of the app."""

import torch

from efface import Data, Examples, Task

from .task import Net, load_data, load_test

CLIENTS = 5


class Digits(Task):
    input_shape = (1, 8, 8)
    class_names = tuple("0123456789")

    def network(self) -> Net:
        return Net()

    def data(self, source: str) -> Data:
        parts = [load_data(i, CLIENTS).tensors for i in range(CLIENTS)]
        images, labels = (torch.cat(part) for part in zip(*parts, strict=True))
        ids = [i for i, (_, own) in enumerate(parts) for _ in own]  # the client of each
        return Data(Examples(images, labels, ids=ids), Examples(*load_test().tensors))
