"""What a simulated node is told of its data, and of those that it shares them with."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from client.settings import Rule, Settings, any_seed, at_least, setting, short_or_empty, text

PREFIX: Final = "sim-"
# A table's source holds two absolute paths and the names of columns.
_SOURCE: Final = Rule(lambda v: len(v) <= 2000, "be at most 2000 characters")


@dataclass(frozen=True, kw_only=True)
class Simulation(Settings):
    """How simulated nodes share a data set. A site with data of its own is not told this."""

    dataset: str = setting(_SOURCE)  # empty where the task itself knows it
    partition: str = setting(text(), "iid")
    num_clients: int = setting(at_least(1))
    max_samples: int = setting(at_least(0), 0)  # training images over all clients, 0 for all
    partition_seed: int = setting(any_seed(), 0)
    federation: str = setting(short_or_empty(), "")
    task: str = setting(short_or_empty(), "")  # a user's own; empty for the built-in one

    @property
    def population(self) -> str:
        """A short name for the simulated clients: their data, and how these are shared out."""
        parts = (
            self.dataset,
            self.partition,
            self.num_clients,
            self.max_samples,
            self.partition_seed,
            self.federation,
            *filter(None, [self.task]),
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]

    @classmethod
    def of_node(cls, config: Mapping[str, Any]) -> Self | None:
        """Return what a node's own operator says: a trial of real nodes on simulated shares.

        Args:
            config: The node config; `sim-dataset` and the like say what no message does.

        Returns:
            None if it says nothing of a simulation.
        """
        own = {key: value for key, value in config.items() if key.startswith(PREFIX)}
        return cls.parse(own, prefix=PREFIX) if own else None
