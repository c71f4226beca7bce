"""What Efface has to know of the app."""

import torch
from efface import Data, Examples, Task
from flwr.app import ArrayRecord

from digits_app.task import Net, load_data, load_test

CLIENTS = 5


class Digits(Task):
    input_shape = (1, 8, 8)
    class_names = tuple("0123456789")

    def network(self) -> Net:
        return Net()

    def data(self, source: str) -> Data:
        parts = [load_data(i, CLIENTS).tensors for i in range(CLIENTS)]
        images, labels = (torch.cat(each) for each in zip(*parts, strict=True))
        ids = [i for i, (_, own) in enumerate(parts) for _ in own]
        return Data(Examples(images, labels, ids=ids), Examples(*load_test().tensors))


def print_accuracies(name: str, arrays: ArrayRecord) -> None:
    net = Net().eval()
    net.load_state_dict(arrays.to_torch_state_dict())
    images, labels = load_test().tensors
    right, nine = net(images).argmax(1) == labels, labels == 9
    print(f"{name:12} {right[nine].float().mean():6.1%} on 9, {right[~nine].float().mean():6.1%} on the rest")
