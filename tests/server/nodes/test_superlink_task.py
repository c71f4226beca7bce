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
from client.operator.folder import bundles_of
from server.cli.site_run import installed_bundle
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


def shown(running: RunningFederation, site: Path, bundle: str) -> str:
    """Return what `efface site diff` shows its operator."""
    command = [PROGRAMS / "efface", "site", "diff", site, bundle, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=running.environment)
    assert done.returncode == 0, done.stdout + done.stderr
    found: str = json.loads(done.stdout)["diff"]
    return found


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
        without = installed_bundle()
        for folder in folders:
            bundles_of(folder).allow(without.hash, "the installed one", without)
        told = {"mode": "train", "task": f"{mine}:Wine", "task_options": "hidden=12"}

        # 1. The bundle with the task is none that a site knows, though the rest of it is.
        with pytest.raises(EffaceError, match="that this site's operator allowed"):
            ask(home, running, **told)
        (task,) = (home / "tasks").iterdir()
        for folder in folders:
            (came,) = bundles_of(folder).waiting()
            changes = bundles_of(folder).difference(came).code
            assert f"+++ b/client/own/{task.name}/mine.py" in changes
            assert "+    hidden: int = 16" in changes
            bundles_of(folder).allow(came, "with the task of wines")

        # 2. Now they train, and one leaves.
        trained = ask(home, running, **told)
        done = ask(
            home, running, mode="forget", forget_clients="site-b", method="retraining",
            trial=True,
        )  # fmt: skip
        assert not any("Traceback" in running.log(name) for name in NAMES)

        # 3. A change to it is another bundle, of which the operator sees that change alone.
        mine.write_text(mine.read_text().replace("hidden: int = 16", "hidden: int = 20"))
        with pytest.raises(EffaceError, match="that this site's operator allowed"):
            ask(home, running, **told)
        (came,) = bundles_of(folders[0]).waiting()
        changes = shown(running, folders[0], came).splitlines()
        changed = [line for line in changes if line[0] in "+-" and line[:3] not in ("+++", "---")]
        assert changed == ["-    hidden: int = 16", "+    hidden: int = 20"]
    assert not running.left_over()

    # Both learned, and then the one that stayed, by the task's own network and data.
    assert (trained.model, trained.num_classes, done.base_version) == ("Wine", 3, "v0001")
    before, after = weights(home, "v0001"), weights(home, done.model_version)
    assert before["0.weight"].shape == (12, 13)
    assert any(not np.array_equal(before[name], after[name]) for name in before)
    assert Service.open(Home(home)).registry.resolve(None).id == "v0001"
