"""What a request costs against retraining: one formula, for records and for benchmarks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:  # it brings torch along
    from strategies.method import Needs

AMORTISED: Final = (1, 10, 100)  # requests that one training serves


@dataclass(frozen=True)
class SpeedUp:
    """How much shorter a request is than retraining: alone, and amortised by number of requests."""

    request: float | None = None
    amortised: Mapping[str, float] = field(default_factory=dict)
    overhead_seconds: float | None = None


def speed_up(retrain: float, request: float, overhead: float) -> SpeedUp:
    """Return how much shorter a request is than retraining.

        amortised(q) = q * T_retrain / (T_overhead + q * T_request)

    Args:
        retrain: Wall seconds of retraining.
        request: Wall seconds of scoring, unlearning and recovery. Positive.
        overhead: Wall seconds that the method needs of training, added to it: distillation, or
            keeping updates.
    """
    return SpeedUp(
        request=retrain / request,
        amortised={str(q): q * retrain / (overhead + q * request) for q in AMORTISED},
        overhead_seconds=overhead,
    )


def overhead(needs: "Needs | None", *, distilling: float, keeping: float) -> float:
    """Return the wall seconds that training took longer for a method's sake.

    Args:
        needs: The method's; None for one that is not known any more.
        distilling: Seconds that distillation took of training.
        keeping: Seconds that keeping updates took of it.
    """
    if needs is None:
        return 0.0
    return (distilling if needs.synthetic_data else 0.0) + (keeping if needs.history else 0.0)
