"""A copy of the executor answers as a new process does, and nothing of a message outlives it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from client.operator import warm
from client.operator.bundles import Bundle
from tests.client.operator.lone_node import PATIENCE, LoneNode, executor, lone_node

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="copies are Linux's")
HEAD = """
import os, sys, json, signal, tempfile, time
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
app = ClientApp()
@app.query()
def query(message, context):
    told = {}
"""
TAIL = """
    told = ConfigRecord({"told": json.dumps(told)})
    return Message(RecordDict({"told": told}), reply_to=message)
"""
STATE = """
    import numpy, random
    told["pid"], told["parent"] = os.getpid(), os.getppid()
    told["left"] = getattr(torch, "left_behind", None)
    torch.left_behind = "by " + str(os.getpid())
    told["folder"], told["home"], told["temporary"] = os.getcwd(), os.environ["HOME"], tempfile.gettempdir()
    told["client"] = sorted(n for n in sys.modules if n.partition(".")[0] == "client")
    told["where"] = os.path.dirname(sys.modules["client"].__file__)
    told["draws"] = [float(numpy.random.rand()), random.random(), float(torch.rand(1))]
    told["input"] = os.readlink("/proc/self/fd/0")
    status = open("/proc/self/status").read().split("\\n")
    told["privileges"] = [l for l in status if l.startswith("NoNewPrivs")]
    told["umask"] = [l.split()[-1] for l in status if l.startswith("Umask")]
    told["spared"] = [int(open(f"/proc/{p}/oom_score_adj").read()) for p in (os.getpid(), os.getppid())]
    files = [os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")[:-1] if int(n) > 2]
    told["files"] = sorted({f.partition(":")[0] for f in files if f != "/dev/null"})  # gRPC's number varies
    told["environment"] = {n: v for n, v in os.environ.items() if n not in ("HOME", "TMPDIR")}
    told["signals"] = [int(signal.getsignal(signal.SIGTERM)), signal.getsignal(signal.SIGINT) is signal.default_int_handler]
"""  # noqa: E501
TRAIN = """
    torch.manual_seed(5)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 3))
    for _ in range(20):
        net(torch.randn(16, 1, 8, 8)).square().mean().backward()
        for p in net.parameters():
            p.data -= 0.1 * p.grad; p.grad = None
    return Message(RecordDict({"a": ArrayRecord(net.state_dict())}), reply_to=message)
"""


def told(answer: Message | None) -> dict[str, Any]:
    assert answer is not None
    assert answer.has_content(), answer
    found: dict[str, Any] = json.loads(answer.content.config_records["told"]["told"])
    return found


@pytest.fixture
def node(tmp_path: Path) -> Iterator[LoneNode]:
    with lone_node(tmp_path / "site") as found:
        yield found


def test_a_copy_is_as_a_new_process_and_as_if_no_message_had_been_before(node: LoneNode) -> None:
    app = HEAD + STATE + TAIL
    found = {}
    for options in ((), ("--cold",)):
        with executor(node, *options) as process:
            found[options] = [told(node.answer(app)) for _ in range(2)]
            for one in found[options]:
                assert one["parent"] == process.pid
    copied, new = found[()], found[("--cold",)]
    assert copied[0]["pid"] != copied[1]["pid"]
    for pair in (copied, new):
        for one, other in zip(pair[0]["draws"], pair[1]["draws"], strict=True):
            assert one != other  # a copied generator would repeat itself
    for one in (*copied, *new):
        # The kernel takes the message's process, not the executor.
        assert one["spared"][0] - one["spared"][1] == 500
        assert one["left"] is None
        assert one["folder"] == one["home"] == one["temporary"]
        assert str(one["where"]).startswith(str(one["folder"]))  # the bundle's, not the installed
        assert not Path(str(one["folder"])).exists()
    same = ("client", "privileges", "umask", "files", "environment")
    for name in same:
        assert copied[0][name] == copied[1][name] == new[0][name], name
    # SIGINT is how Flower stops a task in its own process, whatever a shell had ignored.
    assert (copied[0]["input"], copied[0]["signals"]) == ("/dev/null", [0, True])
    assert not any("starts a new process" in line for line in node.log)


def test_copied_or_new_the_weights_are_the_same_bits(node: LoneNode) -> None:
    found = []
    for options in ((), ("--cold",)):
        with executor(node, *options):
            answer = node.answer(HEAD + TRAIN)
        assert answer is not None, node.log
        found.append({n: a.data for n, a in answer.content.array_records["a"].items()})
    assert found[0] == found[1]
    assert found[0]


def test_a_message_that_dies_takes_nothing_along_and_leaves_nothing(node: LoneNode) -> None:
    left = node.site.folder / "left"
    left.touch()
    left.chmod(0o666)
    bad = {
        "crash": "    os.kill(os.getpid(), signal.SIGSEGV)\n",
        "memory": "    os.kill(os.getpid(), signal.SIGKILL)\n",  # as the kernel ends it
        "exit": "    os._exit(3)\n",
        # What Flower does in the process of a task that was stopped.
        "stop": "    signal.raise_signal(signal.SIGINT)\n",
    }
    orphan = f"""
    if os.fork() == 0:
        os.setsid(); signal.signal(signal.SIGTERM, signal.SIG_IGN)
        open({str(left)!r}, "w").write(str(os.getpid()))
        time.sleep(600)
    while not open({str(left)!r}).read(): time.sleep(0.01)
"""
    with executor(node) as process:
        before = told(node.answer(HEAD + STATE + TAIL))
        for code in bad.values():
            assert node.answer(HEAD + code + TAIL, seconds=0.5) is None
            after = told(node.answer(HEAD + STATE + TAIL))
            assert after["parent"] == before["parent"] == process.pid
        told(node.answer(HEAD + orphan + TAIL))
        told(node.answer(HEAD + STATE + TAIL))  # the one before has ended
        with pytest.raises(ProcessLookupError):
            os.kill(int(left.read_text()), 0)
        assert process.poll() is None
    ended = [line.rpartition(" ")[2] for line in node.log if "ended with status" in line]
    assert ended == ["-11", "-9", "3", "1"]


def test_the_executors_death_takes_its_message_along(node: LoneNode) -> None:
    hanging = f"""
    open({str(node.site.folder / "pid")!r}, "w").write(str(os.getpid()))
    time.sleep(600)
"""
    with executor(node) as process:
        assert node.answer(HEAD + hanging + TAIL, seconds=0.5) is None
        deadline = time.monotonic() + PATIENCE
        while not (node.site.folder / "pid").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        copy = int((node.site.folder / "pid").read_text())
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE)
        while Path(f"/proc/{copy}").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not Path(f"/proc/{copy}").exists()


def test_a_copy_looks_at_the_operators_list_as_it_is_now(node: LoneNode) -> None:
    with executor(node):
        never = node.send(Bundle(b"no zip at all"))
        told(node.answer(HEAD + TAIL))
        (one,) = node.site.bundles.allowed()
        bundle = node.site.bundles.find(one.hash)
        assert bundle is not None
        node.site.bundles.forbid(one.hash)
        no_more = node.send(bundle)
    for answer in (never, no_more):
        assert answer is not None
        assert "bundle must be one that this site's operator allowed" in answer.error.reason


@pytest.mark.parametrize("how", ["--cold", "EFFACE_WARM"])
def test_an_operator_can_have_a_new_process_for_each_message(node: LoneNode, how: str) -> None:
    options, more = (("--cold",), {}) if how == "--cold" else ((), {how: "0"})
    loaded = "    told['loaded'] = os.readlink('/proc/self/fd/0')\n"
    with executor(node, *options, more=more):
        assert "pipe" in str(told(node.answer(HEAD + loaded + TAIL))["loaded"])


def run(code: str, **more: str) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-c", "from client.operator import executor, warm\n" + code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_what_is_loaded_starts_no_thread_and_no_gpu() -> None:
    code = """
import sys
warm.load()
print(warm.obstacle(), sys.modules["torch"].cuda.is_initialized())
"""
    assert run(code) == "False"


def test_numpys_threads_are_an_obstacle_not_a_fault() -> None:
    code = "import threading, time\nthreading.Thread(target=time.sleep, args=(5,), daemon=True)"
    assert "one thread, got 2" in run(code + ".start()\nprint(warm.obstacle())")


def test_a_gpu_in_use_and_the_switch_are_obstacles(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import torch\ntorch.cuda.is_initialized = lambda: True\nprint(warm.obstacle())"
    assert "must not have used a GPU" in run(code)
    monkeypatch.setenv(warm.SWITCH, "0")
    assert warm.obstacle() == "EFFACE_WARM is 0"


def test_where_no_copy_is_to_be_had_a_message_gets_a_new_process(tmp_path: Path) -> None:
    code = f"""
import errno, os
from pathlib import Path
warm.load()
def none(): raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
os.fork = none
started = []
class Gate:
    def wait(self): return 0
executor._new = lambda *a: started.append(a) or Gate()
executor.answer_task(None, Path({str(tmp_path)!r}), "token", copies=True)
print(len(started), started[0][2], list(Path({str(tmp_path)!r}).iterdir()))
"""
    assert run(code) == "1 token []"


def test_a_copy_holds_no_file_of_its_makers(tmp_path: Path) -> None:
    code = f"""
import os, socket
from pathlib import Path
held = [*socket.socketpair(), *os.pipe(), open({str(tmp_path / "held")!r}, "w")]
def link(n):
    try:
        return os.readlink(f"/proc/self/fd/{{n}}")
    except FileNotFoundError:
        return "/dev/null"  # the listing's own
def links():
    return {{link(n) for n in os.listdir("/proc/self/fd") if int(n) > 2}}
numbers = [one if isinstance(one, int) else one.fileno() for one in held]
before = {{link(n) for n in numbers}}
def look(): Path({str(tmp_path / "found")!r}).write_text(" ".join(links()))
print(len(before), before <= links(), warm.Copy(look, None).wait(30.0))
"""
    assert run(code) == "4 True 0"  # both ends of a pipe have one name
    assert (tmp_path / "found").read_text() == "/dev/null"


def test_a_copy_is_ended_as_a_process_is(tmp_path: Path) -> None:
    code = f"""
import signal, subprocess, time
from pathlib import Path
def deaf():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path({str(tmp_path / "deaf")!r}).touch()
    time.sleep(600)
one = warm.Copy(deaf, Path({str(tmp_path)!r}))
while not Path({str(tmp_path / "deaf")!r}).exists(): time.sleep(0.01)
one.terminate()
try:
    one.wait(0.2)
except subprocess.TimeoutExpired:
    one.kill()
print(one.wait(5.0), one.wait())
one.kill()
other = warm.Copy(lambda: time.sleep(600), Path({str(tmp_path)!r}))
other.terminate()
print(other.wait(5.0))
"""
    assert run(code).split() == ["-9", "-9", "-15"]
