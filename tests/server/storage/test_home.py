"""The server home: created private, held by one process at a time, files whole or absent."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import server.storage.home
from client.errors import BadSetting, EffaceError
from client.files import write_atomic
from server.storage.home import Home, HomeBusy, plain, write_json

HOLD = """
import sys, time
from server.storage.home import Home
with Home(sys.argv[1]).lock():
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def hold_elsewhere(home: Path, seconds: float) -> subprocess.Popen[str]:
    """Start another process that holds the lock of `home`, and return once it does."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(home), str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_new_home_is_private_and_complete(tmp_path: Path) -> None:
    home = Home(tmp_path / "deep" / "home")

    folders = [home.versions, home.runs, home.reports, home.cache, home.clients]
    assert [f.name for f in folders] == ["versions", "runs", "reports", "cache", "clients"]
    assert [mode(f) for f in [home.path, *folders]] == [0o700] * 6


def test_a_folder_open_to_others_is_closed(tmp_path: Path) -> None:
    Home(tmp_path).runs.chmod(0o755)

    assert mode(Home(tmp_path).runs) == 0o700


def test_the_home_comes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFFACE_HOME", str(tmp_path / "a"))
    assert Home().path == tmp_path / "a"
    monkeypatch.delenv("EFFACE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Home().path == tmp_path / ".efface"


def test_a_home_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")

    with pytest.raises(
        EffaceError, match=r"home must be a folder .*/home \(File exists\).*EFFACE_"
    ):
        Home(tmp_path / "home")


def test_a_second_process_refuses_and_names_the_holder(tmp_path: Path) -> None:
    process = hold_elsewhere(tmp_path, 60)
    try:
        message = (
            rf"held by process {process.pid} \(-c\) since 20\d\d-.*\+00:00\. "
            "Wait for it to end, stop it, or set EFFACE_HOME"
        )
        with pytest.raises(HomeBusy, match=message), Home(tmp_path).lock():
            pass
        with pytest.raises(HomeBusy, match=r"\(waited 0.2 s\)"), Home(tmp_path).lock(wait=0.2):
            pass
    finally:
        process.kill()
        process.communicate()


def test_a_busy_home_names_the_request_and_the_way_out_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = ["--token", "S3CRET", "--token=S3CRET", "postgresql://u:S3CRET@host/db"]
    for words in (["/opt/bin/flwr-serverapp", *secrets], ["efface", "train", *secrets]):
        monkeypatch.setattr(sys, "argv", words)
        home = Home(tmp_path)
        with home.lock():
            home.working_on("r0007")
            kept = (tmp_path / "lock").read_text()
            holder = Home(tmp_path).holder()
            with pytest.raises(HomeBusy) as busy:
                _elsewhere(tmp_path)
        assert "S3CRET" not in kept + str(busy.value)
        assert holder is not None
        assert holder.command in ("flwr-serverapp", "efface train")
        assert re.search(
            r"r0007 is running; wait, or abort it: stop process \d+ .* --abort r0007",
            str(busy.value),
        )


def _elsewhere(path: Path) -> None:
    """Take a home's lock as another thread would."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: Home(path).lock().__enter__()).result()


def test_a_second_process_waits_for_the_first(tmp_path: Path) -> None:
    process = hold_elsewhere(tmp_path, 0.5)

    with Home(tmp_path).lock(wait=30):
        assert process.wait(10) == 0
    process.communicate()


def test_a_killed_holder_frees_the_home(tmp_path: Path) -> None:
    process = hold_elsewhere(tmp_path, 60)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    home = Home(tmp_path)

    with home.lock():
        holder = home.holder()

    assert holder is not None
    assert holder.pid == os.getpid()
    assert home.holder() is None


def test_the_holder_may_enter_again_but_another_thread_may_not(tmp_path: Path) -> None:
    home = Home(tmp_path)
    refused: list[bool] = []

    def enter() -> None:
        try:
            with home.lock():
                refused.append(False)
        except HomeBusy:
            refused.append(True)

    with home.lock():
        with home.lock():
            pass
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    enter()

    assert refused == [True, False]


def test_an_error_inside_frees_the_home(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Home(tmp_path).lock():
        raise KeyboardInterrupt

    with Home(tmp_path).lock():
        pass


@pytest.mark.parametrize("wait", [-1.0, float("nan")])
def test_a_wait_that_is_no_time_is_refused(tmp_path: Path, wait: float) -> None:
    with pytest.raises(BadSetting, match="wait must be at least 0 seconds, got"):
        Home(tmp_path).lock(wait).__enter__()


def test_an_unreadable_lock_file_still_refuses(tmp_path: Path) -> None:
    process = hold_elsewhere(tmp_path, 60)
    (tmp_path / "lock").write_text("{")
    try:
        with pytest.raises(HomeBusy, match="a process that has not said its name"):
            Home(tmp_path).lock().__enter__()
    finally:
        process.kill()
        process.communicate()


def test_a_written_file_is_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "record"
    path.write_text("old")

    write_atomic(path, b"new")

    assert path.read_bytes() == b"new"
    assert mode(path) == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_former_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    path = tmp_path / "record"
    path.write_text("old")
    monkeypatch.setattr(server.storage.home.os, call, fail)  # type: ignore[attr-defined]

    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, b"new")

    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "record"
    contents = {bytes([i]) * 200_000 for i in range(2)}
    write_atomic(path, bytes(200_000))
    stop = time.monotonic() + 0.5
    seen: set[bytes] = set()

    def write() -> None:
        while time.monotonic() < stop:
            for content in contents:
                write_atomic(path, content, durable_name=False)

    thread = threading.Thread(target=write)
    thread.start()
    while thread.is_alive():
        seen.add(path.read_bytes())
    thread.join()

    assert seen <= contents


def test_json_holds_numbers_of_arrays_and_no_nan(tmp_path: Path) -> None:
    value = {"a": (np.float32(0.5), np.int64(3)), 4: float("nan"), "b": [None, True, "é"]}

    write_json(tmp_path / "x.json", value)

    assert (tmp_path / "x.json").read_text() == (
        '{\n  "a": [\n    0.5,\n    3\n  ],\n  "4": null,\n'
        '  "b": [\n    null,\n    true,\n    "é"\n  ]\n}\n'
    )


def test_a_value_without_json_form_is_named() -> None:
    message = r"card.masks\[1\] must be a number, text, list, object or null, got a ndarray"
    with pytest.raises(BadSetting, match=message):
        plain({"masks": [1, np.zeros(3)]}, "card")
