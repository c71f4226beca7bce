"""The Ray engine: clients in Ray actors, on this machine or a Ray cluster.

For many clients and GPU fractions. An actor is a process that answers for one client at a time with
Flower's ClientApp and the client's own Context. Flower's simulation runtime (1.39) does so, too; it
pickles the whole app anew with every message, and looks for messages ten times a second.
"""

import os
import sys
import warnings
from collections.abc import Iterable
from importlib import import_module
from types import TracebackType
from typing import Any, Final, Self
from uuid import uuid4

from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from client.errors import BadSetting
from server.nodes.engines.simulated import NodeConfig, SimulatedGrid, raised

AHEAD: Final = 2  # messages of an actor: one that it works on, and one to go on with
LOOK_SECONDS: Final = 0.5  # between two looks whether a deadline has passed
SHARED_BYTES: Final = 100_000  # an array record from here on is stored once for all its messages


class Clients:
    """What an actor is: a process in which clients' messages are answered, one after another."""

    def __init__(self, client_app: ClientApp) -> None:
        self.client_app = client_app

    def answer(
        self, message: Message, context: Context, names: list[str], *arrays: ArrayRecord
    ) -> tuple[Message, RecordDict]:
        """Return the reply to a message, and the client's state after it.

        Args:
            message: Without the array records that were stored.
            context: The client's.
            names: Of those array records, in the message.
            arrays: They.
        """
        for name, record in zip(names, arrays, strict=True):
            message.content[name] = record
        try:
            return self.client_app(message, context), context.state
        except Exception as error:
            return raised(error, message), context.state


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
        self._running: dict[str, tuple[Any, int, Message]] = {}  # result, actor and message by id
        self._shared: tuple[ArrayRecord, Any] | None = None  # the record stored last, and where

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
                ray.init(include_dashboard=False, logging_level="WARNING", log_to_driver=True)
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
        path = [folder for folder in sys.path if folder]
        environment = {**self.environment, "PYTHONPATH": os.pathsep.join(path)}
        kind = self._ray.remote(Clients).options(
            num_cpus=self.cpus,
            num_gpus=self.gpus,
            max_restarts=-1,  # one that was killed, for want of memory say, takes one answer along
            runtime_env={"env_vars": environment},
        )
        self._actors = [kind.remote(self.client_app) for _ in range(num_actors)]
        self._open = [set() for _ in self._actors]
        self.under_way = (AHEAD * num_actors, AHEAD * num_actors)

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
        self._actors, self._running, self._shared = [], {}, None
        if self._own:
            self._ray.shutdown()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Give each message to the actor that has the least to do."""
        self._look()
        identifiers = []
        for message in messages:
            identifier = str(uuid4())
            message.metadata.__dict__["_message_id"] = identifier
            actor = min(range(len(self._actors)), key=lambda i: len(self._open[i]))
            result = self._given(self._actors[actor], message)
            self._open[actor].add(result)
            self._running[identifier] = (result, actor, message)
            identifiers.append(identifier)
        return identifiers

    def _given(self, actor: Any, message: Message) -> Any:
        """Have an actor answer a message; what is large in it is stored once for all messages."""
        content, context = message.content, self.contexts[message.metadata.dst_node_id]
        large = {
            name: record
            for name, record in content.array_records.items()
            if sum(len(array.data) for array in record.values()) >= SHARED_BYTES
        }
        if not large:
            return actor.answer.remote(message, context, [])
        stored = [self._stored(record) for record in large.values()]
        message.content = RecordDict({n: r for n, r in content.items() if n not in large})
        try:
            return actor.answer.remote(message, context, list(large), *stored)
        finally:
            message.content = content

    def _stored(self, record: ArrayRecord) -> Any:
        if self._shared is None or self._shared[0] is not record:
            self._shared = (record, self._ray.put(record))
        return self._shared[1]

    def _look(self) -> None:
        """Note what actors have done whose answers nobody waits for."""
        wanted = {result for result, _, _ in self._running.values()}
        for results in self._open:
            if left := list(results - wanted):
                results -= set(self._ray.wait(left, num_returns=len(left), timeout=0)[0])

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return what is ready; wait a while for the first if nothing is."""
        wanted = {
            self._running[identifier][0]: identifier
            for identifier in message_ids
            if identifier in self._running
        }
        if not wanted:
            return []
        results = list(wanted)
        ready, _ = self._ray.wait(results, num_returns=len(results), timeout=0)
        if not ready:
            ready, _ = self._ray.wait(results, num_returns=1, timeout=LOOK_SECONDS)
        return [self._reply(wanted[result]) for result in ready]

    def _reply(self, identifier: str) -> Message:
        result, actor, message = self._running.pop(identifier)
        self._open[actor].discard(result)
        try:
            reply, state = self._ray.get(result)
        except self._ray.exceptions.RayError as error:  # the actor ended, or its machine did
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            return Message(Error(ErrorCode.CLIENT_APP_CRASHED, reason), reply_to=message)
        self.contexts[message.metadata.dst_node_id].state = state
        found: Message = reply
        return found

    def forget(self, message_ids: Iterable[str]) -> None:
        """Start no work that is not begun, and throw away what the rest of it gives."""
        for identifier in message_ids:
            if (running := self._running.pop(identifier, None)) is not None:
                self._ray.cancel(running[0])

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
