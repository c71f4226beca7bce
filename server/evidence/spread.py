"""How far a model may lie from retrained ones: limits from their spread, at a stated error rate.

K models retrained without the forget set, which differ by their seeds alone, give K values of each
measure. Was the result of a request made as they were, its value y is one more of the same kind,
and with their mean m and standard deviation s (of K - 1 degrees of freedom)

    t = (y - m) / (s sqrt(1 + 1/K))

follows Student's distribution of K - 1 degrees of freedom, where the values are normal: y is
compared with the others as a deleted ("leave-one-out") residual is. The limits are the ends of the
prediction interval

    m -+ t(1 - rate / T, K - 1) s sqrt(1 + 1/K)

where T is how many ends are looked at, over all measures. By Bonferroni's inequality an honest
retraining then lies beyond any of them in at most a share `rate` of cases, however the measures
hang together. Few models give wide limits: t(1 - 0.03/13, K - 1) is 14.7 at K = 3, 5.7 at K = 5,
3.7 at K = 10, so that more of them find more.

Values of real models are not normal. So limits are computed for a smaller rate than the one that is
stated: benchmarks/RESULTS.md has how many honest retrainings lie beyond, on digits and on MNIST.

Values are percentages, and near 0 and 100 those of retrained models are skewed: one in three may
have some of a class where the others have none. So the interval is also computed of
asin(sqrt(share)), which makes the variance of a share about the same everywhere, and turned back;
of both limits the wider counts. A difference of shares has the plain interval alone.

Sources: Hahn, "Factors for Calculating Two-Sided Prediction Intervals for Samples from a Normal
Distribution", JASA 1969, https://doi.org/10.1080/01621459.1969.10501007; Cook and Weisberg,
"Residuals and Influence in Regression", 1982, section 2.2.1; Dunn, "Multiple Comparisons Among
Means", JASA 1961, https://doi.org/10.1080/01621459.1961.10482090; Anscombe, "The Transformation of
Poisson, Binomial and Negative-Binomial Data", Biometrika 1948,
https://doi.org/10.1093/biomet/35.3-4.246.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

Name = TypeVar("Name", bound=str)  # of a measure
# From two values a spread has one degree of freedom: a limit of 70 spreads shows nothing.
ENOUGH: Final = 3
FALSE_ALARMS: Final = 0.05  # share of honest retrainings that a whole verdict may refuse
COMPUTED_FOR: Final = 0.03  # the share that would be refused if values were normal
# Points. Values that agree better than this, such as accuracies of 0.0 %, are taken to differ by
# it: that some retrained models agree to the last image does not say that the next one will.
LEAST_SPREAD: Final = 1.0
DIFFERENCES: Final = ("membership", "client-relearning")  # of two shares, which may lie below 0


@dataclass(frozen=True)
class Range:
    """Where a measure of an honestly retrained model lies, in points.

    Attributes:
        mean: Of the retrained models.
        spread: Their standard deviation, at least `LEAST_SPREAD`.
        count: How many there are.
        low: Least that it may be; None where only more says something.
        high: Most that it may be.
    """

    mean: float
    spread: float
    count: int
    low: float | None
    high: float


def ranges(
    values: Mapping[Name, Sequence[float]],
    upper_only: Sequence[str] = (),
    rate: float = COMPUTED_FOR,
) -> dict[Name, Range]:
    """Return the limits of several measures that are looked at together.

    Args:
        values: By measure, that of each retrained model, in percent; measures of fewer than
            `ENOUGH` are left out.
        upper_only: Measures of which only too much says something.
        rate: Share of honest retrainings, 0 to 1, that may lie beyond any limit.
    """
    known = {name: list(found) for name, found in values.items() if len(found) >= ENOUGH}
    ends = sum(1 if name in upper_only else 2 for name in known)
    return {
        name: _range(found, rate / ends, both=name not in upper_only, share=name not in DIFFERENCES)
        for name, found in known.items()
    }


def refused(
    values: Mapping[Name, Sequence[float]],
    upper_only: Sequence[str] = (),
    rate: float = COMPUTED_FOR,
) -> int | None:
    """Return how many of the retrained models the others would refuse: each left out once.

    Far more than a share `rate` says that the values are not normal, or one training went wrong.
    None where too few would be left.
    """
    count = max((len(found) for found in values.values()), default=0)
    if count <= ENOUGH:
        return None
    whole = {name: found for name, found in values.items() if len(found) == count}
    beyond = 0
    for left_out in range(count):
        rest = {n: [*found[:left_out], *found[left_out + 1 :]] for n, found in whole.items()}
        limits = ranges(rest, upper_only, rate)
        beyond += any(side(whole[name][left_out], limits[name]) for name in whole)
    return beyond


def side(value: float, limits: Range) -> int:
    """Return 1 above the limits, -1 below them, 0 within; what is no number is not within."""
    if value > limits.high or math.isnan(value):
        return 1
    return -1 if limits.low is not None and value < limits.low else 0


def _range(values: Sequence[float], rate: float, *, both: bool, share: bool) -> Range:
    count, mean = len(values), statistics.fmean(values)
    spread = max(statistics.stdev(values), LEAST_SPREAD)
    factor = _quantile(1 - rate, count - 1) * math.sqrt(1 + 1 / count)
    low, high = mean - factor * spread, mean + factor * spread
    if share:
        angles = [_angle(value) for value in values]
        middle, reach = statistics.fmean(angles), factor * statistics.stdev(angles)
        low, high = min(low, _percent(middle - reach)), max(high, _percent(middle + reach))
    return Range(mean, spread, count, low if both else None, high)


def _angle(percent: float) -> float:
    """Return asin(sqrt(share)), 0 to pi / 2."""
    return math.asin(math.sqrt(min(max(percent / 100.0, 0.0), 1.0)))


def _percent(angle: float) -> float:
    """Return the percentage of an angle; of one beyond the scale, its end."""
    return 100.0 * math.sin(min(max(angle, 0.0), math.pi / 2)) ** 2


def _quantile(share: float, freedom: int) -> float:
    """Return the value that a share of Student's distribution lies below."""
    from scipy.special import stdtrit  # only here: records are read without it

    return float(stdtrit(freedom, share))
