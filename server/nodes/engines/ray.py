"""The Ray engine: clients in Ray actors, on this machine or a Ray cluster.

For many clients and GPU fractions. An actor is a process that answers for one client at a time with
Flower's ClientApp and the client's own Context. Flower's simulation runtime (1.39) does so, too; it
pickles the whole app anew with every message, and looks for messages ten times a second.

It is long because who has which message, and what of it is stored where, must be told together.
"""

import math
import os
import sys
import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from types import TracebackType
from typing import Any, Final, Self
from uuid import uuid4

from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from client.errors import BadSetting
from server.nodes.engines.simulated import NodeConfig, SimulatedGrid, raised

AHEAD: Final = (2, 16)  # messages that an actor has to go on with, at least and at most
AHEAD_SECONDS: Final = 0.1  # of work: where messages take less, more of them wait at an actor
LOOK_SECONDS: Final = 0.5  # between two looks whether a deadline has passed
SHARED_BYTES: Final = 100_000  # an array record from here on is stored once for all its messages


class Clients:
    """What an actor is: a process in which clients' messages are answered, one after another."""

    def __init__(self, client_app: ClientApp) -> None:
        self.client_app = client_app

    def started(self) -> None:
        """Answer, once there is a process that can."""

    def answer(
        self, message: Message, context: Context, names: list[str], *arrays: ArrayRecord
    ) -> tuple[Message, RecordDict, float]:
        """Return the reply to a message, the client's state after it, and the seconds it took.

        Args:
            message: Without the array records that were stored.
            context: The client's.
            names: Of those array records, in the message.
            arrays: They.
        """
        for name, record in zip(names, arrays, strict=True):
            message.content[name] = record
        started = time.perf_counter()
        try:
            reply = self.client_app(message, context)
        except Exception as error:
            reply = raised(error, message)
        return reply, context.state, time.perf_counter() - started


@dataclass
class Stored:
    """A record that was stored, and what it held then."""

    record: ArrayRecord
    held: list[tuple[str, Any]]
    place: Any

    def is_of(self, record: ArrayRecord) -> bool:
        """Return whether it is this record, and nothing in it was changed since."""
        if self.record is not record or len(self.held) != len(record):
            return False
        return all(
            name == now and kind == (array.dtype, array.shape, array.stype) and data is array.data
            for (name, (kind, data)), (now, array) in zip(self.held, record.items(), strict=True)
        )


@dataclass
class Asked:
    """A message under way, and who has it; -1 and None before an actor has."""

    message: Message
    actor: int = -1
    result: Any = None


class RayGrid(SimulatedGrid):
    """A Grid whose nodes are answered for by Ray actors."""

    def __init__(
        self,
        client_app: ClientApp,
        num_clients: int,
        *,
        node_config: NodeConfig | None = None,
        environment: dict[str, str] | None = None,
        cpus: int = 1,
        gpus: float = 0.0,
    ) -> None:
        """Describe `num_clients` nodes, named client-0, client-1, ...; nothing is started.

        Args:
            client_app: What each node runs; pickled once an actor.
            num_clients: At least 1.
            node_config: What every node's operator would have configured.
            environment: Variables that the nodes need, such as where their stores are. On a
                cluster all its machines must see these folders.
            cpus: Cores that each client takes; it uses as many threads.
            gpus: Share of a GPU that each client takes.
        """
        super().__init__(num_clients, node_config)
        self.client_app, self.environment = client_app, environment or {}
        self.cpus, self.gpus = cpus, gpus
        self._ray: Any = None
        self._own = False  # whether Ray was started here
        self._actors: list[Any] = []
        self._open: list[set[Any]] = []  # what each actor still has to do
        self._running: dict[str, Asked] = {}  # by the message's id, in the order of pushes
        self._waiting: dict[str, None] = {}  # those of them that no actor has
        self._longest = math.inf  # seconds of an answer, of late
        self._starting: dict[Any, int] = {}  # what actors have not answered yet, and which
        self._shared: dict[str, Stored] = {}  # by its name in a message: what was stored last

    def __enter__(self) -> Self:
        """Start Ray, or join the cluster of RAY_ADDRESS, and the actors.

        Raises:
            BadSetting: If Ray is not installed, or a client needs more than any machine has.
        """
        super().__enter__()
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to Ray's makers
        try:
            self._ray = ray = import_module("ray")
        except ImportError as error:
            raise BadSetting(
                "engine ray must have Ray installed, got none; install efface[simulation], or "
                "choose --engine inline"
            ) from error
        self._own = not ray.is_initialized()
        if self._own:
            with warnings.catch_warnings():
                # That a client without a GPU's share sees none will change; it is told none here.
                warnings.simplefilter("ignore", FutureWarning)
                ray.init(
                    # Otherwise Ray joins whatever was last started on this machine, even if gone.
                    address=os.environ.get("RAY_ADDRESS") or "local",
                    include_dashboard=False,
                    logging_level="WARNING",
                    log_to_driver=True,
                )
        try:
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def _start(self) -> None:
        """Start as many actors as clients can be answered for at a time."""
        num_actors = min(len(self.contexts), places(self._ray.nodes(), self.cpus, self.gpus))
        if not num_actors:
            raise BadSetting(
                f"a client must fit on a machine, got one of {self.cpus} cores and {self.gpus:g} "
                "GPUs on none that has them; lower threads or client-gpus"
            )
        self._actors = [self._new() for _ in range(num_actors)]
        # Others' work may leave no place for some of them: they get messages once they have begun.
        self._starting = {actor.started.remote(): i for i, actor in enumerate(self._actors)}
        self._open = [set() for _ in self._actors]
        least, most = AHEAD
        self.under_way = (least * num_actors, most * num_actors)

    def _new(self) -> Any:
        """Return an actor; its process starts meanwhile."""
        path = os.pathsep.join(folder for folder in sys.path if folder)
        kind = self._ray.remote(Clients).options(
            num_cpus=self.cpus,
            num_gpus=self.gpus,
            runtime_env={"env_vars": {**self.environment, "PYTHONPATH": path}},
        )
        return kind.remote(self.client_app)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors, self._running, self._waiting, self._shared = [], {}, {}, {}
        self._starting = {}
        if self._own:
            self._ray.shutdown()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Have each message answered by the actor that has the least to do, when it can."""
        identifiers = []
        for message in messages:
            identifier = str(uuid4())
            message.metadata.__dict__["_message_id"] = identifier
            self._running[identifier] = Asked(message)
            self._waiting[identifier] = None
            identifiers.append(identifier)
        self._give()
        return identifiers

    def _give(self) -> None:
        """Give what waits to actors that have little to do."""
        if not self._waiting:
            return
        self._look()
        least, most = AHEAD
        ahead = min(max(least, int(AHEAD_SECONDS / max(self._longest, 1e-9))), most)
        if self._starting:
            # One that failed to start is there, too: its first reply tells why.
            pending = list(self._starting)
            for ping in self._ray.wait(pending, num_returns=len(pending), timeout=0)[0]:
                del self._starting[ping]
        late = set(self._starting.values())
        there = [i for i in range(len(self._actors)) if i not in late]
        if not there:
            return
        for identifier in list(self._waiting):
            actor = min(there, key=lambda i: len(self._open[i]))
            if len(self._open[actor]) >= ahead:
                return
            asked = self._running[identifier]
            asked.actor, asked.result = actor, self._sent(self._actors[actor], asked.message)
            self._open[actor].add(asked.result)
            del self._waiting[identifier]

    def _sent(self, actor: Any, message: Message) -> Any:
        """Send an actor a message; what is large in it is stored once for all messages."""
        content, context = message.content, self.contexts[message.metadata.dst_node_id]
        large = {
            name: record
            for name, record in content.array_records.items()
            if sum(len(array.data) for array in record.values()) >= SHARED_BYTES
        }
        if not large:
            return actor.answer.remote(message, context, [])
        stored = [self._stored(name, record) for name, record in large.items()]
        message.content = RecordDict({n: r for n, r in content.items() if n not in large})
        try:
            return actor.answer.remote(message, context, list(large), *stored)
        finally:
            message.content = content

    def _stored(self, name: str, record: ArrayRecord) -> Any:
        last = self._shared.get(name)
        if last is None or not last.is_of(record):
            held = [(n, ((a.dtype, a.shape, a.stype), a.data)) for n, a in record.items()]
            last = self._shared[name] = Stored(record, held, self._ray.put(record))
        return last.place

    def _look(self) -> None:
        """Note what actors have done whose answers nobody waits for."""
        wanted = {asked.result for asked in self._running.values()}
        for results in self._open:
            if left := list(results - wanted):
                results -= set(self._ray.wait(left, num_returns=len(left), timeout=0)[0])

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return what is ready; wait a while for the first if nothing is.

        Raises:
            BadSetting: If a machine cannot run clients.
        """
        asked = [identifier for identifier in message_ids if identifier in self._running]
        if not asked:
            return []
        self._give()
        wanted = {self._running[i].result: i for i in asked if i not in self._waiting}
        # Where no actor has any of them yet, all are busy with what nobody waits for any more.
        results = list(wanted) or [result for some in self._open for result in some]
        if len(wanted) < len(asked):
            results += list(self._starting)  # an actor that is there now could have the others
        ready, _ = self._ray.wait(results, num_returns=len(results), timeout=0)
        if not ready:
            ready, _ = self._ray.wait(results, num_returns=1, timeout=LOOK_SECONDS)
        # One that had to be given to another actor meanwhile is not.
        found = [
            self._reply(wanted[result])
            for result in ready
            if result in wanted and self._running[wanted[result]].result is result
        ]
        self._give()
        if not self._running:
            self._shared = {}  # the round's, which need not stay in memory
        return found

    def _reply(self, identifier: str) -> Message:
        asked = self._running.pop(identifier)
        message = asked.message
        self._open[asked.actor].discard(asked.result)
        try:
            reply, state, seconds = self._ray.get(asked.result)
        except self._ray.exceptions.RayError as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            if getattr(error, "actor_init_failed", False):
                raise BadSetting(
                    "every machine of the Ray cluster must have this efface installed, got one "
                    f"that cannot start a client: {reason}"
                ) from error
            if isinstance(error, self._ray.exceptions.RayActorError):
                self._replace(asked.actor)
            return Message(Error(ErrorCode.CLIENT_APP_CRASHED, reason), reply_to=message)
        self._longest = max(seconds, 0.9 * self._longest if self._longest < math.inf else 0.0)
        self.contexts[message.metadata.dst_node_id].state = state
        found: Message = reply
        return found

    def _replace(self, actor: int) -> None:
        """Start an actor in place of one that ended, for want of memory say, or with its machine.

        The message that it worked on has no answer; those that had waited for it are given anew.
        """
        self._ray.kill(self._actors[actor])
        self._actors[actor], self._open[actor] = self._new(), set()
        self._starting = {ping: i for ping, i in self._starting.items() if i != actor}
        self._starting[self._actors[actor].started.remote()] = actor
        left = [name for name, asked in self._running.items() if asked.actor == actor]
        for name in left:
            self._running[name].actor, self._running[name].result = -1, None
        self._waiting = {**dict.fromkeys(left), **self._waiting}

    def forget(self, message_ids: Iterable[str]) -> None:
        """Start no work that is not begun, and throw away what the rest of it gives."""
        for identifier in message_ids:
            self._waiting.pop(identifier, None)
            asked = self._running.pop(identifier, None)
            if asked is not None and asked.result is not None:
                self._ray.cancel(asked.result)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Send and wait for all replies, however long they take."""
        waiting, found = set(self.push_messages(messages)), list[Message]()
        while waiting:
            replies = self.pull_messages(waiting)
            waiting -= {reply.metadata.reply_to_message_id for reply in replies}
            found += replies
        return found


def places(machines: Iterable[dict[str, Any]], cpus: int, gpus: float) -> int:
    """Return how many clients a cluster can answer for at a time, each on one machine.

    Args:
        machines: As `ray.nodes` describes them; one that has left has no resources.
        cpus: Cores of a client, at least 1.
        gpus: Share of a GPU of a client; 0 for none.
    """
    total = 0
    for machine in machines:
        has = machine["Resources"]
        here = int(has.get("CPU", 0) / cpus)
        if gpus:
            here = min(here, int(has.get("GPU", 0) / gpus + 1e-6))  # three of 0.1 go into 0.3
        total += here
    return total
