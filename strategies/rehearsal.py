"""A federation that only writes down what a method asks of it: what a request will take.

`planned` runs the method itself on it, before any node is asked. No model is trained; what nodes
would measure is not known, and so the method is run three times: as planned, and with the answers
that make it shortest and longest.

It is long because the rehearsal answers every question that a federation answers, in one class.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import numpy as np
import torch
from flwr.app import Array, ArrayRecord

from client.channels.layout import Channels, from_text
from client.errors import BadSetting
from client.learning.models import ModelSpec
from client.steps.channels import Ablation, FitChannels, Representation
from client.steps.measuring import Heldout
from client.steps.store import Condense
from client.wire import Common
from strategies.federation import Accuracies, Plan, RequestValues, Samples, StoredRound
from strategies.method import Method
from strategies.parts.effort import Effort, Holding, Network, effort
from strategies.parts.guard import MAX_ROLLBACKS
from strategies.rounds.base import Rounds, num_asked
from strategies.rounds.sums import STEPS, in_sums

# What the nodes measure of the model once it has changed. "planned": they do not say, so that
# nothing ends early and nothing is done again. "shortest": all is forgotten, and the accuracy back,
# at once. "longest": the accuracy rises and is never back, and recovery brings what is forgotten
# back as often as a method puts up with it.
Course = Literal["planned", "shortest", "longest"]
GUARD: Final = "guard"  # the phase of measuring on the way


@dataclass(frozen=True)
class PlannedRounds:
    """Rounds of one kind.

    Attributes:
        phase: "score", "unlearn", "recover"; "guard" is measuring on held-out data on the way.
        rounds: As planned.
        clients: Nodes asked in a round; 0 for work on the coordinator's machine.
        samples: Images that all of them together pass through the model in a round.
        work: Time of one of these, in that of an image in training.
        down: Bytes of arrays to each node in a round.
        up: Bytes of arrays from each, in the mean.
        more: Rounds that may be added: after one that is rolled back, or until the accuracy is
            back.
        messages: To each node in a round: secure aggregation sends more than the work.
        early: Whether there may be fewer than `rounds`, where the accuracy is back.
        silent: Nodes asked that use no example, and so send no arrays.
    """

    phase: str
    rounds: int
    clients: int = 0
    samples: float = 0.0
    work: float = 1.0
    down: float = 0.0
    up: float = 0.0
    more: int = 0
    early: bool = False
    messages: int = 1
    silent: int = 0


@dataclass(frozen=True)
class Known:
    """What is known, or assumed, of a request and of the version that it starts from.

    Attributes:
        common: Values that every message carries (see `client.wire.Common`): the request and the
            version's model are in them.
        training: Settings of an ordinary round (see `client.steps.training.Fit`).
        plan: How the version was trained.
        nodes: What each node holds, by name.
        stored: Names of the nodes whose updates are kept, by round of the training.
        own_examples: Examples that the coordinator owns.
        networks: Those that were built already.
    """

    common: Mapping[str, Any]
    training: Mapping[str, Any]
    plan: Plan
    nodes: Mapping[str, Holding]
    stored: Mapping[int, Sequence[str]] = field(default_factory=dict)
    own_examples: int = 0
    networks: dict[ModelSpec, Network] = field(default_factory=dict, repr=False)

    @property
    def holders(self) -> list[str]:
        """Names of the nodes that hold what is to be forgotten."""
        return sorted(name for name, node in self.nodes.items() if sum(node.forget) > 0)


def planned(method: Method, known: Known) -> list[PlannedRounds]:
    """Return what a method will do to forget: in order, measuring on the way last.

    Raises:
        BadSetting, NothingTouched: If the method cannot serve the request at all.
    """
    first, shortest, longest = (
        _by_kind(Rehearsal(known, course).forgotten_by(method))
        for course in ("planned", "shortest", "longest")
    )
    found = [
        replace(
            rounds,
            more=max(0, longest[kind].rounds - rounds.rounds) if kind in longest else 0,
            early=kind not in shortest or shortest[kind].rounds < rounds.rounds,
        )
        for kind, rounds in first.items()
    ]
    added = [
        replace(rounds, rounds=0, more=rounds.rounds)
        for kind, rounds in longest.items()
        if kind not in first
    ]
    return sorted([*found, *added], key=lambda rounds: rounds.phase == GUARD)


def _by_kind(asked: Sequence[PlannedRounds]) -> dict[Any, PlannedRounds]:
    """Return rounds of the same kind together, with the mean of their images."""
    found: dict[Any, PlannedRounds] = {}
    for one in asked:
        kind = (one.phase, one.clients, one.work, one.down, one.up)
        if kind in found:
            rounds = found[kind].rounds + one.rounds
            total = found[kind].rounds * found[kind].samples + one.rounds * one.samples
            one = replace(one, rounds=rounds, samples=total / rounds)
        found[kind] = one
    return found


class Rehearsal(RequestValues):
    """Writes down what is asked; implements `strategies.federation.Federation`.

    Attributes:
        asked: What was asked, in order.
    """

    def __init__(self, known: Known, course: Course = "planned") -> None:
        """Begin with nothing asked.

        Args:
            known: Of the request, its version and the nodes.
            course: What the nodes are taken to measure.
        """
        self.known = known
        self.course = course
        self.common = dict(known.common)
        self.training = dict(known.training)
        self.asked: list[PlannedRounds] = []
        self._changed = False  # whether the model is not what it was
        # Whether the nodes have measured it as it is now: they are not asked the same twice. What
        # the request starts from is measured before, by the same question but for other erasures.
        c = known.common
        gone = bool(c.get("erased_classes") or c.get("erased_clients"))
        self._measured = c.get("forget_level") == "class" or not gone
        self._latest: Rounds | None = None  # that changed it
        self._came_back: dict[Rounds | None, int] = {}  # what is forgotten, after these
        self._better = 0

    def forgotten_by(self, method: Method) -> list[PlannedRounds]:
        """Return what a method asks for to forget."""
        method.forget(self, self._network.arrays)
        return self.asked

    # ---- what is asked of the nodes --------------------------------------------------------------

    def run(
        self, phase: str, rounds: Rounds, model: ArrayRecord, *, num_rounds: int
    ) -> ArrayRecord:
        """Write rounds down and return the model as it was, or scores."""
        named = rounds.participants
        pool = [n for n in self.known.nodes if named is None or n in named]
        clients = num_asked(rounds.fraction, rounds.over_select, len(pool))
        told, left = rounds.settings, num_rounds
        if isinstance(told, FitChannels):  # who has answered once has the rest of the model
            self._ask(phase, replace(told, whole=True), pool, clients=clients)
            told, left = replace(told, whole=False), num_rounds - 1
        if left:
            self._ask(phase, told, pool, clients=clients, rounds=left)
        if not rounds.changes_model:
            return self._scores(rounds.settings)
        self._changed, self._measured, self._latest = True, False, rounds
        return model

    def condense(self, settings: Condense) -> None:
        """Write down that nodes with synthetic data fine-tune it."""
        self._ask("recover", settings, self.keepers(synthetic=True))

    def accuracies(self, model: ArrayRecord) -> Accuracies:
        """Write down that a model is measured; the answer is the course's."""
        told = self.settings(Heldout)
        if not self._measured or told.noise_multiplier:  # noise is drawn anew for each answer
            self._ask(GUARD, told, list(self.known.nodes))
        self._measured = True
        if not any(node.heldout for node in self.known.nodes.values()):
            return Accuracies(None, None)
        if not self._changed:
            return Accuracies(100.0, 100.0)
        if self.course == "planned":
            return Accuracies(None, None)
        if self.course == "shortest":
            return Accuracies(0.0, 100.0)
        # Each model is a little better than the last, and none good enough: recovery goes on.
        self._better += 1
        return Accuracies(100.0 if self._comes_back() else 0.0, 1e-6 * self._better)

    def _comes_back(self) -> bool:
        """Return whether what is forgotten is still there, or there again."""
        if self._last_phase() != "recover":
            return True  # no ascent is deep enough
        times = self._came_back[self._latest] = self._came_back.get(self._latest, 0) + 1
        return times <= MAX_ROLLBACKS

    def _last_phase(self) -> str:
        """Return the phase of what was asked last, measuring left out."""
        return next(one.phase for one in reversed(self.asked) if one.phase != GUARD)

    def _ask(
        self,
        phase: str,
        told: Common,
        names: Sequence[str],
        *,
        clients: int | None = None,
        rounds: int = 1,
    ) -> None:
        """Write down that `clients` of the nodes named, by default all, do their part.

        Raises:
            BadSetting: If they answer under noise, and this cannot be answered so.
        """
        if told.noise_multiplier and (why := told.why_not_noised()) is not None:
            raise BadSetting(f"{why}; choose another method")
        each = [effort(told, self.known.nodes[name], self._network) for name in names]
        asked = len(names) if clients is None else clients
        one = each[0] if each else Effort(0.0)
        idle = [effort for effort in each if effort.up and not effort.images]
        down, silent, messages = float(one.down), round(asked * len(idle) / max(1, len(each))), 1
        up = _mean([effort.up if effort.images else 0.0 for effort in each])
        if self.sums_only and told.message.sums is not None:  # whoever has nothing sends zeros
            down, up = in_sums(told.message, asked, one.down, max(e.up for e in each))
            silent, messages = 0, 1 + STEPS
        self.asked.append(
            PlannedRounds(
                phase,
                rounds,
                asked,
                samples=asked * _mean([effort.images for effort in each]),
                work=one.work,
                down=down,
                up=up,
                silent=silent,
                messages=messages,
            )
        )

    @property
    def _network(self) -> Network:
        spec = self.spec
        return self.known.networks.setdefault(spec, Network(spec))

    def _scores(self, told: Common) -> ArrayRecord:
        """Return scores as nodes might send them."""
        layers = self._network.layers
        if isinstance(told, Representation):
            gone = from_text(self.spec.pruned)
            return ArrayRecord(
                {
                    layer.name: Array(
                        _representation(
                            self.spec.num_classes, layer.num_channels, gone.get(layer.name, ())
                        )
                    )
                    for layer in layers
                    if layer.convolution
                }
            )
        if isinstance(told, Ablation):
            return ArrayRecord(
                {
                    f"{kind}/{layer.name}": Array(np.zeros(layer.num_channels))
                    for layer in layers[:-1]
                    for kind in ("accuracy", "loss")
                }
            )
        return ArrayRecord()

    # ---- what is asked of the coordinator --------------------------------------------------------

    def locally(
        self,
        phase: str,
        work: Callable[[], ArrayRecord],
        *,
        samples: int = 0,
        effort: float = 1.0,
        changes_model: bool = True,
    ) -> ArrayRecord:
        """Write work down, without doing it; return the version's model, or scores."""
        self.asked.append(PlannedRounds(phase, 1, samples=samples, work=effort))
        if not changes_model:
            return self._scores(self.settings(Ablation))
        self._changed, self._measured = True, False
        return self._network.arrays

    def samples(self) -> Samples:
        """Return as many examples as the coordinator owns, of all classes alike.

        Raises:
            BadSetting: If it has none.
        """
        number, spec = self.known.own_examples, self.spec
        if not number:
            raise BadSetting("server-samples must name the coordinator's own examples, got none")
        images = spec.task.example(1)
        return Samples(
            images.expand(number, *images.shape[1:]), torch.arange(number) % spec.num_classes
        )

    def prune(self, channels: Channels) -> None:
        """Have these channels be without effect (see the protocol)."""
        super().prune(channels)
        self._measured = False

    def compact(self, model: ArrayRecord) -> ArrayRecord:
        """Return `model` as it is: how much smaller it gets is known when channels are chosen."""
        self._measured = False
        return model

    def initial(self) -> ArrayRecord:
        """Return weights of the full size (see the protocol)."""
        self._measured = False
        self.common |= {"model_pruned": [], "model_compact": False}
        return self._network.arrays

    def history(self) -> Iterator[StoredRound]:
        """Yield the stored rounds: who is in them, and arrays that say nothing.

        Raises:
            BadSetting: If none is stored.
        """
        if not self.known.stored:
            raise BadSetting("version must have stored updates of its training, got none")
        for number, names in sorted(self.known.stored.items()):
            yield StoredRound(
                number, dict.fromkeys(names, ArrayRecord()), dict.fromkeys(names, 1.0)
            )

    def explain(self, **findings: Any) -> None:
        """Take no note: nothing was found."""

    def say(self, text: str) -> None:
        """Tell nobody: nothing happens."""

    @property
    def sums_only(self) -> bool:
        """Whether nodes' answers are seen in sums alone."""
        return bool(self.common.get("sums_only", False))

    # ---- what is known ---------------------------------------------------------------------------

    @property
    def plan(self) -> Plan:
        """How the version was trained."""
        return self.known.plan

    def holders(self, *, synthetic: bool) -> list[str]:
        """Return the nodes that hold data to forget; none is no error here.

        Where only sums go up nobody knows who they are, and all are asked.
        """
        return sorted(self.known.nodes) if self.sums_only else self.known.holders

    def keepers(self, *, synthetic: bool = False, back: bool = False) -> list[str]:
        """Return the nodes with data left (see the protocol); none is no error here."""
        if self.sums_only:
            return sorted(self.known.nodes)
        side = "all" if back else "retain"
        return sorted(name for name, node in self.known.nodes.items() if sum(node.side(side)) > 0)

    def class_counts(self) -> dict[str, list[float]]:
        """Return every node's number of training examples by class."""
        nothing = dict.fromkeys(self.forget.clients, [0.0] * self.spec.num_classes)
        return nothing | {name: list(node.side("all")) for name, node in self.known.nodes.items()}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


def _representation(
    num_classes: int, num_channels: int, gone: Sequence[int]
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return class means by channel, `(K, C)`, by which no layer would lose its last channel.

    Every channel but one of those that are left is the strongest one of some class.
    """
    left = [channel for channel in range(num_channels) if channel not in gone]
    means = np.ones((num_classes, num_channels))
    means[:, left[-1:]] = 0.0
    for label in range(num_classes):
        if len(left) > 1:
            means[label, left[label % (len(left) - 1)]] = 10.0 * num_channels
    return means
