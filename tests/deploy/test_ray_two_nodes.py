"""The script that puts Efface on two nodes of Ray: how it ends where that cannot be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "deploy" / "ray_two_nodes.sh"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")
# In the place of what it starts: no root is needed, and Ray does not start.
INSTEAD = {
    "ip": '[ "$1 $2" != "netns exec" ] || { shift 3; exec "$@"; }',
    "unshare": "echo Ray fails here; exit 1",
    "python": "exit 1",
}


def started(folder: Path, programs: Path) -> subprocess.CompletedProcess[str]:
    programs.mkdir()
    for name, does in INSTEAD.items():
        (programs / name).write_text(f"#!/bin/sh\n{does}\n")
        (programs / name).chmod(0o755)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "START_SECONDS": "2"}
    return subprocess.run(
        ["bash", str(SCRIPT), str(folder)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )


def test_where_ray_does_not_start_it_ends_and_shows_the_log(tmp_path: Path) -> None:
    done = started(tmp_path / "new", tmp_path / "programs")
    assert done.returncode == 1
    assert "Ray must start within 2 s, got 0 of 1 nodes" in done.stderr
    assert "Ray fails here" in done.stderr


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (there / "seen").write_text("of another run")
    done = started(there, tmp_path / "programs")
    assert done.returncode == 2
    assert f"FOLDER must be new or empty, got {there}" in done.stderr
    assert [path.name for path in there.iterdir()] == ["seen"]
