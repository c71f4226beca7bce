"""A round's answers as they come: as many wait for each other as memory allows, the rest is added.

Whether an answer is out of all proportion is known when all are there. So those with the longest
updates wait, and the shorter ones are taken into a running mean, which can give none back.
"""

import heapq
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from flwr.app import ArrayRecord

from client.wire import Form
from strategies.parts.running_mean import RunningMean

WAITING_BYTES: Final = 2**29  # of a round's answers that wait for each other
LEAST_WAITING: Final = 4  # of them, however large


@dataclass(frozen=True)
class Used:
    """The answer of a node that used some of its examples.

    Attributes:
        arrays: Its model, or what the message asks for in its place; empty once it is part of the
            round's running mean.
        examples: How many it used.
        metrics: All its numbers, by name.
    """

    arrays: ArrayRecord
    examples: float
    metrics: Mapping[str, Any]


def room_for(like: Mapping[str, Form] | None) -> float:
    """Return how many answers of a form may wait; any number of those without arrays."""
    size = sum(math.prod(f.shape) * np.dtype(f.dtype).itemsize for f in (like or {}).values())
    return max(LEAST_WAITING, WAITING_BYTES // size) if size else math.inf


@dataclass
class Gathered:
    """The good answers of a round so far.

    Attributes:
        room: How many wait at most.
        mean_of: Returns what of an answer, by the node's name, goes into the mean.
        answers: By name; of those that are added up already all but the arrays.
        added: The mean of these.
        in_mean: Their names.
    """

    room: float = math.inf
    mean_of: Callable[[str, Used], ArrayRecord] = lambda name, answer: answer.arrays
    answers: dict[str, Used] = field(default_factory=dict)
    added: RunningMean = field(default_factory=RunningMean)
    in_mean: set[str] = field(default_factory=set)
    _waiting: list[tuple[float, str]] = field(default_factory=list)  # heap

    def take(self, name: str, answer: Used, norm: float) -> None:
        """Take an answer; if too many wait, the one with the shortest update is added.

        Args:
            name: Of the node.
            answer: Its answer.
            norm: Length of its update, 0 where none is known.
        """
        self.answers[name] = answer
        if answer.examples > 0:
            heapq.heappush(self._waiting, (norm, name))
        while len(self._waiting) > self.room:
            _, shortest = heapq.heappop(self._waiting)
            chosen = self.answers[shortest]
            self.added.add(self.mean_of(shortest, chosen), chosen.examples)
            self.answers[shortest] = replace(chosen, arrays=ArrayRecord())
            self.in_mean.add(shortest)
