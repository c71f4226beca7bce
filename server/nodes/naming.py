"""Names for nodes where the platform gives none: Flower's simulation numbers them alone."""

from flwr.app import ArrayRecord, Message, RecordDict

from client.errors import EffaceError
from client.steps.measuring import Describe
from server.nodes.grid import NamedGrid
from strategies.rounds.failures import failure_in
from strategies.rounds.replies import Expected, check


def name_by_partition(grid: NamedGrid, told: Describe) -> None:
    """Call nodes without a name by their partition, client-0, or else by their number, node-123.

    Args:
        grid: Changed.
        told: The question that they are asked for it.

    Raises:
        EffaceError: If one does not answer it.
    """
    unnamed = [node.node_id for node in grid.get_nodes() if not node.name]
    if not unnamed:
        return
    content = RecordDict({"arrays": ArrayRecord(), "config": told.config()})
    kind = Describe.message.name
    messages = [Message(content, dst_node_id=n, message_type=kind) for n in unnamed]
    for reply in grid.send_and_receive(messages):
        node = reply.metadata.src_node_id
        if reply.has_error():
            raise EffaceError(f"node {node} must answer, got {failure_in(reply.error, '').reason}")
        _, numbers = check(reply.content, Expected(told.message, None, told.model_classes))
        position = int(numbers["partition"])
        grid.names[node] = f"client-{position}" if position >= 0 else f"node-{node}"
    grid.take_traffic()
