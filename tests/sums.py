"""Secure aggregation in memory: nodes and coordinator as functions, for tests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from client.errors import AggregationRefused
from client.keys import simulated_key
from client.secure import member
from client.secure.context import Context, digest_of_arrays
from client.secure.fixed_point import UInt64s
from client.secure.identity import Identity
from client.secure.keys import PublicKeys
from client.secure.member import Part
from strategies.rounds.unmasking import Course, unmask

STEPS = ("shares", "work", "confirm", "unmask")  # at which a node may drop out
NEVER = "never"


def context_of(names: Sequence[str], **more: object) -> Context:
    values: dict[str, object] = {
        "request": "r0001",
        "phase": "train",
        "number": 1,
        "attempt": "0" * 32,
        "work": "train.fit",
        "settings": "1" * 64,
        "model": "2" * 64,
        "cohort": tuple(sorted(names)),
    }
    return Context(**{**values, **more})  # type: ignore[arg-type]


def identity_of(name: str) -> Identity:
    return Identity(
        name,
        simulated_key(name, "tests"),
        lambda peer: simulated_key(peer, "tests").public_key().public_bytes_raw(),
    )


@dataclass
class Played:
    """A sum as it went: what every node knows, and what the coordinator saw."""

    context: Context
    parts: dict[str, Part] = field(default_factory=dict)
    published: dict[str, PublicKeys] = field(default_factory=dict)
    sealed: dict[str, dict[str, bytes]] = field(default_factory=dict)
    commitments: dict[str, bytes] = field(default_factory=dict)
    masked: dict[str, UInt64s] = field(default_factory=dict)
    signatures: dict[str, bytes] = field(default_factory=dict)
    revealed: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def keys(self, names: Sequence[str]) -> None:
        for name in names:
            self.parts[name], self.published[name] = member.begin(self.context, identity_of(name))

    def shares(self, names: Sequence[str]) -> None:
        for name in names:
            self.parts[name], self.sealed[name], self.commitments[name] = member.share(
                self.parts[name], self.published, identity_of(name)
            )

    def work(self, names: Sequence[str], vectors: Mapping[str, UInt64s]) -> None:
        for name in names:
            sent = {other: own[name] for other, own in self.sealed.items() if other != name}
            self.parts[name] = member.receive(self.parts[name], sent)
            vector = vectors[name].copy()
            member.mask(self.parts[name], vector)
            self.masked[name] = vector

    def confirm(self, names: Sequence[str]) -> None:
        for name in names:
            self.parts[name], self.signatures[name] = member.confirm(
                self.parts[name], sorted(self.masked), identity_of(name)
            )

    def unmask(self, names: Sequence[str]) -> None:
        for name in names:
            self.revealed[name] = member.reveal(
                self.parts[name], self.signatures, identity_of(name)
            )

    def course(self) -> Course:
        return Course(
            self.context,
            dict(sorted(self.published.items())),
            self.commitments,
            sorted(self.masked),
            self.revealed,
        )

    def total(self) -> UInt64s:
        """Return the sum of the survivors' vectors, as the coordinator finds it."""
        total = np.sum(list(self.masked.values()), axis=0, dtype=np.uint64)
        unmask(total, self.course())
        return total


def play(
    vectors: Mapping[str, UInt64s], drops: Mapping[str, str] | None = None, **more: object
) -> Played:
    """Run a sum; each node answers until the step before the one it drops out at."""
    drops = drops or {}

    def there(step: str) -> list[str]:
        later = [NEVER, *STEPS[STEPS.index(step) + 1 :]]
        return sorted(name for name in vectors if drops.get(name, NEVER) in later)

    played = Played(context_of(list(vectors), **more))
    played.keys(sorted(vectors))
    played.shares(there("shares"))
    played.work(there("work"), vectors)
    played.confirm(there("confirm"))
    if len(played.signatures) < played.context.threshold:
        raise AggregationRefused("too few are left")
    played.unmask(there("unmask"))
    return played


def random_vectors(names: Sequence[str], size: int = 50, seed: int = 0) -> dict[str, UInt64s]:
    draws = np.random.default_rng(seed)
    return {name: draws.integers(0, 2**64, size, dtype=np.uint64) for name in names}


NO_ARRAYS = digest_of_arrays({})
