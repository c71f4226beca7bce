"""Who takes part in a round that is open to all: as in training, a share of those with data left.

Holders of what is to be forgotten are not drawn but all asked: what one of them holds would stay.
"""

from typing import TypedDict

from strategies.federation import Federation


class Drawn(TypedDict):
    """Arguments of `strategies.rounds.Rounds`."""

    participants: list[str] | None
    fraction: float
    min_share: float


def as_in_training(federation: Federation, *, back: bool = False) -> Drawn:
    """Return how nodes are drawn: the same share as in the rounds that trained the version.

    Where only some are, none is drawn whose data are all gone: a round of such nodes alone would
    change nothing. All are asked for their counts then, and all must answer.

    Args:
        federation: Says what is forgotten, and how the version was trained.
        back: Whether what the request names is there again, as in relearning.
    """
    plan = federation.plan
    gone = _gone(federation, back=back)
    chosen = plan.fraction < 1 and any(gone)
    return {
        "participants": sorted(with_data_left(federation, back=back)) if chosen else None,
        "fraction": plan.fraction,
        "min_share": plan.min_share,
    }


def with_data_left(federation: Federation, *, back: bool = False) -> set[str]:
    """Return the names of the nodes that have examples when the request is done.

    Args:
        federation: Says who holds what.
        back: Whether what the request names is there again, as in relearning.
    """
    clients, classes = _gone(federation, back=back)
    return {
        name
        for name, counts in federation.class_counts().items()
        if name not in clients and sum(n for c, n in enumerate(counts) if c not in classes) > 0
    }


def _gone(federation: Federation, *, back: bool) -> tuple[set[str], set[int]]:
    """Return the clients and the classes that nobody may train on."""
    forget = federation.forget
    clients = set(federation.erased_clients)
    classes = set(federation.ordinary().erased_classes)
    if back:
        return clients - set(forget.clients), classes - set(forget.classes)
    return clients | set(forget.clients), classes | set(forget.classes)
