"""Each attack on numbers small enough to follow by hand."""

import math

import pytest
import torch
from torch import Tensor

from server.evidence.attacks.rmia import rmia
from server.evidence.attacks.shadows import Answers, Shadow, shadow_attack, shadows
from server.evidence.attacks.signals import (
    confidence,
    negative_entropy,
    negative_modified_entropy,
)
from server.evidence.attacks.success import (
    Z,
    advantage,
    area,
    success,
    true_positives,
    wilson,
)
from server.evidence.attacks.threshold import loss_threshold
from server.evidence.attacks.which_class import which_classes


def t(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


# ---- success -------------------------------------------------------------------------------------


def test_the_area_is_the_share_of_pairs_that_a_member_wins_and_ties_are_half_a_win() -> None:
    # 2 beats 1 and not 3; 4 beats both: 3 of 4 pairs.
    assert area(t(2, 4), t(1, 3)).value == 0.75
    # 1 ties with 1 (half) and loses to 3; 4 beats both: 2.5 of 4.
    assert area(t(1, 4), t(1, 3)).value == 0.625
    assert area(t(1, 3), t(2, 4)).value == 0.25


def test_the_interval_of_one_pair_is_wilson_s_of_one_trial() -> None:
    # With m = n = 1 the variance is a (1 - a): of 1 of 1, from 1 / (1 + z^2) to 1.
    found = area(t(2), t(1))
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(1 / (1 + Z**2))
    assert area(t(1), t(2)).high == pytest.approx(Z**2 / (1 + Z**2))


def test_the_ends_of_an_interval_solve_its_equation() -> None:
    found = area(t(2, 4, 5), t(1, 3))
    assert found.low < found.value < found.high
    for end in (found.low, found.high):
        # Hanley and McNeil, with Q1 = a / (2 - a) and Q2 = 2 a^2 / (1 + a).
        q1, q2 = end / (2 - end), 2 * end**2 / (1 + end)
        variance = (end * (1 - end) + 2 * (q1 - end**2) + (q2 - end**2)) / 6
        assert (end - found.value) ** 2 == pytest.approx(Z**2 * variance)


def test_equal_signals_give_one_half_and_more_examples_a_narrower_interval() -> None:
    few, many = area(torch.zeros(5), torch.zeros(5)), area(torch.zeros(500), torch.zeros(500))
    assert few.value == many.value == 0.5
    assert few.low < many.low < 0.5 < many.high < few.high


def test_the_rate_of_members_above_the_highest_others_but_one_in_a_hundred() -> None:
    others = torch.arange(100.0)  # at 1 % one of them, 99, may be above: the threshold is 98
    found = true_positives(t(98, 98.5, 99, 200), others, 0.01)
    assert found is not None
    assert found.value == 0.75
    assert true_positives(t(98), others, 0.001) is None


def test_ties_with_the_threshold_are_no_alarm() -> None:
    # All others alike: none is above the threshold, nor is a member that looks like them.
    found = true_positives(t(1, 1, 2), torch.ones(100), 0.01)
    assert found is not None
    assert found.value == pytest.approx(1 / 3)


def test_wilson_s_interval() -> None:
    # Of 0 of 1: centre and half are both z^2 / 2 / (1 + z^2).
    assert (wilson(0, 1).low, wilson(0, 1).value) == (0.0, 0.0)
    assert wilson(0, 1).high == pytest.approx(Z**2 / (1 + Z**2))
    assert wilson(5, 10).low + wilson(5, 10).high == pytest.approx(1.0)


def test_success_has_the_area_and_both_rates() -> None:
    found = success(t(5000, -1), torch.arange(1000.0))
    assert found.auc.value == 0.5
    assert found.tpr_at_01_percent is not None
    assert found.tpr_at_01_percent.value == found.tpr_at_1_percent.value == 0.5  # type: ignore[union-attr]
    for members, others in ((t(), t(1)), (t(1), t()), (t(math.nan), t(1))):
        with pytest.raises(ValueError, match="at least one number"):
            success(members, others)


# ---- the loss threshold --------------------------------------------------------------------------


def test_the_loss_threshold_is_the_members_mean() -> None:
    # Mean 1: two of three members are at or below it, one of two others is.
    assert loss_threshold(t(0, 1, 2), t(0.5, 3)) == pytest.approx(2 / 3 - 1 / 2)
    assert advantage([True], [False]) == 1.0


# ---- signals -------------------------------------------------------------------------------------

LOGS = torch.tensor([[0.75, 0.25], [0.5, 0.5], [1.0, 0.0]], dtype=torch.float64).log()
LABELS = torch.tensor([0, 1, 1])


def test_confidence_is_the_true_class_s() -> None:
    assert confidence(LOGS, LABELS).exp().tolist() == pytest.approx([0.75, 0.5, 0.0])


def test_entropy_does_not_look_at_the_label() -> None:
    # Of two equal halves log 2; of no doubt 0, right or wrong.
    found = -negative_entropy(LOGS)
    assert found.tolist() == pytest.approx(
        [-0.75 * math.log(0.75) - 0.25 * math.log(0.25), math.log(2), 0.0]
    )


def test_modified_entropy_tells_a_right_answer_from_a_wrong_one() -> None:
    # 0.75 of the right class: -0.25 log 0.75 twice, once for either class.
    # A wrong answer without doubt: (1 - 0) * -log 0, which is infinite.
    found = -negative_modified_entropy(LOGS, LABELS)
    assert found.tolist() == pytest.approx([-0.5 * math.log(0.75), math.log(2), math.inf])
    right = negative_modified_entropy(LOGS[2:], torch.tensor([0]))
    assert right.tolist() == [0.0]


# ---- RMIA ----------------------------------------------------------------------------------------


def test_rmia_counts_the_others_that_an_example_beats_by_gamma() -> None:
    # With a = 1, p(x) is the references' mean: 1/4 and 1/2, so the ratios are 4 and 1.
    references = torch.tensor([[0.125, 0.5], [0.375, 0.5]])
    # The others' ratios are 1/2, 1, 2 and 4: 4 is twice three of them, 1 is twice one.
    others = t(0.0625, 0.125, 0.25, 0.5)
    found = rmia(t(1.0, 0.5), references, others, torch.full((1, 4), 0.125), gamma=2, slope=1)
    assert found.tolist() == [0.75, 0.25]


def test_rmia_of_a_model_against_itself_tells_nothing() -> None:
    same = torch.rand(6, generator=torch.Generator().manual_seed(1))
    found = rmia(same, same[None], same, same[None], gamma=1, slope=1)
    assert found.tolist() == [1.0] * 6  # every ratio is 1: all are alike


def test_rmia_takes_a_mean_that_a_model_with_the_example_would_raise() -> None:
    # p(x) = (1.5 * 0.2 + 0.5) / 2 = 0.4: ratio 2; the other (1.5 * 1 + 0.5) / 2 = 1: ratio 1.
    found = rmia(t(0.8), t(0.2)[None], t(1.0), t(1.0)[None], gamma=2, slope=0.5)
    assert found.tolist() == [1.0]
    with pytest.raises(ValueError, match="references"):
        rmia(t(0.8), torch.zeros(0, 1), t(1.0), torch.zeros(0, 1))


# ---- shadow models -------------------------------------------------------------------------------


def sure_of_members(positions: Tensor, seed: int) -> "object":
    """Return a model that gives 0.99 to what it was trained on, and 0.6 to what it was not."""

    def answers(asked: Tensor) -> Answers:
        p = torch.where(torch.isin(asked, positions), 0.99, 0.6).double()
        return torch.stack([p, 1 - p], dim=1).log(), torch.zeros(len(asked), dtype=torch.int64)

    return answers


def test_each_shadow_is_trained_on_a_half_of_its_own() -> None:
    seen: list[tuple[Tensor, int]] = []

    def answers(positions: Tensor, seed: int) -> object:
        seen.append((positions, seed))
        return sure_of_members(positions, seed)

    found = shadows(10, answers, count=3)  # type: ignore[arg-type]
    assert [len(positions) for positions, _ in seen] == [5, 5, 5]
    assert [seed for _, seed in seen] == [0, 1, 2]
    assert len({tuple(sorted(positions.tolist())) for positions, _ in seen}) == 3
    for one in found:
        assert one.members[0][:, 0].exp().tolist() == pytest.approx([0.99] * 5)
        assert one.others[0][:, 0].exp().tolist() == pytest.approx([0.6] * 5)


def test_an_attack_model_learns_how_members_look_and_finds_those_of_another_model() -> None:
    found = shadows(100, sure_of_members, count=4)  # type: ignore[arg-type]
    ask = sure_of_members(torch.arange(5), 0)
    signal = shadow_attack(found, ask(torch.arange(10)))  # type: ignore[operator]
    assert area(signal[:5], signal[5:]).value == 1.0
    assert torch.equal(signal, shadow_attack(found, ask(torch.arange(10))))  # type: ignore[operator]


def test_shadows_that_look_alike_inside_and_out_tell_nothing() -> None:
    logs = torch.tensor([[0.7, 0.3]] * 20).log()
    part = (logs, torch.zeros(20, dtype=torch.int64))
    signal = shadow_attack([Shadow(part, part)], part)
    assert area(signal[:10], signal[10:]).value == 0.5
    with pytest.raises(ValueError, match="shadows"):
        shadow_attack([], part)


def test_the_class_whose_probability_fell_most_is_named() -> None:
    # Of two examples class 0 has 1/2, 1/4, 1/4 before; then class 2 has nothing to speak of.
    before = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]]).log()
    after = torch.tensor([[0.5, 0.4, 0.1], [0.7, 0.2, 0.1]]).log()
    assert which_classes(before, after, 1) == (2,)
    # The others did not fall: 0 by log(0.5 / 0.7) / 2 < 0, 1 by log(0.25 / 0.4 / 0.8) / 2 < 0.
    assert which_classes(before, after, 2) == (2,)
    assert which_classes(before, before, 2) == ()
    # A class that neither knows, for it went earlier, has not fallen.
    gone = torch.full((2, 1), -torch.inf)
    assert which_classes(torch.cat([before, gone], 1), torch.cat([after, gone], 1), 1) == (2,)
