"""What a federation's lists are made of: plans, and what is forgotten."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class Plan:
    """What a request to forget would take.

    Attributes:
        method: The method that would serve it.
        base_version: The version that it would start from.
        takes_up: The interrupted request that it would go on with; None for a new one.
        rounds: Of the method, those of its guard not counted.
        samples: Examples that the clients would see.
        bytes_up: From the clients.
        bytes_down: To the clients.
        seconds: Estimated wall seconds; None where training's own are not known.
        seconds_at_most: The same with all the rounds that may be added.
        retraining_seconds: What training again would take.
        warnings: What would be said before it starts.
        not_known: What the estimate leaves out.
        document: All of it, phase by phase, as `efface forget --dry-run --json` prints it.
    """

    method: str
    base_version: str
    takes_up: str | None
    rounds: int
    samples: int
    bytes_up: int
    bytes_down: int
    seconds: float | None
    seconds_at_most: float | None
    retraining_seconds: float | None
    warnings: tuple[str, ...]
    not_known: tuple[str, ...]
    document: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Plan:
        """Return the plan of a document of `efface forget --dry-run`."""
        return cls(
            method=document["method"],
            base_version=document["base_version"],
            takes_up=document["takes_up"],
            rounds=document["rounds"],
            samples=document["samples"],
            bytes_up=document["bytes"]["up"],
            bytes_down=document["bytes"]["down"],
            seconds=document["seconds"],
            seconds_at_most=document["seconds_at_most"],
            retraining_seconds=document["retraining_seconds"],
            warnings=tuple(document["warnings"]),
            not_known=tuple(document["not_known"]),
            document=document,
        )


@dataclass(frozen=True)
class Erased:
    """A class or a client that is forgotten now.

    Attributes:
        classes: The class's number, or nothing.
        clients: The client's name, or nothing.
        request: The request that forgot it.
        method: The method by which.
        since: When that request was done, UTC.
        in_service: The version that serves the federation now.
        pending: Clients that were offline and still have to make it last.
        known_by: Versions in service elsewhere that were trained on the same data with it.
        class_names: Of all classes, in order.
    """

    classes: tuple[int, ...]
    clients: tuple[str, ...]
    request: str
    method: str
    since: datetime | None
    in_service: str | None
    pending: tuple[str, ...]
    known_by: tuple[str, ...]
    class_names: tuple[str, ...]

    @classmethod
    def of(cls, listed: Mapping[str, Any]) -> Erased:
        """Return one entry of `efface forgotten`."""
        since = listed["since"]
        return cls(
            classes=tuple(listed["classes"]),
            clients=tuple(listed["clients"]),
            request=listed["request"],
            method=listed["method"],
            since=None if since is None else datetime.fromisoformat(since),
            in_service=listed["version"],
            pending=tuple(listed["pending"]),
            known_by=tuple(listed["known_by"]),
            class_names=tuple(listed["class_names"]),
        )
