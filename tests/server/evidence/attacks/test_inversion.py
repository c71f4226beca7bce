"""Inversion attacks on networks whose inputs can be read off by hand, and distances of images."""

import math

import pytest
import torch
from torch import Tensor, nn

from server.evidence.attacks import class_inversion, gradient_inversion
from server.evidence.attacks.gradient_inversion import gradient_of
from server.evidence.attacks.nearness import nearest, psnr, ssim

BLACK, WHITE = torch.full((1, 1, 4, 4), -1.0), torch.full((1, 1, 4, 4), 1.0)
SHAPE = torch.tensor([[1.0, -1, -1, 1], [-1, 1, 1, -1], [-1, 1, 1, -1], [1, -1, -1, 1]])


def linear(*rows: Tensor) -> nn.Module:
    layer = nn.Linear(16, len(rows))
    with torch.no_grad():
        layer.weight.copy_(torch.stack([row.flatten() for row in rows]))
        layer.bias.zero_()
    return nn.Sequential(nn.Flatten(), layer)


# ---- a class ------------------------------------------------------------------------------------


def test_the_class_s_shape_comes_out_of_the_model() -> None:
    network = linear(SHAPE, torch.zeros(4, 4))
    found = class_inversion.inverted(network, 0, BLACK, WHITE)
    white = found.inputs[0, 0] > BLACK[0, 0]
    assert torch.equal(white, SHAPE > 0)  # it started black, and white is where it helps
    assert found.probability >= 0.99
    with torch.no_grad():
        answer = network(found.inputs).softmax(1)[0, 0]
    assert found.probability == pytest.approx(float(answer))


def test_where_the_class_has_no_probability_it_ends_black_and_the_log_goes_on() -> None:
    network = linear(SHAPE, torch.zeros(4, 4))
    with torch.no_grad():
        network[1].bias[0] = -200.0
    found = class_inversion.inverted(network, 0, BLACK, WHITE, patience=5)
    assert torch.equal(found.inputs, BLACK)
    assert found.probability < 1e-80
    assert found.steps == 5
    further = class_inversion.inverted(network, 0, BLACK, WHITE, steps=50, log_cost=True)
    assert torch.equal(further.inputs[0, 0] > BLACK[0, 0], SHAPE > 0)


def test_it_ends_after_the_steps_that_it_is_given() -> None:
    flat = linear(SHAPE / 1000, torch.zeros(4, 4))
    found = class_inversion.inverted(flat, 0, BLACK, WHITE, steps=7)
    assert found.steps == 7


# ---- an upload ----------------------------------------------------------------------------------


def upload(rows: dict[str, Tensor] | None) -> tuple[nn.Module, Tensor, Tensor, list[Tensor]]:
    torch.manual_seed(3)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 16, 3)
    )
    image, label = (
        SHAPE[None, None] * torch.linspace(0.3, 1, 16).view(1, 1, 4, 4),
        torch.tensor([1]),
    )
    return network, image, label, gradient_of(network, image, label, rows)


def correlation(one: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])


def test_a_whole_upload_gives_the_image_back_and_biases_alone_do_not() -> None:
    found = []
    for rows in (None, {"0.bias": torch.tensor([0]), "3.bias": torch.tensor([1])}):
        network, image, label, seen = upload(rows)
        draws = torch.Generator().manual_seed(0)
        made = gradient_inversion.inverted(
            network, seen, label, BLACK, WHITE, draws, rows=rows, steps=400, smoothness=0
        )
        assert float(made.min()) >= -1
        assert float(made.max()) <= 1
        found.append(correlation(made, image))
    assert found[0] > 0.99
    assert abs(found[1]) < 0.8


def test_an_upload_of_slices_holds_their_rows_and_nothing_else() -> None:
    network, image, label, whole = upload(None)
    rows = {"3.weight": torch.tensor([2, 0])}
    (part,) = gradient_of(network, image, label, rows)
    torch.testing.assert_close(part, whole[2][[2, 0]])
    with pytest.raises(ValueError, match="seen must hold"):
        gradient_inversion.inverted(network, [], label, BLACK, WHITE, torch.Generator(), rows={})


# ---- distances ----------------------------------------------------------------------------------


def test_distances_by_hand() -> None:
    flat = torch.full((1, 12, 12), 0.5)
    others = torch.stack([flat + 0.1, flat, flat - 0.2])
    assert psnr(flat, others).tolist() == pytest.approx(
        [20, math.inf, 20 * math.log10(5)], abs=1e-4
    )
    # Of images without structure SSIM is that of their means.
    means = [(2 * 0.5 * m + 1e-4) / (0.25 + m * m + 1e-4) for m in (0.6, 0.5, 0.3)]
    assert ssim(flat, others).tolist() == pytest.approx(means, abs=1e-5)
    decibels, likeness, place = nearest(flat + 0.09, others)
    assert (round(decibels), place) == (40, 0)
    assert likeness == pytest.approx(1, abs=1e-3)
    with pytest.raises(ValueError, match="11 pixels"):
        ssim(flat[:, :8], others[..., :8, :])


def test_noise_has_less_of_the_structure_than_a_faint_copy() -> None:
    draws = torch.Generator().manual_seed(1)
    image = torch.rand(3, 16, 16, generator=draws)
    others = torch.stack([0.5 * image + 0.25, torch.rand(3, 16, 16, generator=draws)])
    faint, other = ssim(image, others).tolist()
    assert faint > 0.7
    assert abs(other) < 0.2
