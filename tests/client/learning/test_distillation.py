"""Gradient matching against slow oracles: one backward pass a class, one example at a time."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from client.data.datasets import Data, Examples
from client.data.site import Part, Site
from client.errors import BadSetting
from client.learning.attention import ByFormula
from client.learning.distillation import (
    Matcher,
    check_distillable,
    condense,
    distance,
    due,
    initialise,
    real_gradients,
    synthetic_gradients,
    weight_gradient,
)
from client.learning.models import build
from client.learning.spec import image_model
from client.learning.training import local_sgd
from client.store import SyntheticSet
from tests.own_networks import batch, network

NAMES = ["convnet", "lenet", "resnet20"]


def make(name: str, size: int = 16) -> nn.Module:
    """Return a small model in float64, so that only a real difference is above 1e-9."""
    spec = image_model(name, num_classes=4, channels=3, image_size=size, width=6, depth=2)
    return build(spec, torch.Generator().manual_seed(1)).double()


def make_batch(num_images: int = 7, size: int = 16) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(2)
    images = torch.randn(num_images, 3, size, size, generator=draws, dtype=torch.float64)
    return images, torch.tensor([0, 2, 2, 3, 0, 2, 0])[:num_images]  # nobody has class 1


def weights_in_order(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Return the weights of at least 2 dimensions in the order of the forward pass."""
    order: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda layer, *_: order.append(layer.weight))
        for layer in model.modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return order


def oracle(
    model: nn.Module, images: Tensor, labels: Tensor, *, create_graph: bool = False
) -> dict[int, list[Tensor]]:
    """Return each class's gradient by a backward pass of its own."""
    weights = weights_in_order(model, images.detach())
    found = {}
    for label in labels.unique().tolist():
        rows = labels == label
        loss = cross_entropy(model(images[rows]), labels[rows])
        found[label] = list(torch.autograd.grad(loss, weights, create_graph=create_graph))
    return found


def assert_same(one: dict[int, list[Tensor]], other: dict[int, list[Tensor]]) -> None:
    assert list(one) == list(other)
    for label in one:
        assert len(one[label]) == len(other[label])
        for mine, theirs in zip(one[label], other[label], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_class_wise_gradients_equal_one_backward_pass_a_class(name: str) -> None:
    # Batch norm only with running statistics (eval): with those of the batch, the images of one
    # class move the others' outputs, and "the gradient of a class in this batch" is no longer the
    # gradient of a batch of that class alone. All other layers treat each image by itself.
    model = make(name).eval()
    images, labels = make_batch()

    _, _, by_class = real_gradients(model, images, labels)

    assert_same(by_class, oracle(model, images, labels))


@pytest.mark.parametrize("name", NAMES)
def test_the_batch_gradient_equals_an_ordinary_backward_pass(name: str) -> None:
    # In training mode, batch norm included: sums over classes do not care whose output moved.
    images, labels = make_batch()
    ordinary, model = make(name), make(name)
    expected_loss = cross_entropy(ordinary(images), labels)
    expected = torch.autograd.grad(expected_loss, list(ordinary.parameters()))

    found, loss, _ = real_gradients(model, images, labels)

    torch.testing.assert_close(loss, expected_loss)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_built_in_networks_get_the_same_bits_as_from_their_layers_alone() -> None:
    # The rule as it stood before other networks were distilled, written down again.
    model, again = (make("resnet8", 16).float() for _ in range(2))
    images, labels = (t.float() if t.is_floating_point() else t for t in make_batch())
    layers: list[nn.Conv2d | nn.Linear] = []
    seen: list[tuple[Tensor, Tensor]] = []
    for module in again.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(
                lambda m, i, o: (layers.append(m), seen.append((i[0], o)))[0]  # type: ignore[func-returns-value]
            )
    expected_loss = cross_entropy(again(images), labels)
    rest = [p for p in again.parameters() if all(p is not x.weight for x in layers)]
    flows = torch.autograd.grad(expected_loss, [*(o for _, o in seen), *rest])
    expected: dict[int, list[Tensor]] = {}
    whole: list[Tensor] = []
    for label in (0, 2, 3):
        rows = (labels == label).nonzero().flatten()
        own = [
            weight_gradient(layer, i.detach()[rows], flow[rows])
            for layer, (i, _), flow in zip(layers, seen, flows[: len(seen)], strict=True)
        ]
        whole = [a + b for a, b in zip(whole, own, strict=True)] if whole else own
        expected[label] = [g * (len(labels) / len(rows)) for g in own]

    batch_gradient, loss, by_class = real_gradients(model, images, labels)

    assert torch.equal(loss, expected_loss)
    found = {id(p): g for p, g in zip(model.parameters(), batch_gradient, strict=True)}
    twins = {id(b): a for a, b in zip(model.parameters(), again.parameters(), strict=True)}
    for layer, gradient in zip(layers, whole, strict=True):
        assert torch.equal(found[id(twins[id(layer.weight)])], gradient)
    for parameter, gradient in zip(rest, flows[len(seen) :], strict=True):
        assert torch.equal(found[id(twins[id(parameter)])], gradient)
    for label, gradients in expected.items():
        assert all(torch.equal(*pair) for pair in zip(by_class[label], gradients, strict=True))


def test_a_batch_of_one_image_has_its_own_gradient() -> None:
    model = make("convnet")
    images, labels = make_batch(1)
    assert_same(real_gradients(model, images, labels)[2], oracle(model, images, labels))


@pytest.mark.parametrize("name", NAMES)
def test_synthetic_gradients_and_the_way_to_the_images_equal_the_oracles(name: str) -> None:
    # In training mode: matching uses batch norm's running statistics by itself.
    model = make(name)
    slow = make(name).eval()
    images, labels = make_batch()
    real = oracle(slow, torch.flip(images, [3]) + 0.5, labels)

    mine = images.clone().requires_grad_()
    found = synthetic_gradients(model, mine, labels)
    total = torch.stack([distance(found[label], real[label]) for label in found]).sum()
    (gradient,) = torch.autograd.grad(total, mine)

    theirs = images.clone().requires_grad_()
    expected = oracle(slow, theirs, labels, create_graph=True)
    expected_total = torch.stack([distance(expected[c], real[c]) for c in expected]).sum()
    (expected_gradient,) = torch.autograd.grad(expected_total, theirs)

    assert_same(found, expected)
    assert float(expected_gradient.abs().max()) > 0
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-7, atol=1e-10)


def test_matching_leaves_running_statistics_and_training_mode_alone() -> None:
    model = make("resnet20")
    before = {name: value.clone() for name, value in model.named_buffers()}
    images, labels = make_batch()
    synthetic_gradients(model, images, labels)
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert all(module.training for module in model.modules())


def test_the_distance_of_two_rows_by_hand() -> None:
    g = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    h = torch.tensor([[4.0, 3.0], [0.0, -1.0]])
    # Row 1: cosine 24 / (5 * 5) = 0.96. Row 2: cosine -1. (1 - 0.96) + (1 + 1) = 2.04.
    assert float(distance([g], [h])) == pytest.approx(2.04, abs=1e-5)
    # Each layer counts its own rows; a row without gradient has cosine 0 / 1e-6.
    assert float(distance([g, g], [h, torch.zeros(2, 2)])) == pytest.approx(4.04, abs=1e-5)
    # A filter (1, 1, 1, 2) is one row.
    assert float(distance([g[:1].reshape(1, 1, 1, 2)], [h[:1].reshape(1, 1, 1, 2)])) == (
        pytest.approx(0.04, abs=1e-5)
    )


def test_two_image_steps_are_sgd_with_momentum_on_the_images_of_the_classes_present() -> None:
    model = make("convnet")
    images, labels = make_batch()
    real = oracle(model, images + 1.0, labels)
    del real[3]  # the real batch shows classes 0 and 2 only
    rows = labels != 3
    lr, momentum = 0.1, 0.5

    # v1 = g1, x1 = x0 - lr v1; v2 = momentum v1 + g2, x2 = x1 - lr v2.
    def gradient(of: Tensor) -> Tensor:
        at = of.clone().requires_grad_()
        own = oracle(model, at, labels[rows], create_graph=True)
        total = torch.stack([distance(own[c], real[c]) for c in own]).sum()
        return torch.autograd.grad(total, at)[0]

    x0 = images[rows]
    v1 = gradient(x0)
    x1 = x0 - lr * v1
    x2 = x1 - lr * (momentum * v1 + gradient(x1))

    matcher = Matcher(SyntheticSet(images.clone(), labels), lr=lr, momentum=momentum, num_steps=2)
    matcher.match(model, real)

    torch.testing.assert_close(matcher.synthetic.images[rows], x2, rtol=1e-7, atol=1e-10)
    assert torch.equal(matcher.synthetic.images[~rows], images[~rows])


def test_matching_lowers_the_distance_and_leaves_the_model_alone() -> None:
    model = make("convnet")
    before = [p.clone() for p in model.parameters()]
    images, labels = make_batch()
    real = oracle(model, images.roll(1, dims=3), labels)
    matcher = Matcher(SyntheticSet(images.clone(), labels), lr=0.1, momentum=0.5, num_steps=1)
    distances = [matcher.match(model, real) for _ in range(6)]
    assert distances[-1] < distances[0]
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_a_match_moves_so_many_images_of_a_class_in_turn() -> None:
    model = make("convnet")
    images, labels = make_batch()
    real = oracle(model, images + 1.0, labels)
    del real[3]  # the real batch shows classes 0 and 2 only, of which there are three images each

    def matcher(turn: int = 0) -> Matcher:
        made = SyntheticSet(images.clone(), labels)
        return Matcher(made, lr=0.1, momentum=0.5, num_steps=2, batch=2, draws=drawn, turn=turn)

    found, moved = matcher(), []
    for _ in range(8):
        before = found.synthetic.images.clone()
        found.match(model, real)
        moved.append((found.synthetic.images != before).flatten(1).any(1))
    # Of three images two have the first turn and one the second, and then anew in another order.
    for now, changed in enumerate(moved):
        many = 1 if now % 2 else 2
        assert [int(changed[labels == label].sum()) for label in (0, 2, 3)] == [many, many, 0]
    for now in range(0, 8, 2):
        assert torch.equal(moved[now] | moved[now + 1], labels != 3)
    assert len({tuple(changed.tolist()) for changed in moved[::2]}) > 1
    # A later round goes on where the earlier ones ended.
    later = matcher(turn=3)
    later.match(model, real)
    assert torch.equal((later.synthetic.images != images).flatten(1).any(1), moved[3])
    # Three passes an image and step.
    assert found.cost(torch.tensor([0, 2, 2])) == 3 * 2 * (2 + 2)
    found.batch = 0
    assert found.cost(torch.tensor([0, 2, 2])) == 3 * 2 * (3 + 3)


def drawn(label: int, times: int) -> torch.Generator:
    return torch.Generator().manual_seed(10 * times + label)


def test_turns_need_an_order_that_is_drawn() -> None:
    images, labels = make_batch()
    with pytest.raises(ValueError, match="draws must be given with a batch, got None"):
        Matcher(SyntheticSet(images, labels), lr=0.1, momentum=0.5, num_steps=1, batch=2)


def test_a_limit_that_no_class_reaches_changes_nothing() -> None:
    model = make("convnet")
    images, labels = make_batch()
    real = oracle(model, images + 1.0, labels)
    ends = []
    for limit in (0, len(labels)):
        made = SyntheticSet(images.clone(), labels)
        matcher = Matcher(made, lr=0.1, momentum=0.5, num_steps=2, batch=limit, draws=drawn)
        matcher.match(model, real)
        ends.append(made.images)
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-7, atol=1e-10)


def test_classes_without_synthetic_images_are_passed_over() -> None:
    model = make("convnet")
    images, labels = make_batch()
    nothing = SyntheticSet(images[:0].clone(), labels[:0])
    matcher = Matcher(nothing, lr=0.1, momentum=0.5, num_steps=1)
    assert matcher.match(model, oracle(model, images, labels)) == 0.0
    assert matcher.cost(labels) == 0.0


def test_matching_is_due_at_every_such_step() -> None:
    steps = [s for s in range(10) if due(s, 4, 1.0, spent=0.0, planned=100.0, cost=1.0)]
    assert steps == [0, 4, 8]


def test_matching_stops_at_its_share_of_the_work() -> None:
    # 100 images to train on, 10 passes a match, share 0.2: s + 10 <= 0.2 (100 + s + 10) while
    # s <= 15. Two matches fit (20 / 120 = 1/6), a third would make it 30 / 130 = 0.23.
    spent, matched = 0.0, []
    for step in range(8):
        if due(step, 1, 0.2, spent, planned=100.0, cost=10.0):
            spent += 10.0
            matched.append(step)
    assert matched == [0, 1]
    assert not due(0, 1, 0.0, 0.0, planned=100.0, cost=10.0)


# ---- networks of users --------------------------------------------------------------------------

# Which follow from what their layers saw and gave; the others take one backward pass a class.
LAYERS_ALONE = {
    "mlp": True,
    "patches": False,  # attention's own weights, and a place for the answer
    "attention": True,
    "series": False,  # Conv1d
    "dense": True,
    "adapted": False,  # the adapters' matrices
    "twice": False,
    "besides": False,
    "recurrent": False,
    "places-first": False,
    "normed": False,
    "in-place": False,  # what a layer gave is overwritten
}


def slowly(
    model: nn.Module, inputs: Tensor, labels: Tensor, *, create_graph: bool = False
) -> dict[int, dict[str, Tensor]]:
    """Return each class's gradient by name, by passes of its own for it and for no other."""
    weights = {n: p for n, p in model.named_parameters() if p.requires_grad and p.dim() > 1}
    found = {}
    for label in labels.unique().tolist():
        rows = labels == label
        loss = cross_entropy(model(inputs[rows]), labels[rows])
        own = torch.autograd.grad(loss, list(weights.values()), create_graph=create_graph)
        found[label] = dict(zip(weights, own, strict=True))
    return found


def assert_equal_sets(found: list[Tensor], expected: dict[str, Tensor]) -> None:
    """The order is the network's own: tensors are told apart by their shape and values."""
    assert len(found) == len(expected)
    left = list(expected.values())
    for mine in found:
        fits = [x for x in left if x.shape == mine.shape and torch.allclose(x, mine, atol=1e-9)]
        assert fits
        left = [x for x in left if x is not fits[0]]


@pytest.mark.parametrize("name", LAYERS_ALONE)
def test_gradients_of_any_network_equal_one_pass_a_class(name: str) -> None:
    model, (inputs, labels) = network(name).eval(), batch(name)
    expected = slowly(model, inputs, labels)
    trained = [p for p in model.parameters() if p.requires_grad]
    whole = torch.autograd.grad(cross_entropy(model(inputs), labels), trained)

    found, loss, by_class = real_gradients(model, inputs, labels)

    torch.testing.assert_close(loss, cross_entropy(model(inputs), labels))
    for mine, theirs in zip(found, whole, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
    assert list(by_class) == list(expected) == [0, 1, 2]
    for label in by_class:
        assert_equal_sets(by_class[label], expected[label])


@pytest.mark.parametrize("name", LAYERS_ALONE)
def test_the_way_to_the_inputs_of_any_network_equals_the_oracles(name: str) -> None:
    model, (inputs, labels) = network(name).train(), batch(name)
    real = real_gradients(model.eval(), batch(name, seed=5)[0], labels)[2]
    by_name = slowly(model, batch(name, seed=5)[0], labels)

    mine = inputs.clone().requires_grad_()
    found = synthetic_gradients(model.train(), mine, labels)
    total = torch.stack([distance(found[label], real[label]) for label in found]).sum()
    (gradient,) = torch.autograd.grad(total, mine)

    theirs = inputs.clone().requires_grad_()
    with ByFormula():
        expected = slowly(model.eval(), theirs, labels, create_graph=True)
    pairs = [distance([*expected[c].values()], [*by_name[c].values()]) for c in expected]
    expected_total = torch.stack(pairs).sum()
    (expected_gradient,) = torch.autograd.grad(expected_total, theirs)

    torch.testing.assert_close(total, expected_total, rtol=1e-9, atol=1e-9)
    assert float(expected_gradient.abs().max()) > 0
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("name", "alone"), LAYERS_ALONE.items())
def test_the_way_is_chosen_by_the_network(
    name: str, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    plain = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: passes.append(1) or plain(*a, **k))
    real_gradients(network(name), *batch(name))
    assert len(passes) == (1 if alone else 3)


@pytest.mark.parametrize("name", ["mlp", "attention", "dense"])
def test_both_ways_give_the_same_where_both_apply(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, (inputs, labels) = network(name).eval(), batch(name)
    synthetic = batch(name, seed=5)[0].requires_grad_()
    fast = real_gradients(model, inputs, labels), synthetic_gradients(model, synthetic, labels)
    monkeypatch.setattr("client.learning.distillation._follows", lambda *_: False)
    slow = real_gradients(model, inputs, labels), synthetic_gradients(model, synthetic, labels)
    assert_same(fast[0][2], slow[0][2])  # in the same order, too
    assert_same(fast[1], slow[1])
    for mine, theirs in zip(fast[0][0], slow[0][0], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("count", [6, 7])
def test_as_many_places_as_examples_do_not_pass_for_them(count: int) -> None:
    # 6 places of a series: with 6 examples, rows of (places, examples, features) look like theirs.
    for name in ("places-first", "attention"):
        model, (inputs, labels) = network(name), batch(name, count)
        expected = slowly(model, inputs, labels)
        by_class = real_gradients(model, inputs, labels)[2]
        for label in by_class:
            assert_equal_sets(by_class[label], expected[label])


def test_frozen_layers_take_no_part() -> None:
    model, (rows, labels) = network("mlp"), batch("mlp")
    model[0].requires_grad_(False)
    found, _, by_class = real_gradients(model, rows, labels)
    assert [g.shape for g in found] == [p.shape for p in model.parameters() if p.requires_grad]
    assert [g.shape for g in by_class[0]] == [(6, 8), (3, 6)]
    own = synthetic_gradients(model, rows.clone().requires_grad_(), labels)
    assert [g.shape for g in own[0]] == [(6, 8), (3, 6)]
    assert_same(own, by_class)


@pytest.mark.parametrize("name", ["mlp", "adapted", "series"])
def test_training_by_these_gradients_is_ordinary_training(name: str) -> None:
    ordinary, matched = network(name), network(name)
    for model in (ordinary, matched):
        if name == "mlp":
            model[0].requires_grad_(False)
    inputs, labels = batch(name)

    def pick(rows: Tensor) -> tuple[Tensor, Tensor]:
        return inputs[rows], labels[rows]

    local_sgd(ordinary, pick, iter([torch.arange(7)] * 3), lr=0.1)
    local_sgd(
        matched,
        pick,
        iter([torch.arange(7)] * 3),
        lr=0.1,
        gradients=lambda _, x, y: real_gradients(matched, x, y)[:2],
    )
    for mine, theirs in zip(matched.parameters(), ordinary.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_rows_of_a_table_are_matched() -> None:
    model, (rows, labels) = network("adapted"), batch("adapted")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    real = real_gradients(model.eval(), batch("adapted", seed=5)[0], labels)[2]
    matcher = Matcher(SyntheticSet(rows.clone(), labels), lr=0.05, momentum=0.0, num_steps=1)
    distances = [matcher.match(model.train(), real) for _ in range(10)]
    assert distances[-1] < distances[0]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_token_ids_cannot_be_distilled() -> None:
    model, (tokens, labels) = network("reports"), batch("reports")
    told = r"inputs must be floating-point numbers to be distilled, got torch.int64"
    with pytest.raises(BadSetting, match=told):
        real_gradients(model, tokens, labels)
    with pytest.raises(BadSetting, match=told):
        synthetic_gradients(model, tokens, labels)
    with pytest.raises(BadSetting, match=told):
        Matcher(SyntheticSet(tokens, labels), lr=0.1, momentum=0.5, num_steps=1)


def test_a_network_that_trains_biases_alone_cannot_be_distilled() -> None:
    model, (rows, labels) = network("mlp"), batch("mlp")
    for layer in (model[0], model[2], model[4]):
        layer.weight.requires_grad_(False)
    with pytest.raises(BadSetting, match="must train a tensor of at least 2 dimensions"):
        real_gradients(model, rows, labels)


def test_what_has_no_second_derivative_is_refused() -> None:
    class Fused(nn.Linear):
        def forward(self, rows: Tensor) -> Tensor:
            found = super().forward(rows)[:, None, None]
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*[found] * 3)[0][
                :, 0, 0
            ]

    model, labels = Fused(2, 3), torch.tensor([0, 1, 2])
    rows = torch.randn(3, 2, generator=seeded())
    real = real_gradients(model, rows, labels)[2]
    matcher = Matcher(SyntheticSet(rows, labels), lr=0.1, momentum=0.0, num_steps=1)
    told = "operations with second derivatives, got one without"
    with pytest.raises(BadSetting, match=told):
        matcher.match(model, real)
    with pytest.raises(BadSetting, match=told):
        check_distillable(model, rows)


@pytest.mark.parametrize("name", LAYERS_ALONE)
def test_a_trial_before_any_work_changes_nothing(name: str) -> None:
    model, (inputs, _) = network(name), batch(name, 2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    kept = inputs.clone()
    check_distillable(model, inputs)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert torch.equal(inputs, kept)
    with pytest.raises(BadSetting, match="must be floating-point numbers"):
        check_distillable(network("reports"), batch("reports")[0])


# ---- sets ---------------------------------------------------------------------------------------


def make_site() -> Site:
    """Return a site with 5, 3 and 1 images of classes 0, 1 and 3, each of its own grey."""
    labels = torch.tensor([0, 1, 0, 3, 0, 1, 0, 1, 0])
    images = (torch.arange(9, dtype=torch.uint8) * 20)[:, None, None, None].expand(9, 1, 8, 8)
    noise = torch.randint(0, 20, (9, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    split = Examples(images + noise.to(torch.uint8), labels, None)
    data = Data(split, split, name="greys", num_classes=4, mean=(0.5,), std=(0.25,))
    task = image_model("convnet", 4, channels=1, image_size=8).task
    nothing = torch.empty(0, dtype=torch.int64)
    return Site("a", data, Part(split, torch.arange(9)), Part(split, nothing), task)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


EVERYTHING = torch.ones(9, dtype=torch.bool)


@pytest.mark.parametrize("scale", [1, 2, 4, 100])
def test_a_class_gets_its_count_divided_by_the_scale_rounded_up(scale: int) -> None:
    found = initialise(make_site(), EVERYTHING, scale, seeded())
    counts = {0: 5, 1: 3, 3: 1}
    expected = {c: math.ceil(n / scale) for c, n in counts.items()}
    classes, numbers = found.labels.unique(return_counts=True)
    assert dict(zip(classes.tolist(), numbers.tolist(), strict=True)) == expected


def test_the_first_synthetic_images_are_different_real_ones_of_their_class() -> None:
    site = make_site()
    found = initialise(site, EVERYTHING, 2, seeded())
    real = site.inputs(site.train)
    matches = (found.images[:, None] == real[None]).flatten(2).all(dim=2)  # (n, N)
    assert matches.sum(dim=1).tolist() == [1] * len(found)
    rows = matches.double().argmax(dim=1)
    assert len(rows.unique()) == len(rows)
    assert torch.equal(site.train.labels[rows], found.labels)


def test_a_real_start_is_what_the_generator_picks_bit_for_bit() -> None:
    site, draws = make_site(), seeded(5)
    expected = []
    for label, count in ((0, 3), (1, 2), (3, 1)):  # half of 5, 3 and 1, rounded up
        rows = (site.train.labels == label).nonzero().flatten()
        expected.append(rows[torch.randperm(len(rows), generator=draws)[:count]])
    found = initialise(site, EVERYTHING, 2, seeded(5))
    assert torch.equal(found.images, site.inputs(site.train, torch.cat(expected)))
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 3]
    said = initialise(site, EVERYTHING, 2, seeded(5), start="real")
    assert torch.equal(said.images, found.images)


def test_noise_has_the_counts_of_the_real_start_and_mean_and_spread_of_prepared_inputs() -> None:
    site = make_site()
    real, noise = (
        initialise(site, EVERYTHING, 1, seeded(), start=start) for start in ("real", "noise")
    )
    assert torch.equal(noise.labels, real.labels)
    assert noise.images.shape == real.images.shape
    assert noise.images.dtype == real.images.dtype
    # 9 images of 64 pixels: of 576 numbers the mean's own spread is 1 / 24.
    assert abs(float(noise.images.mean())) < 3 / 24
    assert abs(float(noise.images.std()) - 1) < 3 / 24


def test_noise_is_the_same_twice_and_depends_on_no_image() -> None:
    site = make_site()
    grey = replace(site.train.split, inputs=torch.full_like(site.train.split.inputs, 128))
    equal = replace(site, train=Part(grey, site.train.index))
    once, again, others, another_seed = (
        initialise(whose, EVERYTHING, 2, seeded(seed), start="noise").images
        for whose, seed in ((site, 0), (site, 0), (equal, 0), (site, 1))
    )
    assert torch.equal(once, again)
    assert torch.equal(once, others)
    assert not torch.equal(once, another_seed)


def test_noise_is_refused_for_inputs_that_are_no_floating_point_numbers() -> None:
    site = make_site()

    class Raw(type(site.task)):  # type: ignore[misc]
        def prepare(self, inputs: Tensor, data: Data) -> Tensor:
            return inputs

    raw = replace(site, task=Raw(**site.task.options))
    with pytest.raises(BadSetting, match="inputs must be floating-point numbers"):
        initialise(raw, EVERYTHING, 2, seeded(), start="noise")


def test_examples_that_may_not_be_used_are_not() -> None:
    site = make_site()
    found = initialise(site, site.train.labels != 0, 1, seeded())
    assert sorted(found.labels.tolist()) == [1, 1, 1, 3]
    nothing = initialise(site, ~EVERYTHING, 1, seeded())
    assert tuple(nothing.images.shape) == (0, 1, 8, 8)


def condensed(site: Site, start: SyntheticSet, seed: int = 0) -> SyntheticSet:
    spec = image_model("convnet", num_classes=4, channels=1, image_size=8, width=4, depth=1)
    return condense(
        site,
        EVERYTHING,
        start,
        lambda draws: build(spec, draws),
        seeded(seed),
        outer_steps=2,
        inner_steps=2,
        batch_size=4,
        image_lr=0.1,
        lr=0.01,
    )


def test_condensation_changes_the_images_keeps_labels_and_repeats_under_a_seed() -> None:
    site = make_site()
    start = initialise(site, EVERYTHING, 2, seeded())
    kept = start.images.clone()

    once, again, other = condensed(site, start), condensed(site, start), condensed(site, start, 1)

    assert torch.equal(start.images, kept)
    assert torch.equal(once.labels, start.labels)
    assert not torch.equal(once.images, start.images)
    assert torch.equal(once.images, again.images)
    assert not torch.equal(once.images, other.images)
    assert torch.isfinite(once.images).all()


def test_the_global_generator_is_neither_used_nor_touched() -> None:
    before = torch.get_rng_state()
    site = make_site()
    condensed(site, initialise(site, EVERYTHING, 2, seeded()))
    assert torch.equal(torch.get_rng_state(), before)
