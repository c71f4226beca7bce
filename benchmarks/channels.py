"""Channel methods at class level: the tables of RESULTS.md.

    python benchmarks/channels.py mnist --data-dir DATA --seeds 0 1 2
    python benchmarks/channels.py mnist-resnet8 --data-dir DATA --partitions iid
    python benchmarks/channels.py cifar10-small --data-dir DATA --partitions iid dirichlet:0.1

Each partition and seed is trained once, without distillation, and every method starts from that
version. Finished cells are kept in benchmarks/results/channels-NAME/PARTITION-SEED.json.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from forgetting import FORGET_CLASS, RECIPES, Lines, cell, curve, slim

from server.progress import Listener
from server.runner import run
from server.service import commit, hardware
from server.settings import RunSettings

PARTITIONS = ("iid", "dirichlet:0.1", "one-class")
# A sixteenth of the channels: 2 of the ConvNet's 32 a layer.
METHODS: dict[str, dict[str, str]] = {
    "class-pruning": {"method": "class-pruning", "method_options": "prune-share=0.3"},
    "influential-de": {"method": "influential-de", "method_options": "delta=0.0625"},
    "influential-de, random": {
        "method": "influential-de",
        "method_options": "delta=0.0625,select=random",
    },
    "influential-ce": {
        "method": "influential-ce",
        "method_options": "delta=0.0625,max-samples=64,steps=20",
        "server_samples": "test:1600",
    },
}
NETWORKS: dict[str, dict[str, Any]] = {
    # With BatchNorm, as the pruning paper's networks; at a rate at which 40 rounds are enough.
    "mnist-resnet8": {
        **RECIPES["mnist"],
        "model": "resnet8",
        "rounds": 40,
        "local_steps": 5,
        "lr": 0.1,
        "momentum": 0.9,
    },
    # 10,000 images and 25 rounds of 10 steps: minutes on two cores.
    "cifar10-small": {**RECIPES["cifar10"], "max_samples": 10_000, "rounds": 25, "local_steps": 10},
    # Wang et al. 2022, section 5.1, and Xu et al. 2024, section 6.3: for a GPU.
    "cifar10-resnet20": {
        **RECIPES["cifar10-paper"],
        "model": "resnet20",
        "rounds": 50,
        "local_steps": 0,
        "local_epochs": 5,
        "batch_size": 128,
        "lr": 0.1,
    },
}
ALL = {**RECIPES, **NETWORKS}
# A residual network loses all its accuracy with a tenth of its channels, and a layer's one channel
# in sixteen takes longer to forget.
RESIDUAL = {
    "class-pruning": "prune-share=0.1,rounds=15",
    "influential-ce": "delta=0.0625,max-samples=64,steps=60",
}


def main() -> None:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", choices=ALL)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--partitions", nargs="+", default=list(PARTITIONS))
    parser.add_argument("--device", default="auto")
    asked = parser.parse_args()
    folder = Path(__file__).parent / "results" / f"channels-{asked.recipe}"
    folder.mkdir(parents=True, exist_ok=True)
    for partition in asked.partitions:
        results = []
        for seed in asked.seeds:
            path = folder / f"{partition.replace(':', '-')}-{seed}.json"
            if not path.exists():
                print(f"{partition}, seed {seed}", flush=True)
                path.write_text(json.dumps(one(asked, partition, seed), indent=1))
            results.append(json.loads(path.read_text()))
        print("\n".join(table(partition, results)), flush=True)


def one(asked: argparse.Namespace, partition: str, seed: int) -> dict[str, Any]:
    """Train once; forget one class with every method, as trials, against Retrained."""
    listener: Listener = Lines()
    with tempfile.TemporaryDirectory() as scratch:
        common = {
            **ALL[asked.recipe],
            "partition": partition,
            "scale": 0,
            "home": scratch,
            "data_dir": asked.data_dir,
            "seed": seed,
            "partition_seed": seed,
            "engine": "inline",
            "device": asked.device,
            "max_forget_accuracy": 100.0,
            "max_relearning_gap": 100.0,
        }
        run(RunSettings(mode="train", **{**common, "evaluate_every": 0}).check(), listener)
        done: dict[str, Any] = {"commit": commit(), "hardware": hardware()}
        for name, told in METHODS.items():
            if "resnet" in asked.recipe and name in RESIDUAL:
                told = {**told, "method_options": RESIDUAL[name]}
            asking = {**common, **told, "forget_classes": str(FORGET_CLASS), "trial": True}
            settings = RunSettings(mode="forget", compare="retrain", **asking)
            try:
                done[name] = {**slim(run(settings.check(), listener)), "channels": None}
            except Exception as error:
                done[name] = {"failed": str(error)}
        return done


def rounds_to(timeline: list[dict[str, Any]], accuracy: float) -> int | None:
    """Return after how many rounds of retraining the retain accuracy was first that high."""
    reached = [n["round"] for n in timeline if n["retain_accuracy"] >= accuracy]
    return min(reached, default=None)


def table(partition: str, results: list[dict[str, Any]]) -> list[str]:
    """Return one partition's table in Markdown: Original, Retrained, then every method."""
    lines = [
        "",
        f"Partition {partition}, class {FORGET_CLASS}:",
        "",
        "| model | F % at once | F % | R % | gap to Retrained R | rounds | Retrained's to it "
        "| up a round, of the model | relearning | request s | speed-up |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    first = [next(r[m] for m in METHODS if "failed" not in r[m]) for r in results]
    for name, key in (("Original", "original"), ("Retrained", "retrained")):
        scores = [f[key] for f in first]
        lines.append(
            f"| {name} | – | {cell([s['forget_accuracy'] for s in scores])} | "
            f"{cell([s['retain_accuracy'] for s in scores])} | – | – | – | – | "
            f"{cell([curve(s) for s in scores])} | "
            f"{cell([f['seconds']['retrain'] for f in first]) if key == 'retrained' else '–'} | "
            f"{'1x' if key == 'retrained' else '–'} |"
        )
    for name in METHODS:
        failed = [r[name]["failed"] for r in results if "failed" in r[name]]
        if failed:
            lines.append(f"| {name} | refused: {failed[0]} | – | – | – | – | – | – | – | – | – |")
            continue
        done = [r[name] for r in results]
        after = [d["recovered"] for d in done]
        gaps = [d["recovered"]["retain_accuracy"] - d["retrained"]["retain_accuracy"] for d in done]
        rounds = [sum(d["rounds"].get(p, 0) for p in ("unlearn", "recover")) for d in done]
        needed = [
            rounds_to(d["retrained"]["timeline"], a["retain_accuracy"])
            for d, a in zip(done, after, strict=True)
        ]
        shown = cell([n for n in needed if n is not None]) + (
            f" ({needed.count(None)} never)" if None in needed else ""
        )
        up = [
            100.0
            * sum(d["bytes"].get(p, {"up": 0})["up"] for p in ("unlearn", "recover"))
            / max(1, r * d["num_clients"])
            / d["model_bytes"]
            for d, r in zip(done, rounds, strict=True)
        ]
        seconds = [
            sum(d["seconds"].get(p, 0.0) for p in ("score", "unlearn", "recover")) for d in done
        ]
        lines.append(
            f"| {name} | {cell([d['unlearned']['forget_accuracy'] for d in done])} | "
            f"{cell([a['forget_accuracy'] for a in after])} | "
            f"{cell([a['retain_accuracy'] for a in after])} | {cell(gaps)} | {cell(rounds)} | "
            f"{shown} | {cell(up)} % | {cell([curve(a) for a in after])} | {cell(seconds, 2)} | "
            f"{cell([d['speed_up']['request'] for d in done], 0)}x |"
        )
    return lines


if __name__ == "__main__":
    main()
