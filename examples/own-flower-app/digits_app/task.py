"""The app's network, data and loops; nothing here knows of unlearning."""

from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    """A small convolutional network."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.fc = nn.Linear(32 * 2 * 2, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(torch.relu(self.conv1(x)), 2)
        x = torch.max_pool2d(torch.relu(self.conv2(x)), 2)
        return self.fc(x.flatten(1))


@cache
def digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    return images[order], torch.tensor(labels)[order]


def load_data(partition_id: int, num_partitions: int) -> TensorDataset:
    """Return a client's training images."""
    images, labels = digits()
    return TensorDataset(
        images[360:][partition_id::num_partitions], labels[360:][partition_id::num_partitions]
    )


def load_test() -> TensorDataset:
    """Return the server's test images."""
    images, labels = digits()
    return TensorDataset(images[:360], labels[:360])


def train(net: nn.Module, data: TensorDataset, epochs: int, lr: float) -> float:
    """Train the network; return the mean loss."""
    criterion, total = nn.CrossEntropyLoss(), 0.0
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    loader = DataLoader(data, batch_size=32, shuffle=True)
    net.train()
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            loss = criterion(net(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
    return total / (epochs * len(loader))


@torch.no_grad()
def by_digit(net: nn.Module, data: TensorDataset) -> str:
    """Return the accuracy on each digit, in percent."""
    images, labels = data.tensors
    right = net.eval()(images).argmax(1) == labels
    return " ".join(f"{100 * right[labels == k].float().mean():4.0f}" for k in range(10))


@torch.no_grad()
def test(net: nn.Module, data: TensorDataset) -> tuple[float, float]:
    """Return loss and accuracy."""
    images, labels = data.tensors
    outputs = net.eval()(images)
    loss = nn.functional.cross_entropy(outputs, labels)
    return loss.item(), (outputs.argmax(1) == labels).float().mean().item()
