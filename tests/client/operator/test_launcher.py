"""Both parts of a site are kept running, what ends them is said, and nothing is left behind."""

import _thread
import errno
import os
import re
import sys
import threading
from pathlib import Path

import pytest

from client.errors import BadSetting, NotIsolated
from client.operator import launcher
from client.operator.launcher import REFUSED, REFUSED_TEXT, environment
from client.operator.part import UNFIT, start

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


def test_a_part_that_a_person_has_to_mend_something_for_ends_the_command(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "print('[not-isolated] executor must be apart'); raise SystemExit(78)"
    monkeypatch.setattr(launcher, "_command", lambda *_, **__: [sys.executable, "-c", code])
    with pytest.raises(NotIsolated, match=r"^executor must be apart$"):
        launcher.run(site, say=lambda line: None)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("node", "key must exist, got no {site}/node.key; make it"),
        ("executor", "user must exist, got 'no-such-user'; make it with: useradd"),
    ],
)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts a part as another user")
def test_what_a_part_cannot_start_with_is_said_in_a_line(site: Path, part: str, words: str) -> None:
    lines: list[str] = []
    with pytest.raises(BadSetting, match=re.escape(words.format(site=site))):
        launcher.run(site, parts=(part,), user="no-such-user", say=lines.append)
    [line] = lines
    assert line.startswith(f"{part}: [bad-setting] ")
    assert not (site / "state").exists()  # root's own would be in the way of the next start


def test_a_folder_that_a_part_cannot_write_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/srv/state/work")

    with pytest.raises(SystemExit) as ended:
        start(main)
    assert ended.value.code == UNFIT
    assert capfd.readouterr().err == (
        "[bad-setting] /srv/state/work must be open to the user of this process, got: Permission "
        "denied; chown it\n"
    )


def test_a_node_does_not_remove_a_file_that_lies_where_its_socket_should(
    site: Path, tmp_path: Path
) -> None:
    from client.operator.node import _listen

    (tmp_path / "ca.crt").touch()
    with pytest.raises(BadSetting, match="socket must be a path that nothing else has"):
        _listen(tmp_path / "ca.crt", "")
    assert (tmp_path / "ca.crt").exists()


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
