"""Shows that a change left the weights alone, bit for bit.

Runs four small jobs (the demo; a client; class-pruning; FedEraser) with the code of a commit, in a
worktree of its own, and with the checkout's, on this machine, and compares the SHA-256 of every
version's weights:

    python benchmarks/same_weights.py a26b522

Hashes are not kept: bits differ from one kind of processor to the next. Exit code 0 if all are
equal, 3 if not.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["--max-samples", "600", "--num-clients", "4", "--rounds", "4", "--model-width", "16"]
# Trials with limits that pass everything: what is compared is weights, not verdicts.
TRIAL = ["--trial", "--max-forget-accuracy", "100", "--max-relearning-gap", "100"]
JOBS: dict[str, list[list[str]]] = {
    "demo": [["demo", "--class", "9"]],
    "client": [["train", *SMALL], ["forget", "--client", "client-1", *TRIAL]],
    "class-pruning": [
        ["train", *SMALL],
        ["forget", "--class", "3", "--method", "class-pruning", *TRIAL],
    ],
    "federaser": [
        ["train", *SMALL, "--keep-updates", "2"],
        ["forget", "--class", "3", "--method", "federaser", *TRIAL],
    ],
}


def hashes(code: Path, job: str) -> list[str]:
    """Return the SHA-256 of the weights of every version that a job makes, in order.

    Args:
        code: Folder of the code to run.
        job: One of `JOBS`.
    """
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
        for told in JOBS[job]:
            line = "from server.cli import main; main()"
            command = [sys.executable, "-c", line, *told, "--home", home]
            done = subprocess.run(
                command, cwd=code, env=environment, capture_output=True, text=True
            )
            if done.returncode:
                raise SystemExit(f"efface {' '.join(told)} in {code} failed:\n{done.stderr}")
        files = sorted(Path(home, "versions").rglob("*.safetensors"))
        if not files:
            raise SystemExit(f"{job} must leave versions, got none in {code}")
        return [_of_weights(path) for path in files]


def _of_weights(path: Path) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(load_file(path).items()):
        digest.update(f"{name} {array.dtype} {array.shape}\0".encode() + array.tobytes())
    return digest.hexdigest()


def main() -> None:
    """Compare and print one line a version."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("commit", help="commit to compare the checkout with")
    parser.add_argument("--jobs", nargs="*", default=list(JOBS), choices=list(JOBS))
    asked = parser.parse_args()
    different = False
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "before"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(before), asked.commit], check=True)
        try:
            for job in asked.jobs:
                then, now = hashes(before, job), hashes(ROOT, job)
                different |= then != now
                for old, new in zip(then, now, strict=False):
                    word = "equal" if old == new else f"DIFFERENT ({new[:16]})"
                    print(f"{job:14} {old[:16]} {word}", flush=True)
                if len(then) != len(now):
                    print(f"{job:14} {len(then)} versions before, {len(now)} now", flush=True)
        finally:
            subprocess.run([*git, "remove", "--force", str(before)], check=True)
    raise SystemExit(3 if different else 0)


if __name__ == "__main__":
    main()
