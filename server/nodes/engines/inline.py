"""The inline engine: every client in this process, no Ray, no server.

For tests, the demo, thousands of small clients, and machines without Ray. Clients of one round run
side by side on the machine's cores, each on one thread, so that a result does not depend on how
many cores there are. On a GPU two do.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import TracebackType
from uuid import uuid4

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from server.nodes.engines.simulated import NodeConfig, SimulatedGrid, raised

MOST_OPEN = 32  # messages under way: enough that no core waits for the next ones
# A GPU computes for one client after another, and all share its memory: what a second gains is that
# one's Python runs while the other computes. Ten clients of a ConvNet of width 128 on an H100, 25
# steps of 64, took 1.8 s a round one by one, 1.55 in twos, 1.5 all at once, with distillation.
ON_A_GPU = 2


def side_by_side(device: str) -> int:
    """Return how many clients compute at the same time; no result depends on it.

    Args:
        device: Kind of device that they compute on: "cpu", or else a GPU.
    """
    return (os.cpu_count() or 1) if device == "cpu" else ON_A_GPU


class InlineGrid(SimulatedGrid):
    """A Grid whose nodes are calls of a ClientApp in this process."""

    def __init__(
        self,
        client_app: ClientApp | Callable[[Message, Context], Message],
        num_clients: int,
        *,
        node_config: NodeConfig | None = None,
        workers: int | None = None,
    ) -> None:
        """Make `num_clients` nodes, named client-0, client-1, ...

        Args:
            client_app: What each node runs.
            num_clients: At least 1.
            node_config: What every node's operator would have configured.
            workers: Clients that run at the same time (`side_by_side`); the number of cores by
                default.
        """
        super().__init__(num_clients, node_config)
        self.client_app = client_app
        self.workers = workers or side_by_side("cpu")
        # What is started beyond that waits for a core, or keeps its answer in memory.
        self.under_way = (self.workers + 2, max(MOST_OPEN, 4 * self.workers))
        self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="client")
        self._running: dict[str, Future[Message]] = {}

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Start the clients' work."""
        identifiers = []
        for message in messages:
            identifier = str(uuid4())
            message.metadata.__dict__["_message_id"] = identifier
            self._running[identifier] = self._pool.submit(self._answer, message)
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return what is ready; wait for the first if nothing is."""
        wanted = [identifier for identifier in message_ids if identifier in self._running]
        ready = [identifier for identifier in wanted if self._running[identifier].done()]
        if wanted and not ready:
            wait((self._running[identifier] for identifier in wanted), None, FIRST_COMPLETED)
            ready = [identifier for identifier in wanted if self._running[identifier].done()]
        return [self._running.pop(identifier).result() for identifier in ready]

    def forget(self, message_ids: Iterable[str]) -> None:
        """Start no work that is not begun, and throw away what the rest of it gives."""
        for identifier in message_ids:
            if (running := self._running.pop(identifier, None)) is not None:
                running.cancel()

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Send and wait for all replies; a call in this process cannot be given up half-way."""
        return [self._running.pop(sent).result() for sent in self.push_messages(messages)]

    def _answer(self, message: Message) -> Message:
        try:
            return self.client_app(message, self.contexts[message.metadata.dst_node_id])
        except Exception as error:
            return raised(error, message)
