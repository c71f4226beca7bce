"""Rounds of every kind with the real replies of three nodes, of which one is then made hostile."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from client.app import app
from client.channels.layout import from_text, layout
from client.messages import CLASS_3
from client.steps.ascent import Ascend
from client.steps.channels import Ablation, FitChannels, Representation
from client.steps.fedosd import Gradient
from client.steps.measuring import Describe, Fisher
from client.steps.recovery import Descend
from client.steps.training import Fit
from server.nodes.engines.inline import InlineGrid
from strategies.methods.fedosd import NoWayBack, OrthogonalStep, TargetGradient
from strategies.methods.fisher import FisherRounds
from strategies.rounds.base import AscentRounds, FederatedAveraging, RecoveryRounds, Rounds
from strategies.rounds.channels import AblationRounds, PartialChannelFedAvg, RepresentationRounds
from strategies.rounds.scaling import ScaledAveraging
from tests.messages import network, told, weights

EVIL = "client-0"
CHANNELS = {"channels": ["body.0:0,3", "classifier:3"]}


def _gradients() -> ArrayRecord:
    draws = np.random.default_rng(0)
    return ArrayRecord(
        {
            n: Array(draws.normal(size=tuple(p.shape)).astype(np.float32))
            for n, p in network().named_parameters()
        }
    )


# Every kind of round: how it is made.
KINDS: Mapping[str, Callable[[], Rounds]] = {
    "fit": lambda: FederatedAveraging(told(Fit, steps=1, batch_size=32, lr=0.1)),
    "ascend": lambda: AscentRounds(told(Ascend, lr=0.02, data="original", **CLASS_3)),
    "recover": lambda: RecoveryRounds(told(Descend, lr=0.02, data="original", **CLASS_3)),
    "scaled": lambda: ScaledAveraging(
        told(Fit, steps=1, batch_size=32, lr=0.1, side="forget", **CLASS_3),
        scales={},
        others=-2.0,
    ),
    "means": lambda: RepresentationRounds(told(Representation, samples_per_class=5, **CLASS_3)),
    "ablation": lambda: AblationRounds(told(Ablation, max_examples=4, **CLASS_3)),
    "fisher": lambda: FisherRounds(told(Fisher, max_examples=4)),
    "target": lambda: TargetGradient(told(Gradient, side="forget", **CLASS_3)),
    "orthogonal": lambda: OrthogonalStep(
        told(Gradient, side="retain", **CLASS_3), towards=_gradients(), lr=0.1
    ),
    "no-way-back": lambda: NoWayBack(
        told(Fit, steps=1, batch_size=32, lr=0.1), origin=weights(seed=1)
    ),
    "channels": lambda: PartialChannelFedAvg(
        told(FitChannels, steps=1, batch_size=32, lr=0.1, **CHANNELS, **CLASS_3),
        layout(network()),
    ),
}
assert from_text(CHANNELS["channels"])


@dataclass
class Played:
    """The questions and the real answers of one kind of round, and what the nodes hold."""

    kind: str
    questions: list[Message]
    answers: list[tuple[dict[str, Array], dict[str, Any]]]
    described: dict[str, dict[str, Any]]

    @property
    def evil(self) -> int:
        """Position of the hostile node's message."""
        names = [str(q.content.config_records["config"]["client"]) for q in self.questions]
        return names.index(EVIL)

    def rounds(self) -> Rounds:
        """Return fresh rounds, whose messages have been sent."""
        rounds = KINDS[self.kind]()
        rounds.described = self.described
        rounds.members = list(self.described)
        with nodes() as grid:
            list(rounds.configure_train(1, weights(), ConfigRecord(), grid))
        return rounds

    def result(self, rounds: Rounds, content: RecordDict | None) -> ArrayRecord:
        """Return what rounds make of the honest answers and the hostile one."""
        replies = []
        for position, question in enumerate(self.questions):
            arrays, metrics = self.answers[position]
            honest = RecordDict(
                {"arrays": ArrayRecord(arrays), "metrics": MetricRecord(dict(metrics))}
            )
            own = content if position == self.evil and content is not None else honest
            replies.append(Message(own, reply_to=question))
        found, totals = rounds.aggregate_train(1, replies)
        assert found is not None
        assert totals is not None
        assert all(np.isfinite(np.asarray(value, dtype=float)).all() for value in totals.values())
        return found


@contextmanager
def nodes(client: Any = app) -> Iterator[InlineGrid]:
    """Give three nodes on this machine."""
    with InlineGrid(client, 3) as grid:
        yield grid


def play(kind: str) -> Played:
    """Have three honest nodes answer one round."""
    rounds = KINDS[kind]()
    with nodes() as grid:
        asked = list(rounds.configure_train(1, weights(), ConfigRecord(), grid))
        found = grid.send_and_receive(asked)
        question = told(Describe, **CLASS_3)
        about = [
            Message(
                RecordDict({"arrays": ArrayRecord(), "config": _named(question, name)}),
                dst_node_id=number,
                message_type=Describe.message.name,
            )
            for number, name in rounds._asked.items()
        ]
        names = dict(rounds._asked)
        described = {
            names[m.metadata.src_node_id]: dict(next(iter(m.content.metric_records.values())))
            for m in grid.send_and_receive(about)
        }
    by_node = {m.metadata.src_node_id: m for m in found}
    answers = []
    for message in asked:
        content = by_node[message.metadata.dst_node_id].content
        (arrays,), (metrics,) = content.array_records.values(), content.metric_records.values()
        answers.append((dict(arrays), dict(metrics)))
    return Played(kind, asked, answers, described)


def _named(settings: Any, name: str) -> ConfigRecord:
    config: ConfigRecord = settings.config()
    config["client"] = name
    return config
