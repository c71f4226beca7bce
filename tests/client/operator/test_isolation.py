"""What the executor gives up: tried in processes of their own, for it cannot be taken back."""

import os
import pwd
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
linux = pytest.mark.skipif(sys.platform != "linux", reason="the executor's isolation is Linux's")


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code that has `isolation`, in a process of its own."""
    text = f"import os, socket, sys\nfrom client.operator import isolation\n{code}"
    return subprocess.run(
        [sys.executable, "-P", "-c", text, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def can_leave_network() -> bool:
    done = run("print(isolation.leave_network())")
    return done.stdout.strip() == "True"


@pytest.fixture
def listener() -> Iterator[int]:
    """A server on loopback, such as a SuperLink, a database, or another node's SuperNode."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@linux
def test_a_process_that_left_the_network_reaches_no_port_and_still_the_socket(
    tmp_path: Path, listener: int
) -> None:
    if not can_leave_network():
        pytest.skip("this user may not make a network namespace here")
    path = f"/tmp/efface-test-{os.getpid()}.sock"
    served = socket.socket(socket.AF_UNIX)
    served.bind(path)
    served.listen()

    def answer() -> None:
        connection, _ = served.accept()
        connection.sendall(b"here")
        connection.close()

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    code = """
port, path = int(sys.argv[1]), sys.argv[2]
socket.create_connection(("127.0.0.1", port), 5).close()
print("before: reached")
print(isolation.leave_network(), isolation.reaches_network())
try:
    socket.create_connection(("127.0.0.1", port), 5)
except OSError as error:
    print("after:", error.strerror)
with socket.socket(socket.AF_UNIX) as s:
    s.connect(path)
    print(s.recv(10).decode())
"""
    try:
        done = run(code, str(listener), path)
    finally:
        served.close()
        os.unlink(path)
    told = done.stdout.splitlines()
    assert told[:2] == ["before: reached", "True False"], done.stderr
    assert told[2].startswith("after: ")
    assert told[3] == "here"


@linux
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_process_that_became_another_user_cannot_read_the_key_or_go_back(tmp_path: Path) -> None:
    key = tmp_path / "node.key"
    key.write_text("secret")
    key.chmod(0o600)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        if folder != Path("/tmp"):
            folder.chmod(0o755)  # the key's own mode must keep it
    code = """
isolation.become("nobody")
isolation.give_up_privileges(os.getppid())
print(os.getresuid(), os.getgroups())
for attempt in (lambda: open(sys.argv[1]), lambda: os.setuid(0), lambda: os.setgroups([0])):
    try:
        attempt()
        print("done")
    except PermissionError:
        print("refused")
"""
    done = run(code, str(key))
    nobody = pwd.getpwnam("nobody")
    assert done.stdout.splitlines() == [
        f"({nobody.pw_uid}, {nobody.pw_uid}, {nobody.pw_uid}) [{nobody.pw_gid}]",
        *["refused"] * 3,
    ], done.stderr


@linux
def test_no_program_below_gains_a_privilege() -> None:
    code = """
isolation.give_up_privileges(os.getppid())
print([l for l in open("/proc/self/status").read().split("\\n") if l.startswith("NoNewPrivs")])
import resource; print(resource.getrlimit(resource.RLIMIT_CORE))
"""
    done = run(code)
    assert done.stdout.splitlines() == ["['NoNewPrivs:\\t1']", "(0, 0)"], done.stderr


@linux
def test_a_user_that_is_not_there_or_root_is_refused() -> None:
    for user, words in (("no-such-user", "useradd --system no-such-user"), ("root", "root")):
        done = run("isolation.become(sys.argv[1])", user)
        assert done.returncode == 1
        assert "BadSetting: user must" in done.stderr
        assert words in done.stderr


@linux
def test_what_is_not_enforced_is_named(tmp_path: Path) -> None:
    (tmp_path / "bundles").mkdir()
    (tmp_path / "node.key").write_text("secret")
    code = """
from pathlib import Path
folder = Path(sys.argv[1])
print("\\n".join(isolation.weaknesses(folder / "node.key", folder / "bundles")))
"""
    told = run(code, str(tmp_path)).stdout
    assert "it could read the node's key" in told
    assert "it could write the list of allowed bundles" in told
    assert "it has a network" in told
    assert ("it runs as root" in told) == (os.geteuid() == 0)


@linux
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("owned", ["bundles/allowed", "bundles", "", ".."])
def test_a_list_that_can_be_put_aside_is_one_that_can_be_written(
    tmp_path: Path, owned: str
) -> None:
    site = tmp_path / "etc" / "site"
    (site / "bundles").mkdir(parents=True)
    (site / "bundles" / "allowed").touch()
    nobody = pwd.getpwnam("nobody")
    os.chown(site / owned, nobody.pw_uid, nobody.pw_gid)
    (site / owned).chmod(0o555)  # its owner can give it another mode
    for folder in (tmp_path, *tmp_path.parents):
        if folder == Path(tempfile.gettempdir()):
            break
        folder.chmod(0o755)
    code = """
from pathlib import Path
folder = Path(sys.argv[1])
isolation.leave_network()
isolation.become("nobody")
print(isolation.weaknesses(folder / "node.key", folder / "bundles"))
"""
    assert "it could write the list of allowed bundles" in run(code, str(site)).stdout


@linux
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_an_executor_that_gave_everything_up_has_no_weakness(tmp_path: Path) -> None:
    (tmp_path / "bundles").mkdir()
    key = tmp_path / "node.key"
    key.write_text("secret")
    key.chmod(0o600)
    for folder in (tmp_path, *tmp_path.parents):
        if folder == Path(tempfile.gettempdir()):
            break
        folder.chmod(0o755)
    code = """
from pathlib import Path
folder = Path(sys.argv[1])
assert isolation.leave_network()
isolation.become("nobody")
print(isolation.weaknesses(folder / "node.key", folder / "bundles"))
"""
    done = run(code, str(tmp_path))
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
