"""A Grid whose nodes answer in sums: for a batch of messages it runs secure aggregation.

`Rounds` are none the wiser: for every node whose answer is in the sum comes an ordinary reply, and
each of them holds the same: the mean of the arrays, and an equal part of every number. Messages
whose answers are no sums pass through.

It is long because the steps of one sum stand in their order in one place.
"""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import Any, Final, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from client.errors import AggregationRefused, BadSetting, EffaceError, marked
from client.messages import Common, Declaration
from client.packing import with_arrays
from client.secure.context import (
    MIN_NODES,
    Context,
    Secured,
    digest_of_arrays,
    digest_of_settings,
)
from client.secure.fixed_point import UInt64s
from client.secure.member import differs_by_few
from client.secure.vector import Shape, decoded
from client.steps.secure import Confirm, MakeKeys, ShareSecrets, Step, Unmask
from client.steps.training import Fit
from strategies.rounds.arriving import arriving
from strategies.rounds.base import NO_ANSWER, TIMEOUT, UNAVAILABLE, ClientLost, Failure
from strategies.rounds.failures import cleaned, failure_in, listed
from strategies.rounds.replies import BadReply
from strategies.rounds.sums import (
    MaskedSums,
    SumOutOfRange,
    arrays_of,
    masked,
    public_keys,
    published,
    revealed_shares,
    sealed_shares,
    shared_out,
    signature,
    with_content,
)
from strategies.rounds.unmasking import Course, unmask

T = TypeVar("T")


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

    def fail(self, question: Message, why: BadReply) -> None:
        """Note that a node answered a question in another way than it must."""
        reason = marked(why, cleaned(str(why)))
        self.errors.append(Message(Error(ErrorCode.UNKNOWN, reason), reply_to=question))

    def lost(self, step: str, left: Collection[str]) -> ClientLost:
        """Return the error that too few nodes are left, with what is known of the others."""
        names = {m.metadata.dst_node_id: name for name, m in self.messages.items()}
        failed: dict[str, Failure] = {}
        unnamed: list[Failure] = []  # the SuperLink answers for a node that it has lost
        for message in self.errors:
            name = names.get(message.metadata.src_node_id)
            failure = failure_in(message.error, name or "")
            if name is None:
                unnamed.append(failure)
            else:
                failed.setdefault(name, failure)
        silence = "; ".join(dict.fromkeys(f.reason for f in unnamed)) or NO_ANSWER
        for name in self.messages:
            if name not in failed and name not in left:
                failed[name] = Failure(name, silence, UNAVAILABLE if unnamed else TIMEOUT)
        failures = [failed[name] for name in sorted(failed)]
        return ClientLost(
            f"secure aggregation of {self.context.phase} must have at least "
            f"{self.context.threshold} of {len(self.messages)} clients until its end, got "
            f"{len(left)} that answered {step} ({listed(failures)}); nothing of the round is "
            "known, and the next one draws new keys",
            failures=failures,
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
        everybody = list(batch.messages)
        # Steps 1 to 3: all publish keys, signed for this very sum.
        roster = self._step(
            batch, everybody, MakeKeys, {}, timeout, lambda _, arrays: published(arrays)
        )
        names = self._enough(batch, roster, "query.keys")
        # Step 4: all share their two secrets.
        told = {"names": names, "keys": [roster[name] for name in names]}
        sealed = self._step(
            batch,
            names,
            ShareSecrets,
            told,
            timeout,
            lambda name, arrays: sealed_shares(arrays, [n for n in names if n != name]),
        )
        sharers = self._enough(batch, sealed, "query.shares")
        # Steps 5 to 7: the work.
        replies, total, forms = self._work(batch, sharers, sealed, timeout)
        survivors = list(replies)
        # Steps 8 to 10: t of them agree on who survived, and reveal what takes the masks off.
        told = {"survivors": survivors}
        signatures = self._step(
            batch, survivors, Confirm, told, timeout, lambda _, arrays: signature(arrays)
        )
        signers = self._enough(batch, signatures, "query.confirm")
        told = {"names": signers, "signatures": [signatures[name] for name in signers]}
        shares = self._step(
            batch,
            signers,
            Unmask,
            told,
            timeout,
            lambda _, arrays: revealed_shares(arrays, sharers),
        )
        self._enough(batch, shares, "query.unmask")
        course = Course(
            batch.context,
            {name: public_keys(roster[name]) for name in sorted(roster)},
            {name: sealed[name][1] for name in sharers},
            survivors,
            shares,
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

    def replies(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Yield what `send_and_receive` returns; what is no sum, as it comes."""
        asked = list(messages)
        if asked and is_summed(asked[0].metadata.message_type):
            yield from self.send_and_receive(asked, timeout=timeout)
        else:
            yield from arriving(self.inner, asked, timeout=timeout)

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
        told: Mapping[str, Any],
        timeout: float | None,
        read: Callable[[str, ArrayRecord], T],
    ) -> dict[str, T]:
        """Send one step of the protocol to these nodes; return what those say that answer it.

        Args:
            batch: Of the sum.
            names: Of the nodes.
            kind: Of the step.
            told: Its own settings.
            timeout: In seconds.
            read: Makes something of a node's name and arrays; raises `BadReply` if it cannot.
        """
        shared = {spec.name: getattr(batch.settings, spec.name) for spec in fields(Common)}
        shared |= {"secure": batch.told, **told}
        messages = {
            name: Message(
                RecordDict(
                    {"arrays": ArrayRecord(), "config": kind(**{**shared, "client": name}).config()}
                ),
                dst_node_id=batch.messages[name].metadata.dst_node_id,
                message_type=kind.message.name,
                group_id=batch.messages[name].metadata.group_id,
            )
            for name in names
        }
        answers = self._exchanged(batch, messages, timeout, read)
        return {name: found for name, (_, found) in answers.items()}

    def _work(
        self,
        batch: _Batch,
        names: Sequence[str],
        sealed: Mapping[str, tuple[Mapping[str, bytes], bytes]],
        timeout: float | None,
    ) -> tuple[dict[str, Message], UInt64s, dict[str, Shape]]:
        """Send the messages themselves; return the replies that are in the sum, by names in order.

        Beside them their sum, and what its numbers are.
        """
        messages = {}
        for name in names:
            message = batch.messages[name]
            senders = [other for other in names if other != name]
            told = replace(
                batch.told, senders=senders, sealed=[sealed[other][0][name] for other in senders]
            )
            config = ConfigRecord(dict(message.content.config_records["config"]))
            config.update(told.config(prefix="secure-"))
            arrays = message.content.array_records["arrays"]
            message.content = RecordDict({"arrays": arrays, "config": config})
            messages[name] = message
        sums = MaskedSums()
        answers = self._exchanged(
            batch, messages, timeout, lambda name, arrays: sums.add(name, masked(arrays))
        )
        forms, alike, total = sums.in_one_form(batch.declared, batch.settings.model_classes)
        for name in sorted(set(answers) - set(alike)):
            why = BadReply(f"masked answer to {batch.declared.name} must have the others' form")
            batch.fail(messages[name], why)
        survivors = self._enough(batch, alike, batch.declared.name)
        return {name: answers[name][0] for name in survivors}, total, forms

    def _exchanged(
        self,
        batch: _Batch,
        messages: Mapping[str, Message],
        timeout: float | None,
        read: Callable[[str, ArrayRecord], T],
    ) -> dict[str, tuple[Message, T]]:
        """Send messages; return the answers that can be read, and note what came of the others."""
        names = {message.metadata.dst_node_id: name for name, message in messages.items()}
        found: dict[str, tuple[Message, T]] = {}
        for reply in arriving(self.inner, list(messages.values()), timeout=timeout):
            name = names.get(reply.metadata.src_node_id)
            if reply.has_error() or name is None:
                batch.errors.append(reply)
                continue
            try:
                found[name] = reply, read(name, arrays_of(reply.content))
                # What was read of it is enough; its numbers are wanted later.
                reply.content = with_arrays(reply.content, lambda arrays: ArrayRecord())
            except BadReply as error:
                batch.fail(messages[name], error)
            except Exception as error:  # whatever a node sends is that node's failure
                why = BadReply(f"reply must be readable, got {type(error).__name__}")
                batch.fail(messages[name], why)
        return found

    def _enough(self, batch: _Batch, left: Collection[str], step: str) -> list[str]:
        """Return the names of the nodes that are left, in order.

        Raises:
            ClientLost: If they are fewer than t.
        """
        if len(left) < batch.context.threshold:
            raise batch.lost(step, left)
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
