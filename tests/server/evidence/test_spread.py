"""Limits from the spread of retrained models: by hand, and how often an honest one is refused."""

import math

import numpy as np
import pytest

from server.evidence.spread import (
    COMPUTED_FOR,
    FALSE_ALARMS,
    LEAST_SPREAD,
    ranges,
    refused,
    side,
)


def test_three_values_give_the_limits_computed_by_hand() -> None:
    # 46, 50, 54: mean 50, standard deviation sqrt((16 + 0 + 16) / 2) = 4. Two ends share the rate:
    # 1 - 0.05/2 of Student's distribution of 2 degrees lies below 4.3027 (any printed table).
    found = ranges({"curve": [46.0, 50.0, 54.0]}, rate=0.05)["curve"]
    reach = 4.3027 * 4 * math.sqrt(1 + 1 / 3)
    assert (found.mean, found.spread, found.count) == (50.0, 4.0, 3)
    assert found.low == pytest.approx(50 - reach, abs=1e-3)
    assert found.high == pytest.approx(50 + reach, abs=1e-3)


def test_near_an_end_of_the_scale_the_wider_limit_is_that_of_angles() -> None:
    # 0, 0 and 25 %: angles 0, 0 and asin(1/2) = pi/6, mean pi/18, standard deviation
    # pi/6/sqrt(3). One end: 1 - 0.05 of Student's distribution of 2 degrees lies below 2.9200.
    found = ranges({"turned": [0.0, 0.0, 25.0]}, ["turned"], rate=0.05)["turned"]
    reach = 2.9200 * math.sqrt(1 + 1 / 3) * math.pi / 6 / math.sqrt(3)
    assert found.high == pytest.approx(100 * math.sin(math.pi / 18 + reach) ** 2, abs=0.01)
    # That of the percentages themselves, of standard deviation 25 / sqrt(3), is narrower.
    assert found.high > 25 / 3 + 2.9200 * math.sqrt(1 + 1 / 3) * 25 / math.sqrt(3)


def test_the_rate_is_shared_by_all_ends_that_are_looked_at() -> None:
    # Four measures of both sides and one of one: 9 ends; 1 - 0.045/9 = 0.995 of Student's
    # distribution of 4 degrees lies below 4.6041.
    values = {name: [50.0, 52.0, 54.0, 56.0, 58.0] for name in "abcde"}
    found = ranges(values, upper_only=["e"], rate=0.045)
    spread = math.sqrt((16 + 4 + 0 + 4 + 16) / 4)
    for limit in found.values():
        assert limit.high == pytest.approx(54 + 4.6041 * spread * math.sqrt(1.2), abs=1e-3)
    assert found["a"].low is not None
    assert found["e"].low is None


def test_of_two_values_there_are_no_limits() -> None:
    found = ranges({"few": [1.0, 2.0], "enough": [1.0, 2.0, 3.0]})
    assert list(found) == ["enough"]
    # Nor does the one that has none take a share of the rate.
    assert found == ranges({"enough": [1.0, 2.0, 3.0]})


def test_values_that_agree_are_taken_to_differ_by_a_point() -> None:
    found = ranges({"accuracy": [0.0] * 5}, rate=0.05)["accuracy"]
    assert found.spread == LEAST_SPREAD
    assert found.high == pytest.approx(2.7764 * LEAST_SPREAD * math.sqrt(1.2), abs=1e-3)


def test_a_limit_itself_is_within() -> None:
    limit = ranges({"curve": [10.0, 14.0, 18.0]})["curve"]
    assert limit.low is not None
    assert [side(value, limit) for value in (limit.low, 14.0, limit.high)] == [0, 0, 0]
    assert side(math.nextafter(limit.high, math.inf), limit) == 1
    assert side(math.nextafter(limit.low, -math.inf), limit) == -1
    upper = ranges({"curve": [10.0, 14.0, 18.0]}, ["curve"])["curve"]
    assert side(-1e9, upper) == 0


def test_a_model_that_the_others_would_refuse_is_counted() -> None:
    assert refused({"curve": [50.0, 51.0, 52.0, 53.0, 500.0]}) == 1
    assert refused({"curve": [50.0, 51.0, 52.0, 53.0, 54.0]}) == 0
    assert refused({"curve": [50.0, 51.0, 52.0]}) is None  # two would be left
    assert refused({}) is None


@pytest.mark.parametrize("count", [3, 5, 10])
@pytest.mark.parametrize("shared", [0.0, 0.9])  # share of the variance that all measures have
def test_honest_retrainings_are_refused_no_more_often_than_stated(
    count: int, shared: float
) -> None:
    """Six measures of normal models, one of one side, as a verdict on a class has."""
    draws = np.random.default_rng(7)
    times, names = 2000, [f"measure-{n}" for n in range(6)]
    alarms = 0
    for _ in range(times):
        common = draws.normal(size=(count + 1, 1))
        own = draws.normal(size=(count + 1, len(names)))
        models = 1000 * (math.sqrt(shared) * common + math.sqrt(1 - shared) * own)
        limits = ranges(
            {name: models[1:, n].tolist() for n, name in enumerate(names)}, upper_only=names[2:3]
        )
        alarms += any(side(models[0, n], limits[name]) for n, name in enumerate(names))
    # Three standard errors of 2000 draws at 3 % are 1.2 %.
    assert alarms / times <= COMPUTED_FOR + 0.012 < FALSE_ALARMS
    if not shared:  # nor far less often: the limits are no wider than they must be
        assert alarms / times >= COMPUTED_FOR - 0.012
