"""Seconds a round takes with two sites on a real SuperLink, and what each part of the way gains.

SuperLink, two `efface site run` and the run itself are processes of this machine, connected over
loopback with TLS; each site holds a part of scikit-learn's digits and takes one local step a round,
so that next to nothing of a round is work. The table's rows add one change after the other to the
code of a commit before all of them:

    python benchmarks/fast_rounds.py --before e5b7d44

The weights of all rows must be the same, bit for bit; exit code 3 if they are not.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors.numpy import load_file
from sklearn.datasets import load_digits

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.superlink_harness import (  # noqa: E402
    PROGRAMS,
    make_federation,
    running_federation,
    wait_until,
)

OFF: Final = {"EFFACE_PACE": "0", "EFFACE_PACK": "0"}
# Name, options of `efface site run`, environment; the first one is the code of the commit before.
ROWS: Final[list[tuple[str, list[str], dict[str, str]]]] = [
    ("before", [], {}),
    ("no compiler in a client", ["--cold"], OFF),
    ("copies in place of new processes", [], OFF),
    ("pauses in place of sleeps", [], {"EFFACE_PACK": "0"}),
    ("one array a message", [], {}),
]
TRAIN: Final = """
import json, sys
from server.runner import run
from server.settings import RunSettings
class Silent:
    def round(self, done, scores): pass
    def note(self, text): pass
run(RunSettings(**json.loads(sys.argv[1])).check(), Silent())
"""


def measured(
    code: Path, options: list[str], more: dict[str, str], *, sites: int, rounds: int
) -> tuple[list[float], str]:
    """Return the seconds of each round but the first, and the digest of the weights."""
    names = [f"site-{number}" for number in range(sites)]
    digits = load_digits()
    images = (digits.images * 15).astype(np.uint8)
    environment = {**more, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="efface-rounds-") as folder:
        top = Path(folder)
        with running_federation(top, [], environment=environment) as federation:
            for number, name in enumerate(names):
                make_federation(federation.folder, "node-key", name)
                part = slice(number, 300 * sites, sites)
                file = top / f"{name}.npz"
                np.savez(file, train_images=images[part], train_labels=digits.target[part])
            federation.register(*names)
            for name in names:
                config = {"data": f"npz:{top / name}.npz"}
                # A site's own seed is secret and drawn when it is made; here rows are compared.
                seed = hashlib.sha256(name.encode()).hexdigest()
                policy = {"updates": '"single"', "split_seed": f'"{seed}"'}
                site = federation.start_site(name, config, options=options, policy=policy)
                subprocess.run(
                    [PROGRAMS / "efface", "site", "allow", site, "--installed"],
                    check=True,
                    capture_output=True,
                    env=federation.environment,
                    cwd=top,
                )
            limit = time.monotonic() + 120
            wait_until(lambda: federation.online() >= set(names), federation, limit)
            settings: dict[str, Any] = {
                "mode": "train",
                "engine": "superlink",
                "connection": federation.connection,
                "home": str(top / "home"),
                "num_clients": sites,
                "model_width": 8,
                "model_depth": 2,
                "rounds": rounds,
                "local_steps": 1,
                "scale": 0,
                "evaluate_every": rounds,
            }
            done = subprocess.run(
                [sys.executable, "-c", TRAIN, json.dumps(settings)],
                capture_output=True,
                text=True,
                env={**federation.environment, "FLWR_HOME": str(federation.home)},
                cwd=top,
            )
            if done.returncode:
                logs = "\n".join(federation.log(name)[-2000:] for name in names)
                raise SystemExit(f"training failed:\n{done.stderr[-3000:]}\n{logs}")
        (events,) = (top / "home" / "runs").glob("*/events.jsonl")
        lines = [json.loads(line) for line in events.read_text().splitlines()]
        seconds = [line["seconds"] for line in lines if line["event"] == "round"]
        digest = hashlib.sha256()
        for file in sorted((top / "home" / "versions").rglob("*.safetensors")):
            for name, array in sorted(load_file(file).items()):
                digest.update(name.encode() + array.tobytes())
    return seconds[1:], digest.hexdigest()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--before", default="", help="Commit before all changes; none if empty.")
    parser.add_argument("--sites", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--rows", type=int, nargs="*", default=list(range(len(ROWS))))
    told = parser.parse_args()
    print("| | median s | fastest | slowest | rounds | load before, after |")
    print("|---|---|---|---|---|---|", flush=True)
    digests = set()
    with tempfile.TemporaryDirectory(prefix="efface-before-") as folder:
        if told.before:
            archive = ["git", "archive", told.before]
            packed = subprocess.run(archive, cwd=ROOT, check=True, capture_output=True)
            subprocess.run(["tar", "-x", "-C", folder], input=packed.stdout, check=True)
        for number in told.rows:
            name, options, more = ROWS[number]
            if number == 0 and not told.before:
                continue
            code = ROOT if number else Path(folder)
            load = os.getloadavg()[0]
            rounds, digest = measured(code, options, more, sites=told.sites, rounds=told.rounds)
            digests.add(digest)
            low, middle, high = min(rounds), statistics.median(rounds), max(rounds)
            print(
                f"| {name} | {middle:.2f} | {low:.2f} | {high:.2f} | {len(rounds)} | "
                f"{load:.1f}, {os.getloadavg()[0]:.1f} |",
                flush=True,
            )
    if len(digests) != 1:
        print(f"weights must be the same in all rows, got {len(digests)} different ones")
        raise SystemExit(3)
    print(f"\nWeights of all rows: {digests.pop()[:16]}")


if __name__ == "__main__":
    main()
