"""Each measure on numbers small enough to follow by hand."""

import math

import pytest
import torch
from torch import Tensor, nn

from server.evidence.features.blank_head import blank_rows
from server.evidence.features.class_means import nearest_class_mean
from server.evidence.features.found_head import Layer, Shown, accuracy, agreement
from server.evidence.features.head_back import head_back
from server.evidence.features.layers import FEATURES, features, layer_outputs
from server.evidence.features.likeness import linear_cka, neighbour_agreement
from server.evidence.features.matched_head import matching
from server.evidence.features.probe import probed
from server.evidence.features.turned_head import turn


def t(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)


# ---- head back -----------------------------------------------------------------------------------


def test_head_back_reads_features_with_the_rows_of_original() -> None:
    found = t([1, 0], [0, 1])  # both of class 1
    labels = torch.tensor([1, 1])
    edited = t([0.5, 0.5], [-9, -9])  # class 1 is never named
    original = t([7, 7], [0, 2])  # row 1 alone is taken

    # Logits (0.5, 0) and (0.5, 2): the second example is class 1 again.
    assert head_back(found, labels, (edited, None), (original, None), [1]) == 50.0
    assert edited.tolist() == [[0.5, 0.5], [-9, -9]]


def test_head_back_takes_the_bias_with_the_row() -> None:
    found, labels = t([1, 0]), torch.tensor([1])
    zero, one = torch.zeros(2), torch.tensor([9.0, 1.0])
    rows = t([0.5, 0.5], [0, 0])

    assert head_back(found, labels, (rows, zero), (rows, one), [1]) == 100.0  # 0 + 1 > 0.5
    assert head_back(found, labels, (rows, zero), (rows, zero), [1]) == 0.0


def test_head_back_does_not_apply_where_the_features_have_another_length() -> None:
    wide, narrow = t([1, 0, 0], [0, 1, 0]), t([1, 0], [0, 1])
    assert head_back(t([1, 0]), torch.tensor([1]), (narrow, None), (wide, None), [1]) is None
    assert head_back(t([1, 0])[:0], torch.tensor([]), (narrow, None), (narrow, None), [1]) is None


# ---- head found in another basis ----------------------------------------------------------------

# Four classes in eight features; class 3 is forgotten, and class 2 was erased earlier.
DRAWS = torch.Generator().manual_seed(0)
MIXED = torch.randn(200, 8, generator=DRAWS) @ torch.randn(8, 8, generator=DRAWS)
FIRST: Layer = (torch.randn(4, 8, generator=DRAWS), torch.tensor([0.5, -0.5, 0.0, 6.0]))
ASKED = torch.randn(100, 8, generator=DRAWS) * 3
OF = torch.full((100,), 3)
GUESSED = ASKED @ FIRST[0].T + torch.as_tensor(FIRST[1])
KNOWN = 100.0 * float((GUESSED[:, 3] > GUESSED[:, :2].amax(dim=1)).double().mean())


def masked(weight: Tensor, bias: Tensor | None, louder: float = 1.0) -> Layer:
    """Return a layer that never names class 3, otherwise the same, or louder."""
    weight, bias = louder * weight, louder * (torch.zeros(4) if bias is None else bias)
    weight[3], bias[3] = 0.0, -100.0
    # The same of all rows changes no answer: it must hide nothing.
    return weight + 5.0, bias + 50.0


@pytest.mark.parametrize("louder", [1.0, 20.0])
def test_a_row_is_found_again_in_another_order_and_another_length(louder: float) -> None:
    order, size = torch.randperm(8, generator=DRAWS), torch.rand(8, generator=DRAWS) + 0.5
    last = masked(FIRST[0][:, order] / size, FIRST[1], louder)
    shown = Shown(MIXED[:, order] * size, MIXED, last, FIRST, [3], [0, 1])
    assert 20.0 < KNOWN < 80.0
    assert accuracy(ASKED[:, order] * size, OF, shown, matching) == pytest.approx(KNOWN)
    assert not shown.in_order  # features below 0 may be turned as well
    assert Shown(MIXED.abs(), MIXED.abs(), last, FIRST, [3], [0, 1]).in_order


def test_a_row_is_found_again_in_features_that_were_turned() -> None:
    turned = torch.linalg.qr(torch.randn(8, 8, generator=DRAWS))[0]
    shown = Shown(MIXED @ turned, MIXED, masked(FIRST[0] @ turned, FIRST[1]), FIRST, [3], [0, 1])
    assert accuracy(ASKED @ turned, OF, shown, turn) == pytest.approx(KNOWN)
    assert accuracy(ASKED @ turned, OF, shown, matching) != pytest.approx(KNOWN)


def test_features_that_agree_in_part_count_in_part() -> None:
    goal = t([1, 1, 1, 0], [1, -1, -1, 0], [-1, 1, 1, 0], [-1, -1, -1, 0])
    # The same; half as long; with as much that is not shared, so that half of the variance is and
    # the slope is 1/2; always the same.
    mine = t([1, 0.5, 0, 1], [1, -0.5, -2, 1], [-1, 0.5, 2, 1], [-1, -0.5, 0, 1])
    mine = mine - mine.mean(dim=0)
    assert agreement(mine, goal).tolist() == pytest.approx([1.0, 2.0, 0.5 * 0.5, 0.0], abs=1e-4)
    assert agreement(-mine, goal).tolist() == [0.0] * 4


def test_a_head_is_found_with_other_numbers_of_features_and_not_without_images() -> None:
    fewer = MIXED[:, :6]
    shown = Shown(fewer, MIXED, (FIRST[0][:, :6], None), FIRST, [3], [0, 1])
    assert accuracy(ASKED[:, :6], OF, shown, matching) is not None
    assert accuracy(ASKED[:, :6], OF, shown, turn) is not None
    assert accuracy(ASKED[:0, :6], OF[:0], shown, turn) is None
    one = Shown(fewer[:1], MIXED[:1], (FIRST[0][:, :6], None), FIRST, [3], [0, 1])
    assert accuracy(ASKED[:, :6], OF, one, turn) is None


# ---- blank head ----------------------------------------------------------------------------------


def test_a_blank_row_is_the_mean_of_the_rows_of_others() -> None:
    model = nn.Sequential(nn.Linear(2, 4))
    with torch.no_grad():
        model[0].weight.copy_(t([1, 3], [9, 9], [3, 5], [7, 7]))
        model[0].bias.copy_(torch.tensor([1.0, 9, 2, 7]))

    blank_rows(model, "0", [1], [0, 2])  # class 3 was erased earlier: it counts for nothing

    assert model[0].weight.tolist() == [[1, 3], [2, 4], [3, 5], [7, 7]]
    assert model[0].bias.tolist() == [1, 1.5, 2, 7]


# ---- nearest class mean --------------------------------------------------------------------------


def test_an_example_belongs_to_the_nearest_mean() -> None:
    shown, of = t([0, 0], [0, 2], [4, 0], [6, 0]), torch.tensor([0, 0, 7, 7])
    # Means (0, 1) and (5, 0). (3, 0) is 2 from the second, (1, 0) is nearer to the first.
    assert nearest_class_mean(t([3, 0], [1, 0]), torch.tensor([7, 7]), shown, of) == 50.0
    assert nearest_class_mean(shown[:0], of[:0], shown, of) is None


# ---- linear probe --------------------------------------------------------------------------------


def test_a_probe_learns_what_a_line_can_tell_apart() -> None:
    # The third feature is always the same, and the second tells nothing.
    shown = t([-1, 5, 3], [-2, 6, 3], [1, 5, 3], [2, 6, 3])
    of = torch.tensor([0, 0, 1, 1])
    asked = t([3, 5, 3], [0.5, 6, 3], [-0.5, 6, 3], [-3, 5, 3])

    assert probed(asked, torch.tensor([1, 1, 1, 0]), shown, of) == 75.0
    assert probed(asked, torch.tensor([1, 1, 1, 1]), shown, torch.tensor([1, 1, 1, 1])) is None


# ---- likeness ------------------------------------------------------------------------------------


def test_cka_is_1_for_features_that_are_turned_and_made_longer() -> None:
    one = t([1, 0], [0, 1], [2, 2], [-1, 4])
    turned = 3 * one @ t([0, 1], [-1, 0]) + 10.0
    assert linear_cka(one, turned) == pytest.approx(1.0)


def test_cka_of_two_columns_is_their_squared_correlation() -> None:
    # (1, 2, 3) and (1, 3, 2), centred (-1, 0, 1) and (-1, 1, 0): correlation 1 / 2.
    assert linear_cka(t([1], [2], [3]), t([1], [3], [2])) == pytest.approx(0.25)
    # With a second column (0, -1, 1) beside it: ((-1, 0, 1) . (-1, 1, 0))^2 + (.. (0, -1, 1))^2
    # = 1 + 1; the norms are 2 and |[[2, -1], [-1, 2]]| = sqrt(10).
    both = linear_cka(t([1], [2], [3]), t([1, 0], [3, -1], [2, 1]))
    assert both == pytest.approx(2 / (2 * math.sqrt(10)))


def test_cka_of_a_layer_that_says_nothing_is_not_known() -> None:
    assert linear_cka(t([1], [1], [1]), t([1], [2], [3])) is None


def test_neighbours_agree_where_both_name_the_same() -> None:
    one = t([0], [1], [5], [7])
    assert neighbour_agreement(one, -3 * one, k=1) == 1.0
    # Nearest in the first: 1, 0, 3, 2. In the other 0, 9, 1, 10: 2, 3, 0, 1.
    assert neighbour_agreement(one, t([0], [9], [1], [10]), k=1) == 0.0
    # Two nearest. First: {1,2} {0,2} {3,1} {2,1}; other: {2,1} {3,2} {0,1} {1,2}.
    # Common 2 + 1 + 1 + 2 of 8.
    assert neighbour_agreement(one, t([0], [9], [1], [10]), k=2) == 0.75


def test_no_example_is_a_neighbour_of_its_own_and_too_few_have_none() -> None:
    same = t([2], [2], [2])
    assert neighbour_agreement(same, same, k=5) == 1.0  # k is 2 then: both others
    assert neighbour_agreement(t([1]), t([1])) is None


# ---- layers --------------------------------------------------------------------------------------


def small() -> nn.Sequential:
    """Return (a, b) -> features (relu(a + b), relu(a - b)) -> one logit each."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace=True), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(t([1, 1], [1, -1]))
        model[0].bias.zero_()
    return model


INPUTS = t([1, 2], [3, 1], [-1, -1])


def pick(batch: Tensor) -> tuple[Tensor, Tensor]:
    return INPUTS[batch], batch


def test_features_are_the_inputs_of_the_last_layer() -> None:
    found, labels = features(small(), "2", pick, 3, batch_size=2)
    assert found.tolist() == [[3, 0], [4, 2], [0, 0]]
    assert labels.tolist() == [0, 1, 2]


def test_a_layer_s_output_is_what_it_gave_before_an_activation_wrote_into_it() -> None:
    found = layer_outputs(small(), "2", pick, 3, batch_size=2)
    assert list(found) == ["0", FEATURES]
    assert found["0"].tolist() == [[3, -1], [4, 2], [-2, 0]]
    assert found[FEATURES].tolist() == [[3, 0], [4, 2], [0, 0]]


def test_maps_are_averaged_to_four_by_four() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Flatten(), nn.Linear(64, 2))
    with torch.no_grad():
        model[0].weight.fill_(2.0)
    image = torch.arange(64.0).reshape(1, 1, 8, 8)

    found = layer_outputs(model, "2", lambda b: (image[b], b), 1, batch_size=1)

    # Upper left 2 x 2: 0, 1, 8, 9, mean 4.5, doubled by the layer.
    assert found["0"].shape == (1, 16)
    assert found["0"][0, 0] == 9.0
    assert found[FEATURES].shape == (1, 64)
