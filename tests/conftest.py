"""What holds for all tests."""

import os

import pytest

# Before anything imports torch: on images this small a second thread gains nothing, and on a busy
# machine waiting for it costs tenfold. Set here, not in torch, so that child processes have it too.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that wait for other processes, so that the rest runs beside them."""
    waiting = {item.path for item in items if item.get_closest_marker("processes")}
    items.sort(key=lambda item: item.path not in waiting)
