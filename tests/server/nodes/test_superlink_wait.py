"""Waiting for a run on a SuperLink asks Flower seldom, and misses no end."""

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from server.nodes.engines import superlink
from server.nodes.engines.superlink import RunResult, UnreachableError
from server.runner import _Ending
from server.storage.home import Home
from server.storage.ledger import Ledger


class World:
    """A clock that only sleeping moves, and a Flower that notes when it was asked.

    Attributes:
        now: Seconds since the wait began.
        asked: When Flower was asked.
        looks: How often the cheap look was taken.
        finishes: When the run ends.
        away: From when to when the SuperLink does not answer.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.asked: list[float] = []
        self.looks = 0
        self.status = "finished:completed"
        self.finishes = math.inf
        self.away = (math.inf, math.inf)
        self.stopped = False

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += max(seconds, 0.001)

    def ask(self, run_id: int, connection: str, *, flwr_home: Path | None = None) -> RunResult:
        self.asked.append(self.now)
        if self.away[0] <= self.now < self.away[1]:
            raise UnreachableError("away")
        status = self.status if self.now >= self.finishes else "running"
        return RunResult(run_id, status, "", self.now, 0, 0)

    def stop(self, *_: object) -> None:
        self.stopped = True

    def wait(
        self,
        heard: Callable[[], bool] = lambda: False,
        ended: Callable[[], bool] | None = lambda: False,
        deadline: float = 36000.0,
    ) -> RunResult:
        def look() -> bool:
            self.looks += 1
            return heard()

        result = superlink.wait(1, "lab", on_poll=look, ended=ended, deadline=deadline)
        assert result is not None
        return result


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(superlink, "time", made)
    monkeypatch.setattr(superlink, "status", made.ask)
    monkeypatch.setattr(superlink, "_stop_after", made.stop)
    monkeypatch.setattr(superlink, "_last_lines", lambda *_: "")
    return made


def test_while_rounds_are_heard_flower_is_asked_only_at_the_end(world: World) -> None:
    world.finishes = 3000.0
    rounds = iter(range(0, 4000, 10))
    upcoming = [next(rounds)]

    def heard() -> bool:
        if world.now < upcoming[0]:
            return False
        upcoming[0] = next(rounds)
        return True

    result = world.wait(heard, ended=lambda: world.now >= 3000.0)

    assert result.finished
    assert len(world.asked) == 1
    assert world.asked[0] == pytest.approx(3000.0, abs=1.0)
    assert world.looks > 5000


def test_a_run_that_fails_in_silence_is_noticed_in_fifteen_seconds(world: World) -> None:
    world.finishes, world.status = 1.0, "finished:failed"

    with pytest.raises(superlink.RunFailedError, match="finished:failed"):
        world.wait()

    assert world.asked == [pytest.approx(15.0, abs=0.5)]


def test_in_a_long_silence_it_asks_less_and_less_often(world: World) -> None:
    world.finishes = 400.0

    world.wait()

    pauses = [after - before for before, after in pairwise([0.0, *world.asked])]
    assert pauses[:3] == pytest.approx([15.0, 30.0, 60.0], abs=0.5)
    assert pauses[3:] == pytest.approx([60.0] * len(pauses[3:]), abs=0.5)
    assert len(pauses) > 4


def test_what_is_heard_starts_the_silence_anew(world: World) -> None:
    world.finishes = 125.0

    world.wait(lambda: 99.9 <= world.now < 100.3)

    assert world.asked[:2] == pytest.approx([15.0, 45.0], abs=0.7)
    assert world.asked[2:] == pytest.approx([115.0, 145.0], abs=1.0)


def test_after_the_works_end_flower_is_asked_until_it_agrees(world: World) -> None:
    world.finishes = 7.0

    world.wait(ended=lambda: world.now >= 3.0)

    assert world.asked == pytest.approx([3.0, 5.0, 7.0, 9.0][: len(world.asked)], abs=1.0)
    assert len(world.asked) in (3, 4)


def test_who_has_all_that_the_run_was_for_asks_flower_nothing(world: World) -> None:
    looks: list[float] = []

    result = superlink.wait(
        1,
        "lab",
        on_poll=lambda: bool(looks.append(world.now)),
        ended=lambda: world.now >= 3.0,
        complete=lambda: world.now >= 4.0,  # a page is written after the work is over
    )

    assert result is None
    # Over at 3 s, Flower is asked once; what was written until 4 s is still read.
    assert world.asked == [pytest.approx(3.0, abs=0.2)]
    assert looks[-1] == pytest.approx(4.0, abs=0.2)


def test_a_run_that_failed_is_asked_after_though_its_work_is_over(world: World) -> None:
    world.finishes, world.status = 3.0, "finished:failed"

    with pytest.raises(superlink.RunFailedError, match="finished:failed"):
        superlink.wait(1, "lab", ended=lambda: world.now >= 3.0, complete=lambda: False)


def test_without_a_view_of_the_work_flower_is_asked_every_two_seconds(world: World) -> None:
    world.finishes = 9.0

    world.wait(ended=None)

    assert world.asked == pytest.approx([0.0, 2.0, 4.0, 6.0, 8.0, 10.0])


def test_a_short_outage_is_waited_out_even_after_long_work(world: World) -> None:
    world.finishes, world.away = 3000.0, (990.0, 1100.0)

    assert world.wait().finished


def test_a_long_outage_ends_the_wait_but_not_the_run(world: World) -> None:
    world.away = (100.0, math.inf)

    with pytest.raises(UnreachableError):
        world.wait()

    assert world.asked[-1] - 100.0 < 300.0
    assert not world.stopped


def test_a_run_past_its_deadline_is_stopped_though_flower_was_never_asked(world: World) -> None:
    with pytest.raises(superlink.RunFailedError, match="must end within 5 s"):
        world.wait(deadline=5.0)

    assert world.asked == []
    assert world.stopped


def test_lock_and_ledger_say_when_a_request_has_ended(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    with Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}") as ledger:
        request = ledger.new_request(kind="train", method="fedavg", federation="x").id
        ended = _Ending(home, ledger, request)
        assert not ended()
        ledger.start(request)
        assert not ended()
        ledger.interrupt_running("stopped")
        with holding(home):  # whoever carries it out is not through with it
            assert not ended()
        assert ended()
        assert not ended.is_done()
        # The same request goes on in another run: it is interrupted until that begins.
        assert not _Ending(home, ledger, request)()
        assert not _Ending(home, ledger, "r9999")()


@contextmanager
def holding(home: Home) -> Iterator[None]:
    """Hold a home in another process."""
    code = "import sys; from server.storage.home import Home\nwith Home(sys.argv[1]).lock():"
    code += " print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(home.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        yield
        other.communicate("")
