"""Local SGD: batches that cover the data, and steps that equal torch's own."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from client.learning.sizes import at_once
from client.learning.spec import image_model
from client.learning.training import images_in, local_sgd, minibatches, proximal_gradients, steps_in
from tests.messages import network


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_data(num_images: int = 12) -> tuple[Tensor, Tensor]:
    images = torch.randn(num_images, 1, 8, 8, generator=seeded(1))
    return images, torch.arange(num_images) % 10


def picker(images: Tensor, labels: Tensor):  # type: ignore[no-untyped-def]
    return lambda batch: (images[batch], labels[batch])


def one_batch(num_images: int, times: int = 1) -> Iterator[Tensor]:
    return iter([torch.arange(num_images)] * times)


def test_every_epoch_goes_through_all_examples_once_in_a_new_order() -> None:
    batches = list(minibatches(10, 4, 6, seeded()))
    assert [len(b) for b in batches] == [4, 4, 2] * 2
    first, second = torch.cat(batches[:3]), torch.cat(batches[3:])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(10))
    assert first.tolist() != second.tolist()


def test_a_single_example_left_over_joins_the_batch_before() -> None:
    # 10 = 3 + 3 + 3 + 1: batch norm cannot train on the one.
    assert [len(b) for b in minibatches(10, 3, 3, seeded())] == [3, 3, 4]
    assert steps_in(1, 10, 3) == 3
    assert sorted(torch.cat(list(minibatches(10, 3, 3, seeded()))).tolist()) == list(range(10))


def test_batches_of_one_stay_batches_of_one() -> None:
    assert [len(b) for b in minibatches(3, 1, 3, seeded())] == [1, 1, 1]
    assert [len(b) for b in minibatches(1, 4, 2, seeded())] == [1, 1]


@pytest.mark.parametrize(
    ("epochs", "num_examples", "batch_size", "expected"),
    [(2, 10, 4, 6), (1, 8, 4, 2), (3, 9, 4, 6), (1, 3, 64, 1), (0, 10, 4, 0), (5, 0, 4, 0)],
)
def test_steps_are_epochs_times_batches(
    epochs: int, num_examples: int, batch_size: int, expected: int
) -> None:
    assert steps_in(epochs, num_examples, batch_size) == expected
    given = list(minibatches(num_examples, batch_size, expected, seeded()))
    covered = sum(len(b) for b in given)
    assert (len(given), covered) == (expected, epochs * num_examples)


@pytest.mark.parametrize("num_examples", [0, 1, 7, 8, 9, 16, 17, 20])
@pytest.mark.parametrize("num_steps", [0, 1, 2, 5, 12])
def test_the_images_of_some_batches_are_known_without_drawing_them(
    num_examples: int, num_steps: int
) -> None:
    drawn = minibatches(num_examples, 8, num_steps, torch.Generator()) if num_examples else ()
    assert images_in(num_steps, num_examples, 8) == sum(map(len, drawn))


def test_batches_depend_on_their_generator_alone() -> None:
    once = [b.tolist() for b in minibatches(10, 4, 5, seeded(7))]
    torch.manual_seed(99)
    assert [b.tolist() for b in minibatches(10, 4, 5, seeded(7))] == once
    assert [b.tolist() for b in minibatches(10, 4, 5, seeded(8))] != once


def test_local_sgd_equals_torchs_own_steps() -> None:
    images, labels = make_data()
    mine, theirs = network(), network()
    optimiser = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    losses = []
    for _ in range(2):
        optimiser.zero_grad()
        loss = cross_entropy(theirs(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(float(loss.detach()))

    done = local_sgd(
        mine,
        picker(images, labels),
        one_batch(12, 2),
        lr=0.1,
        momentum=0.9,
        weight_decay=0.01,
    )

    for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)
    assert (done.num_steps, done.samples) == (2, 24)
    assert done.loss == pytest.approx(sum(losses) / 2)


def test_a_gradient_that_the_caller_has_already_is_used() -> None:
    model = nn.Linear(2, 1)
    before = [p.detach().clone() for p in model.parameters()]
    given = [torch.tensor([[1.0, 2.0]]), torch.tensor([4.0])]

    def gradients(step: int, images: Tensor, labels: Tensor) -> tuple[list[Tensor], Tensor]:
        return [g.clone() for g in given], torch.tensor(0.25)

    data = torch.zeros(2, 2), torch.zeros(2, dtype=torch.int64)
    done = local_sgd(model, picker(*data), one_batch(2), lr=0.5, gradients=gradients)

    # w - 0.5 * (1, 2), b - 0.5 * 4; the loss is the caller's.
    for now, old, gradient in zip(model.parameters(), before, given, strict=True):
        torch.testing.assert_close(now.detach(), old - 0.5 * gradient)
    assert done.loss == 0.25


def test_the_proximal_gradient_by_hand() -> None:
    weight = nn.Parameter(torch.tensor([3.0, -1.0]))
    weight.grad = torch.tensor([1.0, 1.0])
    # 2 * ((3, -1) - (1, 1)) = (4, -4), added to (1, 1).
    proximal_gradients([weight], [torch.tensor([1.0, 1.0])], 2.0)
    assert weight.grad.tolist() == [5.0, -3.0]


def test_fedprox_pulls_back_to_where_the_round_began() -> None:
    # Constant gradient 1, lr 0.1, mu 2, from w0 = 0:
    # w1 = 0 - 0.1 * (1 + 2 * 0) = -0.1;  w2 = -0.1 - 0.1 * (1 + 2 * -0.1) = -0.18.
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.zero_()
    data = torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64)
    local_sgd(
        model,
        picker(*data),
        one_batch(2, 2),
        lr=0.1,
        proximal=2.0,
        gradients=lambda *_: ([torch.ones(1, 1)], torch.tensor(0.0)),
    )
    assert float(model.weight.detach()) == pytest.approx(-0.18)


def test_no_batch_leaves_the_model_and_a_loss_of_zero() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    done = local_sgd(model, picker(*make_data()), iter([]), lr=0.1)
    assert (done.num_steps, done.samples, done.loss) == (0, 0, 0.0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_bfloat16_runs_and_stays_close() -> None:
    images, labels = make_data()
    full, half = network(), network()
    done = [
        local_sgd(model, picker(images, labels), one_batch(12, 3), lr=0.05, precision=precision)
        for model, precision in ((full, "float32"), (half, "bfloat16"))
    ]
    # bfloat16 has 8 bits of mantissa: losses near 2.3 agree to about 2^-8 of their size.
    assert done[1].loss == pytest.approx(done[0].loss, rel=0.02)
    for one, other in zip(full.parameters(), half.parameters(), strict=True):
        assert other.dtype == torch.float32
        torch.testing.assert_close(one, other, atol=0.02, rtol=0.05)


@pytest.mark.parametrize("at_once", [1, 5, 12])
def test_a_batch_in_parts_is_the_step_of_the_whole(at_once: int) -> None:
    images, labels = make_data()
    whole, parts = network(), network()
    first = local_sgd(whole, picker(images, labels), one_batch(12), lr=0.1)
    second = local_sgd(parts, picker(images, labels), one_batch(12), lr=0.1, at_once=at_once)
    assert second.loss == pytest.approx(first.loss, rel=1e-5)
    assert (second.num_steps, second.samples) == (1, 12)
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)


def test_only_large_images_pass_in_parts() -> None:
    # 384 MiB hold 14.5 images of 224 pixels forth, and half as many forth and back.
    assert at_once(image_model("convnet", 10, 3, 224, width=32, depth=2)) == 7
    assert at_once(image_model("convnet", 10, 3, 32, width=128, depth=3)) is None
    assert at_once(image_model("resnet18", 10, 3, 224)) is None  # BatchNorm: all of it
