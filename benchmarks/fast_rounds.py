"""Seconds a round takes with two sites on a real SuperLink, and what each part of the way gains.

SuperLink, two `efface site run` and the run itself are processes of this machine, connected over
loopback with TLS; each site holds a part of scikit-learn's digits and takes one local step a round,
so that next to nothing of a round is work. The table's rows add one change after the other to the
code of a commit before all of them:

    python benchmarks/fast_rounds.py --before e5b7d44

The weights of all rows must be the same, bit for bit; exit code 3 if they are not.

`--forget` has each row's version forget a class, too: ascent, recovery, all checks and evaluation,
from the start of the command to the version in service. Its time is told by phase, as the request's
record has it, beside the processor seconds of each part of the way.
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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors.numpy import load_file
from sklearn.datasets import load_digits

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.superlink_harness import (  # noqa: E402
    PROGRAMS,
    RunningFederation,
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
    ("a ServerApp that is a copy", [], {}),
]
COPYING: Final = 5  # the row whose SuperExec copies itself; the others have Flower's own
SUPEREXEC: Final = (sys.executable, "-m", "server.nodes.engines.superexec")
# Whose processor time is counted: words of the command lines.
PARTS: Final = {
    "coordinator": "flwr-serverapp",  # a copy is the SuperExec's
    "SuperExec": "superexec",
    "SuperLink": "flower-superlink",
    "nodes": "client.operator.node",
    "executors": "client.operator.executor",
    "run": "from server.runner import run",
}
TRAIN: Final = """
import json, sys
from server.runner import run
from server.settings import RunSettings
class Silent:
    def round(self, done, scores): print("round", flush=True)
    def note(self, text): pass
run(RunSettings(**json.loads(sys.argv[1])).check(), Silent())
"""


@dataclass(frozen=True)
class Forgotten:
    """A request, from the start of its command to its end.

    Attributes:
        seconds: By the clock.
        phases: Those of the record, by phase; the rest went into starting and into what is timed
            nowhere.
        spent: Processor seconds of each part.
    """

    seconds: float
    phases: dict[str, float]
    spent: dict[str, float]


def measured(
    code: Path,
    options: list[str],
    more: dict[str, str],
    *,
    sites: int,
    rounds: int,
    forgets: bool = False,
    superexec: Sequence[str] = (),
) -> tuple[list[float], dict[str, float], str, Forgotten | None]:
    """Return seconds of rounds but the first, processor seconds a round, the weights' digest.

    Args:
        code: The tree whose code runs.
        options: Of `efface site run`.
        more: Environment of all processes.
        sites: How many.
        rounds: Of training.
        forgets: Whether a request follows, which the last value is about.
        superexec: Command of the SuperExec, where it is not Flower's own.
    """
    names = [f"site-{number}" for number in range(sites)]
    digits = load_digits()
    images = (digits.images * 15).astype(np.uint8)
    environment = {**more, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
    environment["FLWR_SUPEREXEC_TASK_POLL_INTERVAL"] = "0.2"  # as in deploy/
    with tempfile.TemporaryDirectory(prefix="efface-rounds-") as folder:
        top = Path(folder)
        started = running_federation(top, [], environment=environment, superexec=superexec)
        with started as federation:
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
            work = subprocess.Popen(
                [sys.executable, "-c", TRAIN, json.dumps(settings)],
                stdout=subprocess.PIPE,
                stderr=(top / "errors").open("w"),
                text=True,
                env={**federation.environment, "FLWR_HOME": str(federation.home)},
                cwd=top,
            )
            assert work.stdout is not None
            used = [processor_seconds(federation) for line in work.stdout if line == "round\n"]
            if work.wait():
                errors = (top / "errors").read_text()[-3000:]
                logs = "\n".join(federation.log(name)[-2000:] for name in names)
                raise SystemExit(f"training failed:\n{errors}\n{logs}")
            forgotten = _forgotten(federation, top, settings) if forgets else None
        events = top / "home" / "runs" / "r0001" / "events.jsonl"
        lines = [json.loads(line) for line in events.read_text().splitlines()]
        seconds = [line["seconds"] for line in lines if line["event"] == "round"]
        digest = hashlib.sha256()
        for file in sorted((top / "home" / "versions" / "v0001").rglob("*.safetensors")):
            for name, array in sorted(load_file(file).items()):
                digest.update(name.encode() + array.tobytes())
    spent = {p: (used[-1][p] - used[0][p]) / (len(used) - 1) for p in PARTS}
    return seconds[1:], spent, digest.hexdigest(), forgotten


def _forgotten(federation: RunningFederation, top: Path, trained: dict[str, Any]) -> Forgotten:
    """Have the version in service forget a class; whatever the verdict, which is not asked here."""
    told = {
        **{key: trained[key] for key in ("engine", "connection", "home")},
        "mode": "forget",
        "forget_classes": "3",
        "method": "sga",
        "accept": "not-shown",
        "max_forget_accuracy": 100.0,
        "max_relearning_gap": 100.0,
    }
    before = processor_seconds(federation)
    started = time.monotonic()
    work = subprocess.run(
        [sys.executable, "-c", TRAIN, json.dumps(told)],
        capture_output=True,
        text=True,
        env={**federation.environment, "FLWR_HOME": str(federation.home)},
        cwd=top,
    )
    seconds = time.monotonic() - started
    after = processor_seconds(federation)
    if work.returncode:
        raise SystemExit(f"forgetting failed:\n{work.stderr[-3000:]}")
    record = json.loads((top / "home" / "runs" / "r0002" / "record.json").read_text())
    measuring = record.get("seconds_measuring", {})
    spent = {part: after[part] - before[part] for part in PARTS}
    timed = {**record["seconds"], **{f"{k} measured": v for k, v in measuring.items()}}
    return Forgotten(seconds, {phase: took for phase, took in timed.items() if took}, spent)


def processor_seconds(federation: RunningFederation) -> dict[str, float]:
    """Return the processor's seconds so far of each part; an executor's has its messages in it."""
    found = dict.fromkeys(PARTS, 0.0)
    for process in federation.left_over():
        try:
            words = Path(f"/proc/{process}/cmdline").read_bytes().decode()
            times = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:15]
        except OSError:  # ended meanwhile
            continue
        if "supervisor" in words:
            continue
        for part, word in PARTS.items():
            if word in words:
                own, below = sum(map(int, times[:2])), sum(map(int, times[2:]))
                ticks = own + below if part in ("executors", "run") else own
                found[part] += ticks / os.sysconf("SC_CLK_TCK")
                break
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--before", default="", help="Commit before all changes; none if empty.")
    parser.add_argument("--sites", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--forget", action="store_true", help="a request after each training")
    parser.add_argument("--rows", type=int, nargs="*", default=list(range(len(ROWS))))
    told = parser.parse_args()
    parts = " | ".join(PARTS)
    print(f"| | median s | fastest | slowest | rounds | processor s: {parts} | load |")
    print("|---|---|---|---|---|" + "---|" * (len(PARTS) + 1), flush=True)
    digests = set()
    requests: list[tuple[str, Forgotten, float]] = []
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
            rounds, spent, digest, forgotten = measured(
                code,
                options,
                more,
                sites=told.sites,
                rounds=told.rounds,
                forgets=told.forget,
                superexec=SUPEREXEC if number == COPYING else (),
            )
            digests.add(digest)
            if forgotten is not None:
                requests.append((name, forgotten, os.getloadavg()[0]))
            low, middle, high = min(rounds), statistics.median(rounds), max(rounds)
            print(
                f"| {name} | {middle:.2f} | {low:.2f} | {high:.2f} | {len(rounds)} | "
                + "".join(f"{seconds:.2f} | " for seconds in spent.values())
                + f"{load:.1f}, {os.getloadavg()[0]:.1f} |",
                flush=True,
            )
    for name, request, load in requests:
        phases = ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in request.phases.items())
        spent_by = ", ".join(f"{part} {seconds:.2f}" for part, seconds in request.spent.items())
        print(f"\nforget, {name}: {request.seconds:.2f} s (load {load:.1f})")
        print(f"by phase: {phases}\nprocessor seconds: {spent_by}", flush=True)
    if len(digests) != 1:
        print(f"weights must be the same in all rows, got {len(digests)} different ones")
        raise SystemExit(3)
    print(f"\nWeights of all rows: {digests.pop()[:16]}")


if __name__ == "__main__":
    main()
