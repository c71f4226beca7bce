"""The gate: what a finished answer may still tell, whatever handler made it.

It is the one place through which every answer goes, after the work and before the wire.
"""

from dataclasses import dataclass
from typing import Final

from torch import Tensor, nn

from client import wire
from client.law import WITHOUT_EXAMPLES, in_sums, trains
from client.messages import Common
from client.policy import SUMS, Policy

Metrics = dict[str, float | list[float]]


@dataclass(frozen=True)
class ReplyArrays:
    """Arrays that are not the model that came down: channel scores, slices of channels.

    Attributes:
        state: Arrays by name.
        like: Their agreed names, shapes and dtypes, from the model's layout and the settings alone.
    """

    state: dict[str, Tensor]
    like: dict[str, wire.Form]


Answer = tuple[Metrics, nn.Module | ReplyArrays | None]

# No counts of examples: whether an order was carried out, and what became of its images.
ORDERS: Final = frozenset({"applied", "destroyed"})


def gated(
    policy: Policy,
    kind: type[Common],
    settings: Common,
    metrics: Metrics,
    arrays: nn.Module | ReplyArrays | None,
    distinct: int,
) -> Answer:
    """Return what may go up of an answer.

    Args:
        policy: Of the node.
        kind: Of the message.
        settings: What it said.
        metrics: The answer's numbers, by name.
        arrays: Its arrays.
        distinct: Distinct examples that it was computed from, as the node noted them. A handler
            that takes examples in another way has none, and nothing goes up.

    Returns:
        Below the policy's `min_examples`, or `min_batch` of training: no arrays, and every number
        0. From a site that answers in sums alone, outside of one: whether there are enough
        examples, 1 or 0, for their number.
    """
    names = arrays if kind.message.arrays in WITHOUT_EXAMPLES else None
    least = policy.answers.min_examples
    # All of a step's examples are among them: with fewer than a batch there was no whole one.
    if distinct < (max(least, policy.answers.min_batch) if trains(kind) else least):
        return {name: _nothing(name, value) for name, value in metrics.items()}, names
    if not policy.is_real:
        return metrics, arrays
    shown = {name: _enough(name, value, least) for name, value in metrics.items()}
    if policy.answers.updates == SUMS and not in_sums(settings):
        return {name: _flag(name, value) for name, value in shown.items()}, names
    return shown, arrays


def _nothing(name: str, value: float | list[float]) -> float | list[float]:
    if name in ORDERS:
        return value
    return [0.0] * len(value) if isinstance(value, list) else 0.0


def _enough(name: str, value: float | list[float], least: int) -> float | list[float]:
    """Return a number of examples that is not a handful: those become 0."""
    counts = name.startswith("num-") and name != "num-steps"
    return 0.0 if counts and not isinstance(value, list) and value < least else value


def _flag(name: str, value: float | list[float]) -> float | list[float]:
    if name == "applied":
        return value
    return [0.0] * len(value) if isinstance(value, list) else float(value > 0)
