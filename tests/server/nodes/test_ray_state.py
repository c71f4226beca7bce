"""What Flower's simulation is spared: to look for messages where there are none."""

from types import SimpleNamespace
from typing import Any

from server.nodes.engines.ray import look_where_something_is


class State:
    """As much of Flower's state in memory as the simulation asks."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.looks = 0

    def store_message_ins(self, message: Any) -> str:
        self.messages.append(message)
        return "stored"

    def get_message_ins(self, node_id: int, limit: int | None, *, run_id: Any = None) -> list[Any]:
        self.looks += 1
        found = [m for m in self.messages if m.metadata.dst_node_id == node_id][:limit]
        self.messages = [m for m in self.messages if not any(m is one for one in found)]
        return found


def test_each_message_is_found_once_and_nobody_looks_in_vain() -> None:
    state = State()
    look_where_something_is(state)
    one, two, other = (SimpleNamespace(metadata=SimpleNamespace(dst_node_id=n)) for n in (1, 1, 5))
    assert [state.store_message_ins(m) for m in (one, two, other)] == ["stored"] * 3
    found = [state.get_message_ins(node, 1) for _ in range(3) for node in range(100)]
    assert [m for each in found for m in each] == [one, other, two]
    assert state.looks == 3
    state.store_message_ins(one)
    assert state.get_message_ins(1, None, run_id=7) == [one]


def test_another_grid_than_the_one_in_memory_is_left_alone() -> None:
    other = object()
    look_where_something_is(other)
    look_where_something_is(None)
    assert not hasattr(other, "get_message_ins")
