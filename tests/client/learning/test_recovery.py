"""Recovery: the bounded terms that hold forgotten images down, by hand."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from client.learning.models import build
from client.learning.recovery import beside, descend, known
from client.learning.spec import image_model
from tests.models import stem_of

NOTHING = torch.zeros(1, 3)


class Linear(nn.Module):
    """Two inputs, two classes, all weights zero; the features are the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(2, 2, bias=False)
        nn.init.zeros_(self.classifier.weight)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(images)
        return logits


def penalty(logits: list[float], label: int, *, outputs: float = 1.0) -> float:
    found = known(
        NOTHING, torch.tensor([logits]), torch.tensor([label]), outputs=outputs, on_features=0.0
    )
    return float(found)


def test_the_output_term_is_minus_log_of_what_is_left_to_the_others() -> None:
    # Logits (0, ln 3): p = (1/4, 3/4). -log(1 - 3/4) = ln 4, -log(1 - 1/4) = ln 4/3.
    assert penalty([0.0, math.log(3)], 1) == pytest.approx(math.log(4))
    assert penalty([0.0, math.log(3)], 0) == pytest.approx(math.log(4 / 3))
    assert penalty([0.0, math.log(3)], 1, outputs=0.5) == pytest.approx(math.log(4) / 2)


def test_the_output_term_vanishes_when_the_class_has_no_probability() -> None:
    assert penalty([0.0, -200.0], 1) == 0.0
    assert penalty([0.0, -200.0, 3.0], 1) == pytest.approx(0.0, abs=1e-6)


def test_the_output_term_is_a_mean_over_images() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [0.0, -200.0]])
    found = known(torch.zeros(2, 1), logits, torch.tensor([1, 1]), outputs=1.0, on_features=0.0)
    assert float(found) == pytest.approx(math.log(4) / 2)


def test_the_feature_term_is_a_mean_square() -> None:
    features = torch.tensor([[1.0, 2.0], [0.0, 3.0]])
    logits, labels = torch.zeros(2, 2), torch.tensor([0, 1])
    # (1 + 4 + 0 + 9) / 4 = 3.5, times 2.
    assert float(known(features, logits, labels, outputs=0.0, on_features=2.0)) == 7.0
    both = known(features, logits, labels, outputs=1.0, on_features=2.0)
    assert float(both) == pytest.approx(7.0 + math.log(2))


def test_the_output_terms_slope_never_exceeds_one() -> None:
    # d/dz of -log(1 - p) = softmax over all - softmax over the others: bounded, unlike -CE's loss.
    logits = torch.tensor([[50.0, 0.0, 0.0]], requires_grad=True)
    known(NOTHING, logits, torch.tensor([0]), outputs=1.0, on_features=0.0).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(logits.grad, torch.tensor([[1.0, -0.5, -0.5]]))


# Two retained images of class 0, one of class 1: in the mean 2 and 5 are their outputs for class 2.
KEPT = torch.tensor([[9.0, 0.0, 1.0], [8.0, 1.0, 3.0], [0.0, 7.0, 5.0]])
KEPT_LABELS = torch.tensor([0, 0, 1])


def test_beside_retained_images_counts_what_a_forgotten_one_has_more_of_its_class() -> None:
    # Taken for class 0 with 3/4 and for class 1 with 1/4: 2.75 would be usual, and it has 4.
    image, label = torch.tensor([[math.log(3), 0.0, 4.0]]), torch.tensor([2])
    more = math.log(1 + math.exp(1.25))
    assert float(beside(image, label, KEPT, KEPT_LABELS)) == pytest.approx(more)
    # Where class 1 alone is at hand, 5 is usual.
    alone = float(beside(image, label, KEPT[2:], KEPT_LABELS[2:]))
    assert alone == pytest.approx(math.log(1 + math.exp(-1.0)))
    both = torch.tensor([[math.log(3), 0.0, 4.0], [math.log(3), 0.0, 2.75]])
    mean = float(beside(both, torch.tensor([2, 2]), KEPT, KEPT_LABELS))
    assert mean == pytest.approx((more + math.log(2)) / 2)


def test_what_moves_all_images_alike_does_not_count_beside_retained_ones() -> None:
    image, label = torch.tensor([[1.0, 0.0, 4.0]]), torch.tensor([2])
    shift = torch.tensor([0.0, 0.0, -30.0])
    here = beside(image, label, KEPT, KEPT_LABELS)
    torch.testing.assert_close(beside(image + shift, label, KEPT + shift, KEPT_LABELS), here)
    # The term that it stands beside is empty then.
    usual = math.log(1 + math.exp(4) / (math.e + 1))
    assert penalty([1.0, 0.0, 4.0], 2) == pytest.approx(usual)
    assert penalty([1.0, 0.0, -26.0], 2) == pytest.approx(0.0, abs=1e-6)


def test_what_an_image_is_taken_for_gets_no_gradient_beside_retained_ones() -> None:
    image = torch.tensor([[math.log(3), 0.0, 2.75]], requires_grad=True)
    beside(image, torch.tensor([2]), KEPT, KEPT_LABELS).backward()  # type: ignore[no-untyped-call]
    # 2.75 is usual: the slope of softplus at 0, on the class's own output alone.
    torch.testing.assert_close(image.grad, torch.tensor([[0.0, 0.0, 0.5]]))


def test_a_step_holds_forgotten_images_down_beside_the_retained_ones() -> None:
    model = Linear()
    descend(
        model, torch.tensor([[1.0, 0.0]]), torch.tensor([0]), epochs=1, batch_size=1, lr=1.0,
        generator=torch.Generator(), held=(torch.tensor([[0.0, 1.0]]), torch.tensor([1])),
        hold_beside=2.0,
    )  # fmt: skip
    # Retained: (1/2, -1/2) on input (1, 0). Beside: 2 * softplus(z_1 of (0, 1) - z_1 of (1, 0)) has
    # slope 1/2 at 0, so that the row of class 1 takes -1 on (0, 1) and +1 on (1, 0).
    expected = torch.tensor([[0.5, 0.0], [0.5, -1.0]])
    torch.testing.assert_close(model.classifier.weight.data, expected)


def test_under_batchnorm_a_common_shift_gets_no_gradient_either() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
            self.classifier = nn.Linear(2, 2, bias=False)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.classifier(self.body(images))
            return logits

    draws = torch.Generator().manual_seed(0)
    images, held = torch.randn(6, 2, generator=draws), torch.randn(4, 2, generator=draws)
    torch.manual_seed(0)
    model = Normed()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    done = descend(
        model, images, torch.zeros(6, dtype=torch.int64), epochs=1, batch_size=6, lr=1.0,
        generator=draws, held=(held, torch.ones(4, dtype=torch.int64)), hold_beside=5.0,
    )  # fmt: skip
    assert done.samples == 6 + 4 + 6  # the retained ones pass twice
    after = model.state_dict()
    # It moves all images alike, whatever the statistics; batch statistics undo it in the loss.
    torch.testing.assert_close(after["body.0.bias"], before["body.0.bias"], atol=1e-5, rtol=0.0)
    assert not torch.allclose(after["body.0.weight"], before["body.0.weight"], atol=1e-3)


def test_a_step_descends_on_the_images_and_holds_the_forgotten_ones_down() -> None:
    model = Linear()
    images, labels = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    held = torch.tensor([[0.0, 1.0]]), torch.tensor([1])

    done = descend(
        model,
        images,
        labels,
        epochs=1,
        batch_size=1,
        lr=1.0,
        generator=torch.Generator(),
        held=held,
        hold=2.0,
    )

    # Retained: softmax - onehot(0) = (-1/2, 1/2) on input (1, 0). Held: d/dz -log(1 - p_1) =
    # softmax - onehot(0) = (-1/2, 1/2) on input (0, 1), weighed 2. The step subtracts both.
    expected = torch.tensor([[0.5, 1.0], [-0.5, -1.0]])
    torch.testing.assert_close(model.classifier.weight.data, expected)
    assert (done.num_steps, done.samples) == (1, 2)
    assert done.loss == pytest.approx(math.log(2))  # of the retained images alone


@pytest.mark.parametrize("hold", [0.0, 1.0])
def test_held_images_count_only_if_there_are_some_and_a_weight(hold: float) -> None:
    draws = torch.Generator().manual_seed(0)
    images, labels = torch.randn(6, 2, generator=draws), torch.arange(6) % 2
    some = torch.randn(4, 2, generator=draws), torch.zeros(4, dtype=torch.int64)
    none = some[0][:0], some[1][:0]
    plain, with_held = Linear(), Linear()

    def recover(model: nn.Module, held: tuple[Tensor, Tensor] | None) -> int:
        seeded = torch.Generator().manual_seed(1)
        return descend(
            model, images, labels, epochs=2, batch_size=3, lr=0.1, generator=seeded,
            held=held, hold=hold,
        ).samples  # fmt: skip

    assert recover(plain, None) == 12
    assert recover(with_held, none if hold else some) == 12
    assert torch.equal(plain.classifier.weight, with_held.classifier.weight)


def test_a_step_takes_at_most_a_batch_of_held_images() -> None:
    seen: list[int] = []

    class Watched(Linear):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(len(images))
            return super().forward(images)

    images, labels = torch.randn(4, 2, generator=torch.Generator()), torch.tensor([0, 1, 0, 1])
    held = torch.ones(9, 2), torch.zeros(9, dtype=torch.int64)
    descend(
        Watched(), images, labels, epochs=2, batch_size=2, lr=0.1,
        generator=torch.Generator(), held=held, hold=1.0,
    )  # fmt: skip
    # Four steps of 2 retained images; the nine held ones come by 2, the last of an epoch by 3.
    assert seen == [4, 4, 4, 5]


def test_held_images_lose_their_class_and_the_others_keep_theirs() -> None:
    model = Linear()
    with torch.no_grad():
        model.classifier.weight.copy_(torch.tensor([[4.0, 0.0], [0.0, 4.0]]))
    images, labels = torch.tensor([[1.0, 0.0]] * 4), torch.zeros(4, dtype=torch.int64)
    held = torch.tensor([[0.0, 1.0]] * 4), torch.ones(4, dtype=torch.int64)
    descend(
        model, images, labels, epochs=40, batch_size=4, lr=0.5,
        generator=torch.Generator(), held=held, hold=1.0,
    )  # fmt: skip
    with torch.no_grad():
        assert int(model.classifier(held[0]).argmax(1)[0]) == 0
        assert int(model.classifier(images).argmax(1)[0]) == 0


@pytest.mark.parametrize("freeze_stem", [True, False])
def test_a_frozen_stem_stays_bit_for_bit(freeze_stem: bool) -> None:
    spec = image_model("convnet", num_classes=2, channels=1, image_size=8, width=4, depth=2)
    model = build(spec, torch.Generator().manual_seed(0))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))

    descend(
        model,
        images,
        torch.tensor([0, 1, 0, 1]),
        epochs=1,
        batch_size=2,
        lr=0.1,
        generator=torch.Generator().manual_seed(2),
        freeze=stem_of(spec, model) if freeze_stem else (),
    )

    changed = {k for k, value in model.state_dict().items() if not torch.equal(value, before[k])}
    assert ("body.0.weight" in changed) != freeze_stem
    assert "body.4.weight" in changed


def batches_of(*sizes: int) -> list[Tensor]:
    """Return images `(n, 1, 8, 8)`, n from `sizes`."""
    draws = torch.Generator().manual_seed(1)
    return [torch.randn(n, 1, 8, 8, generator=draws) for n in sizes]


def recovered(
    name: str, *, num_held: int, freeze_stem: bool = False, **more: Any
) -> dict[str, Tensor]:
    """Return a model's state after one step on four images, holding others down."""
    spec = image_model(name, num_classes=2, channels=1, image_size=8, width=4, depth=2)
    model = build(spec, torch.Generator().manual_seed(0))
    images, held = batches_of(4, num_held)
    options = {"epochs": 1, "batch_size": 4, "lr": 0.1, "generator": torch.Generator(), **more}
    descend(
        model,
        images,
        torch.tensor([0, 0, 0, 0]),
        held=(held, torch.ones(num_held, dtype=torch.int64)),
        freeze=stem_of(spec, model) if freeze_stem else (),
        **options,
    )
    return model.state_dict()


def test_a_frozen_stem_keeps_its_running_statistics() -> None:
    # The start's: mean 0, variance 1.
    found = recovered("resnet20", num_held=3, hold=1.0, freeze_stem=True)
    assert not found["body.1.running_mean"].any()
    assert (found["body.1.running_var"] == 1).all()
    assert int(found["body.1.num_batches_tracked"]) == 0
    assert int(found["body.3.norm1.num_batches_tracked"]) == 1


@pytest.mark.parametrize("name", ["resnet20", "vgg11", "resnet18"])
def test_held_images_leave_no_trace_in_the_running_statistics(name: str) -> None:
    # The batch means of the first norm come before the step: the retained images' alone.
    alone, held = recovered(name, num_held=0, hold=1.0), recovered(name, num_held=3, hold=1.0)
    first = next(key for key in alone if key.endswith("running_mean"))
    assert alone[first].any()
    for key in alone:
        if "running" in key or "tracked" in key:
            assert torch.equal(alone[key], held[key]), key
    assert not torch.equal(alone["classifier.weight"], held["classifier.weight"])


def test_one_held_image_beside_batch_norm_is_enough() -> None:
    # 1x1 maps: BatchNorm cannot train on one image, nor need it.
    found = recovered("resnet18", num_held=1, hold=1.0)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in found.values())


def test_a_model_without_batch_norm_makes_one_pass_for_both() -> None:
    seen: list[int] = []
    spec = image_model("convnet", num_classes=2, channels=1, image_size=8, width=4, depth=2)
    model = build(spec, torch.Generator().manual_seed(0))
    model.body.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    images, held = batches_of(4, 3)
    descend(
        model, images, torch.tensor([0, 1, 0, 1]), epochs=1, batch_size=4, lr=0.1,
        generator=torch.Generator(), held=(held, torch.ones(3, dtype=torch.int64)), hold=1.0,
    )  # fmt: skip
    assert seen == [7]


def test_a_body_of_one_convolution_recovers_as_a_whole() -> None:
    spec = image_model("convnet", num_classes=2, channels=1, image_size=8, width=4, depth=1)
    model = build(spec, torch.Generator().manual_seed(0))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    (images,) = batches_of(4)
    descend(
        model, images, torch.tensor([0, 1, 0, 1]), epochs=1, batch_size=4, lr=0.1,
        generator=torch.Generator(), freeze=stem_of(spec, model),
    )  # fmt: skip
    changed = {k for k, value in model.state_dict().items() if not torch.equal(value, before[k])}
    assert {"body.0.weight", "classifier.weight"} <= changed
