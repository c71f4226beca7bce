"""Channels' activations by class, by hand."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from client.channels.activations import class_activations
from client.channels.layout import layout
from client.errors import EffaceError
from client.learning.models import build
from client.learning.networks import Classifier
from client.learning.spec import image_model


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Means over the four pixels of ReLU(x), and of ReLU(-x):
IMAGES = torch.tensor(
    [
        [[[1.0, 2.0], [3.0, -2.0]]],  # 6/4, 2/4
        [[[-4.0, -4.0], [-4.0, -4.0]]],  # 0, 4
        [[[0.0, 0.0], [0.0, 8.0]]],  # 2, 0
    ]
)
LABELS = torch.tensor([0, 1, 1])


def plus_and_minus() -> Classifier:
    """Return a model whose only layer has the image in channel 0, its negative in channel 1."""
    convolution = nn.Conv2d(1, 2, kernel_size=1, bias=False)
    with torch.no_grad():
        convolution.weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
    # A norm of random statistics: activations are taken before it.
    norm = nn.BatchNorm2d(2)
    norm.running_mean.normal_(generator=seeded())
    body = nn.Sequential(convolution, norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Classifier(body, 2, 2)


def activations(
    model: nn.Module, rows: Sequence[int], batch_size: int = 256
) -> tuple[dict[str, Tensor], Tensor]:
    images, labels = IMAGES[rows], LABELS[rows]
    return class_activations(
        model, lambda at: (images[at], labels[at]), labels, 3, batch_size=batch_size
    )


@pytest.mark.parametrize("batch_size", [1, 2, 256])
def test_activations_by_hand_whatever_the_batches(batch_size):
    sums, counts = activations(plus_and_minus(), [0, 1, 2], batch_size)
    assert list(sums) == ["body.0"]
    assert sums["body.0"].tolist() == [[1.5, 0.5], [0 + 2, 4 + 0], [0, 0]]
    assert sums["body.0"].dtype == torch.float64
    assert counts.tolist() == [1, 2, 0]
    assert counts.dtype == torch.int64


def test_activations_of_several_clients_add_up():
    parts = [activations(plus_and_minus(), rows) for rows in ([0], [1, 2], [])]
    sums, counts = activations(plus_and_minus(), [0, 1, 2])
    assert torch.equal(sum(s["body.0"] for s, _ in parts), sums["body.0"])
    assert torch.equal(sum(c for _, c in parts), counts)


def test_every_convolution_is_scored_in_the_order_of_the_forward_pass():
    model = build(image_model("resnet20", num_classes=2, image_size=8), seeded())
    images, labels = torch.randn(2, 3, 8, 8, generator=seeded()), torch.tensor([0, 1])
    sums, _ = class_activations(model, lambda at: (images[at], labels[at]), labels, 2)
    layers = [layer for layer in layout(model) if layer.convolution]
    assert list(sums) == [layer.name for layer in layers]
    assert [len(s[0]) for s in sums.values()] == [layer.num_channels for layer in layers]


@pytest.mark.parametrize("training", [True, False])
def test_activations_leave_the_model_as_it_was_also_after_an_error(training):
    model = plus_and_minus().train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def broken(batch: Tensor) -> tuple[Tensor, Tensor]:
        if 2 in batch:
            raise OSError("the disk is gone")
        return IMAGES[batch], LABELS[batch]

    activations(model, [0, 1, 2])
    with pytest.raises(OSError, match="disk"):
        class_activations(model, broken, LABELS, 2, batch_size=1)

    assert all(m.training is training and not m._forward_hooks for m in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_model_without_convolutions_has_no_activations():
    model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.ReLU()), 2, 2)
    with pytest.raises(EffaceError, match="model must have a convolution"):
        activations(model, [0])
