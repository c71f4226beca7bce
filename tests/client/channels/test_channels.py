"""Channels can be cut out and put back, zeroed and removed; a compact model computes the same."""

from collections import Counter
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from client.channels.compact import Spread, shrink_
from client.channels.layout import Layer, checked, from_text, layout, prunable, to_text
from client.channels.masks import freeze, train_only, zero_
from client.channels.slices import from_row, scatter, take, to_row
from client.errors import BadSetting
from client.learning.models import NAMES, ModelSpec, build, compact, loaded
from client.learning.networks import Classifier
from client.learning.spec import image_model
from tests.models import changed

CONVNET = image_model("convnet", num_classes=5, channels=1, image_size=8, width=8, depth=2)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass
class Network:
    """A model with uneven norms and statistics, and about a third of every layer's channels."""

    spec: ModelSpec
    state: dict[str, Tensor]
    layers: tuple[Layer, ...]
    channels: dict[str, tuple[int, ...]]

    def model(self) -> Classifier:
        return loaded(self.spec, {name: tensor.clone() for name, tensor in self.state.items()})

    def masked(self) -> Classifier:
        model = self.model()
        zero_(model, self.channels)
        return model

    def compact(self) -> Classifier:
        return loaded(*compact(self.spec, self.state))

    def images(self) -> Tensor:
        return torch.randn(8, 1, 8, 8, generator=seeded(1))

    def labels(self) -> Tensor:
        return torch.arange(8) % 5


def network(name: str) -> Network:
    draws = seeded()
    spec = changed(CONVNET, net=name)
    model = build(spec, draws)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=draws)
            nn.init.normal_(module.bias, 0, 0.2, generator=draws)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2, generator=draws)
            module.running_var.uniform_(0.5, 1.5, generator=draws)
    layers = layout(model)
    channels = {
        layer.name: tuple(
            torch.randperm(layer.num_channels, generator=draws)[: layer.num_channels // 3].tolist()
        )
        for layer in layers[:-1]
    }
    channels = checked(channels, layers)
    spec = replace(spec, pruned=tuple(to_text(channels)))
    return Network(spec, model.state_dict(), layers, channels)


# Large, and between the shortest and the longest of their kind.
LEFT_OUT = ("vgg13", "vgg16")


@pytest.fixture(scope="module", params=[name for name in NAMES if name not in LEFT_OUT])
def every(request: pytest.FixtureRequest) -> Network:
    """Every model in turn, one in memory at a time. Not to be changed."""
    return network(request.param)


# The layout


def test_the_layout_of_a_convnet() -> None:
    first = ("body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias")
    second = ("body.4.weight", "body.4.bias", "body.5.weight", "body.5.bias")
    assert layout(build(CONVNET, seeded())) == (
        Layer("body.0", 8, True, first),
        Layer("body.4", 8, True, second),
        Layer("classifier", 5, False, ("classifier.weight", "classifier.bias")),
    )


def test_the_layout_has_the_running_statistics_but_not_the_number_of_batches() -> None:
    layers = layout(build(changed(CONVNET, net="resnet18"), seeded()))
    assert [layer.name.removeprefix("body.layer2.") for layer in layers[5:10]] == [
        "0.conv1",
        "0.conv2",
        "0.downsample.0",
        "1.conv1",
        "1.conv2",
    ]
    norm = "body.layer2.0.downsample.1"
    assert layers[7].tensors == (
        "body.layer2.0.downsample.0.weight",
        f"{norm}.weight",
        f"{norm}.bias",
        f"{norm}.running_mean",
        f"{norm}.running_var",
    )


def test_the_layout_has_everything_once(every: Network) -> None:
    names = Counter(name for layer in every.layers for name in layer.tensors)
    names.update(name for name in every.state if name.endswith("num_batches_tracked"))
    assert names == Counter(every.state.keys())
    for layer in every.layers:
        assert {len(every.state[name]) for name in layer.tensors} == {layer.num_channels}


def test_the_layout_is_in_the_order_of_the_forward_pass(every: Network) -> None:
    model = every.model()
    called: list[str] = []
    for layer in every.layers:
        module = model.get_submodule(layer.name)
        assert layer.convolution == isinstance(module, nn.Conv2d)
        module.register_forward_hook(lambda *_, name=layer.name: called.append(name))
    model(every.images())
    assert called == [layer.name for layer in every.layers]
    assert called[-1] == "classifier"


# Choosing


def test_channels_are_sorted_each_once_in_the_layouts_order() -> None:
    layers = layout(build(CONVNET, seeded()))
    found = checked({"classifier": (4,), "body.4": (), "body.0": (7, 1, 7)}, layers)
    assert list(found.items()) == [("body.0", (1, 7)), ("classifier", (4,))]


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ({"body.1": (0,)}, "layer must be one of body.0, body.4, classifier, got 'body.1'"),
        ({"body.4": (0, 8)}, r"channel of body.4 must lie in \[0, 8\), got 8"),
        ({"body.4": (-1,)}, r"channel of body.4 must lie in \[0, 8\), got -1"),
    ],
)
def test_channels_that_do_not_exist_are_refused(channels, message) -> None:
    model = build(CONVNET, seeded())
    layers, state = layout(model), model.state_dict()
    for use in (
        lambda: checked(channels, layers),
        lambda: prunable(channels, layers),
        lambda: take(state, layers, channels),
        lambda: scatter(state, {}, layers, channels),
        lambda: zero_(model, channels),
        lambda: shrink_(model, channels),
    ):
        with pytest.raises(BadSetting, match=message):
            use()


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        (
            {"classifier": (0,)},
            "pruned layers must come before classifier, whose channels are the classes, "
            "got 'classifier'",
        ),
        (
            {"body.0": (1,), "body.4": tuple(range(8))},
            "layer body.4 must keep at least one channel, got all 8 pruned; prune fewer",
        ),
    ],
)
def test_the_classifier_and_whole_layers_are_not_pruned(channels, message) -> None:
    model = build(CONVNET, seeded())
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    spec = replace(CONVNET, pruned=tuple(to_text(channels)))
    for use in (
        lambda: prunable(channels, layout(model)),
        lambda: shrink_(model, channels),
        lambda: compact(spec, state),
        lambda: build(spec, seeded()),
        lambda: build(replace(spec, compact=True), seeded()),
    ):
        with pytest.raises(BadSetting, match=message):
            use()
    assert all(torch.equal(model.state_dict()[name], state[name]) for name in state)


def test_the_text_form() -> None:
    channels = {"body.0": (0, 3, 7), "body.3.conv1": (12,)}
    assert to_text(channels) == ["body.0:0,3,7", "body.3.conv1:12"]
    assert to_text({"body.0": ()}) == []
    assert from_text([]) == {}


def test_the_text_form_comes_back(every: Network) -> None:
    assert list(from_text(to_text(every.channels)).items()) == list(every.channels.items())


@pytest.mark.parametrize(
    "line",
    [
        *("", "body.0", "body.0:", ":1", "body.0:1,", "body.0:,1", "body.0:-1", "body.0: 1"),
        *("a:b:1", "body.0:1.5", "body.0:x", "body.0:1\n", "body.0:٣", "body.0:" + "9" * 10),
    ],
)
def test_other_text_is_refused(line) -> None:
    with pytest.raises(BadSetting, match=r"channels must read like body.0:0,3,7, got '"):
        from_text(["body.4:0", line])


def test_text_with_a_layer_twice_is_refused() -> None:
    with pytest.raises(BadSetting, match=r"channels must name a layer once, got 'body.0' twice"):
        from_text(["body.0:1", "body.0:2"])


# Cutting out and putting back


def test_slices_of_a_convnet() -> None:
    model = build(CONVNET, seeded())
    state = model.state_dict()
    slices = take(state, layout(model), {"body.4": (6, 1), "classifier": (2,)})
    shapes = {name: tuple(tensor.shape) for name, tensor in slices.items()}
    assert shapes == {
        "body.4.weight": (2, 8, 3, 3),
        "body.4.bias": (2,),
        "body.5.weight": (2,),
        "body.5.bias": (2,),
        "classifier.weight": (1, 8 * 2 * 2),
        "classifier.bias": (1,),
    }
    assert torch.equal(slices["body.4.weight"], state["body.4.weight"][[1, 6]])
    before = state["body.4.bias"].clone()
    slices["body.4.bias"].zero_()  # copies: the model does not see it
    assert torch.equal(state["body.4.bias"], before)


def test_slices_put_back_give_the_same_state(every: Network) -> None:
    slices = take(every.state, every.layers, every.channels)
    back = scatter(every.state, slices, every.layers, every.channels)
    assert list(back) == list(every.state)
    assert all(torch.equal(back[name], every.state[name]) for name in back)
    assert {name for name in back if back[name] is not every.state[name]} == slices.keys()


def test_changed_slices_change_their_rows_alone(every: Network) -> None:
    before = {name: tensor.clone() for name, tensor in every.state.items()}
    slices = take(every.state, every.layers, every.channels)
    changed = {name: rows + 1 for name, rows in slices.items()}

    after = scatter(every.state, changed, every.layers, every.channels)

    for layer in every.layers:
        gone = every.channels.get(layer.name, ())
        rest = [c for c in range(layer.num_channels) if c not in gone]
        for name in layer.tensors:
            assert torch.equal(after[name][rest], before[name][rest])
            assert not gone or torch.equal(after[name][list(gone)], changed[name])
    assert all(torch.equal(every.state[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"body.5.bias": None}, "no more and no fewer, got a difference in body.5.bias"),
        ({"body.1.bias": torch.zeros(1)}, "no more and no fewer, got a difference in body.1.bias"),
        (
            {"body.5.bias": torch.zeros(3)},
            r"slice body.5.bias must be torch.float32 of shape \(2,\), "
            r"got torch.float32 of shape \(3,\)",
        ),
        (
            {"body.5.bias": torch.zeros(2).double()},
            r"slice body.5.bias must be torch.float32 of shape \(2,\), "
            r"got torch.float64 of shape \(2,\)",
        ),
    ],
)
def test_slices_that_do_not_fit_are_refused(change, message) -> None:
    model = build(CONVNET, seeded())
    channels = {"body.4": (1, 6)}
    slices = take(model.state_dict(), layout(model), channels) | change
    slices = {name: tensor for name, tensor in slices.items() if tensor is not None}
    with pytest.raises(BadSetting, match=message):
        scatter(model.state_dict(), slices, layout(model), channels)


def test_a_row_of_slices_is_cut_as_it_was_packed(every: Network) -> None:
    slices = take(every.state, every.layers, every.channels)
    row = to_row(slices)
    assert row.shape == (sum(tensor.numel() for tensor in slices.values()),)
    back = from_row(row, slices)
    assert list(back) == list(slices)
    assert all(torch.equal(back[name], slices[name]) for name in slices)
    with pytest.raises(BadSetting, match=f"slices must be a row of .* {len(row)} numbers, got an"):
        from_row(row[1:], slices)


# Zeroing


def behind(layer: Layer) -> str:
    """Return the path of the norm behind a layer, or of the layer if there is none."""
    return layer.tensors[-1].rpartition(".")[0]


def test_zeroed_channels_are_exactly_zero_behind_their_norm(every: Network) -> None:
    model = every.masked()
    seen: dict[str, Tensor] = {}
    for layer in every.layers:
        # Copies: torchvision's ReLUs overwrite their input.
        model.get_submodule(behind(layer)).register_forward_hook(
            lambda _module, _inputs, output, name=layer.name: seen.update({name: output.clone()})
        )
    for training in (False, True):
        model.train(training)
        with torch.no_grad():
            model(every.images())
        for layer in every.layers:
            maps, gone = seen[layer.name], every.channels.get(layer.name, ())
            assert not maps[:, list(gone)].any()
            kept = [c for c in range(layer.num_channels) if c not in gone]
            assert bool(maps[:, kept].any(dim=0).any())


def test_zeroing_sets_the_channels_rows_and_nothing_else(every: Network) -> None:
    state = every.masked().state_dict()
    ones = {
        name: torch.ones_like(rows) if name.endswith("running_var") else torch.zeros_like(rows)
        for name, rows in take(state, every.layers, every.channels).items()
    }
    expected = scatter(every.state, ones, every.layers, every.channels)
    assert all(torch.equal(state[name], expected[name]) for name in every.state)


def backward(model: nn.Module, known: Network) -> None:
    images = known.images().to(next(model.parameters()).dtype)
    cross_entropy(model(images), known.labels()).backward()


def moving(known: Network) -> set[str]:
    """Return the parameters in which a zeroed channel gets a gradient that is not exactly 0."""
    model = known.masked()
    backward(model, known)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    whole = known.state | gradients
    rows = take(whole, known.layers, known.channels)
    return {name for name in rows if name in gradients and bool(rows[name].any())}


@pytest.mark.parametrize("name", ["convnet", "lenet", "vgg11"])
def test_in_a_chain_a_zeroed_channel_gets_no_gradient(name) -> None:
    # A ReLU follows directly, and its derivative at 0 is 0: nothing comes back to the channel.
    assert moving(network(name)) == set()


@pytest.mark.parametrize("name", ["resnet20", "resnet18"])
def test_in_a_residual_stream_the_norms_bias_alone_gets_a_gradient(name) -> None:
    # Behind the norm comes the sum with the shortcut, positive where the ReLU lets the gradient
    # through. The bias takes all of it; the scale's is times the normalised map, 0, and the
    # convolution's times the scale, 0. The stem and conv1 have a ReLU directly behind their norm.
    known = network(name)
    writers = [n for n in known.channels if n.endswith((".conv2", ".downsample.0"))]
    norms = {layer.name: behind(layer) for layer in known.layers}
    assert moving(known) == {f"{norms[writer]}.bias" for writer in writers}


def test_zeroing_again_after_a_step_keeps_a_residual_network_zero() -> None:
    known = network("resnet20")
    model = known.masked()
    backward(model, known)
    torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01).step()

    drifted = take(model.state_dict(), known.layers, known.channels)
    assert bool(drifted["body.3.norm2.bias"].any())
    # Momentum 0.1 of the batch's variance, which is 0: 0.9 * 1 + 0.1 * 0.
    assert torch.equal(drifted["body.1.running_var"], torch.full((5,), 0.9))

    zero_(model, known.channels)
    again = take(model.state_dict(), known.layers, known.channels)
    assert torch.equal(again["body.1.running_var"], torch.ones(5))
    assert not any(bool(rows.any()) for name, rows in again.items() if "running_var" not in name)


# Compact models


@pytest.mark.parametrize(
    ("training", "dtype", "tolerance"),
    [
        (False, torch.float32, 1e-5),
        # The means of a batch magnify rounding: 6e-6 in single precision. More digits tell it
        # from a mistake.
        (True, torch.float64, 1e-10),
    ],
)
def test_a_compact_model_computes_what_the_masked_one_does(
    every: Network, training, dtype, tolerance
) -> None:
    images = every.images().to(dtype)
    with torch.no_grad():
        expected, logits = (
            model.to(dtype).train(training)(images) for model in (every.masked(), every.compact())
        )
    scale = float(expected.abs().max())
    torch.testing.assert_close(logits, expected, atol=tolerance * scale, rtol=0)


def test_a_compact_model_is_smaller_and_loads_like_any_other(every: Network) -> None:
    spec, state = compact(every.spec, every.state)
    assert spec == replace(every.spec, compact=True)
    full, small = (sum(t.numel() for t in s.values()) for s in (every.state, state))
    # Without a third of its channels a layer has 2/3 of its rows, and of its columns where only one
    # layer writes them: 4/9 in a chain, (4/9 + 2/3) / 2 = 5/9 in a residual network.
    assert small < 0.63 * full

    first, second = loaded(spec, state), build(spec, seeded())
    assert first.state_dict().keys() == second.state_dict().keys() == state.keys()
    second.load_state_dict(state)
    assert torch.equal(first.eval()(every.images()), second.eval()(every.images()))
    sizes = [layer.num_channels for layer in every.layers]
    pruned = [len(every.channels.get(layer.name, ())) for layer in every.layers]
    kept = [size - gone for size, gone in zip(sizes, pruned, strict=True)]
    assert [layer.num_channels for layer in layout(first)] == kept


def test_compacting_leaves_the_model_as_it_is(every: Network) -> None:
    before = {name: tensor.clone() for name, tensor in every.state.items()}
    _, state = compact(every.spec, every.state)
    for tensor in state.values():
        tensor.zero_()
    assert all(torch.equal(every.state[name], before[name]) for name in before)


def test_a_compact_convnet_by_hand() -> None:
    state = build(CONVNET, seeded()).state_dict()
    spec, small = compact(replace(CONVNET, pruned=("body.0:1,2,5", "body.4:0,7")), state)
    model = loaded(spec, small)
    # Convolutions 5*1*9 + 5 and 6*5*9 + 6; norms 2*5 and 2*6; 2x2 pixels: 6*4*5 + 5.
    assert sum(p.numel() for p in model.parameters()) == 50 + 276 + 22 + 125
    assert torch.equal(
        small["body.4.weight"],
        state["body.4.weight"][[1, 2, 3, 4, 5, 6]][:, [0, 3, 4, 6, 7]],
    )
    # Pixel p of channel c is column 4 c + p: all of channels 0 and 7 are gone.
    assert torch.equal(small["classifier.weight"], state["classifier.weight"][:, 4:28])
    assert str(model.body[4]) == "Conv2d(5, 6, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))"
    assert str(model.body[5]).startswith("GroupNorm(6, 6, ")
    assert str(model.classifier) == "Linear(in_features=24, out_features=5, bias=True)"


def test_a_residual_stream_keeps_its_width() -> None:
    spec = replace(changed(CONVNET, net="resnet20"), pruned=("body.3.conv1:0", "body.3.conv2:1,15"))
    block = build(replace(spec, compact=True), seeded()).body[3]
    assert tuple(block.conv1.weight.shape) == (15, 16, 3, 3)
    assert tuple(block.conv2.weight.shape) == (14, 15, 3, 3)
    assert isinstance(block.norm1, nn.BatchNorm2d)
    norm, spread = block.norm2
    assert (norm.num_features, spread.num_channels) == (14, 16)
    assert spread.positions.tolist() == [0, *range(2, 15)]


@pytest.mark.parametrize("name", ["convnet", "lenet", "resnet20", "vgg11", "resnet18"])
def test_a_training_step_of_a_compact_model_is_that_of_the_masked_one(name) -> None:
    # What the pruned channels feed gets 0 either way, so the kept ones get the same gradient; in
    # double precision, as rounding is magnified by every batch norm.
    known = network(name)
    masked, small = known.masked().double(), known.compact().double()
    for model in (masked, small):
        backward(model, known)
        torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.01).step()
    zero_(masked, known.channels)
    with torch.no_grad():
        for training in (False, True):
            expected, logits = (
                model.train(training)(known.images().double()) for model in (masked, small)
            )
            # Running statistics included. Logits of about 1.
            torch.testing.assert_close(logits, expected, atol=1e-9, rtol=1e-9)


def test_a_training_step_of_a_compact_convnet_in_single_precision() -> None:
    known = network("convnet")
    before = known.compact()(known.images()).detach()
    after = []
    for model in (known.masked(), known.compact()):
        backward(model, known)
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        after.append(model(known.images()).detach())
    torch.testing.assert_close(after[1], after[0], atol=1e-5, rtol=0)
    assert float((after[1] - before).abs().max()) > 0.01


def test_compact_models_share_nothing_with_one_another() -> None:
    known = network("resnet20")
    first, second = known.compact(), known.compact()
    first.body[1][1].positions = torch.zeros(1)
    first.body[1][0].weight.data.zero_()
    assert second.body[1][1].positions.tolist() == list(second.body[1][1].kept)
    assert bool(second.body[1][0].weight.any())


def test_one_prunes_in_steps_but_compacts_once() -> None:
    known = network("convnet")
    spec, state = compact(known.spec, known.state)
    with pytest.raises(
        BadSetting, match="model must be at full size, got a compact one: ModelSpec"
    ):
        compact(spec, state)


def test_a_compact_state_does_not_fit_another_choice_of_channels() -> None:
    known = network("convnet")
    spec, state = compact(known.spec, known.state)
    with pytest.raises(BadSetting, match="arrays must fit the model"):
        loaded(replace(spec, pruned=("body.0:1",)), state)
    with pytest.raises(BadSetting, match="arrays must fit the model"):
        compact(known.spec, state)


def test_nothing_pruned_compacts_to_the_same_model() -> None:
    known = network("convnet")
    spec, state = compact(known.spec.base, known.state)
    assert torch.equal(
        loaded(spec, state)(known.images()), loaded(known.spec, known.state)(known.images())
    )


def test_a_pruned_model_goes_by_its_own_name() -> None:
    # The name is kept with synthetic images, which serve the pruned model as well.
    spec = replace(CONVNET, pruned=("body.0:1",), compact=True)
    assert spec.base == CONVNET
    assert str(spec) == str(CONVNET)
    assert str(CONVNET) == (
        "ModelSpec(name='convnet', num_classes=5, channels=1, image_size=8, width=8, depth=2)"
    )


def test_spread_writes_channels_among_zeros() -> None:
    maps = torch.arange(4.0).reshape(1, 2, 1, 2)  # channels (0, 1) and (2, 3)
    assert Spread(4, [1, 3])(maps).flatten().tolist() == [0, 0, 0, 1, 0, 0, 2, 3]


def test_spread_can_be_differentiated_twice() -> None:
    # Gradient matching differentiates a gradient.
    maps = torch.randn(2, 2, 1, 2, dtype=torch.float64, generator=seeded(), requires_grad=True)
    spread = Spread(4, [1, 3])
    assert torch.autograd.gradgradcheck(lambda inputs: spread(inputs) ** 3, maps)


# ---- training some channels, or all but some ----------------------------------------------------


def trained(model, images, labels, *, by_grad: bool) -> None:
    """Take three steps of SGD with momentum."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    weights = [p for p in model.parameters() if p.requires_grad]
    for _ in range(3):
        optimiser.zero_grad()
        loss = cross_entropy(model(images), labels)
        if by_grad:
            for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                weight.grad = gradient
        else:
            loss.backward()
        optimiser.step()


@pytest.mark.parametrize("by_grad", [True, False])
@pytest.mark.parametrize("name", ["convnet", "lenet", "resnet20", "vgg11"])
def test_frozen_channels_stay_zero_and_all_others_move(name, by_grad) -> None:
    spec = image_model(name, num_classes=3, channels=1, image_size=16, width=4, depth=2)
    model = build(spec, torch.Generator().manual_seed(0))
    layers = layout(model)
    channels = {layer.name: (0, 2) for layer in layers[:-1]}
    zero_(model, channels)
    freeze(model, channels)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images = torch.randn(6, 1, 16, 16, generator=torch.Generator().manual_seed(1))

    trained(model, images, torch.arange(6) % 3, by_grad=by_grad)

    rows = take(model.state_dict(), layers, channels)
    learned = {key for key, _ in model.named_parameters()}
    assert not any(bool(tensor.any()) for key, tensor in rows.items() if key in learned)
    assert not torch.equal(model.state_dict()["classifier.weight"], before["classifier.weight"])


@pytest.mark.parametrize("by_grad", [True, False])
@pytest.mark.parametrize("name", ["convnet", "lenet", "resnet20", "vgg11"])
def test_only_the_chosen_channels_are_trained(name, by_grad) -> None:
    spec = image_model(name, num_classes=3, channels=1, image_size=16, width=4, depth=2)
    model = build(spec, torch.Generator().manual_seed(0))
    layers = layout(model)
    channels = {layers[0].name: (1, 3), "classifier": (2,)}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    train_only(model, layers, channels)
    images = torch.randn(6, 1, 16, 16, generator=torch.Generator().manual_seed(1))

    trained(model, images, torch.arange(6) % 3, by_grad=by_grad)

    after = model.state_dict()
    kept = scatter(after, take(before, layers, channels), layers, channels)
    learned = {key for key, _ in model.named_parameters()}
    assert all(torch.equal(kept[key], before[key]) for key in learned)
    for key in (f"{layers[0].name}.weight", "classifier.weight"):
        assert not torch.equal(after[key], before[key])
