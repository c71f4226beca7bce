"""A Grid whose nodes answer in sums: for a batch of messages it runs secure aggregation.

`Rounds` are none the wiser: for every node whose answer is in the sum comes an ordinary reply, and
each of them holds the same: the mean of the arrays, and an equal part of every number. Messages
whose answers are no sums pass through.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import Any, Final

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from client.errors import AggregationRefused, BadSetting, EffaceError
from client.messages import Common, Declaration
from client.secure.context import (
    MIN_NODES,
    Context,
    Secured,
    digest_of_arrays,
    digest_of_settings,
)
from client.secure.keys import KEY_BYTES, SIGNATURE_BYTES
from client.secure.member import differs_by_few
from client.secure.vector import decoded
from client.steps.secure import (
    COMMITMENT,
    KEYS,
    SIGNATURE,
    Confirm,
    MakeKeys,
    ShareSecrets,
    Step,
    Unmask,
)
from client.steps.training import Fit
from strategies.rounds.base import ClientLost
from strategies.rounds.failures import failure_in
from strategies.rounds.sums import (
    SumOutOfRange,
    added,
    one_row,
    public_keys,
    revealed_shares,
    sealed_shares,
    shared_out,
    with_content,
)
from strategies.rounds.unmasking import Course, unmask


@dataclass(frozen=True)
class _Batch:
    """Messages whose answers are added up, and what came back of each step.

    Attributes:
        declared: What they ask.
        settings: Of one of them, without the node's name.
        told: What all messages of the sum say alike.
        context: What it is about.
        messages: By the nodes' names.
        errors: What came of nodes that failed, in order.
    """

    declared: Declaration
    settings: Common
    told: Secured
    context: Context
    messages: Mapping[str, Message]
    errors: list[Message] = field(default_factory=list)

    def lost(self, step: str, left: int) -> ClientLost:
        """Return the error that too few nodes are left."""
        names = {m.metadata.dst_node_id: name for name, m in self.messages.items()}
        found = [
            failure_in(m.error, names.get(m.metadata.src_node_id, "a node")) for m in self.errors
        ]
        reasons = "; ".join(f"{one.client}: {one.reason}" for one in found)
        return ClientLost(
            f"secure aggregation of {self.context.phase} must have at least "
            f"{self.context.threshold} of {len(self.messages)} clients until its end, got {left} "
            f"that answered {step} ({reasons or 'no answer before the deadline'}); nothing of the "
            "round is known, and the next one draws new keys"
        )


class SecureGrid(Grid):
    """Sends messages on, and returns sums of their answers in place of these.

    Attributes:
        sums: Says so to rounds: all nodes must be told the same.
    """

    sums: Final = True

    def __init__(self, inner: Grid, *, clip: float = 0.0) -> None:
        """Wrap a grid.

        Args:
            inner: Reaches the nodes.
            clip: Longest update that a node sends of training, as L2 norm; 0 for any.
        """
        self.inner = inner
        self.clip = clip
        self._summed: dict[str, tuple[str, ...]] = {}  # nodes in the last sum, by its weights

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Return a reply for each node in the sum, and the errors of the others.

        Raises:
            BadSetting: If fewer than three nodes are asked, or they are asked different things.
            ClientLost: If fewer than t are left at any step.
            SumOutOfRange: If the sum cannot be one.
        """
        asked = list(messages)
        if not asked or not is_summed(asked[0].metadata.message_type):
            return list(self.inner.send_and_receive(asked, timeout=timeout))
        batch = self._batch(asked)
        # Steps 1 to 3: all publish keys, signed for this very sum.
        published = self._step(batch, list(batch.messages), MakeKeys, "keys", timeout, lambda _: {})
        roster = one_row(published, KEYS, 2 * KEY_BYTES + SIGNATURE_BYTES)
        names = self._enough(batch, roster, "query.keys")
        # Step 4: all share their two secrets.
        told = {"names": names, "keys": [roster[name] for name in names]}
        answers = self._step(batch, names, ShareSecrets, "shares", timeout, lambda _: told)
        sealed = sealed_shares(answers, names)
        commitments = one_row(answers, COMMITMENT, KEY_BYTES)
        names = self._enough(batch, {n: sealed[n] for n in sealed if n in commitments}, "shares")
        # Steps 5 to 7: the work.
        replies = self._work(batch, names, sealed, timeout)
        survivors = self._enough(batch, replies, batch.declared.name)
        total, forms = added(batch.declared.name, [replies[name] for name in survivors])
        # Steps 8 to 10: t of them agree on who survived, and reveal what takes the masks off.
        told = {"survivors": survivors}
        answers = self._step(batch, survivors, Confirm, "confirm", timeout, lambda _: told)
        signatures = one_row(answers, SIGNATURE, SIGNATURE_BYTES)
        signers = self._enough(batch, signatures, "query.confirm")
        told = {"names": signers, "signatures": [signatures[name] for name in signers]}
        answers = self._step(batch, signers, Unmask, "unmask", timeout, lambda _: told)
        self._enough(batch, answers, "query.unmask")
        course = Course(
            batch.context,
            {name: public_keys(roster[name]) for name in sorted(roster)},
            {name: commitments[name] for name in names},
            survivors,
            revealed_shares(answers, names),
        )
        # Step 11.
        self._summed[batch.context.weights] = tuple(survivors)
        try:
            unmask(total, course)
            found = decoded(batch.declared, total, forms, num_classes=batch.settings.model_classes)
        except AggregationRefused as error:
            raise SumOutOfRange(
                f"sum of {batch.context.phase} must be one of {len(survivors)} answers that keep "
                f"to the protocol, got another ({error}); nothing of the round is used"
            ) from error
        content = shared_out(batch.declared, found, len(survivors))
        return [with_content(replies[name], content) for name in survivors] + batch.errors

    def _batch(self, asked: Sequence[Message]) -> _Batch:
        kind = _kinds()[asked[0].metadata.message_type]
        messages: dict[str, Message] = {}
        for message in asked:
            messages[str(message.content.config_records["config"]["client"])] = message
        digests = {
            (
                message.metadata.message_type,
                digest_of_settings(message.content.config_records["config"]),
            )
            for message in asked
        }
        arrays = asked[0].content.array_records["arrays"]
        model = digest_of_arrays(arrays)
        same = all(
            m.content.array_records["arrays"] is arrays
            or digest_of_arrays(m.content.array_records["arrays"]) == model
            for m in asked
        )
        if len(digests) != 1 or len(messages) != len(asked) or not same:
            raise EffaceError("messages of a sum must ask all nodes the same, got different ones")
        settings = kind.parse(asked[0].content.config_records["config"])
        messages = self._as_before(messages, settings, model)
        if len(messages) < MIN_NODES:
            raise BadSetting(
                f"secure aggregation must ask at least {MIN_NODES} clients, got {len(messages)}: "
                "the sum of fewer is an answer of one to another; raise fraction or num-clients"
            )
        told = Secured(
            attempt=os.urandom(16).hex(),
            cohort=sorted(messages),
            work=kind.message.name,
            settings=next(iter(digests))[1],
            model=model,
            clip=self.clip if kind is Fit else 0.0,  # an ascent's length is the method's own
        )
        context = Context.of(settings.request, settings.phase, settings.server_round, told)
        return _Batch(kind.message, settings, told, context, dict(sorted(messages.items())))

    def _as_before(
        self, messages: dict[str, Message], settings: Common, model: str
    ) -> dict[str, Message]:
        """Leave out nodes that were lost in the last sum with the same weights.

        The others would refuse a sum with them: the difference of both would be theirs.
        """
        probe = Context(settings.request, "", 0, "", "", "", model, ())
        before = self._summed.get(probe.weights)
        if before is None or not set(before) <= set(messages):
            return messages
        if not differs_by_few(before, messages, MIN_NODES):
            return messages
        return {name: messages[name] for name in before}

    def _step(
        self,
        batch: _Batch,
        names: Sequence[str],
        kind: type[Step],
        what: str,
        timeout: float | None,
        values: Any,
    ) -> dict[str, ArrayRecord]:
        """Send one step of the protocol to these nodes; return the arrays of those that answer."""
        shared = {spec.name: getattr(batch.settings, spec.name) for spec in fields(Common)}
        shared |= {"secure": batch.told}
        messages = {
            name: Message(
                RecordDict(
                    {
                        "arrays": ArrayRecord(),
                        "config": kind(**{**shared, **values(name), "client": name}).config(),
                    }
                ),
                dst_node_id=batch.messages[name].metadata.dst_node_id,
                message_type=kind.message.name,
                group_id=batch.messages[name].metadata.group_id,
            )
            for name in names
        }
        replies = self._exchanged(batch, messages, timeout)
        return {
            name: next(iter(reply.content.array_records.values()))
            for name, reply in replies.items()
        }

    def _work(
        self,
        batch: _Batch,
        names: Sequence[str],
        sealed: Mapping[str, Mapping[str, bytes]],
        timeout: float | None,
    ) -> dict[str, Message]:
        """Send the messages themselves; return the replies by the nodes' names."""
        messages = {}
        for name in names:
            message = batch.messages[name]
            senders = [other for other in names if other != name]
            told = replace(
                batch.told, senders=senders, sealed=[sealed[other][name] for other in senders]
            )
            config = ConfigRecord(dict(message.content.config_records["config"]))
            config.update(told.config(prefix="secure-"))
            arrays = message.content.array_records["arrays"]
            message.content = RecordDict({"arrays": arrays, "config": config})
            messages[name] = message
        return self._exchanged(batch, messages, timeout)

    def _exchanged(
        self, batch: _Batch, messages: Mapping[str, Message], timeout: float | None
    ) -> dict[str, Message]:
        """Send messages; return the replies of well-formed answers, and note errors."""
        names = {message.metadata.dst_node_id: name for name, message in messages.items()}
        replies = {}
        for reply in self.inner.send_and_receive(list(messages.values()), timeout=timeout):
            name = names.get(reply.metadata.src_node_id)
            if reply.has_error() or name is None:
                batch.errors.append(reply)
            elif len(reply.content.array_records) == len(reply.content.metric_records) == 1:
                replies[name] = reply
        return replies

    def _enough(self, batch: _Batch, left: Mapping[str, Any], step: str) -> list[str]:
        """Return the names of the nodes that are left, in order.

        Raises:
            ClientLost: If they are fewer than t.
        """
        if len(left) < batch.context.threshold:
            raise batch.lost(step, len(left))
        return sorted(left)

    # -- the rest is the inner grid's ------------------------------------------------------------

    def set_run(self, run: Run) -> None:
        self.inner.set_run(run)

    @property
    def run(self) -> Run:
        return self.inner.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_nodes(self) -> Iterable[NodeInfo]:
        return self.inner.get_nodes()

    def get_node_ids(self) -> Iterable[int]:
        return self.inner.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Refuse: what is pushed alone is answered alone.

        Raises:
            EffaceError: Always.
        """
        raise EffaceError("messages must be sent together to be added up; use send_and_receive")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self.inner.pull_messages(message_ids)


@lru_cache(maxsize=1)  # the handlers do not change while a process lives
def _kinds() -> dict[str, type[Common]]:
    from client.app import handlers

    return {name: handler.kind for name, handler in handlers().items()}


def is_summed(message_type: str) -> bool:
    """Return whether a message's answers are added up."""
    kind = _kinds().get(message_type)
    return kind is not None and kind.message.sums is not None
