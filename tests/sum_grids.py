"""Nodes in this process that answer in sums, and a grid that comes between them and coordinator."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord

from client.app import app
from client.steps.training import Fit
from server.nodes.engines.inline import InlineGrid
from server.nodes.grid import LOCAL_POLL_SECONDS, NamedGrid
from strategies.rounds.base import FederatedAveraging, Rounds
from tests.messages import told, weights

FIT: dict[str, Any] = {"steps": 3, "batch_size": 32, "lr": 0.1}
Alter = Callable[[Message], Message | None]


class Between(NamedGrid):
    """A grid that lets a test read, change or lose what goes down and up.

    Attributes:
        down: Returns the message to send in place of one, or None for none.
        up: Returns the reply to hand on in place of one, or None for none.
        sent: All messages that went down.
        came: All replies that came up.
        seen: What was in those that were no errors: kind, arrays and numbers, as they came.
    """

    down: Alter = staticmethod(lambda message: message)
    up: Alter = staticmethod(lambda message: message)

    def __init__(self, inner: InlineGrid) -> None:
        super().__init__(inner, 60.0, LOCAL_POLL_SECONDS)
        self.sent: list[Message] = []
        self.came: list[Message] = []
        self.seen: list[tuple[str, ArrayRecord, dict[str, Any]]] = []

    def replies(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        yield from self.send_and_receive(messages, timeout=timeout)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        sent = [changed for m in messages if (changed := self.down(m)) is not None]
        self.sent += sent
        replies = super().send_and_receive(sent, timeout=timeout)
        self.came += replies
        self.seen += [
            (
                m.metadata.message_type,
                next(iter(m.content.array_records.values())),
                dict(next(iter(m.content.metric_records.values()))),
            )
            for m in replies
            if not m.has_error()
        ]
        return [changed for m in replies if (changed := self.up(m)) is not None]

    def of(self, kind: str) -> list[Message]:
        """Return the messages of a kind that went down."""
        return [message for message in self.sent if message.metadata.message_type == kind]


def name_of(message: Message) -> str:
    """Return the name of the node that a message is for."""
    return str(message.content.config_records["config"]["client"])


def lost(*names: str, at: str) -> Alter:
    """Return what loses all messages of a kind to these nodes, as if they were gone."""

    def alter(message: Message) -> Message | None:
        gone = message.metadata.message_type == at and name_of(message) in names
        return None if gone else message

    return alter


def failing(node: int, at: str) -> Alter:
    """Return what puts an error in place of a node's answer to a kind of message."""

    def alter(reply: Message) -> Message:
        if reply.metadata.src_node_id == node and reply.metadata.message_type == at:
            return Message(Error(2, "boom"), reply_to=reply)
        return reply

    return alter


@contextmanager
def open_grid(num_nodes: int) -> Iterator[Between]:
    with InlineGrid(app, num_nodes, workers=1) as inner:
        yield Between(inner)


def fit_settings(num_nodes: int, **more: Any) -> Fit:
    values = {"num_clients": num_nodes, "max_samples": 80 * num_nodes, "scale": 0}
    settings: Fit = told(Fit, **{**FIT, **values, "sums_only": False, **more})
    return settings


def one_round(
    grid: Any,
    rounds: Rounds | None = None,
    *,
    num_nodes: int = 4,
    arrays: ArrayRecord | None = None,
) -> tuple[ArrayRecord, MetricRecord, Rounds]:
    """Run one round and return its model, its totals, and the rounds."""
    rounds = rounds or FederatedAveraging(fit_settings(num_nodes))
    start = weights() if arrays is None else arrays
    asked = list(rounds.configure_train(1, start, ConfigRecord(), grid))
    model, metrics = rounds.aggregate_train(1, list(grid.send_and_receive(asked)))
    if model is None or metrics is None:
        raise AssertionError("a round must have a result")
    return model, metrics, rounds
