"""The kinds of round, each a Flower `Strategy`: who takes part, what they are told, what is kept.

They work in any Flower app whose nodes run `client.app`, also where Flower gives nodes no names:
`AscentRounds(settings, participants=["hospital-a"]).start(grid, arrays, num_rounds=1)`.
Other ClientApps may answer as well (`same_code=False`), with `num-examples` beside their model.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from client import wire
from client.errors import EffaceError, split_mark
from client.messages import Common
from client.seeds import generator
from strategies.parts.averaging import weighted_average

# Codes of failures for which a node names no error of its own.
RAISED: Final = "raised"
TIMEOUT: Final = "timeout"
UNAVAILABLE: Final = "unavailable"
_LOST: Final = (
    ErrorCode.NODE_UNAVAILABLE,
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
)


class ClientLost(EffaceError):
    """A node that had to take part failed or did not answer."""

    code = "client-lost"


class NothingTouched(EffaceError):
    """No example was used: an erasure that touched no data must not look like a success."""

    code = "nothing-touched"


@dataclass(frozen=True)
class Failure:
    """A node that did not do its part, and why: in words, and as a code for programs."""

    client: str
    reason: str
    code: str = RAISED


@dataclass(frozen=True)
class Used:
    """The answer of a node that used some of its examples.

    Attributes:
        arrays: Its model, or what the message asks for in its place.
        examples: How many it used.
        metrics: All its numbers, by name.
    """

    arrays: ArrayRecord
    examples: float
    metrics: Mapping[str, Any]


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


class Rounds(FedAvg):
    """Rounds of one message type, averaged by the number of examples that each node used.

    What FedAvg leaves open is fixed here: nodes are drawn by a seeded generator, replies are
    averaged in the order of the nodes' names, buffers keep their dtype, and a missing reply is
    counted against `min_share`.
    """

    asks: bool = True  # whether nodes are asked at all
    takes_all: bool = False  # whether every node addressed must answer
    changes_model: bool = True  # or the arrays that come back are scores

    def __init__(
        self,
        settings: Common,
        *,
        participants: Collection[str] | None = None,
        fraction: float = 1.0,
        min_share: float = 0.5,
        required: Collection[str] = (),
        same_code: bool = True,
    ) -> None:
        """Configure the rounds. A node without a name is called by its number: "node-123".

        Args:
            settings: What every node is told; `client` and `server_round` are filled in.
            participants: Names of the nodes that may take part; None for all that are online.
            fraction: Share of them drawn in every round, in (0, 1].
            min_share: Share of the nodes drawn that must answer, in (0, 1].
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
        self.required = required
        self.same_code = same_code
        self.failures: list[Failure] = []
        self.sent = ArrayRecord()  # the model of the round under way
        self._asked: dict[int, str] = {}

    @property
    def message_type(self) -> str:
        """What nodes are asked: the message that the settings belong to."""
        return self.settings.message.name

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Address this round's nodes. `config` is not read: `settings` says it all."""
        self.sent = arrays
        online = {n.name or f"node-{n.node_id}": n.node_id for n in grid.get_nodes()}
        wanted = sorted(online if self.participants is None else self.participants)
        needed = wanted if self.takes_all else sorted(self.required)
        if missing := [name for name in needed if name not in online]:
            raise ClientLost(f"clients must be online for {self.settings.phase}: {missing}")
        names = self._drawn([name for name in wanted if name in online], server_round)
        self._asked = {online[name]: name for name in names}
        return [
            Message(
                RecordDict({"arrays": arrays, "config": self._told(name, server_round)}),
                dst_node_id=online[name],
                message_type=self.message_type,
                group_id=str(server_round),
            )
            for name in names
        ]

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
        used, metrics = (
            self._used(server_round, list(replies)) if self.asks else ({}, summed([], 0))
        )
        return self.combine(used), metrics

    def combine(self, used: Mapping[str, Used]) -> ArrayRecord:
        """Return the new model: the mean of the nodes', weighted by their examples.

        Args:
            used: The answers of the nodes that used any example, in the order of their names.
        """
        return weighted_average([u.arrays for u in used.values()], examples_of(used))

    def _used(
        self, server_round: int, replies: list[Message]
    ) -> tuple[dict[str, Used], MetricRecord]:
        """Return the answers of the nodes that used any example, by name; the round's totals.

        Raises:
            ClientLost: If fewer nodes answered than must.
            NothingTouched: If they used no example.
        """
        answers = self._by_name(server_round, replies)
        used = {
            name: Used(
                next(iter(content.array_records.values())), float(metrics["num-examples"]), metrics
            )
            for name, (content, metrics) in answers.items()
            if float(metrics["num-examples"]) > 0
        }
        if not used:
            raise NothingTouched(
                f"{self.settings.phase} must use at least one example, got none on "
                f"{len(answers)} clients"
            )
        return used, summed([metrics for _, metrics in answers.values()], len(self.failures))

    def _told(self, name: str, server_round: int) -> ConfigRecord:
        return replace(self.settings, client=name, server_round=server_round).config()

    def _drawn(self, names: list[str], server_round: int) -> list[str]:
        if self.fraction >= 1.0 or not names:
            return names
        count = num_drawn(self.fraction, len(names))
        draws = generator(self.settings.seed, self.settings.phase + " sampling", server_round)
        chosen = torch.randperm(len(names), generator=draws)[:count].sort().values
        return [names[i] for i in chosen.tolist()]

    def _by_name(
        self, server_round: int, replies: list[Message]
    ) -> dict[str, tuple[RecordDict, dict[str, Any]]]:
        """Return content and metrics of those that answered, in the order of their names."""
        self.failures = []
        by_name: dict[str, tuple[RecordDict, dict[str, Any]]] = {}
        unnamed: list[str] = []
        # In the order of names: which reply comes first must not decide whose fault is told.
        for message in sorted(replies, key=lambda m: self._asked.get(m.metadata.src_node_id, "")):
            name = self._asked.get(message.metadata.src_node_id)
            if message.has_error():
                code, reason = split_mark(message.error.reason or "no reason given")
                if code is None:
                    code = UNAVAILABLE if message.error.code in _LOST else RAISED
                if name is None:  # the SuperLink answers for a node that it has lost
                    unnamed.append(reason)
                else:
                    self.failures.append(Failure(name, reason, code))
            elif name is not None:
                by_name[name] = (
                    message.content,
                    checked(message.content, name, same_code=self.same_code),
                )
        told = {failure.client for failure in self.failures}
        silence = "; ".join(unnamed) or "no answer before the deadline"
        why = UNAVAILABLE if unnamed else TIMEOUT
        self.failures += [
            Failure(name, silence, why)
            for name in self._asked.values()
            if name not in by_name and name not in told
        ]
        needed = (
            len(self._asked) if self.takes_all else math.ceil(self.min_share * len(self._asked))
        )
        reasons = "; ".join(f"{f.client}: {f.reason}" for f in self.failures) or "none online"
        if len(by_name) < max(1, needed):
            raise ClientLost(
                f"round {server_round} of {self.settings.phase} must have {max(1, needed)} answers "
                f"of {len(self._asked)} clients, got {len(by_name)} ({reasons})"
            )
        if lost := sorted(set(self.required) - set(by_name)):
            raise ClientLost(
                f"round {server_round} of {self.settings.phase} must have the answers of the "
                f"clients that hold what is to be forgotten, got none of {', '.join(lost)} "
                f"({reasons})"
            )
        return {name: by_name[name] for name in sorted(by_name)}


def checked(content: RecordDict, name: str, *, same_code: bool = True) -> dict[str, Any]:
    """Return a reply's metrics if it has the agreed form and comes from the expected code.

    Args:
        content: Of the reply.
        name: The node's.
        same_code: Whether it must come from the client code that runs here.

    Raises:
        ClientLost: If not; the reply must never be averaged.
    """
    if len(content.array_records) != 1 or len(content.metric_records) != 1 or len(content) != 2:
        raise ClientLost(f"reply of {name} must hold one ArrayRecord and one MetricRecord")
    metrics = dict(next(iter(content.metric_records.values())))
    if "num-examples" not in metrics:
        raise ClientLost(f"reply of {name} must say num-examples, got {sorted(metrics)}")
    if same_code and metrics.get("code") != wire.code_number(wire.fingerprint()):
        raise ClientLost(
            f"client {name} must run the coordinator's client code {wire.fingerprint()[:12]}, got "
            f"{metrics.get('code')}; install the same release and restart it"
        )
    return metrics


def summed(metrics: list[dict[str, Any]], num_failures: int) -> MetricRecord:
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
    """FedAvg (McMahan et al. 2017): a seeded share of the nodes trains, weighted by |D_i|."""


class AscentRounds(Rounds):
    """SGA rounds (QuickDrop, Algorithm 1): every holder of the forget set ascends, by |S_f,i|.

    Losing one of them would leave its share of the forget set untouched, so all must answer.
    """

    takes_all = True


class RecoveryRounds(Rounds):
    """Rounds of SGD on little data of the nodes that have any left: recovery, relearning."""
