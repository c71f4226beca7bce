"""What holds for all tests."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

# Before anything imports torch: on images this small a second thread gains nothing, and on a busy
# machine waiting for it costs tenfold. Set here, not in torch, so that child processes have it too.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray lowers its workers' priority by 15, and beside other tests they would hardly run.
os.environ.setdefault("RAY_worker_niceness", "0")

# A shell has what it runs in the background ignore Ctrl-C; tests that press it would wait for ever.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Files whose tests take long and share nothing that takes long to make: each test goes to the
# worker that is free. Those of any other file stay with one worker, which makes what they share
# once.
SPREAD = frozenset(
    {
        "tests/server/bench/test_bench.py",
        "tests/server/cli/test_cli.py",
        "tests/server/requests/test_service.py",
        "tests/server/nodes/test_engines.py",
        "tests/test_supervisor.py",
    }
)


# What a shell may say of a home, and what a run puts there. Of Flower's own, see test_cli.
SURROUNDINGS = ("EFFACE_HOME", "EFFACE_STORE", "EFFACE_DATA_DIR", "EFFACE_DATABASE_URL")


def without_surroundings() -> Iterator[None]:
    """Keep the shell's settings of a home from tests, and those that a run leaves from the next."""
    with pytest.MonkeyPatch.context() as patch:
        for name in SURROUNDINGS:
            # Set and then removed, so that what a run puts there is undone as well.
            patch.setenv(name, "")
            patch.delenv(name)
        yield


# For `pytest.mark.usefixtures`: around each test, or around a module whose tests share a home.
surroundings = pytest.fixture(without_surroundings)
shared_surroundings = pytest.fixture(without_surroundings, scope="module")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what waits for other processes, and end with what can be spread.

    So the rest runs beside the first, and no worker is left alone with a long file.
    """
    waiting = {item.path for item in items if item.get_closest_marker("processes")}
    items.sort(key=lambda item: (item.path not in waiting, _file(item.nodeid) in SPREAD))


def _file(nodeid: str) -> str:
    return nodeid.split("::", 1)[0]


@pytest.hookimpl(optionalhook=True)  # pytest-xdist may be left out
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Use two workers more than there are cores: as many mostly wait for other processes."""
    chosen = "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ
    return None if chosen else (os.cpu_count() or 1) + 2


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Spread the tests of `SPREAD` one by one, and keep those of other files together."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid if _file(nodeid) in SPREAD else _file(nodeid)

    return ByFile(config, log) if config.getvalue("dist") == "loadscope" else None
