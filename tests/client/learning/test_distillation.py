"""Gradient matching against slow oracles: one backward pass a class, one example at a time."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from client.data.datasets import DataSet, Split
from client.data.site import Part, Site
from client.learning.distillation import (
    Matcher,
    condense,
    distance,
    due,
    initialise,
    real_gradients,
    synthetic_gradients,
)
from client.learning.models import build
from client.learning.spec import image_model
from client.store import SyntheticSet

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


# ---- sets ---------------------------------------------------------------------------------------


def make_site() -> Site:
    """Return a site with 5, 3 and 1 images of classes 0, 1 and 3, each of its own grey."""
    labels = torch.tensor([0, 1, 0, 3, 0, 1, 0, 1, 0])
    images = (torch.arange(9, dtype=torch.uint8) * 20)[:, None, None, None].expand(9, 1, 8, 8)
    noise = torch.randint(0, 20, (9, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    split = Split(images + noise.to(torch.uint8), labels, None)
    data = DataSet(split, split, name="greys", num_classes=4, mean=(0.5,), std=(0.25,))
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
    real = site.images(site.train)
    matches = (found.images[:, None] == real[None]).flatten(2).all(dim=2)  # (n, N)
    assert matches.sum(dim=1).tolist() == [1] * len(found)
    rows = matches.double().argmax(dim=1)
    assert len(rows.unique()) == len(rows)
    assert torch.equal(site.train.labels[rows], found.labels)


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
