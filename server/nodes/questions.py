"""One question to many nodes: every answer is checked, every failure kept with its name."""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from client.messages import Common
from client.steps.store import Settle
from client.wire import CodeMismatch
from server.nodes.grid import NamedGrid
from strategies.rounds.base import NO_ANSWER, OFFLINE, told_to
from strategies.rounds.failures import TIMEOUT, UNAVAILABLE, Failure, failure_in
from strategies.rounds.replies import (
    BadReply,
    Expected,
    bounds,
    check,
    expected_arrays,
    most_examples,
)


@dataclass
class Answers:
    """What came back.

    Attributes:
        metrics: The numbers of every node that answered, by its name, in order.
        arrays: Its arrays, likewise.
        failures: Of the others, in the order of their names.
        seconds: Wall time.
        up: Bytes from the nodes.
        down: Bytes to them.
    """

    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    arrays: dict[str, ArrayRecord] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0
    up: int = 0
    down: int = 0


def ask(
    grid: NamedGrid,
    told: Common,
    arrays: ArrayRecord,
    *,
    names: Collection[str] | None = None,
    described: Mapping[str, Mapping[str, Any]] | None = None,
    sums: bool = False,
    together: bool = False,
    sender: Grid | None = None,
    site_keys: Mapping[str, Sequence[str]] | None = None,
) -> Answers:
    """Ask nodes one question; whatever one of them answers, the others' answers count.

    Args:
        grid: The nodes.
        told: What every one of them is told; `client` is filled in.
        arrays: What goes down with it.
        names: Who is asked; None for all that are online.
        described: What they have said that they hold.
        sums: Whether every answer is the mean of all.
        together: Whether nobody is asked if somebody is away.
        sender: Through whom, where it is another than the grid.
        site_keys: Public keys that are known of nodes, by name, for what they sign.
    """
    grid.take_traffic()
    started = time.perf_counter()
    online = {node.name or f"node-{node.node_id}": node.node_id for node in grid.get_nodes()}
    wanted = sorted(online if names is None else names)
    by_id = {online[n]: n for n in wanted if n in online}
    config = told.config()
    messages = [
        Message(
            RecordDict({"arrays": arrays, "config": told_to(config, n)}),
            dst_node_id=online[n],
            message_type=told.message.name,
        )
        for n in wanted
        if n in online
    ]
    found = Answers()
    failed: dict[str, Failure] = {}
    if together and len(messages) < len(wanted):
        found.failures = [Failure(n, OFFLINE, UNAVAILABLE) for n in wanted if n not in online]
        return found
    limits = {n: most_examples(told, d) for n, d in (described or {}).items()}
    most = max(limits.values(), default=most_examples(told, None))
    like = expected_arrays(told, arrays)
    for reply in (sender or grid).send_and_receive(messages) if messages else []:
        who = by_id.get(reply.metadata.src_node_id)
        if who is None or who in found.metrics or who in failed:
            continue
        if reply.has_error():
            failed[who] = failure_in(reply.error, who)
            continue
        limit = most if sums else limits.get(who, most)
        own = {} if sums else bounds(told, who, (described or {}).get(who))
        expected = Expected(told.message, like, told.model_classes, limit, own)
        if isinstance(told, Settle):
            claim = replace(told, client=who).claim((site_keys or {}).get(who, ()))
            expected = replace(expected, claim=claim)
        try:
            found.arrays[who], found.metrics[who] = check(reply.content, expected)
        except (BadReply, CodeMismatch) as error:
            failed[who] = Failure(who, str(error), error.code)
    for name in wanted:
        if name not in online:
            failed[name] = Failure(name, OFFLINE, UNAVAILABLE)
        elif name not in found.metrics and name not in failed:
            failed[name] = Failure(name, NO_ANSWER, TIMEOUT)
    found.metrics = {n: found.metrics[n] for n in wanted if n in found.metrics}
    found.failures = [failed[n] for n in wanted if n in failed]
    traffic = grid.take_traffic()
    found.up, found.down = traffic.up, traffic.down
    found.seconds = time.perf_counter() - started
    return found
