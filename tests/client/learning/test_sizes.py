"""A model's size is the same with and without memory for it, and a small one loads no compiler."""

import subprocess
import sys

import pytest
import torch

from client.learning import sizes
from client.learning.images import ImageTask
from client.learning.models import shaped
from client.learning.spec import ModelSpec

NETS = [
    ImageTask(num_classes=10, channels=1, image_size=8, width=8, depth=2),
    ImageTask(num_classes=10, channels=3, image_size=32, width=16),
    ImageTask(net="resnet20", num_classes=4, channels=1, image_size=28),
]


@pytest.mark.parametrize("net", NETS, ids=["digits", "colour", "resnet20"])
def test_a_size_is_the_same_with_memory_and_without(
    net: ImageTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModelSpec.of(net)
    found = []
    for small in (2**62, 0):
        monkeypatch.setattr(sizes, "SMALL", small)
        sizes.size_of.cache_clear()
        found.append(sizes.size_of(spec))
        # The layout, which all models of the process are copies of, still has no memory.
        assert all(t.is_meta for t in shaped(spec).state_dict().values())
    assert found[0] == found[1]
    assert found[0].activations > 0


def test_a_large_model_gets_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[torch.nn.Module] = []
    monkeypatch.setattr(sizes, "_zeros", given.append)
    sizes.size_of.cache_clear()
    # More than a million parameters at 8,192 places; maps of 2^25 numbers.
    for size, width, depth in ((64, 256, 3), (512, 64, 1)):
        net = ImageTask(num_classes=10, channels=3, image_size=size, width=width, depth=depth)
        sizes.size_of(ModelSpec.of(net))
    assert given == []


def test_a_small_models_size_loads_no_compiler() -> None:
    code = """
import sys
from client.learning.images import ImageTask
from client.learning.sizes import size_of
from client.learning.spec import ModelSpec
size_of(ModelSpec.of(ImageTask(num_classes=10, channels=3, image_size=32)))
print([name for name in ("torch._dynamo", "sympy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
