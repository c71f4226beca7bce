"""The fast ablation against one forward pass for each channel."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, cross_entropy, sigmoid

from client.channels import ablation as ablating
from client.channels.ablation import ablation
from client.channels.convolution import Winograd
from client.channels.layout import layout, to_text
from client.channels.masks import zero_
from client.errors import EffaceError
from client.learning.models import ModelSpec, build, compact, loaded
from client.learning.networks import Classifier
from client.learning.spec import image_model
from tests.models import changed


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_effects_by_hand():
    # Logits (ReLU(x) + 1/2, ReLU(-x)) of images of one pixel.
    model = Classifier(
        nn.Sequential(nn.Conv2d(1, 2, kernel_size=1, bias=False), nn.ReLU(), nn.Flatten()), 2, 2
    )
    with torch.no_grad():
        model.body[0].weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
        model.classifier.weight.copy_(torch.eye(2))
        model.classifier.bias.copy_(torch.tensor([0.5, 0.0]))
    images = torch.tensor([3.0, -2.0, 1.0]).view(3, 1, 1, 1)

    effects = ablation(model, images, torch.tensor([0, 1, 0]))

    # Logits (3.5, 0), (0.5, 2), (1.5, 0): all right. Without channel 0: (0.5, 0), (0.5, 2),
    # (0.5, 0): all right still. Without channel 1: (3.5, 0), (0.5, 0), (1.5, 0): the second wrong.
    assert effects.accuracy["body.0"].tolist() == [0.0, pytest.approx(100 / 3)]

    def loss(margin: float) -> float:  # of the right class above the other
        return math.log(1 + math.exp(-margin))

    expected = [loss(0.5) - loss(3.5) + loss(0.5) - loss(1.5), loss(-0.5) - loss(1.5)]
    assert (3 * effects.loss["body.0"]).tolist() == pytest.approx(expected, abs=1e-6)


def uneven(spec: ModelSpec) -> Classifier:
    """Return a model in training mode whose norms have weights and statistics of all sorts.

    No class stands out: a channel can decide.
    """
    model, draws = build(spec, seeded()), seeded(1)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
            module.weight.data.uniform_(0.5, 1.5, generator=draws)
            module.bias.data.normal_(0, 0.3, generator=draws)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=draws)
            module.running_var.uniform_(0.5, 1.5, generator=draws)
    shape = (16, *spec.task.input_shape)
    with torch.no_grad():
        model.classifier.bias -= model.eval()(torch.randn(shape, generator=draws)).mean(dim=0)
    return model.train()


def score(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return accuracy in percent and mean loss."""
    logits = model(images)
    right = int((logits.argmax(dim=1) == labels).sum())
    return 100 * right / len(labels), float(cross_entropy(logits.double(), labels))


def behind(model: nn.Module, layer: str) -> nn.Module:
    """Return the norm behind a layer, or else the layer."""
    modules = [m for m in model.modules() if not list(m.children())]
    place = modules.index(model.get_submodule(layer))
    after = modules[place + 1]
    return after if isinstance(after, (nn.BatchNorm2d, nn.GroupNorm)) else modules[place]


@torch.no_grad()
def ablation_oracle(
    model: nn.Module, images: Tensor, labels: Tensor, layer: str, channel: int
) -> tuple[float, float]:
    """Return the effects of one channel on accuracy and loss, by a pass through the whole model."""

    def zero(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        output = output.clone()
        output[:, channel] = 0
        return output

    training = model.training
    model.eval()
    accuracy, loss = score(model, images, labels)
    hook = behind(model, layer).register_forward_hook(zero)
    without = score(model, images, labels)
    hook.remove()
    model.train(training)
    return accuracy - without[0], without[1] - loss


@dataclass
class Case:
    """A model and images; `step`: every how many channels the oracle is asked."""

    spec: ModelSpec
    num_images: int
    step: int

    def images(self) -> Tensor:
        return self.spec.task.example(self.num_images).normal_(generator=seeded(2))

    def labels(self, model: nn.Module) -> Tensor:
        """Return what the model says of two images of three, the next class for the others."""
        with torch.no_grad():
            says = model.eval()(self.images()).argmax(dim=1)
        model.train()
        wrong = (torch.arange(self.num_images) % 3 == 2).long()
        return (says + wrong) % self.spec.num_classes


SMALL = image_model("convnet", num_classes=5, channels=1, image_size=8, width=6, depth=2)
CASES = {
    "convnet": Case(SMALL, 12, 1),
    "lenet": Case(changed(SMALL, net="lenet"), 12, 1),
    "resnet20": Case(image_model("resnet20", num_classes=5, image_size=8), 6, 5),
    "vgg11": Case(image_model("vgg11", num_classes=5, image_size=8), 3, 60),
    "resnet18": Case(image_model("resnet18", num_classes=5, image_size=9), 3, 100),
}


@pytest.mark.parametrize("name", CASES)
def test_ablation_is_what_one_pass_for_each_channel_finds(name):
    case = CASES[name]
    model = uneven(case.spec)
    images, labels = case.images(), case.labels(model)

    effects = ablation(model, images, labels)

    hidden = layout(model)[:-1]
    names = [layer.name for layer in hidden]
    assert list(effects.accuracy) == list(effects.loss) == names
    assert any(bool(effect.any()) for effect in effects.accuracy.values())
    for layer in hidden:
        accuracy, loss = effects.accuracy[layer.name], effects.loss[layer.name]
        assert accuracy.shape == loss.shape == (layer.num_channels,)
        assert accuracy.dtype == loss.dtype == torch.float64
        some = range(0, layer.num_channels, case.step)
        expected = [ablation_oracle(model, images, labels, layer.name, c) for c in some]
        # Of a few images, an accuracy that differs at all differs by several percent.
        assert accuracy[:: case.step].tolist() == pytest.approx([a for a, _ in expected])
        # Sums in another order: some 1e-6 of logits around 1.
        assert loss[:: case.step].tolist() == pytest.approx([x for _, x in expected], abs=1e-5)


def test_an_ablated_channel_is_a_zeroed_one():
    case = CASES["convnet"]
    model = uneven(case.spec)
    images, labels = case.images(), case.labels(model)
    effects = ablation(model, images, labels)
    with torch.no_grad():
        before = score(model.eval(), images, labels)
        for layer in layout(model)[:-1]:
            for channel in range(layer.num_channels):
                state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
                zeroed = loaded(case.spec, state)
                zero_(zeroed, {layer.name: (channel,)})
                after = score(zeroed.eval(), images, labels)
                drop = float(effects.accuracy[layer.name][channel])
                assert drop == pytest.approx(before[0] - after[0])
                rise = float(effects.loss[layer.name][channel])
                assert rise == pytest.approx(after[1] - before[1], abs=1e-5)


@pytest.mark.parametrize("name", ["lenet", "resnet20"])
def test_one_copy_at_a_time_finds_the_same(name):
    case = CASES[name]
    model = uneven(case.spec)
    images, labels = case.images()[:3], case.labels(model)[:3]
    whole, single = ablation(model, images, labels), ablation(model, images, labels, max_batch=1)
    for layer, effect in whole.accuracy.items():
        assert torch.equal(effect, single.accuracy[layer])
        torch.testing.assert_close(whole.loss[layer], single.loss[layer], atol=1e-5, rtol=0)


def test_a_dead_channel_has_no_effect():
    case = CASES["resnet20"]
    model = uneven(case.spec)
    images, labels = case.images(), case.labels(model)
    norm = model.body[3].norm1  # a ReLU is behind it
    with torch.no_grad():
        norm.weight[4], norm.bias[4] = 0.0, -1.0
    effects = ablation(model, images, labels)
    assert float(effects.accuracy["body.3.conv1"][4]) == 0.0
    assert float(effects.loss["body.3.conv1"][4]) == 0.0
    assert float(effects.loss["body.3.conv1"][5]) != 0.0


def test_the_channels_of_a_compact_model_have_the_effects_of_those_of_the_whole():
    case = CASES["resnet20"]
    model = uneven(case.spec)
    images, labels = case.images(), case.labels(model)
    pruned = {
        layer.name: tuple(range(0, layer.num_channels, 3))
        for layer in layout(model)[:-1]
        if layer.name not in ("body.4.conv1", "body.6.conv2")
    }
    zero_(model, pruned)
    smaller = loaded(
        *compact(replace(case.spec, pruned=tuple(to_text(pruned))), model.state_dict())
    )

    whole, small = ablation(model, images, labels), ablation(smaller, images, labels)

    for layer in layout(model)[:-1]:
        gone = pruned.get(layer.name, ())
        kept = [c for c in range(layer.num_channels) if c not in gone]
        assert torch.equal(small.accuracy[layer.name], whole.accuracy[layer.name][kept])
        torch.testing.assert_close(
            small.loss[layer.name], whole.loss[layer.name][kept], atol=1e-5, rtol=0
        )


class Odd(nn.Module):
    """Steps that none of the models has: a product, a mean, channels swapped, grouped filters."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, kernel_size=3)
        self.second = nn.Conv2d(4, 4, kernel_size=3, padding="same", groups=2)
        self.norm = nn.GroupNorm(2, 4)
        self.third = nn.Conv2d(4, 3, kernel_size=2, stride=2, dilation=2)
        self.act = nn.ReLU()
        self.fourth = nn.Linear(3, 6)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.act(self.first(images))
        gate = sigmoid(self.norm(self.second(maps)).flip(1))
        maps = self.act(self.third(maps * gate + maps))
        features = self.fourth(maps.mean((2, 3)))
        return self.act(features)[:, :4] + features[:, 2:]


def test_ablation_of_a_model_of_other_steps():
    torch.manual_seed(0)
    model = Classifier(Odd(), 4, 3)
    images, labels = torch.randn(9, 1, 12, 12), torch.arange(9) % 3
    effects = ablation(model, images, labels)
    assert list(effects.loss) == [f"body.{n}" for n in ("first", "second", "third", "fourth")]
    for name, found in effects.loss.items():
        expected = [ablation_oracle(model, images, labels, name, c) for c in range(len(found))]
        assert effects.accuracy[name].tolist() == pytest.approx([a for a, _ in expected])
        assert found.tolist() == pytest.approx([x for _, x in expected], abs=1e-5)


def test_close_decisions_are_the_models_own(monkeypatch):
    case = CASES["resnet20"]
    model = uneven(case.spec)
    images = case.images()
    with torch.no_grad():  # All classes alike up to rounding: whatever decides, it is not the sums.
        model.classifier.weight[1:] = model.classifier.weight[0] * (1 + 1e-7)
        model.classifier.bias.zero_()
        labels = model.eval()(images).argmax(dim=1)
    asked = []
    own = ablating._without

    def counting(*arguments):
        asked.append(len(arguments[-1]))
        return own(*arguments)

    monkeypatch.setattr(ablating, "_without", counting)
    name = "body.10.conv2"
    effects = ablation(model, images, labels)
    assert sum(asked) > 64 * len(images)
    expected = [ablation_oracle(model, images, labels, name, c)[0] for c in range(64)]
    assert effects.accuracy[name].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("training", [True, False])
def test_ablation_leaves_the_model_as_it_was_also_after_an_error(training):
    case = CASES["resnet18"]  # its ReLUs work in place
    model = uneven(case.spec).train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = case.images()[:1]

    ablation(model, images, torch.tensor([0]))
    with pytest.raises(IndexError):
        ablation(model, images, torch.tensor([5]))

    assert all(m.training is training and not m._forward_hooks for m in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_ablation_needs_an_image():
    case = CASES["convnet"]
    with pytest.raises(EffaceError, match="images must hold at least one"):
        ablation(uneven(case.spec), case.images()[:0], torch.zeros(0, dtype=torch.int64))


@pytest.mark.parametrize("size", [4, 8, 12])
def test_winograd_is_a_convolution(size):
    draws = seeded()
    maps, weight, bias = (
        torch.randn(shape, generator=draws, dtype=torch.float64)
        for shape in ((3, 5, size, size), (7, 5, 3, 3), (7,))
    )
    found = Winograd(weight, bias, size)(maps)
    torch.testing.assert_close(found, conv2d(maps, weight, bias, padding=1))
