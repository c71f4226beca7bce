"""The command as a process: broken pipes, closed streams, full disks, read-only homes, signals."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.cli import app
from server.cli.command import FAILED, USAGE
from server.cli.process import TERMINATED
from server.storage.home import Home
from server.storage.ledger import Ledger, database_url

ROOT = Path(__file__).parents[3]
TINY = [
    *("--num-clients", "2", "--partition", "iid", "--local-steps", "2", "--batch-size", "32"),
    *("--scale", "0", "--model-width", "4", "--model-depth", "1"),
]
COMMAND = [sys.executable, "-c", "from server.cli import main; main()"]


def words(*options: str | bytes, home: Path) -> list[str | bytes]:
    return [*COMMAND, *options, "--home", str(home)]


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EFFACE_")}
    return kept | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def efface(*options: str | bytes, home: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        words(*options, home=home), capture_output=True, text=True, env=environment()
    )


def in_shell(line: str, home: Path) -> "subprocess.CompletedProcess[str]":
    """Run a shell line in which `efface` and `$HOME_OF_IT` stand for the command and its home."""
    made = f'efface() {{ {sys.executable} -c "from server.cli import main; main()" "$@"; }}; {line}'
    told = environment() | {"HOME_OF_IT": str(home)}
    return subprocess.run(["bash", "-c", made], capture_output=True, text=True, env=told)


@pytest.fixture(scope="module")
def one_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("one") / "home"
    done = efface("train", *TINY, "--rounds", "1", home=home)
    assert done.returncode == 0, done.stderr
    return home


@pytest.fixture
def home(one_version: Path, tmp_path: Path) -> Path:
    """A home of its own with version v0001."""
    shutil.copytree(one_version, tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture(scope="module")
def may_mount() -> None:
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("only root can mount")


def mounted(mount: str, then: list[str | bytes]) -> "subprocess.CompletedProcess[str]":
    """Run a command where a shell line has mounted something, seen by nobody else."""
    told = ["unshare", "-m", "bash", "-c", f'{mount} && exec "$@"', "bash", *then]
    return subprocess.run(told, capture_output=True, text=True, env=environment())


def states(home: Path) -> list[tuple[str, str]]:
    with Ledger.read(database_url(Home(home, reading=True))) as ledger:
        return [(row.kind, row.state) for row in ledger.requests()]


# ---- standard output and error ------------------------------------------------------------------


@pytest.mark.parametrize("more", ["", "--json"])
def test_a_full_device_under_standard_output_is_one_plain_line(home: Path, more: str) -> None:
    done = in_shell(f'efface models {more} --home "$HOME_OF_IT" > /dev/full', home)

    assert done.returncode == FAILED
    assert done.stderr == (
        "Error: standard output must take the answer, got an error: No space left on device; "
        "what was done is kept\n"
    )


def test_help_to_a_full_device_is_one_plain_line(home: Path) -> None:
    done = in_shell("efface --help > /dev/full", home)

    assert done.returncode == FAILED
    assert len(done.stderr.splitlines()) == 1
    assert "No space left on device" in done.stderr


def test_a_closed_standard_output_is_one_plain_line(home: Path) -> None:
    done = in_shell('efface models --home "$HOME_OF_IT" >&-', home)

    assert done.returncode == FAILED
    assert len(done.stderr.splitlines()) == 1
    assert "it is closed" in done.stderr


def test_closed_streams_do_not_stop_a_request(home: Path) -> None:
    done = in_shell(
        'efface train --rounds 1 --home "$HOME_OF_IT" ' + " ".join(TINY) + " >&- 2>&-", home
    )

    assert done.stderr == ""
    assert states(home) == [("train", "done")] * 2


def test_a_reader_that_leaves_does_not_stop_a_request(home: Path) -> None:
    line = 'efface train --rounds 4 --home "$HOME_OF_IT" ' + " ".join(TINY)
    done = in_shell(f"{line} 2>&1 | head -1; exit ${{PIPESTATUS[0]}}", home)

    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""
    assert done.returncode == 0
    assert states(home) == [("train", "done")] * 2


def test_a_reader_that_leaves_early_ends_a_list_quietly(home: Path) -> None:
    done = in_shell('efface models --json --home "$HOME_OF_IT" | true; exit ${PIPESTATUS[0]}', home)

    assert (done.returncode, done.stderr) == (0, "")


# ---- disks --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("may_mount")
def test_a_full_disk_is_said_and_the_request_can_go_on(home: Path) -> None:
    size = sum(path.stat().st_size for path in home.rglob("*") if path.is_file()) // 1024
    fill = (
        f"cp -a {home} {home}.copy && mount -t tmpfs -o size={2 * size + 1024}k none {home} && "
        f"cp -a {home}.copy/. {home} && (dd if=/dev/zero of={home}/fill bs=4k || true) 2>/dev/null"
    )

    done = mounted(fill, words("train", *TINY, "--rounds", "1", home=home))

    assert done.returncode == FAILED
    assert "disk must have room for" in done.stderr
    assert "got none left" in done.stderr
    assert str(home) in done.stderr
    assert "backup" not in done.stderr
    assert "Traceback" not in done.stderr


READ_ALL = """
import json, sys
from typer.testing import CliRunner
from server.cli import app
home, *commands = sys.argv[1:]
for command in commands:
    done = CliRunner().invoke(app, [*command.split(), "--home", home])
    print(json.dumps([done.exit_code, done.stdout, done.stderr]))
"""


@pytest.mark.usefixtures("may_mount")
def test_a_home_that_cannot_be_written_can_be_read(home: Path) -> None:
    page = home.parent / "page.html"
    commands = ["models", "requests", "show v0001", "show r0001", "report r0001", "evaluate"]
    read: list[str | bytes] = [sys.executable, "-c", READ_ALL, str(home), *commands]
    read.append(f"report r0001 --output {page}")

    usual = mounted("true", read)
    page.unlink()
    done = mounted(f"mount --bind -o ro {home} {home}", read)

    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [code for code, _, _ in found] == [0] * 7, found
    assert done.stdout == usual.stdout
    assert "<html" in page.read_text()


@pytest.mark.usefixtures("may_mount")
def test_a_home_left_in_mid_write_can_be_read_where_nothing_can_be_written(home: Path) -> None:
    # A killed writer leaves its last changes in the -wal file alone.
    leave = (
        "import os, sys; from server.storage.home import Home; "
        "from server.storage.ledger import Ledger, database_url; "
        "ledger = Ledger.open(database_url(Home(sys.argv[1]))); "
        "ledger.new_request(kind='train', method='fedavg', federation='other'); os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", leave, str(home)], env=environment())
    assert (home / "ledger.db-wal").stat().st_size
    (home / "ledger.db-shm").unlink()

    done = mounted(f"mount --bind -o ro {home} {home}", words("requests", "--json", home=home))

    assert done.returncode == 0, done.stderr
    found = [request["state"] for request in json.loads(done.stdout)["requests"]]
    assert found == ["done", "received"]


@pytest.mark.usefixtures("may_mount")
def test_a_request_on_a_home_that_cannot_be_written_is_refused_in_one_line(home: Path) -> None:
    command = words("train", *TINY, "--rounds", "1", home=home)

    done = mounted(f"mount --bind -o ro {home} {home}", command)

    assert done.returncode == FAILED
    assert len(done.stderr.splitlines()) == 1
    assert "home must be a folder this user can write" in done.stderr


# ---- words --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        *(["models"], ["requests"], ["show", "r0001"], ["report", "r0001"], ["evaluate"]),
        *(["requests", "--abort", "r0001"], ["forget", "--class", "1", "--dry-run"]),
    ],
    ids=" ".join,
)
def test_looking_at_a_home_that_is_not_there_creates_none(
    command: list[str], tmp_path: Path
) -> None:
    typo = tmp_path / "hmoe"

    done = CliRunner().invoke(app, [*command, "--home", str(typo)])

    assert done.exit_code == USAGE
    assert done.stderr.startswith(f"Error: home must exist to be read, got no such home: {typo}. ")
    assert len(done.stderr.splitlines()) == 2
    assert not typo.exists()


@pytest.mark.parametrize("command", ["forget", "relearn"])
@pytest.mark.parametrize("there", [False, True], ids=["not there", "another folder"])
def test_changing_a_version_in_a_home_that_is_none_makes_none(
    command: str, there: bool, tmp_path: Path
) -> None:
    typo = tmp_path / "hmoe"
    if there:
        typo.mkdir()

    done = CliRunner().invoke(app, [command, "--class", "1", "--home", str(typo)])

    assert done.exit_code == USAGE
    assert done.stderr.startswith(f"Error: home must hold a version already, got no home: {typo}. ")
    assert not list(tmp_path.glob("*/*"))
    assert typo.exists() == there


def test_a_name_that_is_no_utf8_is_wrong_usage(home: Path) -> None:
    done = efface("train", *TINY, "--by", b"M\xfcller", home=home)

    assert done.returncode == USAGE
    assert done.stderr.startswith("Error: by must be text in UTF-8, got 'M?ller'\n")
    assert len(done.stderr.splitlines()) == 2


# ---- signals ------------------------------------------------------------------------------------


@pytest.fixture
def running(home: Path) -> Iterator["subprocess.Popen[str]"]:
    """A training that has done its first round of many."""
    process = subprocess.Popen(
        words("train", *TINY, "--rounds", "100000", home=home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert process.stderr is not None
    while "train " not in (line := process.stderr.readline()):
        assert line, "it ended"
    yield process
    process.kill()
    process.communicate()


def test_sigterm_stops_a_request_as_ctrl_c_does(
    home: Path, running: "subprocess.Popen[str]"
) -> None:
    running.send_signal(signal.SIGTERM)

    _, said = running.communicate()

    assert running.returncode == TERMINATED
    assert said.splitlines()[-1].startswith("Stopped; what was done so far is kept.")
    assert states(home)[-1] == ("train", "interrupted")


def test_a_request_whose_process_was_killed_is_seen_as_interrupted(
    home: Path, running: "subprocess.Popen[str]"
) -> None:
    def seen() -> tuple[str, str]:
        done = efface("requests", "--json", home=home)
        last = json.loads(done.stdout)["requests"][-1]
        return last["state"], last["reason_code"]

    assert seen() == ("running", None)
    running.kill()
    running.communicate()

    assert seen() == ("interrupted", "process-gone")
    assert states(home)[-1] == ("train", "running")  # looking has written nothing
    shown = efface("requests", "--state", "interrupted", home=home)
    assert "r0002" in shown.stdout
