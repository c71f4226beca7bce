"""How well a signal tells members from others: area under the ROC curve, and rates at few alarms.

Carlini et al., "Membership Inference Attacks From First Principles", S&P 2022,
https://arxiv.org/abs/2112.03570: an attack that finds a few members for sure is worse than one that
is a little right about all, so the true-positive rate at a low false-positive rate is told as well.

Intervals are of 95 %. That of the area solves (area - seen)^2 = z^2 variance(area), with the
variance of Hanley and McNeil (1982), https://doi.org/10.1148/radiology.143.1.7063747, at the end
that is sought, as Newcombe (2006) advises, https://doi.org/10.1002/sim.2324: it does not collapse
where members and others are wholly apart. That of a rate is Wilson's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

Z: Final = 1.959964  # of a normal distribution, 2.5 % lie above
LOW_RATES: Final = (0.001, 0.01)  # false alarms


@dataclass(frozen=True)
class Rate:
    """A share from 0 to 1, and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Success:
    """How well an attack did.

    Attributes:
        auc: How likely a member's signal is above another's; 0.5 tells nothing.
        tpr_at_01_percent: Share of members found where 0.1 % of the others are taken for members;
            None with fewer than 1,000 others, which cannot show so low a rate.
        tpr_at_1_percent: At 1 %; None with fewer than 100.
    """

    auc: Rate
    tpr_at_01_percent: Rate | None
    tpr_at_1_percent: Rate | None


def success(members: Tensor, others: Tensor) -> Success:
    """Return how well a signal tells members from others.

    Args:
        members: The signal of each, higher for members; `(m,)`, at least one.
        others: `(n,)`, at least one.

    Raises:
        ValueError: If either is empty or holds a NaN.
    """
    for name, signal in (("members", members), ("others", others)):
        if not len(signal) or signal.isnan().any():
            raise ValueError(f"{name} must be at least one number each, got {signal}")
    low, high = (true_positives(members, others, rate) for rate in LOW_RATES)
    return Success(area(members, others), low, high)


def area(members: Tensor, others: Tensor) -> Rate:
    """Return the area under the ROC curve; ties count half."""
    ordered = others.double().sort().values
    asked = members.double()
    below = torch.searchsorted(ordered, asked, right=False)
    not_above = torch.searchsorted(ordered, asked, right=True)
    m, n = len(members), len(others)
    seen = float((below + not_above).sum()) / (2 * m * n)
    return Rate(seen, _end(seen, 0.0, m, n), _end(seen, 1.0, m, n))


def _end(seen: float, bound: float, m: int, n: int) -> float:
    """Return where the interval ends between what was seen and a bound, by bisection."""
    inside, outside = seen, bound
    for _ in range(60):
        middle = (inside + outside) / 2
        if (middle - seen) ** 2 <= Z**2 * _variance(middle, m, n):
            inside = middle
        else:
            outside = middle
    return inside


def _variance(a: float, m: int, n: int) -> float:
    spread = 1 + (m - 1) * (1 - a) / (2 - a) + (n - 1) * a / (1 + a)
    return a * (1 - a) * spread / (m * n)


def true_positives(members: Tensor, others: Tensor, false_rate: float) -> Rate | None:
    """Return the share of members above a threshold that at most a share of the others is above.

    Returns:
        The share; None where the others are too few for one of them to be so small a share.
    """
    allowed = math.floor(false_rate * len(others) + 1e-9)  # 0.01 * 100 is a little below 1
    if allowed < 1:
        return None
    threshold = others.double().sort(descending=True).values[allowed]
    return wilson(int((members.double() > threshold).sum()), len(members))


def wilson(count: int, of: int) -> Rate:
    """Return a share and Wilson's interval."""
    share = count / of
    centre = (share + Z**2 / (2 * of)) / (1 + Z**2 / of)
    half = Z / (1 + Z**2 / of) * math.sqrt(share * (1 - share) / of + Z**2 / (4 * of**2))
    return Rate(share, max(0.0, centre - half), min(1.0, centre + half))


def advantage(members: Sequence[bool] | Tensor, others: Sequence[bool] | Tensor) -> float:
    """Return true-positive less false-positive rate of yes-or-no answers, from -1 to 1.

    Yeom et al. 2018, definition 4: what an attacker gains over guessing.
    """
    if not len(members) or not len(others):
        raise ValueError("members and others must be at least one each, got none")
    return sum(map(bool, members)) / len(members) - sum(map(bool, others)) / len(others)
