"""What a verification found of a request after it had ended, as pages and certificates say it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from server.evidence.verdict import State
from server.evidence.wording import STATES

WORST_FIRST: Final = ("failed", "not-shown", "passed")


@dataclass(frozen=True)
class Later:
    """One verification of a request, by the coordinator itself.

    Attributes:
        request: The verification's own id.
        finished: When it ended, ISO 8601.
        asked_by: Who asked for it.
        state: Its verdict's; None if its record does not verify any more.
        retrainings: How many retrained models it was compared with.
        false_alarms: As in a verdict; None where the limits were set by hand.
        limits: Where its limits come from: "by-hand", or "by-spread" of the retrained models.
            None if its record does not verify any more.
        asked_clients: Whether clients measured anything anew.
        record_sha256: Of its record, as the ledger seals it.
    """

    request: str
    finished: str | None = None
    asked_by: str = ""
    state: State | None = None
    retrainings: int | None = None
    false_alarms: float | None = None
    asked_clients: bool = False
    record_sha256: str | None = None
    limits: Literal["by-hand", "by-spread"] | None = None


def otherwise(
    own: str | None, found: Sequence[Mapping[str, Any]], retrainings: int | None = None
) -> str | None:
    """Return what verifications say, where that is another verdict than a request's own.

    One takes back what was judged before it, by the request itself or another verification, with at
    most as many retrained models: more of them tell more. One that shows nothing without any is
    left aside where another had some: retrained models go when what they know is forgotten later,
    which is no evidence against what they showed. Of the verdicts that are left the worst
    is said, of equal ones the newest; nothing if that is the request's own.

    Args:
        own: State of the request's verdict.
        found: The verifications as JSON, oldest first.
        retrainings: How many retrained models the request's verdict was compared with.
    """
    left: list[tuple[str | None, str, int]] = [] if own is None else [(None, own, retrainings or 0)]
    for one in found:
        if one["state"] is not None:
            count = one["retrainings"] or 0
            if one["state"] == "not-shown" and not count and any(other[2] for other in left):
                continue
            left = [other for other in left if other[2] > count]
            left.append((one["request"], one["state"], count))
    if not left:
        return None
    worst = min(WORST_FIRST.index(state) for _, state, _ in left)
    request, state, _ = [one for one in left if WORST_FIRST.index(one[1]) == worst][-1]
    if request is None or state == own:
        return None
    return f"Judged again since, by {request}: {STATES[state]}"


def sentences(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each verification, from its JSON."""
    return [
        f"Judged again at {one['finished']} by {one['request']}: "
        + (
            "its record does not verify any more."
            if one["state"] is None
            else f"{STATES[one['state']]}, beside {_models(one['retrainings'])}, "
            f"{_limits(one)}, {_who(one)}."
        )
        for one in found
    ]


def _limits(one: Mapping[str, Any]) -> str:
    """Return where the limits come from."""
    if one["false_alarms"] is None:
        return "limits set by hand"
    return f"limits by the spread of these {one['retrainings']}"


def _models(count: int | None) -> str:
    if not count:
        return "no retrained model"
    return "1 retrained model" if count == 1 else f"{count} retrained models"


def _who(one: Mapping[str, Any]) -> str:
    return (
        "measured by the clients as well"
        if one["asked_clients"]
        else "measured by the coordinator alone"
    )
