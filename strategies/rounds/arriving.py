"""Replies as they come, from a grid that can give them away so, or all at once from another."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

from flwr.app import Message
from flwr.serverapp import Grid


@runtime_checkable
class Arriving(Protocol):
    """A grid that keeps no reply."""

    def replies(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Send, and yield the replies in whatever order they come."""


def arriving(
    grid: Grid, messages: Sequence[Message], *, timeout: float | None = None
) -> Generator[Message, None, None]:
    """Send messages, if there are any, and yield the replies as they come.

    Args:
        grid: One of `Arriving`'s kind, or Flower's own, which waits for all of them.
        messages: What is sent.
        timeout: In seconds; None for the grid's own.
    """
    if not messages:
        return
    if isinstance(grid, Arriving):
        yield from grid.replies(messages, timeout=timeout)
    else:
        yield from grid.send_and_receive(messages, timeout=timeout)
