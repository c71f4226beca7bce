"""What holds for all tests."""

import os

import pytest

# Before anything imports torch: on images this small a second thread gains nothing, and on a busy
# machine waiting for it costs tenfold. Set here, not in torch, so that child processes have it too.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the files that wait for other processes, so that the rest runs beside them.

    For `--dist loadgroup`: a file's tests that share a fixture stay in one worker, which then makes
    it once (a SuperLink, a trained model). All others go to whichever worker is free.
    """
    waiting = {item.path for item in items if item.get_closest_marker("processes")}
    items.sort(key=lambda item: item.path not in waiting)
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            if item.get_closest_marker("xdist_group") is None and _shares_a_fixture(item):
                item.add_marker(pytest.mark.xdist_group(item.nodeid.split("::")[0]))


def _shares_a_fixture(item: pytest.Item) -> bool:
    """Return whether a test uses a fixture of its file that is made for several tests."""
    known = item._fixtureinfo.name2fixturedefs if isinstance(item, pytest.Function) else {}
    used = (fixture for fixtures in known.values() for fixture in fixtures)
    return any(
        fixture.scope != "function" and "::" not in fixture.baseid and fixture.baseid
        for fixture in used
    )
