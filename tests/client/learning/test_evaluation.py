"""Scores by hand, and a relearning curve that treats all models alike."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from client.learning.evaluation import Scores, evaluate, relearning_curve
from server.evidence.measures import verdict


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


# ---- the verdict on a client --------------------------------------------------------------------


def client_record(
    original: float, retrained: float | None, result: float, *, retain: float = 70.0, **more: Any
) -> dict[str, Any]:
    """Return a record with these accuracies on the client's data; Retrained retains 70 %."""

    def scores(forget: float, retain: float = 70.0) -> dict[str, Any]:
        numbers = {"forget_accuracy": forget, "retain_accuracy": retain}
        return {**numbers, "per_class_accuracy": [retain] * 3, "relearning_curve": None}

    document = {
        "forget": {"level": "client", "classes": [], "clients": ["client-0"]},
        "erased_before": [],
        "original": scores(original),
        "retrained": None if retrained is None else scores(retrained),
        "recovered": scores(result, retain),
    }
    return {**document, **more}


def judged(record: dict[str, Any]) -> dict[str, Any]:
    return verdict(record, max_forget_accuracy=5.0, max_relearning_gap=15.0)


def test_a_clients_verdict_rests_on_accuracy_alone_and_misses_no_curve() -> None:
    assert judged(client_record(90.0, 60.0, 65.0)) == {
        "passed": True,
        "reasons": [
            "accuracy on the client's held-out data 65.0 %, at most Retrained's + 5 points"
        ],
        "not_measured": [],
    }
    assert judged(client_record(90.0, 60.0, 65.1))["passed"] is False
    assert judged(client_record(90.0, None, 65.0)) == {
        "passed": None,
        "reasons": [],
        "not_measured": ["forget accuracy against Retrained (--compare retrain)"],
    }


@pytest.mark.parametrize("result", [60.0, 66.0])  # within the tolerance, and above it
def test_where_original_knows_a_clients_data_no_better_the_verdict_is_open(result: float) -> None:
    assert judged(client_record(65.0, 60.0, result)) == {  # 65 = 60 + 5: just within
        "passed": None,
        "reasons": [
            "Original knows this client's data no better than Retrained: accuracy cannot tell"
        ],
        "not_measured": [],
    }
    assert judged(client_record(65.1, 60.0, result))["passed"] == (result == 60.0)


def test_a_class_that_is_back_fails_a_client_of_whom_accuracy_cannot_tell() -> None:
    assert judged(client_record(60.0, 60.0, 60.0, erased_before=[2]))["passed"] is False


@pytest.mark.parametrize(("original", "passed"), [(90.0, True), (60.0, None)])
def test_accuracy_lost_on_the_rest_is_remarked_and_decides_nothing(
    original: float, passed: bool | None
) -> None:
    found = judged(client_record(original, 60.0, 60.0, retain=67.9))
    assert found["passed"] is passed
    assert found["reasons"][1:] == [
        "remark: retain accuracy 67.9 % is 2.1 points below Retrained's, more than 2"
    ]
    kept = judged(client_record(original, 60.0, 60.0, retain=68.0))
    assert len(kept["reasons"]) == 1
