"""What a verification found of a request after it had ended, as pages and certificates say it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.evidence.verdict import State
from server.evidence.wording import STATES


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


def otherwise(own: str | None, found: Sequence[Mapping[str, Any]]) -> str | None:
    """Return what the newest verification says, where that is another verdict than a request's own.

    Args:
        own: State of the request's verdict.
        found: The verifications as JSON, oldest first.
    """
    known = [one for one in found if one["state"] is not None]
    if not known or known[-1]["state"] == own:
        return None
    one = known[-1]
    return f"Judged again since, by {one['request']}: {STATES[one['state']]}"


def sentences(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each verification, from its JSON."""
    return [
        f"Judged again at {one['finished']} by {one['request']}: {STATES[one['state']]}, beside "
        f"{_models(one['retrainings'])}, {_who(one)}."
        for one in found
    ]


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
