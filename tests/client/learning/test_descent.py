"""Our steps are those of torch.optim.SGD, bit for bit, without the compiler that it loads."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from client.learning.descent import Descent


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 5e-4])
def test_every_step_is_that_of_torch_bit_for_bit(momentum: float, weight_decay: float) -> None:
    found = []
    for kind in (torch.optim.SGD, Descent):
        torch.manual_seed(3)
        net = nn.Sequential(nn.Linear(9, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        unused = nn.Parameter(torch.ones(2))  # without a gradient it stays, decay or not
        weights = [*net.parameters(), unused]
        steps = kind(weights, lr=0.3, momentum=momentum, weight_decay=weight_decay)
        for _ in range(15):
            steps.zero_grad()
            net(torch.randn(16, 9)).square().mean().backward()
            steps.step()
        found.append([w.detach().clone() for w in weights])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(found[1][-1], torch.ones(2))


def test_a_step_changes_a_weight_by_the_gradient_and_what_came_before() -> None:
    weight = torch.tensor([1.0], requires_grad=True)
    steps = Descent([weight], lr=0.5, momentum=0.5)
    for expected in (0.0, -1.5):  # 1 - 0.5 * 2, then 0 - 0.5 * (0.5 * 2 + 2)
        weight.grad = torch.tensor([2.0])
        steps.step()
        assert weight.item() == expected


def test_a_training_loads_no_compiler() -> None:
    code = """
import sys, torch
from torch import nn
import client.app
from client.learning import recovery, training
net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
images, labels = torch.randn(8, 1, 2, 2), torch.zeros(8, dtype=torch.long)
batches = [torch.arange(4), torch.arange(4, 8)]
training.local_sgd(net, lambda batch: (images[batch], labels[batch]), iter(batches), lr=0.1)
print(sorted(n for n in sys.modules if n in ("torch._dynamo", "torch.optim.sgd", "sympy")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "torch._dynamo" not in done.stdout, done.stdout
    assert done.returncode == 0, done.stderr
