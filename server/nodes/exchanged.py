"""Messages as they leave and replies as they come: packed and unpacked, and whose they are."""

from collections.abc import Iterable, Mapping, Sequence

from flwr.app import ArrayRecord, Error, Message
from flwr.common.constant import ErrorCode

from client import packing
from client.packing import BadPacking, with_arrays


def pack(messages: Iterable[Message]) -> None:
    """Pack the arrays of messages; a record that many share is packed once."""
    known: dict[int, tuple[ArrayRecord, ArrayRecord]] = {}

    def once(arrays: ArrayRecord) -> ArrayRecord:
        if id(arrays) not in known:
            known[id(arrays)] = arrays, packing.packed(arrays)
        return known[id(arrays)][1]

    for message in messages:
        message.content = with_arrays(message.content, once)


def unpacked(reply: Message, question: Message) -> Message:
    """Return a reply with its arrays one by one; one that cannot be read is its node's error."""
    if not reply.has_content():
        return reply
    try:
        reply.content = with_arrays(reply.content, packing.unpacked)
    except Exception as error:  # whatever a node sends is that node's failure
        told = str(error) if isinstance(error, BadPacking) else f"got {type(error).__name__}"
        why = Error(ErrorCode.UNKNOWN, f"reply must be readable: {told}")
        return Message(why, reply_to=question)
    return reply


def of_transport(error: Exception) -> bool:
    """Return whether an error is one of the link to the SuperLink."""
    return type(error).__module__.partition(".")[0] in ("httpx", "httpcore", "grpc")


def meant(reply: Message, sent: Sequence[Message], place: Mapping[str, int]) -> bool:
    """Return whether a reply answers one of ours, and comes from whom that was sent to."""
    position = place.get(reply.metadata.reply_to_message_id)
    if position is None:
        return False
    node = sent[position].metadata.dst_node_id
    # The SuperLink answers for a node that it has lost.
    return reply.has_error() or reply.metadata.src_node_id == node
