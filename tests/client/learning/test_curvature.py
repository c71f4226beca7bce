"""Curvature: the Fisher information against a slow oracle, quasi-Newton steps by hand."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from client.learning import curvature
from client.learning.attention import ByFormula
from client.learning.curvature import (
    fisher_diagonal,
    hessian_diagonal,
    local_quasi_newton,
    over_kernels,
)
from client.learning.models import build
from client.learning.spec import image_model
from client.learning.trace import trace
from client.learning.training import Trained
from tests.own_networks import batch, network


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- Fisher information -------------------------------------------------------------------------


def linear(bias: float = 0.0) -> nn.Linear:
    """Two inputs, two classes; class 0 has odds of e^bias to 1, whatever the input."""
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([bias, 0.0]))
    return model


def test_fisher_information_by_hand() -> None:
    # p = (1/2, 1/2): d log p_y / dz = (1/2, -1/2) or (-1/2, 1/2), squared 1/4 for either label.
    # Times x^2: the mean of (1, 0) and (0, 4) is (1/2, 2).
    found = fisher_diagonal(linear(), torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    torch.testing.assert_close(found["weight"], torch.tensor([[0.125, 0.5], [0.125, 0.5]]))
    torch.testing.assert_close(found["bias"], torch.tensor([0.25, 0.25]))


def test_labels_are_the_models_own() -> None:
    # p = (3/4, 1/4): sum_y p_y (delta_y - p)^2 = 3/4 * 1/16 + 1/4 * 9/16 = 3/16 = p (1 - p).
    found = fisher_diagonal(linear(math.log(3)), torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(found["bias"], torch.tensor([3 / 16, 3 / 16]))


@pytest.mark.parametrize("name", ["convnet", "lenet", "resnet8"])
def test_fisher_information_equals_one_backward_pass_at_a_time(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(image_model(name, 3, channels=1, image_size=8, width=4, depth=2), seeded())
    images = torch.randn(5, 1, 8, 8, generator=seeded(1))
    for module in model.modules():  # so that evaluation is not training
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.fill_(0.1)  # type: ignore[union-attr]
            module.running_var.fill_(2.0)  # type: ignore[union-attr]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    # Two images at once: parts of 2, 2 and 1.
    size = sum(p.numel() for p in model.parameters())
    monkeypatch.setattr(curvature, "NUMBERS_AT_ONCE", 2 * size)

    found = fisher_diagonal(model, images)

    weights = list(model.parameters())
    slow = [torch.zeros_like(w) for w in weights]
    for image in images:
        likely = model(image[None]).log_softmax(1)[0]  # evaluated, as it was left
        for label in range(3):
            gradients = torch.autograd.grad(likely[label], weights, retain_graph=True)
            for total, gradient in zip(slow, gradients, strict=True):
                total += likely[label].detach().exp() * gradient.square() / 5
    for (key, mine), theirs in zip(found.items(), slow, strict=True):
        # A bias before a norm has no effect: its gradient is rounding alone, about 1e-8.
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-10, msg=key)
    assert list(found) == [key for key, _ in model.named_parameters()]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    "name",
    ["mlp", "reports", "patches", "series", "dense", "adapted", "tied", "twice", "recurrent"],
)
def test_fisher_information_of_any_network_equals_one_backward_pass_at_a_time(name: str) -> None:
    model, (inputs, _) = network(name), batch(name, 3)

    found = fisher_diagonal(model, inputs)

    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    slow = {key: torch.zeros_like(p) for key, p in trained.items()}
    for one in inputs:
        likely = model(one[None]).log_softmax(1)[0]
        for log in likely:
            gradients = torch.autograd.grad(log, list(trained.values()), retain_graph=True)
            for key, gradient in zip(trained, gradients, strict=True):
                slow[key] += log.detach().exp() * gradient.square() / 3
    assert list(found) == list(trained)
    for key, value in slow.items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-14, msg=key)


def test_of_a_network_that_is_frozen_nothing_is_measured() -> None:
    assert fisher_diagonal(network("mlp").requires_grad_(False), batch("mlp")[0]) == {}


# ---- Hutchinson's estimate ----------------------------------------------------------------------


def diagonal_of(loss: Tensor, weight: Tensor, seed: int = 0) -> Tensor:
    gradients = torch.autograd.grad(loss, [weight], create_graph=True)
    return hessian_diagonal(gradients, [weight], seeded(seed))[0]


def test_a_diagonal_hessian_is_found_exactly() -> None:
    # L = a^2 + 3/2 b^2 - 2 c^2: z * (H z) = H for every z of signs, negative curvature included.
    weight = torch.ones(3, requires_grad=True)
    loss = (torch.tensor([1.0, 1.5, -2.0]) * weight**2).sum()
    assert diagonal_of(loss, weight).tolist() == [2.0, 3.0, -4.0]


def test_other_entries_cancel_on_average() -> None:
    # L = a^2 / 2 + 2 a b + b^2: diagonal (1, 2); the estimate is it plus or minus 2.
    found = []
    for seed in range(200):
        weight = torch.ones(2, requires_grad=True)
        a, b = weight
        found.append(diagonal_of(a**2 / 2 + 2 * a * b + b**2, weight, seed))
    every = torch.stack(found)
    assert {tuple(row) for row in every.tolist()} == {(3.0, 4.0), (-1.0, 0.0)}
    # The mean of 200 signs has a deviation of 0.07; 2 * 0.3 is more than four of them.
    torch.testing.assert_close(every.mean(0), torch.tensor([1.0, 2.0]), atol=0.6, rtol=0)


def test_a_convolutions_kernel_shares_one_curvature() -> None:
    # One filter of 1 x 2 x 1 x 2: diagonal ((2, -4), (6, 6)), its kernels' means of |D| 3 and 6.
    weight = torch.ones(1, 2, 1, 2, requires_grad=True)
    loss = (torch.tensor([[[[1.0, -2.0]], [[3.0, 3.0]]]]) * weight**2).sum()
    assert diagonal_of(loss, weight).flatten().tolist() == [2.0, -4.0, 6.0, 6.0]
    found = over_kernels(diagonal_of(loss, weight))
    assert found.shape == (1, 2, 1, 1)
    assert found.flatten().tolist() == [3.0, 6.0]


def test_kernels_of_one_dimension_share_one_curvature_too() -> None:
    # The diagonal ((2, -4, 6)) of one filter of 1 x 1 x 3: the mean of |D| is 4.
    found = over_kernels(torch.tensor([[[2.0, -4.0, 6.0]]]))
    assert found.tolist() == [[[4.0]]]
    assert over_kernels(torch.tensor([[2.0, -4.0]])).tolist() == [[2.0, -4.0]]  # no places


def test_a_weight_in_which_the_loss_is_linear_has_no_curvature() -> None:
    # L = 2 a + b^2: the gradient in a is 2, whatever a and b.
    a, b = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    gradients = torch.autograd.grad((2 * a + b**2).sum(), [a, b], create_graph=True)
    found = hessian_diagonal(gradients, [a, b], seeded())
    assert [t.tolist() for t in found] == [[0.0], [2.0]]
    (alone,) = torch.autograd.grad((2 * a).sum(), [a], create_graph=True)
    assert hessian_diagonal([alone], [a], seeded())[0].tolist() == [0.0]


@pytest.mark.parametrize("name", ["mlp", "patches", "series", "reports", "twice"])
def test_the_estimate_is_the_diagonal_of_the_whole_hessian_on_average(name: str) -> None:
    # Exactly: the mean over all sign vectors of z * (H z) is diag(H); here over single signs,
    # for e_i the product H e_i has the diagonal's entry at i.
    model, (inputs, labels) = network(name), batch(name)
    weight = next(p for key, p in model.named_parameters() if key.endswith("bias"))
    with ByFormula():
        loss = cross_entropy(model(inputs), labels)
    (gradient,) = torch.autograd.grad(loss, [weight], create_graph=True)
    rows = [
        torch.autograd.grad(g, weight, retain_graph=True, materialize_grads=True)[0]
        for g in gradient
    ]
    hessian = torch.stack(rows)
    found = hessian_diagonal([gradient], [weight], seeded(5))[0]
    signs = 2.0 * torch.randint(0, 2, weight.shape, generator=seeded(5)) - 1.0
    torch.testing.assert_close(found, signs * (hessian @ signs.double()), rtol=1e-8, atol=1e-12)


# ---- quasi-Newton steps -------------------------------------------------------------------------


class Odds(nn.Module):
    """Logits (w x, 0): with x = 1 and label 0, gradient -(1 - p) and curvature p (1 - p)."""

    def __init__(self, weight: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([weight]))

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([self.weight * images[:, 0], torch.zeros(len(images))], dim=1)


def steps(
    model: nn.Module, num_steps: int = 1, curvature: str = "hessian", **options: float
) -> Trained:
    images, labels = torch.ones(2, 1), torch.zeros(2, dtype=torch.int64)
    batches: Iterator[Tensor] = iter([torch.arange(2)] * num_steps)
    return local_quasi_newton(
        model,
        lambda batch: (images[batch], labels[batch]),
        batches,
        generator=seeded(),
        curvature=curvature,
        **{"lr": 1.0, "eps": 0.25, **options},
    )


def test_the_first_step_divides_the_gradient_by_the_curvature() -> None:
    # w = 0: g = -1/2, D = 1/4, and both means are corrected to them: 1/2 / (1/4 + 1/4) = 1.
    model = Odds()
    done = steps(model, lr=0.5)
    assert model.weight.tolist() == pytest.approx([0.5])
    assert (done.num_steps, done.samples, done.loss) == (1, 2, pytest.approx(math.log(2)))


def test_the_first_step_divides_the_gradient_by_its_square() -> None:
    # w = 0: g = -1/2, the empirical Fisher information is 1/4 here, too; at w = ln 3, p = 3/4,
    # g = -1/4, g^2 = 1/16 where the Hessian has 3/16: the step is 1/4 / (1/16 + 1/4) = 4/5.
    model = Odds()
    steps(model, curvature="fisher", lr=0.5)
    assert model.weight.tolist() == pytest.approx([0.5])
    model = Odds(math.log(3))
    steps(model, curvature="fisher")
    assert model.weight.tolist() == pytest.approx([math.log(3) + 4 / 5])


@pytest.mark.parametrize(("power", "expected"), [(0.0, 0.4), (0.5, 2 / 3), (1.0, 1.0)])
def test_the_power_weakens_the_curvature(power: float, expected: float) -> None:
    # 1/2 / ((1/4)^k + 1/4): 0.5 / 1.25, 0.5 / 0.75, 0.5 / 0.5.
    model = Odds()
    steps(model, hessian_power=power)
    assert model.weight.tolist() == pytest.approx([expected])


def test_the_second_step_uses_running_means() -> None:
    model = Odds()
    steps(model, 2, beta1=0.5, beta2=0.5)
    # After the first step w = 1: p = sigma(1), g = -(1 - p), D = p (1 - p).
    p = 1 / (1 + math.exp(-1))
    first, second = (-0.5, 0.25), (-(1 - p), p * (1 - p))
    # Half of half of the first and half of the second, divided by 1 - 1/4.
    mean = (first[0] / 4 + second[0] / 2) / 0.75
    square = (first[1] ** 2 / 4 + second[1] ** 2 / 2) / 0.75
    assert model.weight.tolist() == pytest.approx([1 - mean / (math.sqrt(square) + 0.25)])


def test_weight_decay_is_apart_from_the_curvature() -> None:
    # w = 0 would hide it: at w = ln 3, p = 3/4, g = -1/4, D = 3/16, the step is 1/4 / (7/16) = 4/7.
    model = Odds(math.log(3))
    steps(model, lr=0.5, weight_decay=0.2)
    assert model.weight.tolist() == pytest.approx([math.log(3) * 0.9 + 0.5 * 4 / 7])


def test_the_proximal_term_pulls_to_the_start() -> None:
    near, free = Odds(), Odds()
    steps(near, 5, proximal=1.0)
    steps(free, 5)
    assert 0 < near.weight.item() < free.weight.item()


def test_steps_depend_on_their_generator_alone() -> None:
    spec = image_model("convnet", 10, channels=1, image_size=8, width=4, depth=2)
    images, labels = torch.randn(8, 1, 8, 8, generator=seeded(1)), torch.arange(8)

    def trained(seed: int) -> Tensor:
        model = build(spec, seeded())
        torch.manual_seed(seed)  # whatever was drawn before
        pick = lambda batch: (images[batch], labels[batch])  # noqa: E731
        batches = iter([labels] * 3)
        local_quasi_newton(model, pick, batches, lr=0.1, generator=seeded(2), curvature="hessian")
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(trained(0), trained(1))


@pytest.mark.parametrize(
    "name", ["mlp", "patches", "series", "dense", "reports", "adapted", "tied"]
)
@pytest.mark.parametrize("curvature", ["fisher", "hessian"])
def test_any_network_is_trained_and_what_is_frozen_stays(name: str, curvature: str) -> None:
    model, (inputs, labels) = network(name), batch(name)
    known = trace(model, inputs)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    start = float(cross_entropy(model.eval()(inputs), labels).detach())
    done = local_quasi_newton(
        model,
        lambda batch: (inputs[batch], labels[batch]),
        iter([torch.arange(7)] * 5),
        lr=0.02,
        generator=seeded(),
        curvature=curvature,
        eps=0.1,
    )
    assert float(cross_entropy(model.eval()(inputs), labels).detach()) < start
    assert done.num_steps == 5
    after = model.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in known.frozen)
    assert any(not torch.equal(after[key], before[key]) for key in known.trainable)


def test_a_parameter_that_is_never_used_stays() -> None:
    model = Odds()
    model.idle = nn.Parameter(torch.ones(2, 2))
    for measure in ("fisher", "hessian"):
        steps(model, curvature=measure)
    assert torch.equal(model.idle, torch.ones(2, 2))


def test_no_batch_leaves_the_model() -> None:
    model = Odds(0.5)
    assert steps(model, 0) == Trained(0, 0, 0.0)
    assert model.weight.tolist() == [0.5]
