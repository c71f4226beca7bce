"""What a request will take, and which method serves it best: before any node is asked.

A method says in rounds, images and bytes what it does (`estimate`). What a version's training cost
tells how long that takes here: seconds an image, seconds a round beyond them, bytes a message
beyond its arrays. `efface forget --dry-run` prints the plan, `--method auto` chooses by it.
"""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from client.data.datasets import DataSet
from client.errors import BadSetting
from client.learning.models import ModelSpec, build
from server.nodes.federation import Cost
from server.settings import RunSettings
from server.storage.history import History
from server.storage.ledger import VersionRow
from strategies.federation import Plan
from strategies.method import Method
from strategies.methods.retraining import Retraining
from strategies.parts.estimates import Facts, Stretch
from strategies.rounds.base import num_drawn
from strategies.table import METHODS, method

AUTO: Final = "auto"  # in a method's place: choose one

RULE: Final = (
    "the shortest by estimate of the methods that can serve the request here and that "
    "benchmarks/RESULTS.md shows to forget as Retrained does"
)
# Kept by hand, by level, and checked by a test against the harness's tables that compare methods,
# in the means over trainings. Classes (quickdrop-table2-cpu, quickdrop-table2-cifar10-cpu): in each
# table, forget accuracy within 2 points of Retrained's, retain accuracy at most 1.5 below, and at
# most a fifth of Original's lead over Retrained left in the relearning curve. Clients
# (quickdrop-clients-cpu, quickdrop-table4-cpu): forget accuracy within 3 points of Retrained's in
# the mean over clients, whatever the sign, and retain accuracy at most 1.5 below for each.
# Retraining forgets by construction, and can always serve.
SHOWN: Final[Mapping[str, tuple[str, ...]]] = {
    "class": ("quickdrop-calibrated", "quickdrop-calibrated-subset", "sga", "puf", "retraining"),
    "client": ("quickdrop-calibrated", "quickdrop-calibrated-subset", "puf", "retraining"),
}
EVERYBODY: Final = 10**9  # nodes that may work at the same time where each has its own machine


@dataclass(frozen=True)
class Pace:
    """How fast a federation is, by what a version's training cost.

    Attributes:
        image: Seconds that a node takes for an image, forward and backward.
        beyond: Seconds of a round beyond those.
        at_once: Nodes that work at the same time.
        down, up: Bytes of a message beyond its arrays.
    """

    image: float
    beyond: float = 0.0
    at_once: int = 1
    down: float = 0.0
    up: float = 0.0

    def seconds(self, stretch: Stretch, rounds: int) -> float:
        """Return the wall time of so many rounds of a stretch."""
        images = stretch.samples * stretch.work * self.image
        if not stretch.clients:
            return rounds * images
        return rounds * (self.beyond + images / min(self.at_once, stretch.clients))


@dataclass(frozen=True)
class Chosen:
    """Which method was chosen, and on what grounds.

    Attributes:
        method: Its name.
        why: In words.
        refused: Why the others cannot serve the request, by name.
        seconds: Estimated wall time by the names of those that can; None where training's cost is
            not known.
    """

    method: str
    why: str
    refused: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Situation:
    """A request to forget on a version, with all that the coordinator knows of both.

    Attributes:
        settings: The request's, completed by those of the version's training.
        base: The version.
        spec: Its model.
        data: The coordinator's data set, if it has one.
        shares: Positions of the simulated nodes' examples in its training part; None where nodes
            have data of their own.
        kept: Updates stored in its training, if there are any.
        check_samples: Refuses settings whose `server-samples` do not serve their method.
        server_examples: Examples that the coordinator owns.
        trained_on: Engine of its training.
        trained_by: Machine of its training.
        machine: This machine.
    """

    settings: RunSettings
    base: VersionRow
    spec: ModelSpec
    data: DataSet | None
    shares: Sequence[Tensor] | None
    kept: History | None
    check_samples: Callable[[RunSettings, DataSet | None], None]
    server_examples: int
    trained_on: str
    trained_by: str
    machine: str

    # ---- what is known ---------------------------------------------------------------------------

    @property
    def training(self) -> Cost | None:
        """What the version's training cost, if its card says so."""
        found = self.base.card["training"].get("train")
        cost = None if found is None else Cost(**found)
        return cost if cost is not None and cost.rounds and cost.samples else None

    @functools.cached_property
    def facts(self) -> Facts:
        """Return what methods estimate from."""
        s, forget, erased = self.settings, self.settings.forget, self.base.card["erased"]
        names, counts = self._counts()
        for name in erased["clients"]:
            if name in names:
                counts[names.index(name)] = 0
        counts[:, list(erased["classes"])] = 0
        goes = torch.zeros_like(counts, dtype=torch.bool)
        goes[:, list(forget.classes)] = True
        goes[[names.index(name) for name in forget.clients if name in names]] = True
        gone, left = counts * goes, counts * ~goes
        state = build(self.spec, torch.Generator()).state_dict()
        return Facts(
            level=forget.level,
            named=len(forget.classes) + len(forget.clients),
            spec=self.spec,
            model_bytes=sum(tensor.nbytes for tensor in state.values()),
            clients=len(names),
            holders=int((gone.sum(dim=1) > 0).sum()),
            keepers=int((left.sum(dim=1) > 0).sum()),
            goes=tuple(gone[gone > 0].tolist()),
            stays=tuple(left[left > 0].tolist()),
            heldout=float(counts.sum()) * s.holdout / (1 - s.holdout),
            per_round=self._per_round,
            plan=Plan(s.rounds, s.fraction, s.min_share),
            scale=s.scale,
            stored_rounds=0 if self.kept is None else self.kept.num_rounds,
            server_examples=self.server_examples,
        )

    @property
    def _drawn(self) -> int:
        return num_drawn(self.settings.fraction, self.settings.num_clients)

    @property
    def _per_round(self) -> float:
        """Images that a node passed through the model in a round of training."""
        s, cost = self.settings, self.training
        if cost is not None:
            return cost.samples / cost.rounds / self._drawn
        return float(s.batch_size * (s.local_steps or s.local_epochs))

    def _counts(self) -> tuple[list[str], Tensor]:
        """Return the nodes' names and about how many training examples of each class they have."""
        s = self.settings
        if self.shares is not None and self.data is not None:
            labels = self.data.train.labels
            rows = [labels[i].bincount(minlength=self.spec.num_classes) for i in self.shares]
            names = [f"client-{i}" for i in range(s.num_clients)]
            return names, torch.stack(rows).double() * (1 - s.holdout)
        # Nobody has been asked: all have the same, as much as a round of training passes through.
        present = s.num_clients - len(self.base.card["erased"]["clients"])
        names = [*s.forget.clients, *(f"another {i}" for i in range(present))][: max(1, present)]
        each = self._per_round / (s.local_epochs if not s.local_steps else 1)
        shape = (len(names), self.spec.num_classes)
        return names, torch.full(shape, each / shape[1], dtype=torch.float64)

    @functools.cached_property
    def pace(self) -> Pace | None:
        """Return how fast the federation is; None if nothing tells."""
        cost, bytes_then = self.training, self._bytes_in_training
        if cost is None:
            return None
        cores = max(1, os.cpu_count() or 1)
        at_once = {"superlink": EVERYBODY, "ray": max(1, cores // self.settings.threads)}.get(
            self.trained_on, cores
        )
        working = cost.client_seconds / min(at_once, self._drawn)
        messages = cost.rounds * self._drawn
        return Pace(
            image=(cost.client_seconds - cost.distill_seconds) / cost.samples,
            beyond=max(0.0, (cost.seconds - cost.keep_seconds - working) / cost.rounds),
            at_once=at_once,
            down=max(0.0, cost.down / messages - bytes_then),
            up=max(0.0, cost.up / messages - bytes_then),
        )

    @property
    def _bytes_in_training(self) -> int:
        state = build(self.spec.base, torch.Generator()).state_dict()
        return sum(tensor.nbytes for tensor in state.values())

    # ---- who can serve it ------------------------------------------------------------------------

    def reason(self, name: str) -> str | None:
        """Return why a method cannot serve the request here, or None if nothing speaks against."""
        needs, level = METHODS[name].needs, self.settings.forget.level
        if level not in needs.levels:
            served = " or ".join(sorted(needs.levels))
            return f"level must be {served} for method {name}, got {level}"
        lacking = f"for method {name}, got {self.base.id} without"
        if needs.synthetic_data and not self.settings.scale:
            return (
                f"version must have synthetic sets {lacking}: it was trained with --scale 0; train "
                "again with --scale 10"
            )
        if needs.history and self.kept is None:
            why = (
                "a later request destroyed them"
                if self.base.card["settings"].get("keep-updates")
                else "it was trained without --keep-updates"
            )
            return (
                f"version must have stored updates {lacking}: {why}; train again with "
                "--keep-updates 2"
            )
        try:
            if needs.server_data:
                self.check_samples(_named(self.settings, name), self.data)
            self._ready(name).estimate(self.facts)
        except BadSetting as error:
            return str(error)
        return None

    def able(self) -> list[str]:
        """Return the methods that can serve the request here."""
        return [name for name in METHODS if self.reason(name) is None]

    def check(self, name: str) -> None:
        """Refuse a method that cannot serve the request here.

        Raises:
            BadSetting: Naming the reason and the methods that can.
        """
        reason = self.reason(name)
        if reason is None:
            return
        other = "choose another method"
        joined = ": " if reason.endswith(other) else f", or {other}: "
        raise BadSetting(f"{reason}{joined}{', '.join(self.able()) or 'none can'}")

    def _ready(self, name: str) -> Method:
        """Return a method with the request's options, if they are meant for it."""
        s = self.settings
        return method(name, s.forget.level, s.options if s.method == name else None)

    # ---- what it takes ---------------------------------------------------------------------------

    def stretches(self, name: str) -> list[Stretch]:
        """Return what a method that can serve the request will do."""
        return [s for s in self._ready(name).estimate(self.facts) if s.rounds or s.more]

    def seconds(self, name: str) -> float | None:
        """Return the estimated wall time of a method; None if training's cost is not known."""
        pace = self.pace
        if pace is None:
            return None
        return sum(pace.seconds(stretch, stretch.rounds) for stretch in self.stretches(name))

    def choose(self) -> Chosen:
        """Return the method that serves the request best, by `RULE`.

        Raises:
            BadSetting: If none can serve it. The message says why not.
        """
        reasons = {name: self.reason(name) for name in METHODS}
        able = [name for name, reason in reasons.items() if reason is None]
        refused = {name: reason for name, reason in reasons.items() if reason is not None}
        if not able:
            raise BadSetting(
                "method must be one that can serve the request, got auto, and none can: "
                + "; ".join(f"{name}: {reason}" for name, reason in refused.items()),
                see="efface methods",
            )
        # Where no time is known, images stand for it.
        pace = self.pace or Pace(image=1.0)
        cost = {name: sum(pace.seconds(s, s.rounds) for s in self.stretches(name)) for name in able}
        shown = SHOWN[self.settings.forget.level]
        candidates = [name for name in able if name in shown] or able
        first, *others = sorted(candidates, key=cost.__getitem__)
        unit = "images" if self.pace is None else "s"
        rest = ", ".join(f"{name} {_short(cost[name])}" for name in others)
        why = (
            f"it takes about {_short(cost[first])} {unit}"
            + (f" ({rest})" if rest else "")
            + f"; the rule: {RULE}"
        )
        seconds = {name: None if self.pace is None else cost[name] for name in able}
        return Chosen(first, why, refused, seconds)

    def document(self, name: str) -> dict[str, Any]:
        """Return the plan of a method that can serve the request, as `--dry-run` prints it."""
        stretches = self.stretches(name)
        request = [self._phase(stretch) for stretch in stretches]
        compared = self.settings.compare == "retrain"
        again = [self._phase(s, phase="retrain") for s in Retraining().estimate(self.facts)]
        return {
            "phases": [*request, *(again if compared else [])],
            "rounds": sum(p["rounds"] for p in request if p["phase"] != "guard"),
            "samples": sum(p["samples"] for p in request),
            "bytes": {way: sum(p["bytes"][way] for p in request) for way in ("up", "down")},
            "seconds": _total(request, "seconds"),
            "seconds_at_most": _total(request, "seconds_at_most"),
            "retraining_seconds": _total(again, "seconds"),
            "not_known": self._not_known(stretches),
        }

    def _phase(self, stretch: Stretch, phase: str | None = None) -> dict[str, Any]:
        pace = self.pace
        at_most = stretch.rounds + stretch.more
        messages = stretch.rounds * stretch.clients
        down, up = (0.0, 0.0) if pace is None else (pace.down, pace.up)
        return {
            "phase": phase or stretch.phase,
            "rounds": stretch.rounds,
            "rounds_at_most": at_most,
            "ends_early": stretch.early,
            "clients": stretch.clients,
            "samples": round(stretch.rounds * stretch.samples),
            "bytes": {
                "up": round(messages * (stretch.up + up)),
                "down": round(messages * (stretch.down + down)),
            },
            "seconds": None if pace is None else pace.seconds(stretch, stretch.rounds),
            "seconds_at_most": None if pace is None else pace.seconds(stretch, at_most),
        }

    def _not_known(self, stretches: Sequence[Stretch]) -> list[str]:
        s, forget = self.settings, self.settings.forget
        found = []
        if self.pace is None:
            found.append(f"seconds: the card of {self.base.id} does not say what training cost")
        else:
            if s.engine != self.trained_on:
                found.append(
                    f"the pace of engine {s.engine}: seconds are those of {self.trained_on}, where "
                    "training ran"
                )
            if self.trained_by != self.machine:
                found.append(
                    f"the pace of this machine: training ran on another one ({self.trained_by})"
                )
        if self.shares is None:
            found.append(
                f"who holds how much of {forget}: taken as {self.facts.holders} of "
                f"{self.facts.clients} clients, all with equally many examples"
            )
            if forget.clients:
                found.append(f"whether {', '.join(forget.clients)} will be online")
        if not self.facts.holders:
            found.append(f"who holds {forget}: nobody seems to, and then the request will fail")
        if any(stretch.early for stretch in stretches):
            found.append("when the accuracy is back: rounds that end early are counted in full")
        if any(stretch.more for stretch in stretches):
            found.append(
                "how many rounds are rolled back or added until the accuracy is back: "
                "rounds_at_most counts all that may be"
            )
        if s.compare == "retrain":
            found.append("whether Retrained is in the cache already")
        found.append("the time of measuring before and after the request, which is not counted")
        return found


def _named(settings: RunSettings, name: str) -> RunSettings:
    return RunSettings.parse({**settings.plain(), "method": name})


def _total(phases: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [phase[key] for phase in phases]
    return None if None in values else float(sum(values))


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.2g}"
