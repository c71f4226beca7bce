"""A site's privacy budget: what its answers have told of any one example, and what is left.

Each answer under noise is a Gaussian mechanism, on a random sample of the data or on all of them;
what they tell together is added up in Renyi divergence (Mironov 2017,
https://arxiv.org/abs/1702.07476; Mironov, Talwar and Zhang 2019, https://arxiv.org/abs/1908.10530)
by `dp_accounting`, over every message that this store has ever answered:

    <folder>/budget.json       by lineage and message: noise, sampling rate, steps
    <folder>/budget.copy.json  the same once more: a loss of either is noticed

**What is promised.** Neighbours are data sets of which one has an example that the other has as a
blank ("zero-out"): epsilon and delta bound what anybody can tell between the two from all answers,
whatever they know besides. How many examples a node has, and of which class, is not covered: counts
go up as they are. A person with several examples is covered for each of them, not for all at once.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from client.errors import EffaceError, StoreError
from client.files import make_private, write_atomic

FILE: Final = "budget.json"
COPY: Final = "budget.copy.json"
FORMAT: Final = 1
# Whole orders alone: those between 1 and 2 would lower an epsilon above 15, and take seconds.
ORDERS: Final = (*range(2, 65), 80, 96, 128, 192, 256, 512, 1024)


class BudgetSpent(EffaceError):
    """An answer would tell more of the site's examples than its policy allows; nothing was done."""

    code = "budget-spent"


class NoiseRequired(EffaceError):
    """An answer under noise was asked of a step that has none, or of data that it cannot cover."""

    code = "noise-required"


@dataclass(frozen=True)
class Mechanism:
    """What one message does to the data: `steps` times a Gaussian mechanism on a Poisson sample.

    Attributes:
        noise: Standard deviation over the sensitivity, the noise multiplier; positive.
        rate: Probability of each example to be in a step's sample, in (0, 1]; 1 for all of them.
        steps: How often.
    """

    noise: float
    rate: float
    steps: int


@dataclass(frozen=True)
class Spent:
    """What messages of one kind have taken of the budget.

    Attributes:
        lineage: The training that they belong to.
        message: Their type.
        mechanism: What they did to the data, all of them together.
        messages: How many.
    """

    lineage: str
    message: str
    mechanism: Mechanism
    messages: int = 1


def epsilon(spent: Sequence[Mechanism], delta: float) -> float:
    """Return the epsilon that mechanisms have together at `delta`; 0 for none.

    An upper bound: over the orders of `ORDERS`.
    """
    steps: dict[tuple[float, float], int] = {}
    for one in spent:
        if one.steps:
            steps[one.noise, one.rate] = steps.get((one.noise, one.rate), 0) + one.steps
    return _epsilon(tuple((*kind, count) for kind, count in sorted(steps.items())), delta)


@lru_cache(maxsize=4096)  # one process simulates many nodes that did the same
def _epsilon(steps: tuple[tuple[float, float, int], ...], delta: float) -> float:
    if not steps:
        return 0.0
    # Seconds of imports, for those alone who account.
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(list(ORDERS))
    for noise, rate, count in steps:
        accountant.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(noise)), count)
    return float(accountant.get_epsilon(delta))


class Budget:
    """What a store's node has spent. Nothing is created before the first spending."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def spent(self) -> list[Spent]:
        """Return what was spent, in the order of its first message.

        Raises:
            StoreError: If the file is damaged, or only its copy is there: a budget that is lost
                must not begin anew.
        """
        path, copy = self.folder / FILE, self.folder / COPY
        if not path.exists():
            if copy.exists():
                raise StoreError(
                    f"{path} must exist beside its copy, got only {copy.name}: it records what was "
                    f"told of the site's examples; restore it: cp {copy} {path}"
                )
            return []
        try:
            return [_parsed(entry) for entry in json.loads(path.read_text())["spent"]]
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{path} must be valid JSON of this store, got {error!r}; restore it from "
                f"{copy.name} or a backup: it records what was told of the site's examples"
            ) from error

    def epsilon(self, delta: float, *, lineage: str | None = None) -> float:
        """Return the epsilon of all answers, or of those of one lineage.

        Raises:
            StoreError: As `spent`.
        """
        chosen = [s for s in self.spent() if lineage is None or s.lineage == lineage]
        return epsilon([s.mechanism for s in chosen], delta)

    def charge(
        self, lineage: str, message: str, mechanism: Mechanism, *, limit: float, delta: float
    ) -> None:
        """Note that a message will do this to the data, before it does.

        A message that fails afterwards has paid all the same: nobody knows how far it came.

        Args:
            lineage: The training that it belongs to.
            message: Its type.
            mechanism: What it does.
            limit: Highest epsilon of all answers together; infinity for none.
            delta: At which.

        Raises:
            BudgetSpent: If it would go over the limit; nothing is noted.
            StoreError: As `spent`.
        """
        make_private(self.folder)
        with _alone(self.folder):
            spent = self.spent()
            before = epsilon([s.mechanism for s in spent], delta)
            after = epsilon([*(s.mechanism for s in spent), mechanism], delta)
            if after > limit:
                raise BudgetSpent(
                    f"epsilon must stay at most {limit:g} at delta {delta:g}, got {after:.3f} with "
                    f"this message; {before:.3f} is spent, {max(0.0, limit - before):.3f} is left: "
                    "ask for fewer steps or more noise, or the site's operator raises the budget"
                )
            self._write(_added(spent, Spent(lineage, message, mechanism)))

    def problems(self) -> list[str]:
        """Return what is wrong with the two files, a line each."""
        path, copy = self.folder / FILE, self.folder / COPY
        try:
            self.spent()
        except StoreError as error:
            return [str(error)]
        if path.exists() and (not copy.exists() or copy.read_bytes() != path.read_bytes()):
            return [
                f"{path} must be the same as {copy.name}, got another or none: one of them was "
                "altered or is older; keep the one with more steps in both places"
            ]
        return []

    def _write(self, spent: Sequence[Spent]) -> None:
        document = {"format": FORMAT, "spent": [asdict(one) for one in spent]}
        content = json.dumps(document, indent=1).encode()
        # After a stop between the two the copy says more, of a message that was never answered.
        write_atomic(self.folder / COPY, content)
        write_atomic(self.folder / FILE, content)


def _added(spent: Sequence[Spent], new: Spent) -> list[Spent]:
    """Return the list with one message more, in the entry of its kind if there is one."""
    found, merged = [], False
    for one in spent:
        same = (one.lineage, one.message, one.mechanism.noise, one.mechanism.rate) == (
            new.lineage,
            new.message,
            new.mechanism.noise,
            new.mechanism.rate,
        )
        if same and not merged:
            total = replace(one.mechanism, steps=one.mechanism.steps + new.mechanism.steps)
            found.append(replace(one, mechanism=total, messages=one.messages + 1))
            merged = True
        else:
            found.append(one)
    return found if merged else [*found, new]


def _parsed(entry: Any) -> Spent:
    mechanism = Mechanism(
        float(entry["mechanism"]["noise"]),
        float(entry["mechanism"]["rate"]),
        int(entry["mechanism"]["steps"]),
    )
    if not (mechanism.noise > 0 and 0 < mechanism.rate <= 1 and mechanism.steps >= 0):
        raise ValueError(f"{mechanism}")
    return Spent(str(entry["lineage"]), str(entry["message"]), mechanism, int(entry["messages"]))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes of this store from charging at the same time."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
