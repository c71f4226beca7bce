"""Rounds a second and memory, beside Flower's own simulation, BlazeFL, pfl and a plain loop.

Every system trains the same network on the same images of the same clients, each client for one
epoch a round, all clients in every round, on a CPU. What all do, and what each costs, is measured
from outside; the accuracy on test images shows that all did the same work.

    python benchmarks/compare.py                              # digits, 10 and 100 clients: minutes
    python benchmarks/compare.py --dataset mnist --data-dir DATA --images 20000 \
        --clients 10 100 1000 --repeats 3

A system that is not installed is left out, with its error. One may live in an environment of its
own: `--python blazefl=/path/to/its/bin/python`. Repeats take turns, so that what else the machine
does meets all systems alike. Every run is kept in `--out`, and the same command goes on where it
was stopped.
"""

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
import torch

HERE: Final = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / "compared")]

from load import WEIGHT, Load, network  # noqa: E402

from client.data.splits import Data  # noqa: E402
from client.simulation.shares import shares  # noqa: E402
from server.settings import RunSettings  # noqa: E402

MIB: Final = 2**20
PLAIN: Final = "plain loop"


@dataclass(frozen=True)
class System:
    """How a system is started.

    Attributes:
        name: As the tables call it.
        file: In `compared`.
        option: More words for it.
    """

    name: str
    file: str
    option: str = ""


SYSTEMS: Final = (
    System(PLAIN, "plain.py"),
    System("efface inline", "ours.py", "inline"),
    System("efface ray", "ours.py", "ray"),
    System("flower", "flower.py"),
    System("blazefl", "blaze.py"),
    System("pfl", "apple_pfl.py"),
)


def prepared(told: argparse.Namespace, num_clients: int, folder: Path) -> tuple[Load, Data]:
    """Return a load, its examples written down where every system finds them, and the data set."""
    folder_of_data = Path(told.data_dir) if told.data_dir else None
    learned = RunSettings(dataset=told.dataset, model_width=told.width).learned
    data = learned.load(told.dataset, folder_of_data)
    task = learned.fitted(data)
    count = told.images or len(data.train.labels)
    parts = shares(task, told.dataset, folder_of_data, "iid", num_clients, count, 0)
    order = torch.cat(parts)
    file = folder / f"examples-{num_clients}.npz"
    np.savez(
        file,
        images=task.prepare(data.train.take(order), data).numpy(),
        labels=data.train.labels[order].numpy(),
        order=np.arange(len(order)),
        ends=np.cumsum([len(part) for part in parts]),
    )
    load = Load(
        dataset=told.dataset,
        data_dir=told.data_dir,
        data=str(file),
        clients=num_clients,
        rounds=told.rounds,
        images=len(order),
        batch=told.batch,
        lr=told.lr,
        width=told.width,
        cores=os.cpu_count() or 1,
    )
    return load, data


def measured(system: System, python: str, load: Load, file: Path) -> dict[str, Any]:
    """Run a system once; return its seconds, processor seconds and memory, or its error."""
    program = HERE / "compared" / system.file
    words = [python, str(program), load.text(), str(file), system.option]
    before = os.getloadavg()[0]
    errors = file.with_suffix(".log")
    # One thread a client for all systems alike, and none of them gives way to the others.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    with errors.open("w") as log:
        work = subprocess.Popen(words, stdout=log, stderr=log, env=environment, cwd=file.parent)
        peak = 0
        while work.poll() is None:
            peak = max(peak, memory(work.pid))
            time.sleep(0.2)
    if work.returncode:
        return {"error": last_line(errors)}
    with np.load(file) as kept:
        ends, spent = kept["ends"], kept["spent"]
    return {
        "seconds": np.diff(ends).tolist(),
        "processor": np.diff(spent).tolist(),
        "peak": peak,
        "load": [before, os.getloadavg()[0]],
    }


def memory(process: int) -> int:
    """Return the bytes of a process and all below it; what they share is counted once."""
    total = 0
    try:
        own = psutil.Process(process)
        family = [own, *own.children(recursive=True)]
    except psutil.Error:
        return 0
    for one in family:
        try:
            total += one.memory_full_info().pss
        except psutil.Error:  # ended meanwhile
            continue
    return total


def last_line(log: Path) -> str:
    """Return what a failed system said last."""
    lines = [line.strip() for line in log.read_text().splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no word"


@torch.no_grad()
def accuracy(file: Path, load: Load, data: Data) -> float:
    """Return the accuracy on test images, in percent, of the weights that a system ended with."""
    task = RunSettings(dataset=load.dataset).learned.fitted(data)
    test = data.test
    inputs = task.prepare(test.take(torch.arange(len(test.labels))), data)
    model = network(load.width, inputs[0], data.num_classes)
    with np.load(file) as kept:
        named = {n[len(WEIGHT) :]: torch.from_numpy(kept[n]) for n in kept if n.startswith(WEIGHT)}
    model.load_state_dict(named)
    found = torch.cat([model(some).argmax(dim=1) for some in inputs.split(500)])
    return 100.0 * float((found == test.labels).double().mean())


def table(load: Load, runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Return the rows of one number of clients."""
    plain = [run for run in runs[PLAIN] if "error" not in run]
    best = statistics.median(middle(plain, "seconds")) if plain else float("nan")
    least = statistics.median(middle(plain, "processor")) if plain else float("nan")
    rows = [
        f"\n{load.clients} clients, {load.images} images a round",
        "",
        "| | rounds a second (lowest to highest of runs) | of the plain loop | processor us an "
        "image | of the plain loop | memory MiB | accuracy % | runs | load |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, all_runs in runs.items():
        good = [run for run in all_runs if "error" not in run]
        if not good:
            why = all_runs[0]["error"] if all_runs else "not run"
            rows.append(f"| {name} | not run: {why} | | | | | | 0 | |")
            continue
        seconds, spent = middle(good, "seconds"), middle(good, "processor")
        usual, used = statistics.median(seconds), statistics.median(spent)
        loads = [one for run in good for one in run["load"]]
        rows.append(
            f"| {name} | {1 / usual:.3g} ({1 / max(seconds):.3g} to {1 / min(seconds):.3g}) "
            f"| {best / usual:.0%} | {1e6 * used / load.images:.0f} | {used / least:.0%} "
            f"| {max(run['peak'] for run in good) / MIB:.0f} "
            f"| {statistics.median(run['accuracy'] for run in good):.1f} | {len(good)} "
            f"| {min(loads):.1f} to {max(loads):.1f} |"
        )
    return rows


def middle(runs: list[dict[str, Any]], key: str) -> list[float]:
    """Return the median round of each run."""
    return [statistics.median(run[key]) for run in runs]


def main() -> None:
    """Measure what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dataset", default="digits", help="digits or mnist")
    parser.add_argument("--data-dir", default="", help="Where the files of mnist lie.")
    parser.add_argument(
        "--images", type=int, default=0, help="Of all clients; 0 for all there are."
    )
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--rounds", type=int, default=5, help="In a run; the first warms up.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--only", nargs="+", default=[s.name for s in SYSTEMS], metavar="SYSTEM")
    parser.add_argument("--python", nargs="+", default=[], metavar="SYSTEM=PATH")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "compare")
    told = parser.parse_args()
    pythons = dict(words.split("=", 1) for words in told.python)
    told.out.mkdir(parents=True, exist_ok=True)
    out = told.out.resolve()
    chosen = [system for system in SYSTEMS if system.name in told.only]
    cores = f"{os.cpu_count()} cores of {processor()}, torch {torch.__version__}"
    print(f"{told.dataset}, ConvNet of width {told.width}, batch {told.batch}; {cores}")
    for num_clients in told.clients:
        load, data = prepared(told, num_clients, out)
        key = hashlib.sha256(load.text().encode()).hexdigest()[:12]
        runs: dict[str, list[dict[str, Any]]] = {system.name: [] for system in SYSTEMS}
        for repeat in range(told.repeats):
            for system in chosen:
                part = out / f"{system.name.replace(' ', '-')}-{num_clients}-{key}-{repeat}.json"
                if not part.exists():
                    file = part.with_suffix(".npz")
                    python = pythons.get(system.name, sys.executable)
                    found = measured(system, python, load, file)
                    if "error" not in found:
                        found["accuracy"] = accuracy(file, load, data)
                    part.write_text(json.dumps(found))
                runs[system.name].append(json.loads(part.read_text()))
        print("\n".join(table(load, {n: r for n, r in runs.items() if r})), flush=True)


def processor() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
