"""Scores by hand, and a relearning curve that treats all models alike."""

import math

import pytest
import torch
from torch import Tensor, nn

from client.learning.evaluation import Scores, evaluate, relearning_curve


class Fixed(nn.Module):
    """Returns its images as logits."""

    def forward(self, images: Tensor) -> Tensor:
        return images


LOGITS = torch.tensor(
    [
        [5.0, 0.0, 0.0],  # class 0, right
        [0.0, 5.0, 0.0],  # class 0, wrong
        [0.0, math.log(2), -math.inf],  # class 1, right, p = 2/3
        [0.0, 0.0, -math.inf],  # class 1, a tie, p = 1/2: the first index wins, wrong
    ]
)
LABELS = torch.tensor([0, 0, 1, 1])


def scored(**more: int) -> Scores:
    return evaluate(Fixed(), lambda batch: (LOGITS[batch], LABELS[batch]), 4, 3, **more)


def test_a_score_of_a_half_or_more_counts_as_right() -> None:
    given = torch.tensor([0.0, 0.49, 0.5, 1.0])
    scores = evaluate(
        Fixed(),
        lambda batch: (given[batch, None], LABELS[batch]),
        4,
        1,
        loss=lambda outputs, targets: outputs[:, 0],
        score=lambda outputs, targets: outputs[:, 0],
    )
    assert (scores.count.tolist(), scores.correct.tolist()) == ([4], [2])


@pytest.mark.parametrize("batch_size", [1, 3, 500])
def test_sums_by_class_by_hand_whatever_the_batches(batch_size: int) -> None:
    scores = scored(batch_size=batch_size)
    assert scores.count.tolist() == [2, 2, 0]
    assert scores.correct.tolist() == [1, 1, 0]
    # Class 0: ln(1 + 2 e^-5) right, that + 5 wrong. Class 1: -ln(2/3) - ln(1/2) = ln 3.
    zero = 2 * math.log(1 + 2 * math.exp(-5)) + 5
    assert scores.loss.tolist() == pytest.approx([zero, math.log(3), 0.0])
    assert scores.loss.dtype == torch.float64


def test_accuracy_over_any_classes_and_none_without_examples() -> None:
    scores = scored()
    assert scores.accuracy() == 50.0
    assert scores.accuracy([0]) == 50.0
    assert scores.accuracy([2]) is None
    assert scores.accuracy([]) is None
    assert scores.mean_loss() == pytest.approx(float(scores.loss.sum()) / 4)
    empty = evaluate(Fixed(), lambda batch: (LOGITS[batch], LABELS[batch]), 0, 3)
    assert (empty.accuracy(), empty.mean_loss()) == (None, None)


def test_scores_of_two_nodes_add_up() -> None:
    both = scored() + scored()
    assert both.count.tolist() == [4, 4, 0]
    assert both.accuracy() == scored().accuracy()
    assert both.mean_loss() == pytest.approx(scored().mean_loss())


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_leaves_mode_and_statistics_as_they_were(training: bool) -> None:
    model = nn.Sequential(nn.BatchNorm1d(3)).train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, lambda batch: (LOGITS[:2][batch], LABELS[:2][batch]), 2, 3)
    assert model.training is training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# ---- relearning ---------------------------------------------------------------------------------


def curve(model: nn.Module, steps: list[int], asked: list[list[int]]) -> list[float]:
    images = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))

    def pick(batch: Tensor) -> tuple[Tensor, Tensor]:
        asked.append(batch.tolist())
        return images[batch], batch % 2

    seeded = torch.Generator().manual_seed(5)
    return relearning_curve(
        model, pick, 10, lambda m: float(len(asked)),
        steps=steps, lr=0.1, batch_size=4, generator=seeded,
    )  # fmt: skip


def linear(seed: int, *, layers: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(*[nn.Linear(4, 4) for _ in range(layers)])


def test_the_curve_is_measured_after_each_number_of_steps() -> None:
    asked: list[list[int]] = []
    # The measure returns the steps taken so far.
    assert curve(linear(0), [2, 3, 7], asked) == [2.0, 3.0, 7.0]
    # 10 images in batches of 4: 4, 4, 2 in an epoch.
    assert [len(batch) for batch in asked] == [4, 4, 2, 4, 4, 2, 4]


def test_the_order_of_the_images_does_not_depend_on_the_model_or_the_stops() -> None:
    orders: list[list[list[int]]] = [[], [], []]
    curve(linear(0), [2, 3, 7], orders[0])
    curve(linear(1, layers=3), [2, 3, 7], orders[1])
    curve(linear(2), [7], orders[2])
    assert orders[0] == orders[1] == orders[2]


def test_a_step_of_the_curve_is_a_step_of_sgd() -> None:
    model, expected = linear(0), linear(0)
    asked: list[list[int]] = []
    curve(model, [1], asked)
    images = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))[asked[0]]
    optimiser = torch.optim.SGD(expected.parameters(), lr=0.1)
    nn.functional.cross_entropy(expected(images), torch.tensor(asked[0]) % 2).backward()
    optimiser.step()
    for mine, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(mine, theirs)
