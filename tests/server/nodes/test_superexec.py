"""A ServerApp that is a copy of the SuperExec is as one that is a new process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="copies are Linux's")
HEAD = """
import json, os, sys, threading, time
from types import SimpleNamespace
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec.executor import LaunchResult, LaunchResultStatus
from client.operator import warm
from server.nodes.engines import superexec

class Usual:
    def __init__(self):
        self.launched, self.reconciled = [], 0
    def launch(self, spec):
        self.launched.append(spec.task_type.value)
        return LaunchResult.accepted()
    def reconcile(self):
        self.reconciled += 1
    def close(self):
        return "closed"

def spec(kind=TaskType.SERVER_APP, **more):
    told = dict(task_type=kind, runtime_api_address="127.0.0.1:9", token="t", insecure=False)
    told |= dict(root_certificates_path="ca.crt", parent_pid=os.getpid(), suppress_output=False)
    told |= dict(runtime_dependency_install=False)
    return SimpleNamespace(**{**told, **more})

executor = superexec.Copying(Usual())
"""


def run(code: str, **more: str) -> Any:
    return ran(["-P", "-c", HEAD + code], **more)


def ran(words: list[str], folder: Path | None = None, **more: str) -> Any:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "FLWR_TELEMETRY_ENABLED": "0",
            **more,
        },
    )
    assert done.returncode == 0, done.stderr
    assert "alone" not in done.stdout
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_what_is_loaded_starts_no_thread_and_is_nothing_of_an_app() -> None:
    code = """
before = {n for n in sys.modules if n.partition(".")[0] in superexec.OURS}
why = superexec.load()
after = {n for n in sys.modules if n.partition(".")[0] in superexec.OURS}
print(json.dumps([why, "torch" in sys.modules, sorted(after - before)]))
"""
    assert run(code) == ["", True, []]


@pytest.mark.parametrize("switch", ["1", "0"])
@pytest.mark.parametrize("threads", [None, "2"])
def test_no_serverapp_gets_a_setting_of_the_loading(
    switch: str, threads: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    if threads is not None:
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", threads)
    code = """
before = dict(os.environ)
superexec.load()
changed = {n for n in {*before, *os.environ} if before.get(n) != os.environ.get(n)}
from flwr.supercore.cli.flower_superexec import flower_superexec
print(json.dumps([sorted(changed), warm.obstacle()]))
"""
    changed, why = run(code, EFFACE_WARM=switch)
    assert changed == []
    if threads is None:  # or numpy has threads, as it was told
        assert why == ("" if switch == "1" else "EFFACE_WARM is 0")


STRANGER = """
import client
import flwr.superlink.cli.flwr_serverapp

def serverapp():
    folder = {folder!r}
    told = dict(path=list(sys.path), environment=dict(os.environ), cwd=os.getcwd())
    told["modules"] = sorted(sys.modules)
    sys.path.insert(0, folder)
    os.environ["LEFT_BEHIND"] = "here"
    os.chdir(folder)
    import client, server.inner, left_behind
    told["taken"] = [client.WHOSE, server.inner.WHOSE, client.__file__]
    sys.modules["json"].left_behind = told["found"] = getattr(json, "left_behind", 0) + 1
    number = len(os.listdir(folder + "/told"))
    open(f"{{folder}}/told/{{number}}", "w").write(json.dumps(told))

sys.modules["flwr.superlink.cli.flwr_serverapp"].flwr_serverapp = serverapp
"""


def test_a_copy_leaves_nothing_to_the_next_one(tmp_path: Path) -> None:
    for name in ("client", "server"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("WHOSE = 'app'\n")
    (tmp_path / "server" / "inner.py").write_text("WHOSE = 'app'\n")
    (tmp_path / "left_behind.py").touch()
    (tmp_path / "told").mkdir()
    code = STRANGER.format(folder=str(tmp_path))
    code += """
before = [sorted(sys.modules), list(sys.path), dict(os.environ), os.getcwd()]
done = []
for _ in range(2):
    executor.launch(spec())
    done.append(executor.copies[-1].wait(60))
    executor.reconcile()
after = [sorted(sys.modules), list(sys.path), dict(os.environ), os.getcwd()]
print(json.dumps([done, before == after, client.__file__]))
"""
    done, same, ours = run(code)
    first, second = (json.loads((tmp_path / "told" / name).read_text()) for name in "01")

    assert (done, same) == ([0, 0], True)
    assert Path(ours) == ROOT / "client" / "__init__.py"
    assert first["taken"] == ["app", "app", str(tmp_path / "client" / "__init__.py")]
    assert "LEFT_BEHIND" not in first["environment"]
    assert not {"client", "server", "left_behind"} & set(first["modules"])
    assert first == second


@pytest.mark.parametrize("safe", [True, False])
def test_no_app_finds_modules_in_the_working_directory(safe: bool, tmp_path: Path) -> None:
    code = """
import flwr.superlink.cli.flwr_serverapp
def serverapp():
    print(json.dumps([sys.path[0], os.getcwd() in sys.path]))
sys.modules["flwr.superlink.cli.flwr_serverapp"].flwr_serverapp = serverapp
executor.launch(spec())
raise SystemExit(executor.copies[0].wait(60))
"""
    (tmp_path / "started.py").write_text(HEAD + code)
    if safe:  # what PYTHONPATH names stays
        words, path = ["-P", "-m", "started"], f"{ROOT}{os.pathsep}{tmp_path}"
    else:
        words, path = ["-m", "started"], str(ROOT)
    assert ran(words, tmp_path, PYTHONPATH=path) == [str(ROOT), safe]


def test_a_serverapp_is_a_copy_with_flowers_command_line_and_modules_of_its_own(
    tmp_path: Path,
) -> None:
    code = f"""
from flwr.superlink.cli import flwr_serverapp
from flwr.supercore.exit import exit_handler
import flwr.superlink.cli.flwr_serverapp
exit_handler.add_exit_handler(lambda: None)
def serverapp():
    ours = [n for n in sys.modules if n.partition(".")[0] in superexec.OURS]
    told = [os.getppid(), sys.argv, ours, len(exit_handler.registered_exit_handlers)]
    print("for the run's log alone", flush=True)
    open({str(tmp_path / "told")!r}, "w").write(json.dumps(told))
    raise SystemExit(1)  # as Flower ends one that failed
sys.modules["flwr.superlink.cli.flwr_serverapp"].flwr_serverapp = serverapp
status = executor.launch(spec(suppress_output=True)).status
(copy,) = executor.copies
code = copy.wait(60)
executor.reconcile()
print(json.dumps([
    status == LaunchResultStatus.ACCEPTED, code, len(executor.copies), executor.usual.reconciled,
    executor.usual.launched, executor.close(), os.getpid(),
]))
"""
    accepted, status, left, reconciled, launched, closed, parent = run(code)
    told = json.loads((tmp_path / "told").read_text())

    assert (accepted, status, left, reconciled) == (True, 1, 0, 1)
    assert (launched, closed) == ([], "closed")
    assert told == [
        parent,
        [
            *("flwr-serverapp", "--runtime-api-address", "127.0.0.1:9", "--token", "t"),
            *("--root-certificates", "ca.crt", "--parent-pid", str(parent)),
        ],
        [],  # an app's own are not hidden by the installed ones
        0,
    ]


@pytest.mark.parametrize("insecure", [True, False])
def test_the_command_line_is_that_of_flowers_own_executor(insecure: bool) -> None:
    code = f"""
from flwr.supercore.superexec.executor import subprocess_executor
seen = []
subprocess_executor.subprocess = SimpleNamespace(Popen=lambda words, **more: seen.append(words))
one = spec(insecure={insecure})
subprocess_executor.SubprocessExecutor().launch(one)
print(json.dumps([seen[0], superexec._words(one)]))
"""
    theirs, ours = run(code)
    assert sorted(ours) == sorted(theirs)


def test_what_cannot_be_copied_or_has_versions_of_its_own_is_flowers_to_start() -> None:
    code = """
executor.launch(spec(TaskType.CLIENT_APP))
executor.launch(spec(runtime_dependency_install=True))
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
executor.launch(spec())
print(json.dumps([executor.usual.launched, len(executor.copies)]))
"""
    launched, copies = run(code)
    assert (len(launched), copies) == (3, 0)


def test_where_there_is_no_room_for_a_process_the_launch_fails() -> None:
    code = """
def none(*a): raise OSError(11, "no room")
warm.Copy = none
result = executor.launch(spec())
print(json.dumps([result.status == LaunchResultStatus.FAILED, "no room" in result.message]))
"""
    assert run(code) == [True, True]


def test_flower_asks_for_no_output_of_a_serverapp_where_it_is() -> None:
    from flwr.supercore.constant import TaskType
    from flwr.supercore.superexec.plugin import AutoExecPlugin

    assert AutoExecPlugin.suppress_output
    assert TaskType.SERVER_APP not in AutoExecPlugin.visible_output_task_types


def test_flower_still_takes_its_executor_from_where_ours_is_put() -> None:
    from flwr.supercore.superexec import run_superexec

    assert callable(vars(run_superexec)["get_executor"])
