"""Flower's waits are where we take them to be, and ours cost an idle node next to nothing."""

import importlib.metadata
import inspect
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from flwr.supercore import constant
from flwr.supercore.inflatable import inflatable_utils
from flwr.supernode import start_client_internal as loop

from client.operator import pace


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that sleeping moves, and nothing else; what was slept."""
    slept: list[float] = []
    fake = SimpleNamespace(monotonic=lambda: sum(slept), sleep=slept.append, time=time.time)
    monkeypatch.setattr(pace, "time", fake)
    return slept


@pytest.fixture
def restored() -> Iterator[None]:
    before = {name: dict(getattr(inflatable_utils, name).__kwdefaults__) for name in pace.PULLING}
    yield
    vars(loop)["time"] = time
    for name, usual in before.items():
        getattr(inflatable_utils, name).__kwdefaults__.update(usual)


def test_every_wait_is_still_where_it_was_read() -> None:
    assert importlib.metadata.version("flwr") == pace.RELEASE
    assert vars(loop)["time"] is time
    source = inspect.getsource(loop)
    assert source.count(f"time.sleep({pace.IDLE})") == 1
    assert source.count(f"time.sleep({pace.REPLY})") == 2
    assert source.count("time.sleep(") == 3
    assert (
        constant.PULL_INITIAL_BACKOFF,
        constant.PULL_BACKOFF_CAP,
        constant.PULL_MAX_TRIES_PER_OBJECT,
        constant.PULL_MAX_TIME,
    ) == (pace.FIRST_PULL, pace.LONGEST_PULL, pace.PULLS, pace.PULL_SECONDS)
    for name in pace.PULLING:
        usual = getattr(inflatable_utils, name).__kwdefaults__
        assert usual["initial_backoff"] == pace.FIRST_PULL
        assert usual["backoff_cap"] == pace.LONGEST_PULL
        assert usual["max_tries_per_object"] == pace.PULLS


def test_whoever_pulls_pulls_by_these_defaults() -> None:
    code = (
        "import flwr.superlink.grid.http_grid as a, flwr.supernode.runtime.run_clientapp as b, "
        "flwr.supernode.start_client_internal as c\n"
        "from client.operator import pace\n"
        "pace.quicken_node()\n"
        "for one in (a.pull_objects, b.pull_and_inflate_object_from_tree, c.pull_objects):\n"
        "    print(one.__kwdefaults__['initial_backoff'], one.__kwdefaults__['max_time'])\n"
        "print(type(c.time).__name__, c.time.monotonic)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    lines = done.stdout.splitlines()
    assert lines[:3] == [f"{pace.OUR_FIRST_PULL} {pace.PULL_SECONDS}"] * 3, done.stderr
    assert lines[3] == "NodeTime <built-in function monotonic>"


def test_an_idle_node_asks_hardly_more_often_than_before(clock: list[float]) -> None:
    node = pace.NodeTime()
    while sum(clock) < 3600:
        node.sleep(pace.IDLE)
    # Every 3 s is 1200 in an hour; the first half minute after a message has more of them.
    assert len(clock) < 1300
    assert clock[0] == pace.SHORTEST_IDLE
    assert clock[-1] == pace.IDLE


def test_no_wait_is_longer_than_a_tenth_of_the_quiet_before_it(clock: list[float]) -> None:
    node = pace.NodeTime()
    for _ in range(30):
        node.sleep(pace.IDLE)
    clock.append(5.0)  # a message is being fetched
    node.sleep(pace.REPLY)
    assert clock[-1] == pace.SHORTEST_REPLY
    quiet = 0.0
    while quiet < 20.0:  # a long phase of training
        node.sleep(pace.REPLY)
        assert clock[-1] <= max(pace.SHORTEST_REPLY, pace.SHARE * (quiet + 0.02)), quiet
        quiet += clock[-1]
    assert clock[-1] == pace.REPLY
    node.sleep(pace.IDLE)  # the reply has gone: the next message is soon there
    assert clock[-1] < 0.1
    node.sleep(7.0)
    assert clock[-1] == 7.0


def test_a_flower_that_is_another_waits_by_itself(
    restored: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    other: Callable[[], None] = lambda: None  # noqa: E731
    monkeypatch.setattr(inflatable_utils, "pull_objects", other)
    vars(loop)["time"] = other
    pace.quicken_node()
    assert vars(loop)["time"] is other
    last = getattr(inflatable_utils, pace.PULLING[1]).__kwdefaults__
    assert last["initial_backoff"] == pace.FIRST_PULL
    assert [one.message for one in caplog.records] == [
        "flwr waits by itself: its pull_objects is not that of 1.39.0",
        "flwr waits by itself: its SuperNode is not that of 1.39.0",
    ]


def test_the_switch_leaves_flower_alone(restored: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(pace.SWITCH, "0")
    pace.quicken_node()
    assert vars(loop)["time"] is time
    assert inflatable_utils.pull_objects.__kwdefaults__["initial_backoff"] == pace.FIRST_PULL
