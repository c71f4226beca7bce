"""The federation as methods see it, over Flower's Grid: rounds that are timed, counted, resumed.

It is long because rounds and questions share the traffic, the costs and the journal they count in.
"""

import contextlib
import functools
import hashlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, TypeVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord
from flwr.serverapp import Grid

from client import attestation, wire
from client.errors import BadSetting
from client.learning.evaluation import Scores
from client.learning.membership import surer
from client.learning.models import ModelSpec, compact
from client.messages import OF_NOISE
from client.steps.measuring import Describe, Heldout, Membership, Totals
from client.steps.store import Condense, Settle
from client.wire import Common
from server.nodes.grid import NamedGrid
from server.nodes.questions import ask
from server.storage.journal import Journal
from strategies.federation import Accuracies, Plan, RequestValues, Samples, StoredRound
from strategies.parts.averaging import PLAIN, Aggregation
from strategies.rounds.arriving import arriving
from strategies.rounds.base import ClientLost, Failure, NothingTouched, Rounds
from strategies.rounds.failures import listed
from strategies.rounds.replay import ReplayedRound, difference
from strategies.rounds.secure import SecureGrid

S = TypeVar("S", bound=Common)
COUNTS: Final = "describe"  # name of the question what nodes hold
# As server.evidence.verdict.ENOUGH_SITES, which says so of fewer: below it a median is a mean.
FOR_A_MEDIAN: Final = 3


@dataclass
class Cost:
    """What a phase cost, evaluation by the server excluded.

    Attributes:
        seconds: Wall time.
        client_seconds: Sum over the clients of the time in their handlers.
        distill_seconds: Part of `client_seconds` spent on matching gradients.
        keep_seconds: Part of `seconds` spent on keeping updates.
        rounds: Rounds completed.
        samples: Images passed through a model by clients, repeats counted.
        up: Bytes from clients.
        down: Bytes to clients.
    """

    seconds: float = 0.0
    client_seconds: float = 0.0
    distill_seconds: float = 0.0
    keep_seconds: float = 0.0
    rounds: int = 0
    samples: float = 0.0
    up: int = 0
    down: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(**{key: getattr(self, key) + getattr(other, key) for key in vars(self)})


@dataclass(frozen=True)
class Round:
    """A finished round, as listeners see it."""

    phase: str
    number: int  # counted through the phase, from 1
    of: int  # rounds planned in this stretch, counted the same way
    cost: Cost
    loss: float
    num_clients: int
    failures: list[Failure] = field(default_factory=list)
    norms: dict[str, float] = field(default_factory=dict)  # lengths of the updates, by client
    privacy: dict[str, dict[str, float]] = field(default_factory=dict)  # as in `Part`


@dataclass(frozen=True)
class Part:
    """Who took part in a round, or in a question, and what is known of it.

    Attributes:
        phase: "train", "unlearn", ...; of questions "guard" and "evaluate".
        round: Counted as in `Round`.
        answered: Examples used, by client; none is an answer, too.
        failures: Of those that did not do their part.
        norms: Lengths of the updates, by client.
        idle: Holders that say that there was nothing left to do.
        privacy: What a client's answers have told of any one example: "epsilon" and "delta", by
            client; of those that answered under noise.
        not_needed: Who was asked and had not answered when enough others had.
    """

    phase: str
    round: int
    answered: dict[str, float] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    norms: dict[str, float] = field(default_factory=dict)
    idle: list[str] = field(default_factory=list)
    privacy: dict[str, dict[str, float]] = field(default_factory=dict)
    not_needed: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, kept: dict[str, Any]) -> "Part":
        """Return a part as the journal kept it."""
        return cls(**{**kept, "failures": [Failure(**one) for one in kept["failures"]]})


@dataclass(frozen=True)
class Sides:
    """Scores on what a request names, and on what is retained.

    Attributes:
        forget: Of all clients together.
        retain: Likewise.
        sites: Both, by client; empty where no client's own are known.
    """

    forget: Scores
    retain: Scores
    sites: dict[str, tuple[Scores, Scores]] = field(default_factory=dict)


def nothing_kept() -> Iterator[StoredRound]:
    """Refuse: no stored update.

    Raises:
        BadSetting: Always.
    """
    raise BadSetting(
        "version must have stored updates of its training, got none; train with --keep-updates 2, "
        "or choose another method",
        see="efface models",
    )


OnRound = Callable[[Round, ArrayRecord], dict[str, Any] | None]


@dataclass(frozen=True)
class Surer:
    """How much surer a model is of training examples that are to go than of unseen ones.

    Attributes:
        membership: As the model is, in points; None where it was not measured.
        client_relearning: Of each half of them, when a copy at the client has learned the other
            half again for a few steps; None also where the halves are too small.
    """

    membership: float | None = None
    client_relearning: float | None = None


@dataclass
class GridFederation(RequestValues):
    """Runs a request's rounds on a grid; implements `strategies.federation.Federation`.

    Attributes:
        grid: The nodes.
        common: Values that every message carries (see `client.messages.Common`).
        journal: Remembers what was done, so that a stopped request goes on where it was.
        on_round: Called after every round, outside the timing; what it returns is kept in `notes`.
        training: Settings of an ordinary round (see `client.steps.training.Fit`).
        own_samples: The coordinator's own examples, if it has any.
        plan: How the version was trained.
        first_weights: Returns those that training began with.
        history: Yields what was kept of it.
        aggregation: How ordinary rounds of training make one model of the nodes'.
        tell: Told in a sentence what is worth a line.
        described: What the nodes have said that they hold, by name: none can weigh more.
        parts: Who took part in what, in order.
        keep: Keeps what clients sent in a round of training, or what stands for it after a replay.
        keep_every: Interval in rounds at which those of training are kept, from the first on.
        findings: What the method explained of itself.
        site_keys: Public keys that are known of nodes, by name.
        attestations: What nodes signed of the order that they carried out, by name.
        clip: Where only sums go up: longest update that a node sends, as L2 norm; 0 for any.
        costs: Cost by phase, read from the journal for rounds done earlier.
        notes: What `on_round` returned, in order, resumed rounds included.
    """

    grid: NamedGrid
    common: dict[str, Any]
    journal: Journal
    on_round: OnRound = lambda done, model: None
    training: dict[str, Any] = field(default_factory=dict)
    own_samples: Samples | None = None
    plan: Plan = field(default_factory=lambda: Plan(0, 1.0, 1.0))
    first_weights: Callable[[], ArrayRecord] = ArrayRecord
    history: Callable[[], Iterator[StoredRound]] = nothing_kept
    keep: Callable[[StoredRound], None] | None = None
    keep_every: int = 1
    clip: float = 0.0
    aggregation: Aggregation = PLAIN
    tell: Callable[[str], None] = lambda text: None
    described: dict[str, dict[str, Any]] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)
    findings: dict[str, Any] = field(default_factory=dict)
    site_keys: Mapping[str, Sequence[str]] = field(default_factory=dict)
    attestations: dict[str, dict[str, Any]] = field(default_factory=dict)
    costs: dict[str, Cost] = field(default_factory=dict)
    notes: list[dict[str, Any]] = field(default_factory=list)
    _stretches: int = 0
    _asked: int = 0
    _rounds_of: dict[str, int] = field(default_factory=dict)
    _members: set[str] = field(default_factory=set)  # nodes that were ever online
    _surveyed: set[str] = field(default_factory=set)
    _said_so: bool = False  # that membership was not measured
    # Examples on both sides by which membership was measured of the first model, by client.
    _compared: dict[str, tuple[int, ...]] | None = None
    _alone: tuple[int, ...] | None = None  # classes of the clients to forget, once they are known
    # What all nodes have answered, by what they were asked: nobody is asked the same twice.
    _answered: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def sums(self) -> bool:
        """Whether rounds get the mean of all answers in place of each."""
        return self.sums_only or bool(getattr(self.grid, "sums", False))

    @property
    def sums_only(self) -> bool:
        """Whether nodes' answers are seen in sums alone."""
        return bool(self.common.get("sums_only", False))

    @property
    def _counted(self) -> dict[str, dict[str, Any]]:
        """What nodes have said that they hold; where only sums go up, none says it alone."""
        return {} if self.sums_only else self.described

    @functools.cached_property
    def answering(self) -> Grid:
        """The grid whose nodes answer: each for itself, or in sums."""
        return SecureGrid(self.grid, clip=self.clip) if self.sums_only else self.grid

    def compact(self, model: ArrayRecord) -> ArrayRecord:
        """Return `model` without its pruned channels, which are gone in all that follows."""
        _, state = compact(self.spec, wire.tensors(model))
        self.common["model_compact"] = True
        return from_numpy({name: tensor.numpy() for name, tensor in state.items()})

    def initial(self) -> ArrayRecord:
        """Return the weights that training began with (see the protocol)."""
        self.common |= {"model_pruned": [], "model_compact": False}
        return self.first_weights()

    def samples(self) -> Samples:
        """Return the coordinator's own examples (see the protocol)."""
        if self.own_samples is None:
            raise BadSetting(
                "server-samples must name the coordinator's own examples, got none; try "
                "--server-samples test:1600 or npz:PATH"
            )
        return self.own_samples

    def explain(self, **findings: Any) -> None:
        """Put what the method found into the request's record."""
        self.findings |= findings

    def say(self, text: str) -> None:
        """Tell those who follow the request what the method decided."""
        self.tell(text)

    def run(
        self, phase: str, rounds: Rounds, model: ArrayRecord, *, num_rounds: int
    ) -> ArrayRecord:
        """Run rounds of one kind; those that the journal knows are not run again."""
        self._stretches += 1
        key = f"{phase}-{self._stretches}"
        rounds.settings = replace(rounds.settings, phase=phase)
        first = self._rounds_of.get(phase, 0)
        self._rounds_of[phase] = first + num_rounds

        self._drop_counts()

        def rest() -> tuple[dict[str, np.ndarray[Any, Any]], Any]:
            nonlocal model
            latest = self.journal.latest(key)
            done = 0
            history: list[dict[str, Any]] = []
            if latest is not None:
                done, arrays, history = latest
                model = from_numpy(arrays)
            for number in range(done + 1, num_rounds + 1):
                model, finished = self._round(rounds, model, first + number, first + num_rounds)
                note = self.on_round(finished, model) if rounds.changes_model else None
                part = asdict(self._part(rounds, finished))
                history.append({"cost": vars(finished.cost), "note": note, "part": part})
                if number < num_rounds:
                    self.journal.save_round(key, number, to_numpy(model), history)
            return to_numpy(model), history

        return self._remember(phase, *self.journal.arrays(key, rest))

    def _remember(
        self,
        phase: str,
        arrays: dict[str, np.ndarray[Any, Any]],
        history: list[dict[str, Any]],
    ) -> ArrayRecord:
        for entry in history:
            self._add(phase, Cost(**entry["cost"]))
            if entry["note"] is not None:
                self.notes.append(entry["note"])
            if entry.get("part") is not None:
                self.parts.append(Part.of(entry["part"]))
        return from_numpy(arrays)

    def locally(
        self,
        phase: str,
        work: Callable[[], ArrayRecord],
        *,
        samples: int = 0,
        effort: float = 1.0,
        changes_model: bool = True,
    ) -> ArrayRecord:
        """Do work on this machine (see the protocol); it is not done again after a stop."""
        self._stretches += 1
        number = self._rounds_of[phase] = self._rounds_of.get(phase, 0) + 1

        def once() -> tuple[dict[str, np.ndarray[Any, Any]], Any]:
            started = time.perf_counter()
            model = work()
            cost = Cost(seconds=time.perf_counter() - started, samples=samples)
            done = Round(phase, number, number, cost, 0.0, 0)
            note = self.on_round(done, model) if changes_model else None
            return to_numpy(model), [{"cost": vars(cost), "note": note}]

        return self._remember(phase, *self.journal.arrays(f"{phase}-{self._stretches}", once))

    def _round(
        self, rounds: Rounds, model: ArrayRecord, number: int, planned: int
    ) -> tuple[ArrayRecord, Round]:
        self._survey(rounds)
        self.grid.take_traffic()
        started = time.perf_counter()
        asked = list(rounds.configure_train(number, model, ConfigRecord(), self.answering))
        rounds.each = self._keeps(rounds, number)
        # Closed, so that nobody waits for replies that a round does without.
        with contextlib.closing(arriving(self.answering, asked)) as replies:
            averaged, metrics = rounds.aggregate_train(number, replies)
        if averaged is None or metrics is None:
            raise NothingTouched(f"{rounds.settings.phase} must change the model, got no answer")
        traffic = self.grid.take_traffic()
        answered = time.perf_counter()
        self._keep(rounds, number, model)
        privacy = _privacy({name: used.metrics for name, used in rounds.used.items()})
        rounds.used = {}
        ended = time.perf_counter()
        cost = Cost(
            seconds=ended - started,
            client_seconds=_number(metrics["client-seconds"]),
            distill_seconds=_number(metrics["seconds-distill"]),
            keep_seconds=ended - answered if self.keep is not None else 0.0,
            rounds=1,
            samples=_number(metrics["samples"]),
            up=traffic.up,
            down=traffic.down,
        )
        finished = Round(
            rounds.settings.phase,
            number,
            planned,
            cost,
            _number(metrics["loss"]),
            int(_number(metrics["num-clients"])),
            rounds.failures,
            rounds.norms,
            privacy,
        )
        return averaged, finished

    def _survey(self, rounds: Rounds) -> None:
        """Tell rounds what is known of the nodes; ask those that have not said what they hold."""
        if not rounds.asks:
            return
        online = {node.name for node in self.grid.get_nodes() if node.name}
        self._members |= online
        wanted = online if rounds.participants is None else online & set(rounds.participants)
        new = sorted(wanted - set(self.described) - self._surveyed)
        if new and not self.sums_only:
            self._surveyed |= set(new)
            told = self.settings(Describe, phase="describe")
            found = ask(self.grid, told, ArrayRecord(), names=new)
            self.described |= found.metrics
            spent = sum(float(m["seconds"]) for m in found.metrics.values())
            self._add("describe", Cost(found.seconds, spent, up=found.up, down=found.down))
        rounds.described, rounds.members, rounds.sums = self._counted, self._members, self.sums
        if rounds.ordinary:
            if self.sums and not self.aggregation.plain:
                raise BadSetting(
                    f"aggregate must be mean without clip-updates where the coordinator sees sums "
                    f"alone, got {self.aggregation.kind} and {self.aggregation.clip:g}"
                )
            rounds.aggregation = self.aggregation

    def _part(self, rounds: Rounds, done: Round) -> Part:
        for name in rounds.idle:
            self.tell(
                f"{done.phase} {done.number}: {name} changed nothing; it says that nothing was "
                "left to do"
            )
        return Part(
            done.phase,
            done.number,
            rounds.answered,
            done.failures,
            rounds.norms,
            rounds.idle,
            done.privacy,
            rounds.not_needed,
        )

    def _keeps(self, rounds: Rounds, number: int) -> bool:
        """Return whether the nodes' updates of a round are kept."""
        due = rounds.settings.phase == "train" and (number - 1) % self.keep_every == 0
        return self.keep is not None and due

    def _keep(self, rounds: Rounds, number: int, model: ArrayRecord) -> None:
        """Keep a round's updates before the journal has the round: a stop loses neither alone."""
        if self.keep is None:
            return
        if isinstance(rounds, ReplayedRound):
            if rounds.kept is not None:
                self.keep(rounds.kept)
            return
        if not self._keeps(rounds, number):
            return
        updates = {name: difference(used.arrays, model) for name, used in rounds.used.items()}
        weights = {name: used.examples for name, used in rounds.used.items()}
        self.keep(StoredRound(number, updates, weights))

    # -- questions -------------------------------------------------------------------------------

    def holders(self, *, synthetic: bool) -> list[str]:
        """Return the names of the nodes that hold data to forget; where only sums go up, of all.

        Raises:
            NothingTouched: If there is none.
            ClientLost: If a node does not answer: it might hold some.
        """
        counts = self.totals() if self.sums_only else self.describe()
        key = "num-forget-synthetic" if synthetic else "num-forget"
        names = sorted(name for name, metrics in counts.items() if metrics[key] > 0)
        if not names:
            real = sum(metrics["num-forget"] for metrics in counts.values())
            why = (
                f"their {int(real)} real examples have no synthetic stand-ins: train with "
                "distillation (scale above 0), or choose another method"
                if synthetic and real
                else "check the request with `efface show`"
            )
            raise NothingTouched(
                f"{self.forget} must be held by at least one client, got none; {why}"
            )
        return names

    def keepers(self, *, synthetic: bool = False, back: bool = False) -> list[str]:
        """Return the names of the nodes with data left; where only sums go up, of all.

        Raises:
            NothingTouched: If there is none.
            ClientLost: If a node does not answer.
        """
        kind = "-synthetic" if synthetic else ""
        keys = [f"num-retain{kind}", *([f"num-forget{kind}"] if back else [])]
        counts = self.totals() if self.sums_only else self.describe()
        names = sorted(name for name, m in counts.items() if sum(m[key] for key in keys) > 0)
        if not names:
            raise NothingTouched(
                f"at least one of {len(counts)} clients must have data left without {self.forget}, "
                "got none; check the request with `efface show`"
            )
        return names

    def describe(self) -> dict[str, dict[str, Any]]:
        """Return every node's counts by its name (see `Describe`)."""
        settings = self.settings(Describe, phase="describe")
        found = self._ask(settings, ArrayRecord(), phase="describe", name=COUNTS, keep=True)
        self.described |= found
        return found

    def _drop_counts(self) -> None:
        """Take it that nodes may hold something else from now on: synthetic sets, tombstones."""
        kept = {k: a for k, a in self._answered.items() if not k.startswith(COUNTS)}
        self._answered = kept

    def note_counts(self, told: Describe, answers: dict[str, dict[str, Any]]) -> None:
        """Keep what all nodes have just answered to `describe`, for it not to be asked anew."""
        self._answered[_same(COUNTS, told, ArrayRecord())] = answers

    def totals(self) -> dict[str, dict[str, Any]]:
        """Return for every node an equal part of what all together hold (see `Totals`)."""
        settings = self.settings(Totals, phase="describe")
        return self._ask(settings, ArrayRecord(), phase="describe", name="totals")

    def class_counts(self) -> dict[str, list[float]]:
        """Return every node's number of training examples by class, whatever is forgotten.

        Where only sums go up there is no such number, but that of all nodes together.
        """
        if self.sums_only:
            each = [answer["count-train-per-class"] for answer in self.totals().values()]
            return {"all": [float(round(sum(of_class))) for of_class in zip(*each, strict=True)]}
        return {name: m["count-train-per-class"] for name, m in self.describe().items()}

    def condense(self, settings: Condense) -> None:
        """Have every node that holds synthetic data fine-tune it."""
        told = replace(settings, phase="condense")
        names: list[str] | None = None  # where only sums go up, those without answer so
        if not self.sums_only:
            names = [n for n, m in self.describe().items() if m["num-retain-synthetic"] > 0]
        self._ask(told, ArrayRecord(), phase="recover", name="condense", names=names)

    def settle(
        self,
        action: str,
        *,
        destroy: bool,
        names: Sequence[str] | None = None,
        again: bool = False,
    ) -> dict[str, dict[str, Any]]:
        """Have every node, or those named, write or lift its tombstone; all must answer.

        Args:
            action: "forget" or "relearn".
            destroy: Whether their synthetic images of it go, too.
            names: Whom to ask; None for all.
            again: Whether they may have been asked before, in another journal.

        What each of them signs of it is in `attestations`.

        Raises:
            ClientLost: If a node does not answer, signs something else, or says that it had applied
                the request already before it was asked: whoever used the request's name was not
                this coordinator.
        """
        asked_before = again
        if not again:
            number = self._asked + 1
            first: list[bool] = []
            # Kept before the messages leave: an answer that a stop swallowed is no surprise.
            self.journal.value(f"settling-{number}", lambda: first.append(True))
            asked_before = not first
        settings = self.settings(Settle, phase="settle", action=action, destroy=destroy)
        answers = self._ask(settings, ArrayRecord(), phase="settle", name="settle", names=names)
        early = [] if asked_before else [n for n, m in answers.items() if float(m["applied"])]
        if not again:
            # Kept, too: the same request does not pass when it is asked for a second time.
            early = self.journal.value(f"settled-{number}", lambda: early)
        if early:
            raise ClientLost(
                f"request must be new to {', '.join(early)}, got the answer that it was applied "
                "already: its name was used before; look at the log there (efface site log), then "
                "abort this request and ask anew"
            )
        return answers

    def accuracies(self, model: ArrayRecord) -> Accuracies:
        """Return the accuracies on the nodes' held-out data (see the protocol)."""
        told = self._all_gone(phase="guard")
        found = self._heldout(told, model, phase="guard")
        if self.forget.level == "client":
            return Accuracies(found.forget.accuracy(), found.retain.accuracy())
        each = [found.forget.accuracy([c]) for c in told.forget_classes]
        known = max((accuracy for accuracy in each if accuracy is not None), default=None)
        return Accuracies(known, found.retain.accuracy())

    def heldout(self, model: ArrayRecord, spec: ModelSpec) -> Sides:
        """Return the scores of a model, which `spec` describes, on the clients' held-out parts."""
        values = {"model_pruned": list(spec.pruned), "model_compact": spec.compact}
        if self.forget.level != "class":
            told = self.settings(Heldout, phase="evaluate", **values)
            return self._heldout(told, model, phase="evaluate")
        # As the guard asks, who may have asked already: by class, what the request names is in it.
        found = self._heldout(self._all_gone(phase="evaluate", **values), model, phase="evaluate")
        named = self.forget.classes
        sites = {who: (_only(f, named), retain) for who, (f, retain) in found.sites.items()}
        return Sides(_only(found.forget, named), found.retain, sites)

    def _all_gone(self, **values: Any) -> Heldout:
        """Return the question after what is forgotten now or was before, and after all the rest."""
        c = self.common
        return self.settings(
            Heldout,
            forget_classes=sorted({*c.get("forget_classes", []), *c.get("erased_classes", [])}),
            forget_clients=sorted({*c.get("forget_clients", []), *c.get("erased_clients", [])}),
            **values,
        )

    def membership(self, model: ArrayRecord, spec: ModelSpec) -> Surer:
        """Return how much surer a model is of the clients' training data than of unseen data.

        Only the clients to forget are meant. Unseen is what the others hold out: the median of
        their means, so that one of them cannot set it; of fewer than `FOR_A_MEDIAN`, and in sums,
        where no client's own mean is known, that of all examples together.

        Args:
            model: Whose losses are compared.
            spec: Describes it.

        Returns:
            Points (`client.learning.membership`), of meaning beside those of other models; None
            where none of the clients to forget tells it, as under noise, of a task with a loss of
            its own, or where not the same examples were measured for the first model asked about.
        """
        if self.forget.level != "client" or self.common.get("noise_multiplier"):
            return Surer()
        if spec.task.own_loss:
            self._not_shown(f"task {spec.task.title} has a loss of its own")
            return Surer()
        told = self.settings(
            Membership,
            phase="evaluate",
            model_pruned=list(spec.pruned),
            model_compact=spec.compact,
        )
        try:
            answers = self._ask(told, model, phase="evaluate", name="membership", some=True)
        except ClientLost as error:
            self._compared = self._compared or {}
            self._not_shown(str(error))
            return Surer()
        keys = (
            *("num-members", "num-others", "num-relearned"),
            *("members-confidence", "others-confidence", "relearned-confidence"),
        )
        totals = {key: sum(float(m[key]) for m in answers.values()) for key in keys}
        each = {
            name: tuple(round(float(m[key])) for key in keys[:3]) for name, m in answers.items()
        }
        if self.sums:
            each = dict.fromkeys(answers, tuple(round(totals[key]) for key in keys[:3]))
        if self._compared is None:
            self._compared = each
        elif each != self._compared:
            changed = {n for n in {*each, *self._compared} if each.get(n) != self._compared.get(n)}
            self._not_shown(f"{', '.join(sorted(changed))} did not answer alike of each model")
            return Surer()
        if not round(totals["num-members"]):
            self._not_shown("no client answers of training examples that are to go")
            return Surer()
        if not round(totals["num-others"]):
            self._not_shown("no other client holds out examples")
            return Surer()
        unseen = totals["others-confidence"] / totals["num-others"]
        means = [
            float(m["others-confidence"]) / float(m["num-others"])
            for m in answers.values()
            if float(m["num-others"])
        ]
        if not self.sums and len(means) >= FOR_A_MEDIAN:
            unseen = statistics.median(means)
        again = round(totals["num-relearned"])
        return Surer(
            surer(totals["members-confidence"] / totals["num-members"], unseen),
            surer(totals["relearned-confidence"] / again, unseen) if again else None,
        )

    def _not_shown(self, why: str) -> None:
        """Say once that membership was not measured."""
        if not self._said_so:
            self.tell(f"evaluate: whether members show was not measured: {why}")
        self._said_so = True

    def classes_alone(self) -> tuple[int, ...]:
        """Return the classes of which only the clients to forget hold training examples.

        Whoever forgets these clients forgets those classes. Where only sums go up, nobody knows.
        """
        if self.forget.level != "client" or self.sums_only:
            return ()
        if self._alone is None:
            out = {*self.forget.clients, *self.common.get("erased_clients", [])}
            counts = self.class_counts()
            theirs = [found for name, found in counts.items() if name in self.forget.clients]
            others = [found for name, found in counts.items() if name not in out]
            gone = self.common.get("erased_classes", [])
            self._alone = tuple(
                label
                for label in range(self.spec.num_classes)
                if label not in gone
                and sum(found[label] for found in theirs) > 0
                and not sum(found[label] for found in others)
            )
        return self._alone

    def _heldout(self, settings: Heldout, model: ArrayRecord, *, phase: str) -> Sides:
        answers = self._ask(
            settings, model, phase=phase, name=f"heldout-{phase}", some=True, keep=True
        )
        each = {
            name: (_total({name: m}, "forget"), _total({name: m}, "retain"))
            for name, m in answers.items()
        }
        forget, retain = (_total(answers, side) for side in ("forget", "retain"))
        return Sides(forget, retain, {} if self.sums else each)

    def _ask(
        self,
        settings: Common,
        arrays: ArrayRecord,
        *,
        phase: str,
        name: str,
        names: Sequence[str] | None = None,
        some: bool = False,
        keep: bool = False,
    ) -> dict[str, dict[str, Any]]:
        """Ask nodes one question; answers are remembered in the journal.

        Args:
            settings: What they are told.
            arrays: What goes down with it.
            phase: What the cost is counted under.
            name: Of the question.
            names: Who is asked; None for all.
            some: Whether the share of them that a round of training needs is enough.
            keep: Whether what all of them answer holds until it is asked again: it then is not.

        Raises:
            ClientLost: If a node, or too many of them, fail or do not answer.
        """
        self._asked += 1
        key = f"{name}-{self._asked}"
        same = _same(name.partition("-")[0], settings, arrays) if keep else ""
        if not keep:
            self._drop_counts()

        def once() -> dict[str, Any]:
            known = self._answered.get(same)
            if known is not None and set(known) == {n.name for n in self.grid.get_nodes()}:
                return {"answers": known, "cost": vars(Cost()), "part": None}
            found = ask(
                self.grid,
                settings,
                arrays,
                names=names,
                described=self._counted,
                sums=self.sums,
                sender=self.answering,
                together=not some,
                site_keys=self.site_keys,
            )
            count = len(found.metrics) + len(found.failures)
            needed = max(1, math.ceil(self.plan.min_share * count)) if some else count
            if len(found.metrics) < needed:
                silent = ", ".join(failure.client for failure in found.failures)
                raise ClientLost(
                    f"clients must answer {name}: {silent or 'none is online'} did not "
                    f"({listed(found.failures)})",
                    failures=found.failures,
                )
            for failure in found.failures:
                self.tell(f"{phase}: {failure.client} is left out: {failure.reason}")
            cost = Cost(
                seconds=found.seconds,
                client_seconds=sum(float(m["seconds"]) for m in found.metrics.values()),
                samples=sum(float(m.get("samples", 0.0)) for m in found.metrics.values()),
                up=found.up,
                down=found.down,
            )
            took = {who: float(m["num-examples"]) for who, m in found.metrics.items()}
            part = Part(phase, self._asked, took, found.failures, privacy=_privacy(found.metrics))
            signed = {
                who: attestation.read(arrays[attestation.ARRAY].numpy().tobytes())
                for who, arrays in found.arrays.items()
                if attestation.ARRAY in arrays
            }
            return {
                "answers": found.metrics,
                "cost": vars(cost),
                "part": asdict(part),
                "attestations": signed,
            }

        remembered = self.journal.value(key, once)
        self.attestations |= remembered.get("attestations", {})
        self._add(phase, Cost(**remembered["cost"]))
        answers: dict[str, dict[str, Any]] = remembered["answers"]
        if remembered["part"] is not None:
            part = Part.of(remembered["part"])
            self.parts.append(part)
            # Noise is drawn anew for each answer, and a node that was silent may speak next time.
            if keep and not part.failures and not part.privacy:
                self._answered[same] = answers
        return answers

    def _add(self, phase: str, cost: Cost) -> None:
        self.costs[phase] = self.costs.get(phase, Cost()) + cost


def _privacy(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return what the answers under noise say of it, by client."""
    return {
        name: {key: float(told[key]) for key in sorted(OF_NOISE)}
        for name, told in metrics.items()
        if set(told) >= OF_NOISE
    }


def _only(scores: Scores, classes: Sequence[int]) -> Scores:
    """Return the scores of some classes, with nothing of the others."""
    chosen = torch.zeros(len(scores.count), dtype=torch.bool)
    chosen[list(classes)] = True
    return Scores(*(part.where(chosen, torch.zeros_like(part)) for part in vars(scores).values()))


def _same(name: str, settings: Common, arrays: ArrayRecord) -> str:
    """Return a name for a question: equal ones, whatever the phase, have the same."""
    told = sorted({**vars(settings), "phase": ""}.items())
    digest = hashlib.sha256(repr(told).encode())
    for array_name, array in arrays.items():
        digest.update(f"{array_name} {array.dtype} {array.shape}".encode() + array.data)
    return f"{name} {digest.hexdigest()}"


def _total(answers: dict[str, dict[str, Any]], side: str) -> Scores:
    """Return the sum of the nodes' scores on one side."""
    sums = [
        torch.tensor([m[f"{side}-{what}-per-class"] for m in answers.values()]).double().sum(dim=0)
        for what in ("correct", "count", "loss")
    ]
    # Counts may be parts of a sum, which make whole numbers only together.
    return Scores(sums[0].round().long(), sums[1].round().long(), sums[2])


def _number(value: Any) -> float:
    return float(value)


def to_numpy(model: ArrayRecord) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays of a record by name."""
    return {name: array.numpy() for name, array in model.items()}


def from_numpy(arrays: dict[str, np.ndarray[Any, Any]]) -> ArrayRecord:
    """Return a record of arrays, in the order given."""
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})
