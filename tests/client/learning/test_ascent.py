"""Stochastic gradient ascent, step by step against the hand computation."""

import math

import pytest
import torch
from torch import Tensor, nn

from client.errors import EffaceError
from client.learning.ascent import ascend
from client.learning.models import ModelSpec, build
from client.learning.spec import image_model
from client.learning.training import Trained
from tests.models import stem_of

ONE = torch.tensor([[1.0, 0.0]]), torch.tensor([0])


class Linear(nn.Module):
    """Two inputs, two classes, all weights of the last layer zero; the layer before copies."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(2, 2, bias=False)
        self.classifier = nn.Linear(2, 2)
        with torch.no_grad():
            self.body.weight.copy_(torch.eye(2))
            for parameter in self.classifier.parameters():
                parameter.zero_()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.body(images))
        return logits


@pytest.fixture
def model() -> Linear:
    return Linear()


def ascent(model: nn.Module, data: tuple[Tensor, Tensor], **more: object) -> Trained:
    options = {"epochs": 1, "batch_size": 2, "lr": 1.0, "generator": torch.Generator(), **more}
    return ascend(model, *data, **options)  # type: ignore[arg-type]


def test_one_step_equals_the_hand_computation(model: Linear) -> None:
    done = ascent(model, ONE, lr=2.0)

    # softmax(0, 0) - onehot(0) = (-1/2, 1/2), times the input (1, 0), times 2, added.
    expected = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    torch.testing.assert_close(model.classifier.weight.data, expected)
    torch.testing.assert_close(model.classifier.bias.data, torch.tensor([-1.0, 1.0]))
    # The last layer was zero: nothing flows to the one before.
    assert torch.equal(model.body.weight.data, torch.eye(2))
    assert (done.num_steps, done.samples) == (1, 1)
    assert done.loss == pytest.approx(math.log(2))


def test_a_long_gradient_is_clipped_and_a_short_one_is_not(model: Linear) -> None:
    # The step above is (-1/2, 1/2) of the weights and of the biases: of length 1.
    ascent(model, ONE, lr=2.0, clip=0.5)
    expected = torch.tensor([[-0.5, 0.0], [0.5, 0.0]])
    torch.testing.assert_close(model.classifier.weight.data, expected)
    plain = Linear()
    ascent(plain, ONE, lr=2.0, clip=1.5)
    expected = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    assert torch.equal(plain.classifier.weight.data, expected)


def test_weights_beyond_the_ball_are_put_back_on_it(model: Linear) -> None:
    # They begin at length sqrt(2), as the identity is; a step of rate 2 is 2 long, (-1, 1) each.
    ascent(model, ONE, lr=2.0, radius=0.5)
    each = 0.5 * math.sqrt(2) / 2
    expected = torch.tensor([[-each, 0.0], [each, 0.0]])
    torch.testing.assert_close(model.classifier.weight.data, expected)
    torch.testing.assert_close(model.classifier.bias.data, torch.tensor([-each, each]))
    # However long it goes on, it comes no farther from where it began.
    ascent(model, ONE, lr=2.0, epochs=20, radius=0.5)
    start = math.sqrt(2) * math.sqrt(1 + 0.5**2)  # of the second ascent
    moved = [parameter.detach() for parameter in model.parameters()]
    began = [torch.eye(2), torch.tensor([[-each, 0.0], [each, 0.0]]), torch.tensor([-each, each])]
    far = math.sqrt(sum(float((m - b).square().sum()) for m, b in zip(moved, began, strict=True)))
    assert far == pytest.approx(0.5 * start, rel=1e-5)


def test_a_loss_without_bound_stays_finite_where_it_is_held(model: Linear) -> None:
    def square(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs[:, 0] - 1e3 * (targets + 1)).square()

    with pytest.raises(EffaceError, match="must stay finite"):
        ascent(Linear(), ONE, lr=0.5, epochs=50, loss=square)
    done = ascent(model, ONE, lr=0.5, epochs=50, loss=square, clip=5.0, radius=0.33)
    assert done.num_steps == 50
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def test_a_batch_moves_by_the_mean_of_its_gradients(model: Linear) -> None:
    ascent(model, (torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])))
    # Mean of (-1/2, 1/2) x (1, 0) and (-1/2, 1/2) x (0, 1).
    expected = torch.tensor([[-0.25, -0.25], [0.25, 0.25]])
    torch.testing.assert_close(model.classifier.weight.data, expected)


def test_the_loss_rises_with_every_step(model: Linear) -> None:
    # After k steps of rate 1 on one image the logits are (-k, k) or worse: the loss rises.
    losses = [ascent(model, ONE).loss for _ in range(4)]
    assert losses == sorted(losses)
    assert losses[0] < losses[-1]


def test_the_ascent_stops_at_the_classs_depth(model: Linear) -> None:
    # ln 2 = 0.693 before the first step, ln(1 + e^2) = 2.13 after it: the second is not taken.
    done = ascent(model, ONE, epochs=9, target_losses=[2.0, 0.0])
    torch.testing.assert_close(model.classifier.bias.data, torch.tensor([-0.5, 0.5]))
    assert (done.num_steps, done.samples) == (1, 2)  # the second image pass measured only
    # From here on nothing moves any more.
    before = model.classifier.weight.data.clone()
    assert ascent(model, ONE, target_losses=[2.0, 0.0]).num_steps == 0
    assert torch.equal(model.classifier.weight.data, before)


def test_every_class_ascends_to_its_own_depth(model: Linear) -> None:
    two = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
    # Both losses are ln 2 = 0.693: class 1 is there already, class 0 ascends as if it were alone.
    done = ascent(model, two, target_losses=[0.8, 0.5])
    torch.testing.assert_close(
        model.classifier.weight.data, torch.tensor([[-0.5, 0.0], [0.5, 0.0]])
    )
    assert (done.num_steps, done.samples) == (1, 2)
    assert done.loss == pytest.approx(math.log(2))  # of the whole batch


def test_a_classs_depth_is_compared_with_its_mean_loss(model: Linear) -> None:
    with torch.no_grad():
        model.classifier.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 3.0]]))
    # Class 0: losses ln(1 + e^-3) = 0.049 and ln(1 + e^3) = 3.049, mean 1.549.
    data = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
    assert ascent(model, data, target_losses=[1.5, 0.0]).num_steps == 0
    assert ascent(model, data, target_losses=[1.6, 0.0]).num_steps == 1


def test_a_frozen_head_stays_and_the_body_ascends(model: Linear) -> None:
    with torch.no_grad():
        model.classifier.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    head = [p.detach().clone() for p in model.classifier.parameters()]

    ascent(model, ONE, freeze=[model.classifier])

    assert all(torch.equal(p, h) for p, h in zip(model.classifier.parameters(), head, strict=True))
    # d loss / d features = (p0 - 1) * (1, 0) with p0 = e / (e + 1); the body's input is (1, 0).
    moved = 1.0 + (math.e / (math.e + 1) - 1)
    torch.testing.assert_close(model.body.weight.data, torch.tensor([[moved, 0.0], [0.0, 1.0]]))


def test_nothing_to_forget_is_an_error(model: Linear) -> None:
    nothing = torch.empty(0, 2), torch.empty(0, dtype=torch.int64)
    with pytest.raises(EffaceError, match="forget data must hold at least one example, got none"):
        ascent(model, nothing)


def test_a_loss_that_overflows_is_an_error_that_names_the_rate(model: Linear) -> None:
    images = torch.tensor([[1e30, 0.0]])
    with pytest.raises(EffaceError, match=r"must stay finite, got .* after 2 steps.*1e\+30"):
        ascent(model, (images, torch.tensor([0])), epochs=3, lr=1e30)


def test_the_same_generator_gives_the_same_ascent() -> None:
    draws = torch.Generator().manual_seed(3)
    images, labels = torch.randn(9, 2, generator=draws), torch.arange(9) % 2
    once, again = Linear(), Linear()
    state = torch.get_rng_state()
    for each in (once, again):
        ascent(each, (images, labels), generator=torch.Generator().manual_seed(1), epochs=2)
    assert torch.equal(once.classifier.weight, again.classifier.weight)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("freeze_stem", [True, False])
def test_a_frozen_stem_stays_bit_for_bit(freeze_stem: bool) -> None:
    spec, model = convnet_of_two_classes()
    before = {key: value.clone() for key, value in model.state_dict().items()}

    images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    ascent(
        model,
        (images, torch.tensor([0, 1])),
        lr=0.1,
        freeze=stem_of(spec, model) if freeze_stem else (),
    )

    changed = {k for k, value in model.state_dict().items() if not torch.equal(value, before[k])}
    assert ("body.0.weight" in changed) != freeze_stem
    assert "body.4.weight" in changed


def test_a_frozen_stem_keeps_its_running_statistics() -> None:
    spec = image_model("resnet20", num_classes=2, channels=1, image_size=8)
    model = build(spec, torch.Generator().manual_seed(0))
    before = {key: value.clone() for key, value in model.state_dict().items()}

    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    ascent(model, (images, torch.tensor([0, 1, 0, 1])), lr=0.1, freeze=stem_of(spec, model))

    changed = {k for k, value in model.state_dict().items() if not torch.equal(value, before[k])}
    assert not {k for k in changed if k.startswith(("body.0.", "body.1."))}
    assert {"body.3.conv1.weight", "body.3.norm1.running_mean"} <= changed


def test_a_body_of_one_convolution_ascends_even_with_head_and_stem_frozen() -> None:
    spec, model = convnet_of_two_classes(depth=1)
    head = model.get_parameter("classifier.weight").detach().clone()
    before = model.get_parameter("body.0.weight").detach().clone()
    images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    done = ascent(
        model,
        (images, torch.tensor([0, 1])),
        freeze=[model.get_submodule("classifier"), *stem_of(spec, model)],
    )
    assert done.num_steps == 1
    assert torch.equal(model.get_parameter("classifier.weight"), head)
    assert not torch.equal(model.get_parameter("body.0.weight"), before)


def convnet_of_two_classes(depth: int = 2) -> tuple[ModelSpec, nn.Module]:
    spec = image_model("convnet", num_classes=2, channels=1, image_size=8, width=4, depth=depth)
    return spec, build(spec, torch.Generator().manual_seed(0))
