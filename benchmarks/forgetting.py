"""Class level, client level, relearning and five requests in a row: the tables of RESULTS.md.

    python benchmarks/forgetting.py mnist --data-dir DATA --seeds 0 1 2
    python benchmarks/forgetting.py cifar10 --data-dir DATA --seeds 0

Every part of a seed runs in its own home, on the inline engine, from one trained version. Finished
parts are kept in benchmarks/results/NAME/SEED.json; the same command goes on where it stopped.
"""

import argparse
import json
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from server.progress import Listener
from server.runner import run
from server.service import commit, hardware
from server.settings import RunSettings

RECIPES: dict[str, dict[str, Any]] = {
    # A CPU's size: 10,000 images, 10 clients, alpha 0.1, width 32, 30 rounds of 10 steps.
    "mnist": {
        "dataset": "mnist",
        "max_samples": 10_000,
        "partition": "dirichlet:0.1",
        "model_width": 32,
        "model_depth": 3,
        "rounds": 30,
        "local_steps": 10,
        "batch_size": 64,
        "lr": 0.05,
        "scale": 100,
        "distill_every": 5,
    },
    # Scaled down for a CPU: all 50,000 images, but width 32 and 40 rounds of 20 steps.
    "cifar10": {
        "dataset": "cifar10",
        "partition": "dirichlet:0.1",
        "model_width": 32,
        "model_depth": 3,
        "rounds": 40,
        "local_steps": 20,
        "batch_size": 64,
        "lr": 0.05,
        "scale": 100,
        "distill_every": 5,
    },
    # The paper's settings (Dhasade et al. 2024, section 4.1), for a GPU.
    "cifar10-paper": {
        "dataset": "cifar10",
        "partition": "dirichlet:0.1",
        "model_width": 128,
        "model_depth": 3,
        "rounds": 200,
        "local_steps": 50,
        "batch_size": 256,
        "lr": 0.01,
        "scale": 100,
        "distill_every": 1,
    },
}
METHODS = ("quickdrop", "quickdrop-calibrated")
FORGET_CLASS = 9
IN_A_ROW = (9, 5, 0, 3, 7)
FORGET_CLIENT = "client-0"


class Lines:
    """Prints a line now and then."""

    def round(self, done: Any, scores: dict[str, Any] | None) -> None:
        if done.number == done.of:
            print(f"    {done.phase} {done.number}/{done.of}", flush=True)

    def note(self, text: str) -> None:
        print(f"    {text}", flush=True)


def main() -> None:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--parts", nargs="+", default=["class", "client", "row"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--work", type=Path, help="keep trained versions here, to add parts later")
    asked = parser.parse_args()
    folder = Path(__file__).parent / "results" / asked.recipe
    folder.mkdir(parents=True, exist_ok=True)
    results = []
    for seed in asked.seeds:
        path = folder / f"{seed}.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        one_seed(asked, seed, found, lambda done, path=path: path.write_text(json.dumps(done)))
        results.append(found)
    print(tables(asked.recipe, results))


def one_seed(
    asked: argparse.Namespace, seed: int, found: dict[str, Any], keep: Callable[[Any], Any]
) -> None:
    """Fill `found` with the parts that are missing."""
    missing = [part for part in asked.parts if part not in found]
    if not missing:
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        trained = (asked.work or folder) / f"{asked.recipe}-{seed}"
        common = {
            **RECIPES[asked.recipe],
            "home": str(trained),
            "data_dir": asked.data_dir,
            "seed": seed,
            "partition_seed": seed,
            "engine": "inline",
            "device": asked.device,
            "evaluate_every": 0,
            "max_forget_accuracy": 100.0,
            "max_relearning_gap": 100.0,
        }
        listener: Listener = Lines()
        if not (trained / "train.json").exists():
            print(f"seed {seed}: train", flush=True)
            record = run(RunSettings(mode="train", **common).check(), listener)
            (trained / "train.json").write_text(json.dumps(slim(record)))
        found["train"] = json.loads((trained / "train.json").read_text())
        found["hardware"], found["commit"] = hardware(), commit()
        for part in missing:
            print(f"seed {seed}: {part}", flush=True)
            home = folder / part
            shutil.copytree(trained, home)
            found[part] = PARTS[part]({**common, "home": str(home)}, listener)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            found["peak_bytes"] = max(found.get("peak_bytes", 0), peak * 1024)
            for cached in (home / "cache").glob("retrained-*"):
                shutil.copy2(cached, trained / "cache")
            keep(found)


def class_level(common: dict[str, Any], listener: Listener) -> dict[str, Any]:
    """Forget one class with every method, against Retrained; relearn it after each."""
    return compared(common, listener, {"forget_classes": str(FORGET_CLASS)})


def client_level(common: dict[str, Any], listener: Listener) -> dict[str, Any]:
    """Forget one client with every method, against Retrained."""
    return compared(common, listener, {"forget_clients": FORGET_CLIENT})


def compared(common: dict[str, Any], listener: Listener, target: dict[str, Any]) -> dict[str, Any]:
    done: dict[str, Any] = {}
    base = Path(common["home"])
    # This trial also retrains; its cached result serves both methods.
    first = run_request({**common, "method": METHODS[0], **target}, listener, trial=True)
    for name in METHODS:
        home = base.with_name(f"{base.name}-{name}")
        shutil.copytree(base, home)
        told = {**common, "home": str(home), "method": name, **target}
        forgotten = run_request(told, listener, trial=False)
        relearned = run(RunSettings(mode="relearn", **told).check(), listener)
        done[name] = {"forget": slim(forgotten), "relearn": slim(relearned)}
    done["retrained"] = first["retrained"]
    return done


def run_request(told: dict[str, Any], listener: Listener, *, trial: bool) -> dict[str, Any]:
    """Forget, compared with retraining."""
    return run(RunSettings(mode="forget", compare="retrain", trial=trial, **told).check(), listener)


def in_a_row(common: dict[str, Any], listener: Listener) -> dict[str, Any]:
    """Forget five classes one after another with every method."""
    done: dict[str, Any] = {}
    base = Path(common["home"])
    for name in METHODS:
        home = base.with_name(f"{base.name}-{name}")
        shutil.copytree(base, home)
        told = {**common, "home": str(home), "method": name}
        try:
            for label in IN_A_ROW:
                settings = RunSettings(mode="forget", forget_classes=str(label), **told)
                record = run(settings.check(), listener)
            done[name] = slim(record)
        except Exception as error:
            done[name] = {"failed": f"{label}: {error}"}
    return done


PARTS: dict[str, Callable[[dict[str, Any], Listener], dict[str, Any]]] = {
    "class": class_level,
    "client": client_level,
    "row": in_a_row,
}


def slim(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record without what no table shows."""
    dropped = ("timeline", "settings", "report", "command")
    return {key: value for key, value in record.items() if key not in dropped}


# ---- tables -------------------------------------------------------------------------------------


def cell(values: list[float | None], digits: int = 1) -> str:
    """Return mean and spread over the seeds."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    mean = f"{statistics.fmean(known):.{digits}f}"
    return mean if len(known) == 1 else f"{mean} ± {statistics.stdev(known):.{digits}f}"


def curve(scores: dict[str, Any]) -> float | None:
    """Return a relearning curve's mean."""
    found = scores.get("relearning_curve")
    return None if found is None else found["mean"]


def tables(recipe: str, results: list[dict[str, Any]]) -> str:
    """Return the tables of one recipe in Markdown."""
    lines = [f"### {recipe}, {len(results)} seed(s)", ""]
    if all("class" in r for r in results):
        lines += level_table(results, "class", f"class {FORGET_CLASS}")
    if all("client" in r for r in results):
        lines += level_table(results, "client", FORGET_CLIENT)
    if all("row" in r for r in results):
        lines += ["", f"Classes {IN_A_ROW} one after another, at the end:", ""]
        lines += ["| method | worst forgotten class F % | retain R % |", "|---|---|---|"]
        for name in METHODS:
            ends = [r["row"][name] for r in results]
            if any("failed" in end for end in ends):
                said = "; ".join(e.get("failed", "done") for e in ends)
                lines.append(f"| {name} | refused: {said} | – |")
                continue
            worst = [
                max(end["recovered"]["per_class_accuracy"][c] for c in IN_A_ROW) for end in ends
            ]
            kept = [end["recovered"]["retain_accuracy"] for end in ends]
            lines.append(f"| {name} | {cell(worst)} | {cell(kept)} |")
    share = [r["train"]["distillation"]["client_seconds_share"] * 100 for r in results]
    lines += [
        "",
        f"Distillation's share of client time: {cell(share)} %. "
        f"Training: {cell([r['train']['seconds']['train'] for r in results])} s. "
        f"Peak memory: {max(r['peak_bytes'] for r in results) / 2**30:.2f} GiB.",
        "",
        f"{results[0]['hardware']}; commit {results[0]['commit']}; {time.strftime('%Y-%m-%d')}; "
        f"seeds {len(results)}.",
    ]
    return "\n".join(lines)


def level_table(results: list[dict[str, Any]], part: str, target: str) -> list[str]:
    """Return the table of one level: Original, Retrained, then every method."""
    head = "| model | F % | R % | gap to Retrained F / R | relearning mean | request s | speed-up |"
    lines = ["", f"Forgetting {target}:", "", head, "|---|---|---|---|---|---|---|"]
    some = [r[part][METHODS[0]]["forget"] for r in results]
    retrained = [f["retrained"] for f in some]
    for name, scores in (("Original", [f["original"] for f in some]), ("Retrained", retrained)):
        time_ = [f["seconds"]["retrain"] for f in some] if name == "Retrained" else []
        lines.append(
            f"| {name} | {cell([s['forget_accuracy'] for s in scores])} | "
            f"{cell([s['retain_accuracy'] for s in scores])} | – | "
            f"{cell([curve(s) for s in scores])} | {cell(time_)} | "
            f"{'1x' if time_ else '–'} |"
        )
    for name in METHODS:
        done = [r[part][name]["forget"] for r in results]
        after = [d["recovered"] for d in done]
        gaps = [
            [a[key] - t[key] for a, t in zip(after, retrained, strict=True)]
            for key in ("forget_accuracy", "retain_accuracy")
        ]
        seconds = [d["seconds"]["unlearn"] + d["seconds"]["recover"] for d in done]
        lines.append(
            f"| {name} | {cell([a['forget_accuracy'] for a in after])} | "
            f"{cell([a['retain_accuracy'] for a in after])} | "
            f"{cell(gaps[0])} / {cell(gaps[1])} | {cell([curve(a) for a in after])} | "
            f"{cell(seconds, 2)} | {cell([d['speed_up']['request'] for d in done], 0)}x |"
        )
        back = [r[part][name]["relearn"]["relearned"] for r in results]
        lines.append(
            f"| {name}, relearned | {cell([b['forget_accuracy'] for b in back])} | "
            f"{cell([b['retain_accuracy'] for b in back])} | – | – | "
            f"{cell([r[part][name]['relearn']['seconds']['relearn'] for r in results], 2)} | – |"
        )
    return lines


if __name__ == "__main__":
    main()
