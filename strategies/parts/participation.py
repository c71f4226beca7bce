"""Who takes part in a round that is open to all: as in training, a share of those with data left.

Holders of what is to be forgotten are not drawn but all asked: what one of them holds would stay.
"""

from typing import TypedDict

from strategies.federation import Federation


class Drawn(TypedDict):
    """Arguments of `strategies.rounds.base.Rounds`."""

    participants: list[str] | None
    fraction: float
    min_share: float
    over_select: float


def as_in_training(federation: Federation, *, synthetic: bool = False, back: bool = False) -> Drawn:
    """Return how nodes are drawn: the same share as in the rounds that trained the version.

    Where only some are, none is drawn whose data are all gone, or that never took part in training
    and so has no synthetic data: a round of such nodes alone would change nothing. All are asked
    for their counts then, and all must answer.

    Args:
        federation: Says what is forgotten, and how the version was trained.
        synthetic: Whether the round is on synthetic data.
        back: Whether what the request names is there again, as in relearning.
    """
    plan = federation.plan
    asks = plan.fraction < 1 and _anything_gone(federation)
    return {
        "participants": federation.keepers(synthetic=synthetic, back=back) if asks else None,
        "fraction": plan.fraction,
        "min_share": plan.min_share,
        "over_select": plan.over_select,
    }


def _anything_gone(federation: Federation) -> bool:
    erased = (federation.erased_clients, federation.ordinary().erased_classes)
    return federation.forget.level != "none" or any(erased)
