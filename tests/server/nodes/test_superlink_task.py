"""A user's task on a real SuperLink: two sites as their operators run them, with data it reads."""

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.errors import EffaceError
from server.evidence.record import Record
from server.requests.intake import Service
from server.runner import run
from server.settings import RunSettings
from server.storage.home import Home
from tests.small_job import Silent, weights
from tests.superlink_harness import (
    PROGRAMS,
    RunningFederation,
    make_federation,
    running_federation,
    wait_until,
)

NAMES = ["site-a", "site-b"]
TASK = Path(__file__).parents[2] / "tasks" / "tables.py"
JOB = {
    **{"engine": "superlink", "dataset": "none", "num_clients": 2, "rounds": 1, "local_steps": 5},
    **{"batch_size": 16, "lr": 0.1, "scale": 0, "evaluate_every": 0, "device": "cpu"},
}


def ask(home: Path, running: RunningFederation, **told: Any) -> Record:
    settings = {**JOB, "home": str(home), "connection": running.connection, **told}
    return run(RunSettings(**settings).check(), Silent())


def site(running: RunningFederation, *words: str | Path) -> dict[str, Any]:
    """Run `efface site ...` as an operator does, and return its answer."""
    command = [PROGRAMS / "efface", "site", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=running.environment)
    assert done.returncode == 0, done.stdout + done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.processes
def test_a_users_task_is_refused_until_allowed_then_trained_and_a_client_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, mine = tmp_path / "home", tmp_path / "mine.py"
    shutil.copy(TASK, mine)
    with running_federation(tmp_path / "federation", []) as running:
        monkeypatch.setenv("FLWR_HOME", str(running.home))
        for name in NAMES:
            make_federation(running.folder, "node-key", name)
        running.register(*NAMES)
        folders = [
            running.start_site(name, {"data": f"{i}/2"}, policy={"updates": '"single"'})
            for i, name in enumerate(NAMES)
        ]
        wait_until(lambda: running.online() >= set(NAMES), running, time.monotonic() + 300)
        for folder in folders:
            site(running, "allow", folder, "--installed")
        told = {"mode": "train", "task": f"{mine}:Wine", "task_options": "hidden=12"}

        # 1. The bundle with the task is none that a site knows, though the rest of it is.
        with pytest.raises(EffaceError, match="that this site's operator allowed"):
            ask(home, running, **told)
        (task,) = (home / "tasks").iterdir()
        for folder in folders:
            (came,) = site(running, "allowed", folder)["waiting"]
            changes = site(running, "diff", folder, came)["diff"]
            assert f"+++ b/client/own/{task.name}/mine.py" in changes
            assert "+    hidden: int = 16" in changes
            site(running, "allow", folder, came, "--note", "with the task of wines")

        # 2. Now they train, and one leaves.
        trained = ask(home, running, **told)
        done = ask(
            home, running, mode="forget", forget_clients="site-b", method="not", trial=True,
            method_options="rounds=1",
        )  # fmt: skip
        assert not any("Traceback" in running.log(name) for name in NAMES)

        # 3. A change to it is another bundle, of which the operator sees that change alone.
        mine.write_text(mine.read_text().replace("hidden: int = 16", "hidden: int = 20"))
        with pytest.raises(EffaceError, match="that this site's operator allowed"):
            ask(home, running, **told)
        (came,) = site(running, "allowed", folders[0])["waiting"]
        changes = site(running, "diff", folders[0], came)["diff"].splitlines()
        changed = [line for line in changes if line[0] in "+-" and line[:3] not in ("+++", "---")]
        assert changed == ["-    hidden: int = 16", "+    hidden: int = 20"]
    assert not running.left_over()

    # Nodes learned, and the one that stayed went on learning, by the task's own network and data.
    assert (trained.model, trained.num_classes, done.base_version) == ("Wine", 3, "v0001")
    before, after = weights(home, "v0001"), weights(home, done.model_version)
    assert before["0.weight"].shape == (12, 13)
    assert any(not np.array_equal(before[name], after[name]) for name in before)
    assert Service.open(Home(home)).registry.resolve(None).id == "v0001"
