"""The Flower app of the example, with and without what Efface adds to it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "examples" / "own-flower-app"
DIFF = re.findall(r"^```diff\n(.*?)^```", (FOLDER / "README.md").read_text(), re.M | re.S)[0]

INLINE = """
from flwr.app import Context, RecordDict
from digits_app.client_app import app
from digits_app.server_app import main
from server.nodes.engines.inline import InlineGrid

config = {"num-rounds": ROUNDS, "local-epochs": 1, "lr": 0.05}
with InlineGrid(app, 5) as grid:
    for node in grid.contexts.values():
        node.run_config.update(config)
    main(grid, Context(1, 0, {}, RecordDict(), config))
"""

RAY = """
from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.simulation import run_simulation
from digits_app import client_app, server_app

CONFIG = {"num-rounds": ROUNDS, "local-epochs": 1, "lr": 0.05}
# One process for all clients: each imports torch anew.
BACKEND = {"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": 1}}


class Told(ClientApp):
    # What `flwr run` reads from pyproject.toml.
    def __call__(self, message, context):
        known = (context.run_id, context.node_id, context.node_config, context.state)
        return client_app.app(message, Context(*known, CONFIG))


server = ServerApp()


@server.main()
def main(grid, context):
    server_app.main(grid, Context(1, 0, {}, RecordDict(), CONFIG))


run_simulation(server, Told(), 5, backend_config=BACKEND)
"""


def run(script: str, app: Path, home: Path, *, rounds: int) -> dict[str, list[int]]:
    """Run the app in a folder of its own; return the accuracies that it prints, by model."""
    home.mkdir()
    own = {key: value for key, value in os.environ.items() if not key.startswith("EFFACE_")}
    done = subprocess.run(
        [sys.executable, "-c", script.replace("ROUNDS", str(rounds))],
        cwd=home,
        # Ray's workers are niced by 15 otherwise, and starve beside the other tests.
        env=own | {"PYTHONPATH": f"{app}:{ROOT}", "HOME": str(home), "RAY_worker_niceness": "0"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^(trained|retraining|sga) +([ \d]+)$", done.stdout, re.M)
    return {name: [int(part) for part in numbers.split()] for name, numbers in rows}


def test_the_app_forgets_a_digit(tmp_path: Path) -> None:
    found = run(INLINE, FOLDER, tmp_path / "run", rounds=8)

    assert list(found) == ["trained", "retraining", "sga"]
    assert found["trained"][9] > 50
    assert found["retraining"][9] == found["sga"][9] == 0
    assert sum(found["sga"]) > 600  # of nine digits


@pytest.mark.processes
def test_the_app_forgets_in_flowers_simulation(tmp_path: Path) -> None:
    found = run(RAY, FOLDER, tmp_path / "run", rounds=3)

    assert list(found) == ["trained", "retraining", "sga"]
    assert found["trained"][9] > 30
    assert found["sga"][9] == 0
    assert sum(found["sga"]) > 300  # of nine digits


def test_the_diff_in_readme_is_all_that_is_added(tmp_path: Path) -> None:
    before = tmp_path / "before"
    shutil.copytree(FOLDER, before, ignore=shutil.ignore_patterns("__pycache__", "README.md"))
    subprocess.run(
        ["git", "apply", "-R", "--unidiff-zero", "-"],
        cwd=before,
        input=DIFF,
        text=True,
        check=True,
        env=os.environ | {"GIT_CEILING_DIRECTORIES": str(tmp_path)},
    )
    left = "".join(path.read_text() for path in sorted(before.rglob("*.py")))
    assert "efface" not in left
    assert "flower." not in left
    added = re.findall(r"^\+(?!\+\+).*\S", DIFF, re.M)
    assert len(added) < 30

    found = run(INLINE, before, tmp_path / "run", rounds=2)
    assert list(found) == ["trained"]
