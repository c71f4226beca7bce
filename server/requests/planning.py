"""What a request will take, and which method serves it best: before any node is asked.

The method itself says it, run on a federation that only writes down what is asked
(`strategies.rehearsal`): rounds, images and bytes. What a version's training cost tells how long
that takes here (`server.requests.speed`). `efface forget --dry-run` prints the plan,
`--method auto` chooses by it.

It is long because what is planned, what is refused and what is not known rest on the same facts.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from torch import Tensor

from client.data.datasets import Data
from client.errors import BadSetting
from client.learning.models import ModelSpec
from server.nodes.federation import Cost
from server.requests.data import check_samples
from server.requests.holdings import assumed, counted, holdings
from server.requests.known_to_forget import KNOWN_TO_FORGET
from server.requests.messages import common, ordinary, plan_of
from server.requests.speed import Speed, speed_of
from server.settings import RunSettings
from server.storage.history import History
from server.storage.ledger import VersionRow
from strategies.method import Method
from strategies.rehearsal import Known, PlannedRounds, planned
from strategies.rounds.base import NothingTouched, num_drawn
from strategies.suited import unsuited
from strategies.table import METHODS, method

AUTO: Final = "auto"  # in a method's place: choose one

RULE: Final = (
    "the shortest by estimate of the methods that can serve the request here and that "
    "benchmarks/RESULTS.md shows to forget as Retrained does"
)


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
        server_examples: Examples that the coordinator owns.
        trained_on: Engine of its training.
        trained_by: Machine of its training.
        machine: This machine.
    """

    settings: RunSettings
    base: VersionRow
    spec: ModelSpec
    data: Data | None
    shares: Sequence[Tensor] | None
    kept: History | None
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
    def known(self) -> Known:
        """Return what a request is planned from."""
        s, forget, erased = self.settings, self.settings.forget, self.base.card["erased"]
        return Known(
            common=common(
                s, self.spec, erased, forget=s.forget, request="planned", lineage="planned"
            ),
            training=ordinary(s),
            plan=plan_of(s),
            nodes=holdings(
                self._counts(),
                forget,
                erased,
                holdout=s.holdout,
                assumed=self.shares is None and not self._cut_short,
            ),
            stored={} if self.kept is None else self.kept.clients(),
            own_examples=self.server_examples,
        )

    @property
    def _drawn(self) -> int:
        return num_drawn(self.settings.fraction, self.settings.num_participants)

    @property
    def _per_round(self) -> float:
        """Images that a node passed through the model in a round of training."""
        s, cost = self.settings, self.training
        if cost is not None:
            return cost.samples / cost.rounds / self._drawn
        return float(s.batch_size * (s.local_steps or s.local_epochs))

    @property
    def _cut_short(self) -> bool:
        """Whether nodes had less than their batches could hold in a round of training."""
        return self._per_round < self.settings.local_steps * self.settings.batch_size

    def _counts(self) -> dict[str, Tensor]:
        """Return about how many training examples of each class every node has, by name."""
        s, num_classes = self.settings, self.spec.num_classes
        if self.shares is not None and self.data is not None:
            found = counted(self.data, self.shares, num_classes, holdout=s.holdout)
            return {name: row for name, row in found.items() if s.takes_part(name)}
        # Nobody has been asked: all have the same, as much as a round of training passes through
        # once. Where its batches were cut short, it passed several times.
        times = s.local_steps if self._cut_short else 1
        each = self._per_round / (times if s.local_steps else s.local_epochs)
        gone = self.base.card["erased"]["clients"]
        kept = {} if self.kept is None else self.kept.clients()
        seen = {name for names in kept.values() for name in names}
        return assumed(s.forget, gone, s.num_participants, num_classes, each=each, seen=seen)

    @functools.cached_property
    def speed(self) -> Speed | None:
        """Return how fast the federation is; None if nothing tells."""
        cost = self.training
        return None if cost is None else speed_of(cost, self.settings, self.spec, self.trained_on)

    # ---- who can serve it ------------------------------------------------------------------------

    def reason(self, name: str) -> str | None:
        """Return why a method cannot serve the request here, or None if nothing speaks against."""
        if (why := self._lacking(name)) is not None:
            return why
        try:
            if METHODS[name].needs.server_data:
                check_samples(_named(self.settings, name), self.data)
            self.planned(name)
        except (BadSetting, NothingTouched) as error:
            return str(error)
        return None

    def why_no_default(self) -> str | None:
        """Return why the method, which nobody named, gives way to another; None if it does not."""
        if self.settings.mode != "forget":
            return self._lacking(self.settings.method)
        why = self.reason(self.settings.method)
        return why if why is None or self.able() else None

    def _lacking(self, name: str) -> str | None:
        """Return what a method needs that task, version or settings do not have, or None."""
        s, needs, level = self.settings, METHODS[name].needs, self.settings.forget.level
        if level not in needs.levels:
            served = " or ".join(sorted(needs.levels))
            return f"level must be {served} for method {name}, got {level}"
        if self.settings.secure_aggregation and level not in needs.sums:
            what = "each client's own update" if needs.individual_updates else "counts by client"
            return (
                f"method must be one that can work in sums (--secure-aggregation), got {name}, "
                f"which needs {what} to forget at level {level}; choose another method"
            )
        if (why := unsuited(needs, self.spec)) is not None:
            return f"{why}; method {name} cannot serve it; choose another method"
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
        if needs.plain_mean and (s.aggregate != "mean" or s.clip_updates):
            return (
                f"training must aggregate by the mean, without clipping, {lacking}: it was trained "
                f"with --aggregate {s.aggregate} and --clip-updates {s.clip_updates:g}, and the "
                "method weighs updates in a way of its own"
            )
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

    def planned(self, name: str) -> list[PlannedRounds]:
        """Return what a method will do.

        Raises:
            BadSetting, NothingTouched: If it cannot serve the request.
        """
        if name not in self._plans:
            self._plans[name] = planned(self._ready(name), self.known)
        return self._plans[name]

    @functools.cached_property
    def _plans(self) -> dict[str, list[PlannedRounds]]:
        return {}

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
        # Where no time is known, examples stand for it.
        speed = self.speed or Speed(image=1.0)
        cost = {name: sum(speed.seconds(s, s.rounds) for s in self.planned(name)) for name in able}
        shown = KNOWN_TO_FORGET[self.settings.forget.level]
        candidates = [name for name in able if name in shown] or able
        again = "retraining" in candidates and self.settings.compare == "retrain"
        if again and len(candidates) > 1:  # it would be compared with itself
            candidates.remove("retraining")
        first, *others = sorted(candidates, key=cost.__getitem__)
        unit = "examples" if self.speed is None else "s"
        rest = ", ".join(f"{name} {_short(cost[name])}" for name in others)
        why = (
            f"it takes about {_short(cost[first])} {unit}"
            + (f" ({rest})" if rest else "")
            + f"; the rule: {RULE}"
        )
        if again:
            why += (
                "; retraining is left out, for --compare retrain does it already"
                if first != "retraining"
                else "; leave out --compare retrain, which is the same training over again"
            )
        seconds = {name: None if self.speed is None else cost[name] for name in able}
        return Chosen(first, why, refused, seconds)

    def document(self, name: str) -> dict[str, Any]:
        """Return the plan of a method that can serve the request, as `--dry-run` prints it."""
        rounds = self.planned(name)
        stock = self.settings.mode == "yardstick"
        compared = self.settings.compare == "retrain" and not stock
        if stock:  # every model is the same training with another seed
            rounds = rounds * self.settings.count
        request = [self._phase(one, phase="retrain" if stock else None) for one in rounds]
        again = [self._phase(s, phase="retrain") for s in self.planned("retraining")]
        return {
            "phases": [*request, *(again if compared else [])],
            "rounds": sum(p["rounds"] for p in request if p["phase"] != "guard"),
            "samples": sum(p["samples"] for p in request),
            "bytes": {way: sum(p["bytes"][way] for p in request) for way in ("up", "down")},
            "seconds": _total(request, "seconds"),
            "seconds_at_most": _total(request, "seconds_at_most"),
            "retraining_seconds": _total(again, "seconds"),
            "not_known": self._not_known(rounds),
        }

    def _phase(self, planned: PlannedRounds, phase: str | None = None) -> dict[str, Any]:
        speed = self.speed
        at_most = planned.rounds + planned.more
        messages = planned.rounds * planned.clients
        down, up = (0.0, 0.0) if speed is None else (speed.down, speed.up)
        down, up = planned.messages * down, planned.messages * up
        return {
            "phase": phase or planned.phase,
            "rounds": planned.rounds,
            "rounds_at_most": at_most,
            "ends_early": planned.early,
            "clients": planned.clients,
            "messages": messages * planned.messages,
            "samples": round(planned.rounds * planned.samples),
            "bytes": {
                "up": round(messages * (planned.up + up) - planned.rounds * planned.silent * up),
                "down": round(messages * (planned.down + down)),
            },
            "seconds": None if speed is None else speed.seconds(planned, planned.rounds),
            "seconds_at_most": None if speed is None else speed.seconds(planned, at_most),
        }

    def _not_known(self, planned: Sequence[PlannedRounds]) -> list[str]:
        s, forget = self.settings, self.settings.forget
        found = []
        if self.speed is None:
            found.append(f"seconds: the card of {self.base.id} does not say what training cost")
        else:
            if s.engine != self.trained_on:
                found.append(
                    f"the speed of engine {s.engine}: seconds are those of {self.trained_on}, "
                    "where training ran"
                )
            if self.trained_by != self.machine:
                found.append(
                    f"the speed of this machine: training ran on another one ({self.trained_by})"
                )
        if self.shares is None:
            found.append(
                f"who holds how much of {forget}: taken as {len(self.known.holders)} of "
                f"{len(self.known.nodes)} clients, all with equally many examples"
            )
            if forget.clients:
                found.append(f"whether {', '.join(forget.clients)} will be online")
        if not self.known.holders:
            found.append(f"who holds {forget}: nobody seems to, and then the request will fail")
        if any(rounds.early for rounds in planned):
            found.append("when the accuracy is back: rounds that end early are counted in full")
        if any(rounds.more for rounds in planned):
            found.append(
                "how many rounds are rolled back or added until the accuracy is back: "
                "rounds_at_most counts all that may be"
            )
        if s.mode == "yardstick":
            found.append("which of the models are in the cache already: all are counted")
        elif s.compare == "retrain":
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
