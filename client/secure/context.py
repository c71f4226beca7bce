"""What one sum is about. Every key of it is derived from this: another context, other masks."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from client.errors import AggregationRefused
from client.settings import Rule, Settings, between, list_of, name, setting, text

PREFIX: Final = "secure-"
MIN_NODES: Final = 3  # a sum of two is, to each of them, the other's answer
MAX_NODES: Final = 10_000

_digest: Final = Rule(
    lambda v: len(v) == 64 and set(v) <= set("0123456789abcdef"), "be a SHA-256 in hexadecimal"
)
_attempt: Final = Rule(
    lambda v: len(v) == 32 and set(v) <= set("0123456789abcdef"), "be 32 hexadecimal digits"
)
_names: Final = list_of(str, "names of nodes", name().holds)


def threshold(num_nodes: int) -> int:
    """Return t, the least number of nodes that must be left: more than two thirds of all.

    Two sets of t nodes share more than a third of all, so that a coordinator that shows different
    survivors to different nodes needs more than a third of them on its side.
    """
    return math.floor(2 * num_nodes / 3) + 1


@dataclass(frozen=True, kw_only=True)
class Secured(Settings):
    """What a message says of the sum that its answer goes into.

    Attributes:
        attempt: Drawn anew for every try.
        cohort: Names of all nodes that are asked, in order.
        work: Name of the message that is answered in sums.
        settings: Of that message, without what tells one node from another, as SHA-256.
        model: Of the arrays that it brings, as SHA-256.
        clip: Longest update of the model that goes up, as L2 norm; 0 for any.
        senders: With the work itself: peers that sent shares of their secrets to this node.
        sealed: What each of them sent, in the same order.
    """

    attempt: str = setting(_attempt)
    cohort: list[str] = setting(_names)
    work: str = setting(text())
    settings: str = setting(_digest)
    model: str = setting(_digest)
    clip: float = setting(between(0.0, 1e9), 0.0)
    senders: list[str] = setting(_names, [])
    sealed: list[bytes] = setting(list_of(bytes, "sealed shares"), [])


@dataclass(frozen=True)
class Context:
    """What one sum is about: the same at all of its nodes, or their masks do not cancel.

    Attributes:
        request, phase, number: Of the round, as the message says them.
        attempt: Drawn anew for every try.
        work: Name of the message that is answered.
        settings: Of the message, as SHA-256.
        model: Of the arrays that come down, as SHA-256.
        cohort: Names of the nodes asked, in order.
        clip: As in `Secured`.
    """

    request: str
    phase: str
    number: int
    attempt: str
    work: str
    settings: str
    model: str
    cohort: tuple[str, ...]
    clip: float = 0.0

    @classmethod
    def of(cls, request: str, phase: str, number: int, told: Secured) -> "Context":
        """Return the context that a message tells.

        Raises:
            AggregationRefused: If its cohort is none.
        """
        cohort = tuple(told.cohort)
        if list(cohort) != sorted(set(cohort)):
            raise AggregationRefused("cohort must be different names in order, got others")
        if not MIN_NODES <= len(cohort) <= MAX_NODES:
            raise AggregationRefused(
                f"cohort must be of {MIN_NODES} to {MAX_NODES} nodes, got {len(cohort)}: a sum of "
                "fewer is an answer of one to another"
            )
        return cls(
            request,
            phase,
            number,
            told.attempt,
            told.work,
            told.settings,
            told.model,
            cohort,
            told.clip,
        )

    @property
    def threshold(self) -> int:
        """t, of this cohort."""
        return threshold(len(self.cohort))

    @property
    def digest(self) -> bytes:
        """The hash of all of it, 32 bytes."""
        return hashlib.sha256(b"efface sums 1\0" + _canonical(asdict(self))).digest()

    @property
    def weights(self) -> str:
        """What two sums have in common if their difference may tell of one node.

        The arrays that came down; where none did, these within one request.
        """
        if self.model != digest_of_arrays({}):
            return self.model
        return hashlib.sha256(_canonical([self.model, self.request])).hexdigest()

    def among(self, names: Iterable[str], what: str) -> tuple[str, ...]:
        """Return names in order, if they are t or more different ones of the cohort.

        Args:
            names: Of nodes.
            what: What they are, for the error.

        Raises:
            AggregationRefused: If not.
        """
        given = list(names)
        found = tuple(sorted(set(given)))
        if len(found) != len(given) or not set(found) <= set(self.cohort):
            raise AggregationRefused(f"{what} must be different nodes of the cohort, got others")
        if len(found) < self.threshold:
            raise AggregationRefused(
                f"{what} must be at least {self.threshold} of {len(self.cohort)} nodes, got "
                f"{len(found)}: with fewer a sum can be taken apart"
            )
        return found


def digest_of_settings(config: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a message's settings, without the node's name and the sum's own."""
    shared = {
        key: value
        for key, value in config.items()
        if key != "client" and not key.startswith(PREFIX)
    }
    return hashlib.sha256(_canonical(shared)).hexdigest()


def digest_of_arrays(arrays: Mapping[str, Any]) -> str:
    """Return the SHA-256 of Flower arrays: names, forms and content, in their order."""
    found = hashlib.sha256()
    for key, array in arrays.items():
        found.update(_canonical([key, array.dtype, list(array.shape), len(array.data)]))
        found.update(array.data)
    return found.hexdigest()


def lasting(told: Secured) -> Secured:
    """Return what all messages of one sum say alike: no shares."""
    return replace(told, senders=[], sealed=[])


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, default=_hex).encode() + b"\0"


def _hex(value: object) -> str:
    if isinstance(value, bytes):
        return value.hex()
    raise TypeError(f"value must be one of a ConfigRecord, got {type(value).__name__}")
