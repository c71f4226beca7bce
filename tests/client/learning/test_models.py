"""Every model takes every image, starts from its generator alone, and has its paper's size."""

import pytest
import torch
from torch import nn

from client.errors import BadSetting
from client.learning.models import NAMES, ModelSpec, build, loaded, traced
from client.learning.spec import image_model
from client.learning.training import still
from client.torchvision_shim import import_torchvision
from tests.models import stem_of


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spec_of(name: str, **sizes: int) -> ModelSpec:
    return image_model(
        name, **{"num_classes": 7, "width": 8, "channels": 1, "image_size": 8, **sizes}
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("channels", "image_size"), [(1, 8), (3, 9), (1, 28), (3, 32)])
def test_forward_is_the_classifier_of_the_features(name, channels, image_size):
    model = build(spec_of(name, channels=channels, image_size=image_size), seeded())
    images = torch.randn(2, channels, image_size, image_size, generator=seeded())
    model.eval()

    with torch.no_grad():
        features, logits = model.features(images), model(images)

    assert isinstance(model.classifier, nn.Linear)
    assert features.shape == (2, model.classifier.in_features)
    assert logits.shape == (2, 7)
    torch.testing.assert_close(logits, model.classifier(features))


@pytest.mark.parametrize("name", NAMES)
def test_one_seed_gives_the_same_weights_and_leaves_global_randomness_alone(name):
    before = torch.random.get_rng_state()

    first, second, other = (build(spec_of(name), seeded(s)).state_dict() for s in (1, 1, 2))

    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])
    assert all(bool(torch.isfinite(tensor).all()) for tensor in first.values())
    assert all(tensor.device.type == "cpu" for tensor in first.values())


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_gradient(name):
    model = build(spec_of(name), seeded())
    model(torch.randn(4, 1, 8, 8, generator=seeded())).square().sum().backward()
    missing = [key for key, p in model.named_parameters() if p.grad is None]
    assert missing == []


@pytest.mark.parametrize("name", [name for name in NAMES if name != "resnet18"])
def test_one_small_image_is_a_batch_that_can_be_trained_on(name):
    # InstanceNorm and BatchNorm refuse a single value a channel: maps stay above 1x1 before a norm.
    logits = build(spec_of(name, depth=6), seeded())(torch.randn(1, 1, 8, 8, generator=seeded()))
    assert bool(torch.isfinite(logits).all())


@pytest.mark.parametrize(
    ("image_size", "depth", "num_features"),
    [
        (28, 3, 8 * 3 * 3),  # 28, 14, 7, 3
        (32, 3, 8 * 4 * 4),  # 32, 16, 8, 4
        (8, 3, 8 * 1 * 1),  # 8, 4, 2, 1
        (8, 2, 8 * 2 * 2),  # 8, 4, 2
        (8, 5, 8 * 1 * 1),  # 8, 4, 2, 2, 2, 1: only the last pool may reach 1x1
    ],
)
def test_convnet_pools_while_the_map_lasts(image_size, depth, num_features):
    model = build(spec_of("convnet", image_size=image_size, depth=depth), seeded())
    assert model.classifier.in_features == num_features


def test_convnet_depends_on_the_image_at_every_depth():
    images = torch.randn(2, 1, 8, 8, generator=seeded())
    for depth in range(1, 7):
        first, second = build(spec_of("convnet", depth=depth), seeded()).features(images)
        assert not torch.allclose(first, second)


def test_the_norm_of_convnet_is_an_instance_norm():
    norm = next(m for m in build(spec_of("convnet"), seeded()).modules() if type(m) is nn.GroupNorm)
    maps = torch.randn(3, 8, 5, 5, generator=seeded())
    twin = nn.InstanceNorm2d(8, affine=True)
    with torch.no_grad():
        for parameter in (norm.weight, twin.weight):
            parameter.copy_(torch.linspace(0.5, 2, 8))
        for parameter in (norm.bias, twin.bias):
            parameter.copy_(torch.linspace(-1, 1, 8))
    # float32 rounding of sums over 25 values
    torch.testing.assert_close(norm(maps), twin(maps), atol=1e-6, rtol=1e-5)


def test_the_papers_default_convnet():
    model = build(image_model("convnet", num_classes=10), seeded())
    # Convolutions 3*128*9 + 128, twice 128*128*9 + 128; norms 3 * 256; linear 2048*10 + 10.
    assert sum(p.numel() for p in model.parameters()) == 3584 + 2 * 147_584 + 768 + 20_490


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [  # He et al. 2016, table 6: 0.27, 0.46, 0.66 and 0.85 million
        ("resnet20", 269_722),
        ("resnet32", 464_154),
        ("resnet44", 658_586),
        ("resnet56", 853_018),
    ],
)
def test_cifar_resnets_have_the_papers_size(name, num_parameters):
    model = build(image_model(name, num_classes=10), seeded())
    assert sum(p.numel() for p in model.parameters()) == num_parameters


def test_resnet18_is_torchvisions():
    model = build(image_model("resnet18", num_classes=1000), seeded())
    assert sum(p.numel() for p in model.parameters()) == 11_689_512
    theirs = import_torchvision("models").resnet18(weights=None)
    theirs.fc = nn.Identity()
    assert theirs.state_dict().keys() == model.body.state_dict().keys()


@pytest.mark.parametrize(
    ("name", "num_convolutions"), [("vgg11", 8), ("vgg13", 10), ("vgg16", 13), ("vgg19", 16)]
)
def test_vggs_have_their_convolutions(name, num_convolutions):
    model = build(spec_of(name), seeded())
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == num_convolutions


def test_lenet_has_the_papers_flattened_400_for_28_and_32_pixels():
    for image_size in (28, 32):
        model = build(spec_of("lenet", image_size=image_size), seeded())
        linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
        assert [layer.in_features for layer in linear] == [400, 120, 84]


def test_the_start_follows_torchs_default_distribution():
    # Fan in 64 * 9: uniform in +-1/sqrt(576), which is what kaiming_uniform_(a=sqrt(5)) gives.
    model = build(spec_of("convnet", width=64), seeded())
    weight = [m for m in model.modules() if isinstance(m, nn.Conv2d)][1].weight.detach()
    bound = (64 * 9) ** -0.5
    assert float(weight.abs().max()) <= bound
    # Standard deviation of a uniform: bound / sqrt(3); 36,864 values, so within one per cent or so.
    assert float(weight.std()) == pytest.approx(bound / 3**0.5, rel=0.02)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "resnet19"}, "model must be one of convnet, lenet, resnet8, .*, got 'resnet19'"),
        ({"num_classes": 1}, r"num_classes must lie in \[2, 100000\], got 1"),
        ({"channels": 2}, "channels must be 1 or 3, got 2"),
        ({"image_size": 7}, r"image_size must lie in \[8, 2048\], got 7; resize the images first"),
        ({"width": 0}, r"width must lie in \[1, 4096\] .*, got width 0, depth 3"),
        ({"depth": 0}, r"width .* and depth in \[1, 8\], got width 8, depth 0"),
    ],
)
def test_a_bad_model_is_refused(changes, message):
    with pytest.raises(BadSetting, match=message):
        build(spec_of(changes.pop("name", "convnet"), **changes), seeded())


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_model_is_the_model_whose_state_it_was_given(name):
    images = torch.randn(4, 1, 8, 8, generator=seeded())
    original = build(spec_of(name), seeded())
    state = {key: tensor.clone() for key, tensor in original.state_dict().items()}

    model = loaded(spec_of(name), state)

    assert torch.equal(model(images), original(images))
    assert all(tensor is not None and tensor.requires_grad for tensor in model.parameters())
    assert model.state_dict()["classifier.bias"].data_ptr() == state["classifier.bias"].data_ptr()


def test_loaded_models_share_nothing_with_one_another():
    state = build(spec_of("resnet20"), seeded()).state_dict()
    copies = [{key: tensor.clone() for key, tensor in state.items()} for _ in range(2)]
    first, second = (loaded(spec_of("resnet20"), copy) for copy in copies)
    seen = []

    first.body[3].relu1.register_forward_hook(lambda *_: seen.append(1))
    first.eval()
    with torch.no_grad():
        first.body[3].conv1.weight.zero_()
    second(torch.randn(2, 1, 8, 8, generator=seeded()))

    assert seen == []
    assert second.training
    assert all(torch.equal(second.state_dict()[key], copies[1][key]) for key in ("body.0.weight",))
    assert bool(second.body[3].conv1.weight.any())


@pytest.mark.parametrize("change", ["name", "shape", "dtype"])
def test_arrays_that_do_not_fit_are_refused(change):
    state = dict(build(spec_of("convnet"), seeded()).state_dict())
    bias = state.pop("classifier.bias")
    state |= {
        "name": {"classifier.offset": bias},
        "shape": {"classifier.bias": bias[:3]},
        "dtype": {"classifier.bias": bias.double()},
    }[change]
    with pytest.raises(BadSetting, match="must"):
        loaded(spec_of("convnet"), state)


@pytest.mark.parametrize("name", NAMES)
def test_the_stem_is_the_first_convolution_and_its_norm(name):
    stem = {"lenet": ["0"], "resnet18": ["conv1", "bn1"]}.get(name, ["0", "1"])
    assert traced(spec_of(name)).stem == tuple(f"body.{module}" for module in stem)


def test_a_body_of_one_convolution_has_no_stem():
    assert traced(spec_of("convnet", depth=1)).stem == ()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_a_frozen_stem_changes_in_training(name):
    spec = spec_of(name, image_size=16)
    model = build(spec, seeded())
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    stem_modules = stem_of(spec, model)
    still(stem_modules)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(torch.randn(4, 1, 16, 16, generator=seeded())).square().mean().backward()
    optimiser.step()
    stem = {id(t) for module in stem_modules for t in module.state_dict(keep_vars=True).values()}
    for key, tensor in model.state_dict(keep_vars=True).items():
        assert torch.equal(tensor, before[key]) == (id(tensor) in stem), key
