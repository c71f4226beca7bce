"""What a test starts ends with it, however the test ends."""

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from tests.superlink_harness import MARK, REPOSITORY, RunningFederation
from tests.supervisor import supervised

# A stand-in for a SuperLink: it has a grandchild in a session of its own, whose parent has ended.
DAEMON = """
import subprocess, sys, time
from pathlib import Path
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
start = f"import subprocess; subprocess.Popen({sleep!r}, start_new_session=True)"
subprocess.run([sys.executable, "-c", start], check=True)
subprocess.Popen(sleep, start_new_session=True)
print("ready", flush=True)
time.sleep(600)
"""
# A stand-in for pytest: it holds a federation until it is ended from outside.
HOLDER = f"""
import signal, sys, time
from pathlib import Path
from tests.test_supervisor import marked
signal.signal(signal.SIGINT, signal.default_int_handler)  # a run in the background ignores it
running = marked(Path(sys.argv[1]), sys.argv[2])
running.start("daemon", [sys.executable, "-c", {DAEMON!r}])
try:
    while "ready" not in running.log("daemon"):
        time.sleep(0.05)
    print("started", flush=True)
    time.sleep(600)
finally:
    running.stop()
"""
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's child subreaper")


def marked(folder: Path, mark: str) -> RunningFederation:
    """Return a federation with no keys and no ports: only to start processes with `mark`."""
    return RunningFederation(folder, folder, "none", 0, 0, {**os.environ, MARK: mark})


@linux_only
@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_a_test_that_is_ended_from_outside(
    tmp_path: Path, number: signal.Signals
) -> None:
    mark = uuid.uuid4().hex
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path), mark],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "started\n"
        running = marked(tmp_path, mark)
        assert len(running.left_over()) == 4  # supervisor, daemon and both grandchildren
    finally:
        holder.send_signal(number)
        holder.communicate(timeout=300)

    assert holder.returncode != 0
    limit = time.monotonic() + 300
    while running.left_over() and time.monotonic() < limit:
        time.sleep(0.05)
    assert running.left_over() == []


@linux_only
@pytest.mark.processes
def test_a_supervisor_ends_as_its_command_does_and_leaves_nothing() -> None:
    command = [sys.executable, "-c", "import sys; sys.exit(7)"]

    assert subprocess.run(supervised(command), timeout=300).returncode == 7
