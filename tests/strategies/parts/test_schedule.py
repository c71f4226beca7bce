"""The learning rate of rounds falls along half a cosine."""

import pytest

from strategies.parts.schedule import Cosine


def test_five_rounds_by_hand() -> None:
    # 0.006 + 0.024 (1 + cos a) / 2 at 0, 45, 90, 135 and 180 degrees; cos 45 is 0.7071068.
    found = [Cosine(0.03, 0.006, 5)(number) for number in range(1, 6)]
    assert found == pytest.approx([0.03, 0.0264853, 0.018, 0.0095147, 0.006], abs=1e-7)
    assert (found[0], found[-1]) == (0.03, 0.006)


def test_a_single_round_has_the_first_rate() -> None:
    assert Cosine(0.03, 0.006, 1)(1) == 0.03


def test_a_rate_that_ends_where_it_begins_stays() -> None:
    assert [Cosine(0.1, 0.1, 3)(number) for number in (1, 2, 3)] == [0.1, 0.1, 0.1]
