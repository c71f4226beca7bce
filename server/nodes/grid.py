"""Flower's Grid with what a request needs: clients by name, deadlines, bytes, a fixed order."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, runtime_checkable

from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from client.errors import EffaceError
from server.nodes.exchanged import meant, of_transport, pack, unpacked
from server.nodes.sizes import Sizes, size
from strategies.rounds.failures import cleaned

REMOTE_POLL_SECONDS: Final = 0.1
LOCAL_POLL_SECONDS: Final = 0.005
TELL_SECONDS: Final = 1.0  # between two words of how many have answered
HELD_BYTES: Final = 2**28  # of replies that are pulled, or made by this machine, at one time
LEAST_HELD: Final = 4  # of them, however large


class ClientsMissing(EffaceError):
    """Too few clients are online when the time to wait for them is over."""

    code = "clients-missing"


@dataclass
class Traffic:
    """Bytes of message contents since `take` was called last."""

    up: int = 0
    down: int = 0


@runtime_checkable
class Forgetful(Protocol):
    """A grid of this process: it waits when it is pulled, and forgets what is not wanted."""

    def forget(self, message_ids: Iterable[str]) -> None:
        """Throw away the replies to these messages, those that are still to come as well."""


@dataclass
class NamedGrid(Grid):
    """A Grid on which every node has a name and every wait has an end.

    Flower's own `send_and_receive` sleeps 3 seconds between polls on a real SuperLink and waits
    for ever by default; this one polls every 0.1 s up to `round_timeout` seconds. `replies` gives
    each reply away as it comes: of large ones few are here at a time.
    """

    inner: Grid
    round_timeout: float
    poll_seconds: float = REMOTE_POLL_SECONDS
    names: dict[int, str] = field(default_factory=dict)  # where the inner grid knows none
    traffic: Traffic = field(default_factory=Traffic)
    only: frozenset[str] = frozenset()  # names of those that take part; the others get no message
    _open: frozenset[int] = frozenset()  # their ids, as last seen
    on_answers: Callable[[int, int], None] | None = None  # told how many of how many have
    # Messages that may be under way, at least and at most; in between as many as their size allows.
    # For nodes on this machine, whose replies would pile up in it; None for all.
    under_way: tuple[int, int] | None = None
    packs: bool = False  # whether a record of arrays travels as one; pays where it does travel
    _late: set[str] = field(default_factory=set)  # messages whose replies are not wanted any more
    one_by_one: bool = False  # whether a reply came that could not be read with the others

    def wait_for(self, num_clients: int, seconds: float, without: Sequence[str] = ()) -> None:
        """Wait until `num_clients` nodes are online, or all of them but those `without`.

        Args:
            num_clients: Nodes of the federation.
            seconds: How long to wait.
            without: Names of nodes that need not be there.

        Raises:
            ClientsMissing: If they are not after `seconds`.
        """
        deadline = time.monotonic() + seconds
        if self.only:
            self._wait_for_named(deadline, seconds, without)
            return
        needed = num_clients - len(without)
        while True:
            online = sorted(n.name or str(n.node_id) for n in self.get_nodes())
            counted = [name for name in online if name not in without]
            if len(counted) >= needed:
                break
            if time.monotonic() > deadline:
                raise ClientsMissing(
                    f"clients online must be at least {needed}"
                    + (f" beside {', '.join(without)}" if without else "")
                    + f", got {len(counted)} after "
                    f"{seconds:g} s ({', '.join(online) or 'none'}); start the missing nodes, or "
                    "raise join-timeout"
                )
            time.sleep(self.poll_seconds)
        self.check_names()

    def _wait_for_named(self, deadline: float, seconds: float, without: Sequence[str]) -> None:
        while True:
            online = {node.name for node in self.get_nodes()}
            missing = sorted(self.only - online - set(without))
            if not missing:
                break
            if time.monotonic() > deadline:
                connected = sorted(n.name or str(n.node_id) for n in self.inner.get_nodes())
                raise ClientsMissing(
                    f"clients must be online as named, got no {', '.join(missing)} after "
                    f"{seconds:g} s ({', '.join(connected) or 'none'}); start the missing nodes, "
                    "or check the names"
                )
            time.sleep(self.poll_seconds)
        self.check_names()

    def check_names(self) -> None:
        """Refuse names that steer a terminal, and two nodes of one name: requests go by name.

        Flower lets both register.

        Raises:
            ClientsMissing: Naming them.
        """
        names = [node.name for node in self.get_nodes() if node.name]
        if odd := sorted({n for n in names if n.split() != cleaned(n).split()}):
            raise ClientsMissing(
                f"client names must hold no control characters, got {odd[0]!a}; unregister it"
            )
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ClientsMissing(
                f"client names must be unique, got two nodes called {', '.join(twice)}; "
                "unregister one of them"
            )

    def take_traffic(self) -> Traffic:
        """Return the bytes counted so far and start again from zero."""
        taken, self.traffic = self.traffic, Traffic()
        return taken

    def get_nodes(self) -> list[NodeInfo]:
        """Return the nodes online, each with its name; of named ones those that take part."""
        found = [
            NodeInfo(node_id=n.node_id, name=n.name or self.names.get(n.node_id, ""))
            for n in self.inner.get_nodes()
        ]
        if not self.only:
            return found
        taking_part = [node for node in found if node.name in self.only]
        self._open = frozenset(node.node_id for node in taking_part)
        return taking_part

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Send, wait for the replies until the deadline, and return those that came.

        Returns:
            Replies in the order in which their messages were given, so that sums do not depend on
            who was fastest.
        """
        sent = list(messages)
        place = {}
        found = []
        for position, reply in self._exchanged(sent, timeout):
            place[id(reply)] = position
            found.append(reply)
        return sorted(found, key=lambda reply: place[id(reply)])

    def replies(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Send, and yield the replies that come until the deadline, in whatever order they come.

        Time that the caller spends on a reply is not counted against the deadline.
        """
        for _, reply in self._exchanged(list(messages), timeout):
            yield reply

    def _exchanged(
        self, sent: list[Message], timeout: float | None
    ) -> Iterator[tuple[int, Message]]:
        """Send messages; yield each reply with its message's position."""
        asked = [message.content for message in sent]
        if self.packs:
            pack(sent)
        try:
            yield from self._arriving(sent, timeout)
        finally:
            for message, content in zip(sent, asked, strict=True):
                message.content = content

    def _arriving(
        self, sent: list[Message], timeout: float | None
    ) -> Iterator[tuple[int, Message]]:
        sizes = Sizes()
        down = [sizes.of(message) for message in sent]
        self.traffic.down += sum(down)
        # A reply is about as large as its question.
        held = max(LEAST_HELD, HELD_BYTES // max([1, *down]))
        least, most = (len(sent), len(sent)) if self.under_way is None else self.under_way
        most_open = max(least, min(most, held))
        place: dict[str, int] = {}
        pending: dict[str, None] = {}  # in the order in which they were sent
        opened = answered = 0
        seconds = self.round_timeout if timeout is None else min(timeout, self.round_timeout)
        deadline = time.monotonic() + seconds
        told = time.monotonic()
        self._drop_late()
        try:
            while answered < len(sent) and time.monotonic() < deadline:
                if opened < len(sent) and len(pending) < most_open:
                    following = sent[opened : opened + most_open - len(pending)]
                    for position, message_id in enumerate(self.push_messages(following), opened):
                        place[message_id] = position
                        pending[message_id] = None
                    opened += len(following)
                pulled = False
                for reply in self._pulled(pending, sent, place, held):
                    pulled = True
                    answered += 1
                    message_id = reply.metadata.reply_to_message_id
                    pending.pop(message_id)
                    self.traffic.up += size(reply)
                    position = place[message_id]
                    given = time.monotonic()
                    yield position, unpacked(reply, sent[position])
                    deadline += time.monotonic() - given
                if answered < len(sent):
                    if self.on_answers is not None and time.monotonic() - told > TELL_SECONDS:
                        told = time.monotonic()
                        self.on_answers(answered, len(sent))
                    if not pulled:
                        time.sleep(self.poll_seconds)
                    elif not isinstance(self.inner, Forgetful):  # whose pulls wait by themselves
                        time.sleep(min(self.poll_seconds, LOCAL_POLL_SECONDS))
        finally:
            self._leave(pending)

    def _drop_late(self) -> None:
        """Pull what came too late for the messages before, so that nothing keeps it."""
        if self._late:
            for reply in self.inner.pull_messages(list(self._late)):
                self._late.discard(reply.metadata.reply_to_message_id)

    def _leave(self, pending: Iterable[str]) -> None:
        """Wait no longer for replies; where nodes are on this machine, they are thrown away."""
        if isinstance(self.inner, Forgetful):
            self.inner.forget(pending)
        elif self.under_way is not None:
            self._late |= set(pending)

    def _pulled(
        self,
        pending: Mapping[str, None],
        sent: Sequence[Message],
        place: Mapping[str, int],
        held: int,
    ) -> Iterator[Message]:
        """Yield the replies that are there; one that cannot even be read is its node's error.

        Flower builds all replies of a pull at once, and one that a node has broken takes the
        others with it. From then on they are pulled one by one.
        """
        wanted, count = list(pending), 1 if self.one_by_one else held
        for batch in (wanted[start : start + count] for start in range(0, len(wanted), count)):
            try:
                found = list(self.inner.pull_messages(batch))
            except Exception as error:
                if isinstance(error, OSError | EffaceError) or of_transport(error):
                    raise  # the SuperLink's, not a node's
                if len(batch) > 1:
                    self.one_by_one = True
                    continue
                reason = f"reply must be readable, got {type(error).__name__}"
                question = sent[place[batch[0]]]
                found = [Message(Error(ErrorCode.UNKNOWN, reason), reply_to=question)]
            found.reverse()
            while found:  # what is taken is not held here, too
                reply = found.pop()
                if meant(reply, sent, place) and reply.metadata.reply_to_message_id in pending:
                    yield reply
                del reply

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

    def get_node_ids(self) -> list[int]:
        return [node.node_id for node in self.get_nodes()]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = list(messages)
        if self.only:
            for message in sent:
                self._check_open(message.metadata.dst_node_id)
        return self.inner.push_messages(sent)

    def _check_open(self, node: int) -> None:
        """Refuse a message to a node that does not take part: whoever wrote it has not looked.

        Raises:
            ClientsMissing: With the node's number.
        """
        if node not in self._open and node not in {n.node_id for n in self.get_nodes()}:
            raise ClientsMissing(
                f"message must go to one of {', '.join(sorted(self.only))}, got node {node}"
            )

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self.inner.pull_messages(message_ids)
