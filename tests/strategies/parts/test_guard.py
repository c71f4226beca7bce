"""Recovery that is watched: rounds are rolled back, the holders ascend again, or it gives up."""

from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord

from client.steps.ascent import Ascend
from client.steps.recovery import Descend
from strategies.federation import Accuracies
from strategies.parts.guard import (
    MAX_MORE_ROUNDS,
    MAX_ROLLBACKS,
    CreptBack,
    guarded_recovery,
    retained,
)
from strategies.rounds.base import AscentRounds, RecoveryRounds
from tests.messages import told


def model(value: float) -> ArrayRecord:
    return ArrayRecord({"w": Array(np.array([value]))})


def value(of: ArrayRecord) -> float:
    return float(of["w"].numpy()[0])


class Fake:
    """A federation whose model is one number: recovery adds 1, an ascent takes 10 away.

    `forgotten` and `retained` are the accuracies it measures, one after another.
    """

    def __init__(
        self, forgotten: list[float | None], retained: list[float | None] | None = None
    ) -> None:
        self.forgotten = forgotten
        self.retained = retained or []
        self.done: list[tuple[str, float]] = []
        self.measured: list[float] = []
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def run(self, phase: str, rounds: Any, of: ArrayRecord, *, num_rounds: int) -> ArrayRecord:
        assert num_rounds == 1
        assert isinstance(rounds, AscentRounds if phase == "unlearn" else RecoveryRounds)
        self.done.append((phase, value(of)))
        return model(value(of) + (1 if phase == "recover" else -10))

    def accuracies(self, of: ArrayRecord) -> Accuracies:
        self.measured.append(value(of))
        retain = self.retained.pop(0) if self.retained else None
        return Accuracies(self.forgotten.pop(0), retain)


def recover(
    fake: Any, *, num_rounds: int, threshold: float = 1.0, wanted: float | None = None
) -> float:
    ascent = AscentRounds(told(Ascend, lr=0.1))
    recovery = RecoveryRounds(told(Descend, lr=0.1))
    found = guarded_recovery(
        fake,
        model(0),
        lambda _: ascent,
        recovery,
        num_rounds=num_rounds,
        threshold=threshold,
        wanted=wanted,
    )
    return value(found)


def test_rounds_that_hold_count() -> None:
    fake = Fake([0.0, 1.0])  # at the threshold is still accepted
    assert recover(fake, num_rounds=2) == 2
    assert fake.done == [("recover", 0), ("recover", 1)]
    assert fake.measured == [1, 2]


def test_a_round_that_lets_it_creep_back_is_rolled_back_and_tried_again_after_another_ascent() -> (
    None
):
    fake = Fake([0.0, 7.0, 0.5])
    # 0 -> 1 holds; 1 -> 2 crept back: from 1 ascend to -9, then -9 -> -8 holds.
    assert recover(fake, num_rounds=2) == -8
    assert fake.done == [("recover", 0), ("recover", 1), ("unlearn", 1), ("recover", -9)]


def test_it_gives_up_after_too_many_rollbacks_and_says_what_to_change() -> None:
    fake = Fake([12.5] * 9)
    with pytest.raises(
        CreptBack, match=r"at most 1 %, got 12\.5 % after 6 rollbacks; ascend longer \(unlearn-epo"
    ):
        recover(fake, num_rounds=1)
    phases = [phase for phase, _ in fake.done]
    assert phases == ["recover", "unlearn"] * MAX_ROLLBACKS + ["recover"]


def test_without_held_out_forget_data_nothing_is_rolled_back() -> None:
    assert recover(Fake([None, None]), num_rounds=2) == 2


def test_nothing_is_measured_where_nothing_is_watched() -> None:
    fake = Fake([])
    assert recover(fake, num_rounds=3, threshold=100.0) == 3
    assert fake.measured == []


def test_no_rounds_are_no_rounds() -> None:
    fake = Fake([])
    assert recover(fake, num_rounds=0) == 0
    assert fake.done == []


def test_recovery_goes_on_until_the_rest_is_back() -> None:
    fake = Fake([0.0] * 9, [60.0, 80.0, 91.0, 95.0])
    assert recover(fake, num_rounds=1, wanted=90.0) == 3


def test_recovery_does_not_go_on_for_ever() -> None:
    fake = Fake([0.0] * 99, [60.0 + n / 10 for n in range(99)])
    assert recover(fake, num_rounds=2, wanted=90.0) == 2 + MAX_MORE_ROUNDS


def test_a_round_more_that_lets_it_creep_back_is_left_out() -> None:
    fake = Fake([0.0, 0.0, 7.0], [60.0, 61.0, 62.0])
    # Rounds 1 and 2 hold; the third brings the forgotten back: the model before it is the answer.
    assert recover(fake, num_rounds=1, wanted=90.0) == 2
    assert [phase for phase, _ in fake.done] == ["recover"] * 3
    assert fake.said == [
        "recover: the last round brought the forgotten back: left out",
        "recover: retain accuracy ends at 61.0 % of held-out data, 90.0 was the aim",
    ]


def test_rounds_more_end_when_two_in_a_row_brought_nothing_with_the_best_model() -> None:
    fake = Fake([0.0] * 9, [80.0, 80.0, 79.0, 81.0, 81.0, 80.9, 99.0])
    # The second of the two that must be may be no better; then the fourth is, after one that is
    # not, and the two that follow are not.
    assert recover(fake, num_rounds=2, wanted=95.0) == 4
    assert fake.measured == [1, 2, 3, 4, 5, 6]
    assert fake.said == [
        "recover: the last 2 rounds brought no more accuracy: left out",
        "recover: retain accuracy ends at 81.0 % of held-out data, 95.0 was the aim",
    ]


def test_one_round_in_vain_is_left_out_where_no_more_may_follow() -> None:
    retained = [80.0, 81.0, 82.0, 83.0, 84.0, 85.0, 84.5]
    fake = Fake([0.0] * 7, retained)
    assert recover(fake, num_rounds=1, wanted=95.0) == MAX_MORE_ROUNDS
    assert fake.said[0] == "recover: the last round brought no more accuracy: left out"


def test_a_round_in_vain_and_one_that_lets_it_creep_back_are_told_apart() -> None:
    fake = Fake([0.0, 0.0, 7.0], [60.0, 59.0, 62.0])
    assert recover(fake, num_rounds=1, wanted=90.0) == 1
    assert fake.said == [
        "recover: the last round brought the forgotten back: left out",
        "recover: the round before it brought no more accuracy: left out",
        "recover: retain accuracy ends at 60.0 % of held-out data, 90.0 was the aim",
    ]


def test_a_round_more_after_one_in_vain_may_be_what_was_wanted() -> None:
    fake = Fake([0.0] * 3, [80.0, 79.0, 96.0])
    assert recover(fake, num_rounds=1, wanted=95.0) == 3
    assert fake.said == []


def test_what_recovery_aims_at_is_the_accuracy_before_less_the_tolerance() -> None:
    fake: Any = Fake([None, None], [95.0, None])
    assert retained(fake, model(0), 3.0) == 92.0
    assert retained(fake, model(0), 3.0) is None  # nothing was held out
