"""What the engines of one machine share: nodes that are contexts in this process's memory."""

from types import TracebackType
from typing import Any, Final, Self

from flwr.app import Context, Error, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

CLIENT_APP_RAISED: Final = 2  # Flower's code for an exception in a ClientApp

NodeConfig = dict[str, bool | float | int | str]


class SimulatedGrid(Grid):
    """A Grid of nodes named client-0, client-1, ..., which are always online.

    Who derives from it sends messages, and says how many are under way.

    Attributes:
        contexts: Flower's, by node id.
        under_way: Messages that may be under way, at least and at most (see `NamedGrid`).
    """

    under_way: tuple[int, int]

    def __init__(self, num_clients: int, node_config: NodeConfig | None = None) -> None:
        """Make `num_clients` nodes.

        Args:
            num_clients: At least 1.
            node_config: What every node's operator would have configured.
        """
        self.contexts = {
            node + 1: Context(
                run_id=1,
                node_id=node + 1,
                node_config={
                    **(node_config or {}),
                    "partition-id": node,
                    "num-partitions": num_clients,
                },
                state=RecordDict(),
                run_config={},
            )
            for node in range(num_clients)
        }

    def __enter__(self) -> Self:
        # Outside a Flower task nobody has set the identity that messages are stamped with.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End what was started."""

    def get_nodes(self) -> list[NodeInfo]:
        """Return all nodes."""
        return [NodeInfo(node_id=n, name=f"client-{n - 1}") for n in self.contexts]

    def get_node_ids(self) -> list[int]:
        """Return all node ids."""
        return list(self.contexts)

    # -- a Grid must have these ------------------------------------------------------------------

    def set_run(self, run: Run) -> None:
        """There is one run."""

    @property
    def run(self) -> Run:
        return Run.create_empty(run_id=1)

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        return Message(*args, **kwargs)


def raised(error: Exception, message: Message) -> Message:
    """Return the reply to a message in whose ClientApp an error was raised, as Flower words it."""
    return Message(Error(CLIENT_APP_RAISED, f"{type(error)}:<'{error}'>"), reply_to=message)
