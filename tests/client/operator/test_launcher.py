"""Both parts of a site are kept running, what ends them is said, and nothing is left behind."""

import _thread
import os
import sys
import threading
from pathlib import Path

import pytest

from client.operator import launcher
from client.operator.launcher import REFUSED, REFUSED_TEXT, environment

NODE = """
superlink = "127.0.0.1:9092"
key = "node.key"
store = "store"
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "node.toml").write_text(NODE)
    return tmp_path


def run(site: Path, monkeypatch: pytest.MonkeyPatch, code: str, until: str) -> list[str]:
    """Run a child with this code until a line of the log holds `until`; return the log."""
    monkeypatch.setattr(
        launcher, "_command", lambda part, *_, **__: [sys.executable, "-c", code, part]
    )
    lines: list[str] = []
    stopped = threading.Event()

    def say(line: str) -> None:
        lines.append(line)
        if until in line and not stopped.is_set():
            stopped.set()
            _thread.interrupt_main()  # as Ctrl-C and SIGTERM come

    with pytest.raises(KeyboardInterrupt):
        launcher.run(site, parts=("node",), say=say)
    return lines


def test_a_part_that_ends_is_started_again_after_longer_and_longer_pauses(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = run(site, monkeypatch, "raise SystemExit(7)", until="again in 2 s")

    assert [line for line in lines if "exit status 7" in line] == [
        f"node: ended (exit status 7); starting again in {pause} s" for pause in (1, 2)
    ]


def test_a_node_that_is_not_let_in_yet_is_explained(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = f"print({REFUSED!r}); raise SystemExit(1)"
    lines = run(site, monkeypatch, code, until="starting again")
    assert f"node: {REFUSED}" in lines
    assert any(REFUSED_TEXT in line for line in lines)
    assert "up to a minute" in REFUSED_TEXT


def test_the_parts_end_with_the_launcher(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os, time; print('here', os.getpid(), flush=True); time.sleep(600)"
    lines = run(site, monkeypatch, code, until="here")
    number = int(next(line for line in lines if "here" in line).split()[-1])
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


def test_a_part_that_does_not_listen_is_ended_by_force(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "GRACE", 0.5)
    code = (
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "print('here', os.getpid(), flush=True); time.sleep(600)"
    )
    lines = run(site, monkeypatch, code, until="here")
    number = int(next(line for line in lines if "here" in line).split()[-1])
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


def test_the_log_shows_control_characters_instead_of_obeying_them(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = r"print('\x1b[92mINFO\x1b[0m: run \x1b]0;title\x07 \x1b[2J\u202e here')"
    lines = run(site, monkeypatch, code, until="here")
    assert r"node: INFO: run \x1b]0;title\x07 \x1b[2J\u202e here" in lines


def test_the_parts_see_little_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = environment()
    assert "AWS_SECRET_ACCESS_KEY" not in found
    assert (found["OMP_NUM_THREADS"], found["FLWR_TELEMETRY_ENABLED"]) == ("3", "0")
