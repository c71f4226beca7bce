"""The kinds of round, each a Flower `Strategy`: who takes part, what they are told, what is kept.

They work in any Flower app whose nodes run `client.app`, also where Flower gives nodes no names:
`AscentRounds(settings, participants=["hospital-a"]).start(grid, arrays, num_rounds=1)`.
Other ClientApps may answer as well (`same_code=False`), with `num-examples` beside their model.

It is long because who is asked, whose answer counts and who must answer are one account of a round.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Final

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from client.errors import Diverged, EffaceError
from client.messages import Common
from client.seeds import generator
from client.wire import CodeMismatch, Form
from strategies.parts.averaging import PLAIN, Aggregation, weighted_average
from strategies.rounds.failures import (
    RAISED,
    TIMEOUT,
    UNAVAILABLE,
    UNCHANGED,
    Failure,
    failure_in,
    listed,
)
from strategies.rounds.gathering import Gathered, Used, room_for
from strategies.rounds.replies import (
    BadReply,
    Expected,
    check,
    expected_arrays,
    most_examples,
    same,
    update_norm,
)

__all__ = [
    "RAISED",
    "TIMEOUT",
    "UNAVAILABLE",
    "AscentRounds",
    "ClientLost",
    "Failure",
    "FederatedAveraging",
    "NothingTouched",
    "RecoveryRounds",
    "Rounds",
    "Used",
    "examples_of",
    "num_drawn",
    "summed",
]

OFFLINE: Final = "offline: it was not there to be asked"
NO_ANSWER: Final = "no answer before the deadline"
SAME_BACK: Final = (
    "must change the model where it was asked to unlearn, got the same weights back; raise the "
    "learning rate if the node is honest"
)
# Times the length of the middle one of the round's updates: a longer one is no training.
OUT_OF_PROPORTION: Final = 1000
MODELS: Final = ("model", "slices")  # kinds of arrays that are a node's own version of what it got


class ClientLost(EffaceError):
    """A node that had to take part failed or did not answer.

    Attributes:
        failures: Of the nodes that it is about, as far as they are known.
        phase: Of the round that it ended; empty where it was none.
    """

    code = "client-lost"

    def __init__(
        self,
        message: str = "",
        *,
        see: str = "",
        failures: Collection[Failure] = (),
        phase: str = "",
    ) -> None:
        super().__init__(message, see=see)
        self.failures = tuple(failures)
        self.phase = phase

    @property
    def diverged(self) -> bool:
        """Whether steps were too large at one of the nodes."""
        return any(failure.code == Diverged.code for failure in self.failures)

    @property
    def passing(self) -> bool:
        """Whether the same request may go on later: none of the nodes is at fault for good."""
        return bool(self.failures) and all(failure.passing for failure in self.failures)


class Unchanged(EffaceError):
    """A node that was asked to unlearn sent back what it had been sent."""

    code = UNCHANGED


class NothingTouched(EffaceError):
    """No example was used: an erasure that touched no data must not look like a success."""

    code = "nothing-touched"


def examples_of(used: Mapping[str, Used]) -> list[float]:
    """Return the numbers of examples, in order."""
    return [answer.examples for answer in used.values()]


def num_drawn(fraction: float, count: int) -> int:
    """Return how many of `count` nodes a round asks: a share of them, at least one if there is one.

    Args:
        fraction: The share, in (0, 1].
        count: Nodes that may be drawn, at least 0.
    """
    return min(count, max(1, round(fraction * count)))


def num_asked(fraction: float, over_select: float, count: int) -> int:
    """Return how many of `count` nodes a round asks where it does without the last ones to answer.

    Args:
        fraction: The share that is drawn, in (0, 1].
        over_select: How many more are asked, as a share of those, at least 0.
        count: Nodes that may be drawn, at least 0.
    """
    more = round(num_drawn(fraction, count) * over_select, 9)  # 20 * 0.1 is 2, and 22 are asked
    return min(count, num_drawn(fraction, count) + math.ceil(more))


class Rounds(FedAvg):
    """Rounds of one message type, averaged by the number of examples that each node used.

    What FedAvg leaves open is fixed here: nodes are drawn by a seeded generator, replies are
    checked and averaged in the order of the nodes' names, buffers keep their dtype, and a missing
    reply is counted against `min_share`. So is a bad one: whatever a node sends is its own failure.

    Replies are checked as they come. Where more come than memory should hold
    (`strategies.rounds.gathering`), most are added up at once, by a sum whose bits do not depend on
    their order. A kind of round with a `combine` of its own gets all answers at the end, unless it
    says that it goes on from the mean (`from_mean`).

    Attributes:
        described: What the nodes have said that they hold, by name (`client.steps.measuring`); an
            answer on more examples than that is refused.
        members: Nodes that belong to the federation, online or not; one that is not is a failure.
        sums: Whether every answer is the mean of all, as secure aggregation gives it: then nothing
            can be said of one node.
        aggregation: How ordinary rounds of training make one model of the nodes'.
        each: Whether every answer is wanted for itself after the round, however many there are.
        failures: Of the latest round: who did not do its part, and why.
        norms: Of the latest round: the length of every node's update.
        answered: Of the latest round: who gave a good answer, and on how many examples.
        used: Of the latest round: the answers that count, by the node's name.
        idle: Of the latest round: holders that say that there was nothing left to do.
        not_needed: Of the latest round: who was asked and had not answered when it was over.
    """

    asks: bool = True  # whether nodes are asked at all
    takes_all: bool = False  # whether every node addressed must answer
    changes_model: bool = True  # or the arrays that come back are scores
    ordinary: bool = False  # training, which another aggregation than the mean may serve
    from_mean: ClassVar[bool] = True  # whether `combine` needs the mean of the answers alone

    def __init_subclass__(cls, **more: Any) -> None:
        """Give a kind of round that combines in its own way all answers, if it says no other."""
        super().__init_subclass__(**more)
        if "combine" in cls.__dict__ and "from_mean" not in cls.__dict__:
            cls.from_mean = False

    def __init__(
        self,
        settings: Common,
        *,
        participants: Collection[str] | None = None,
        fraction: float = 1.0,
        min_share: float = 0.5,
        over_select: float = 0.0,
        required: Collection[str] = (),
        same_code: bool = True,
    ) -> None:
        """Configure the rounds. A node without a name is called by its number: "node-123".

        Args:
            settings: What every node is told; `client` and `server_round` are filled in.
            participants: Names of the nodes that may take part; None for all that are online.
            fraction: Share of them drawn in every round, in (0, 1].
            min_share: Share of the nodes drawn that must answer, in (0, 1].
            over_select: How many more nodes are asked than are drawn, as a share of these: with as
                many good answers as nodes were to be drawn, the round is over. Then it depends on
                who is fast, and the same seed need not give the same weights. Where all must
                answer, or answers are sums, nobody is left out.
            required: Names of those of them that must, whatever the share: without their answer
                nothing is unlearned.
            same_code: Whether a reply must come from the client code that runs here; False where
                other ClientApps answer the same message, too.
        """
        super().__init__(weighted_by_key="num-examples")
        self.settings = settings
        self.participants = participants
        self.fraction = fraction
        self.min_share = min_share
        self.over_select = over_select
        self.required = required
        self.same_code = same_code
        self.described: Mapping[str, Mapping[str, Any]] = {}
        self.members: Collection[str] = ()
        self.sums = False
        self.aggregation: Aggregation = PLAIN
        self.each = False
        self.failures: list[Failure] = []
        self.norms: dict[str, float] = {}
        self.answered: dict[str, float] = {}
        self.idle: list[str] = []
        self.not_needed: list[str] = []
        self.used: Mapping[str, Used] = {}
        self.sent = ArrayRecord()  # the model of the round under way
        self._asked: dict[int, str] = {}
        self._absent: list[str] = []
        self._enough = 0  # good answers that end a round in which more nodes were asked
        self._gathered = Gathered()

    @property
    def message_type(self) -> str:
        """What nodes are asked: the message that the settings belong to."""
        return self.settings.message.name

    @property
    def asked(self) -> list[str]:
        """Names of the nodes asked in the round under way."""
        return sorted(self._asked.values())

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Address this round's nodes. `config` is not read: `settings` says it all."""
        self.sent = arrays
        online = {n.name or f"node-{n.node_id}": n.node_id for n in grid.get_nodes()}
        wanted = sorted(online if self.participants is None else self.participants)
        needed = wanted if self.takes_all else sorted(self.required)
        if missing := [name for name in needed if name not in online]:
            raise ClientLost(
                f"clients must be online for {self.settings.phase}: {missing}",
                failures=[Failure(name, OFFLINE, UNAVAILABLE) for name in missing],
            )
        expected = {*wanted, *(self.members if self.participants is None else ())}
        self._absent = sorted(expected - set(online))
        names = self._drawn([name for name in wanted if name in online], server_round)
        self._asked = {online[name]: name for name in names}
        told = replace(self.told(server_round), client="unaddressed", server_round=server_round)
        config = told.config()
        return [
            Message(
                RecordDict({"arrays": arrays, "config": told_to(config, name)}),
                dst_node_id=online[name],
                message_type=self.message_type,
                group_id=str(server_round),
            )
            for name in names
        ]

    def told(self, server_round: int) -> Common:
        """Return what nodes are told in a round: the same in all of them, but for its number."""
        return self.settings

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Evaluate nobody: measuring is the server's business, outside the timed rounds."""
        return []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Make the new model of what came back, as `combine` says.

        Raises:
            ClientLost: If fewer nodes answered than must.
            NothingTouched: If they used no example.
        """
        self.norms, self.answered, self.idle, self.not_needed = {}, {}, [], []
        self._gathered = Gathered()
        used, metrics = self._used(server_round, replies) if self.asks else ({}, summed([], 0))
        self.used = used
        model = self.combine(used)
        self._gathered = Gathered()
        return model, metrics

    def combine(self, used: Mapping[str, Used]) -> ArrayRecord:
        """Return the new model: the mean of the nodes', weighted by their examples.

        Args:
            used: The answers of the nodes that used any example, in the order of their names.
        """
        if not self._gathered.in_mean:
            return weighted_average([u.arrays for u in used.values()], examples_of(used))
        mean = self._gathered.added
        for name, answer in used.items():
            if name not in self._gathered.in_mean:
                mean.add(self.part_of_mean(name, answer), answer.examples)
        return mean.mean()

    def part_of_mean(self, name: str, answer: Used) -> ArrayRecord:
        """Return what of a node's answer goes into the mean."""
        return answer.arrays

    def expected_arrays(self) -> Mapping[str, Form] | None:
        """Return the forms of the arrays that a node sends; None for classes' names."""
        return expected_arrays(self.settings, self.sent)

    def _used(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[dict[str, Used], MetricRecord]:
        """Return the answers of the nodes that used any example, by name; the round's totals.

        Raises:
            ClientLost: If fewer nodes answered than must.
            NothingTouched: If they used no example.
        """
        answers = self._by_name(server_round, replies)
        used = {name: answer for name, answer in answers.items() if answer.examples > 0}
        if not used:
            raise NothingTouched(
                f"{self.settings.phase} must use at least one example, got none on "
                f"{len(answers)} clients" + (f" ({listed(self.failures)})" if self.failures else "")
            )
        self.answered = {name: answer.examples for name, answer in answers.items()}
        totals = summed([answer.metrics for answer in answers.values()], len(self.failures))
        return used, totals

    def _drawn(self, names: list[str], server_round: int) -> list[str]:
        self._enough = num_drawn(self.fraction, len(names))
        if self.fraction >= 1.0 or not names:
            return names
        count = num_asked(self.fraction, self.over_select, len(names))
        draws = generator(self.settings.seed, self.settings.phase + " sampling", server_round)
        chosen = torch.randperm(len(names), generator=draws)[:count].sort().values
        return [names[i] for i in chosen.tolist()]

    # ---- replies -------------------------------------------------------------------------------

    def _by_name(self, server_round: int, replies: Iterable[Message]) -> dict[str, Used]:
        """Return the good answers, in the order of the nodes' names, and note all failures."""
        failed: dict[str, Failure] = {}
        unnamed: list[Failure] = []
        like = self.expected_arrays()
        limits, other = self._limits()
        start = self._start()
        waits = self.each or not self.from_mean or self.aggregation.kind != "mean"
        self._gathered = Gathered(math.inf if waits else room_for(like), self.part_of_mean)
        good = self._gathered.answers
        for message in replies:
            name = self._asked.get(message.metadata.src_node_id)
            if name in good or name in failed:
                continue  # a node has one answer
            if message.has_error():
                failure = failure_in(message.error, name or "")
                if name is None:  # the SuperLink answers for a node that it has lost
                    unnamed.append(failure)
                else:
                    failed[name] = failure
            elif name is not None:
                try:
                    answer = self._answer(message.content, like, limits.get(name, other))
                    if not self.sums:
                        self._measure(name, answer, start)
                except (BadReply, CodeMismatch, Unchanged) as error:
                    failed[name] = Failure(name, str(error), error.code)
                else:
                    self._gathered.take(name, answer, self.norms.get(name, 0.0))
                    if self._may_end(good):
                        break
        # Which reply came first must not decide what is told, nor in which order.
        silence = "; ".join(sorted({f.reason for f in unnamed})) or NO_ANSWER
        why = UNAVAILABLE if unnamed else TIMEOUT
        silent = [n for n in self._asked.values() if n not in good and n not in failed]
        if self._may_end(good):
            self.not_needed = sorted(silent)
        else:
            failed |= {name: Failure(name, silence, why) for name in silent}
        self.norms, self.idle = dict(sorted(self.norms.items())), sorted(self.idle)
        self._leave_out(good, failed)
        self.failures = [
            *(failed[name] for name in self._asked.values() if name in failed),
            *(Failure(name, OFFLINE, UNAVAILABLE) for name in self._absent),
        ]
        answers = {name: good[name] for name in sorted(good)}
        self._check_enough(server_round, answers)
        return answers

    def _may_end(self, good: Mapping[str, Used]) -> bool:
        """Return whether a round may do without the nodes that have not answered yet."""
        if self.takes_all or self.sums or len(self._asked) <= self._enough:
            return False
        return len(good) >= self._enough and set(self.required) <= set(good)

    def _answer(self, content: RecordDict, like: Mapping[str, Form] | None, most: float) -> Used:
        told = self.settings
        arrays, metrics = check(
            content,
            Expected(told.message, like, told.model_classes, most, same_code=self.same_code),
        )
        return Used(arrays, float(metrics["num-examples"]), metrics)

    def _limits(self) -> tuple[dict[str, float], float]:
        """Return how many examples a node can have used: each by its name, and any other."""
        each = {n: most_examples(self.settings, d) for n, d in self.described.items()}
        # Of a node that has not said what it holds no more is believed than of the largest.
        other = max(each.values(), default=most_examples(self.settings, None))
        return ({} if self.sums else each), other

    def _start(self) -> ArrayRecord | None:
        """Return what updates are measured from; None where answers are none."""
        if self.sums or not self.changes_model:
            return None
        return self.sent_to_change() if self.settings.message.arrays in MODELS else None

    def _measure(self, name: str, answer: Used, start: ArrayRecord | None) -> None:
        """Note the length of a node's update, and that it has done nothing.

        Raises:
            Unchanged: If it was asked to unlearn and sends back what it was sent.
        """
        if not answer.examples:
            self._note_idle(name)
            return
        if start is None:
            return
        norm = update_norm(answer.arrays, start)
        if norm or not self._unlearns(name) or not same(answer.arrays, start):
            self.norms[name] = norm
        elif getattr(self.settings, "target_losses", None) and not answer.metrics["num-steps"]:
            self.norms[name] = norm
            self.idle.append(name)  # says that its classes are as deep as they have to be
        else:
            raise Unchanged(SAME_BACK)

    def _leave_out(self, answers: dict[str, Used], failed: dict[str, Failure]) -> None:
        """Leave out updates that are out of all proportion.

        Raises:
            ClientLost: If they are more than could wait for the others.
        """
        if not self.ordinary or len(self.norms) <= 2:
            return
        usual = sorted(self.norms.values())[(len(self.norms) - 1) // 2]
        found = [n for n, norm in self.norms.items() if usual and norm > OUT_OF_PROPORTION * usual]
        for name in found:
            failed[name] = Failure(
                name,
                f"update must be at most {OUT_OF_PROPORTION} times as long as the others' "
                f"({usual:.3g}), got {self.norms[name]:.3g}",
                BadReply.code,
            )
        if late := self._gathered.in_mean.intersection(found):
            raise ClientLost(
                f"updates must be at most {OUT_OF_PROPORTION} times as long as the others' "
                f"({usual:.3g}) from all clients but {self._gathered.room:.0f}, got "
                f"{len(found)} longer ones, and {len(late)} of them are in the sum already "
                f"({listed([failed[name] for name in found])}); leave these clients out",
                failures=[failed[name] for name in found],
                phase=self.settings.phase,
            )
        for name in found:
            del answers[name], self.norms[name]

    def sent_to_change(self) -> ArrayRecord:
        """Return what the nodes' arrays were before they changed them."""
        return self.sent

    def _unlearns(self, name: str) -> bool:
        """Return whether a node is asked to work on what is to be forgotten."""
        ascends = self.message_type == "train.ascend"
        return ascends or getattr(self.settings, "side", "") == "forget"

    def _note_idle(self, name: str) -> None:
        """Note a holder that has used nothing of what it has described."""
        known = self.described.get(name, {})
        synthetic = getattr(self.settings, "data", "original") == "synthetic"
        held = known.get("num-forget-synthetic" if synthetic else "num-forget", 0)
        if held and self._unlearns(name):
            self.idle.append(name)

    def _check_enough(self, server_round: int, answers: Mapping[str, Used]) -> None:
        """Refuse a round that too few have answered.

        Raises:
            ClientLost: Naming those that did not, and why.
        """
        asked = min(self._enough, len(self._asked))
        needed = max(1, math.ceil(self.min_share * asked))
        if self.takes_all:
            needed = asked = max(1, len(self._asked))
        reasons = listed(self.failures) or "none online"
        if len(answers) < needed:
            raise ClientLost(
                f"round {server_round} of {self.settings.phase} must have {needed} "
                f"answer{'' if needed == 1 else 's'} of {asked} client"
                f"{'' if asked == 1 else 's'}, got {len(answers)} ({reasons})",
                failures=self.failures,
                phase=self.settings.phase,
            )
        if lost := sorted(set(self.required) - set(answers)):
            raise ClientLost(
                f"round {server_round} of {self.settings.phase} must have the answers of the "
                f"clients that hold what is to be forgotten, got none of {', '.join(lost)} "
                f"({reasons})",
                failures=[f for f in self.failures if f.client in lost],
                phase=self.settings.phase,
            )


def told_to(config: ConfigRecord, name: str) -> ConfigRecord:
    """Return settings as a message carries them, addressed to the node `name`."""
    addressed = config.copy()
    addressed["client"] = name
    return addressed


def summed(metrics: list[Mapping[str, Any]], num_failures: int) -> MetricRecord:
    """Return a round's totals: examples, images, client seconds; the loss as a weighted mean."""
    examples = sum(float(m["num-examples"]) for m in metrics)
    loss = sum(float(m.get("loss", 0.0)) * float(m["num-examples"]) for m in metrics)
    return MetricRecord(
        {
            "num-examples": examples,
            "samples": sum(float(m.get("samples", 0.0)) for m in metrics),
            "loss": loss / examples if examples else 0.0,
            "client-seconds": sum(float(m.get("seconds", 0.0)) for m in metrics),
            "seconds-distill": sum(float(m.get("seconds-distill", 0.0)) for m in metrics),
            "num-clients": len(metrics),
            "num-failures": num_failures,
        }
    )


class FederatedAveraging(Rounds):
    """FedAvg (McMahan et al. 2017): a seeded share of the nodes trains, weighted by |D_i|.

    Where the federation asks for another aggregation, that is taken in place of the mean.
    """

    ordinary = True
    from_mean = True

    def __init__(
        self, settings: Common, *, rates: Callable[[int], float] | None = None, **more: Any
    ) -> None:
        """Configure the rounds, at a learning rate that may differ from round to round.

        Args:
            settings: What every node is told.
            rates: Learning rate of each round, by its number from 1; None for that of `settings`.
            more: As `Rounds` takes it.
        """
        super().__init__(settings, **more)
        self.rates = rates

    def told(self, server_round: int) -> Common:
        """Return the settings with the round's learning rate."""
        if self.rates is None:
            return self.settings
        values: dict[str, Any] = {"lr": self.rates(server_round)}  # not every message has one
        return replace(self.settings, **values)

    def part_of_mean(self, name: str, answer: Used) -> ArrayRecord:
        """Return a node's model, its update shortened to what may count."""
        return self.aggregation.clipped(self.sent, answer.arrays, self.norms.get(name, 0.0))

    def combine(self, used: Mapping[str, Used]) -> ArrayRecord:
        """Return the new model, as the aggregation makes it."""
        if self.aggregation.plain or self._gathered.in_mean:
            return super().combine(used)
        models = [answer.arrays for answer in used.values()]
        norms = [self.norms[name] for name in used]
        return self.aggregation.of(self.sent, models, examples_of(used), norms)


class AscentRounds(Rounds):
    """SGA rounds (QuickDrop, Algorithm 1): every holder of the forget set ascends, by |S_f,i|.

    Losing one of them would leave its share of the forget set untouched, so all must answer.
    """

    takes_all = True


class RecoveryRounds(Rounds):
    """Rounds of SGD on little data of the nodes that have any left: recovery, relearning."""
