"""What models know of a forgotten class below their last layers, method by method.

    python benchmarks/features.py OUT --data-dir DATA

One training of MNIST, then each method forgets one class of it as a trial, against one and the same
Retrained. Each finished part is kept in OUT, and the same command goes on where it was:

    OUT/home          the trained version, and Retrained
    OUT/METHOD.json   the method's record
    OUT/table.md      the table, as far as the parts go
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from client.files import write_atomic  # noqa: E402
from server.runner import run  # noqa: E402
from server.settings import RunSettings  # noqa: E402

METHODS: Final = ("quickdrop-calibrated", "quickdrop")
COLUMNS: Final = (
    *("model", "F", "R", "relearning", "blank head", "NCM", "head back", "probe"),
    *("CKA on F", "CKA on R", "neighbours F", "neighbours R", "seconds"),
)


class Told:
    """Says on stderr how far it is."""

    def round(self, done: Any, scores: Any) -> None: ...

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def settings(told: argparse.Namespace) -> dict[str, Any]:
    """Return what training and requests have in common: those of recipes/base/mnist-cpu.toml."""
    return {
        "home": str(told.out.absolute() / "home"),
        "data_dir": str(told.data_dir),
        "dataset": told.dataset,
        "max_samples": told.max_samples,
        "num_clients": 10,
        "partition": "dirichlet:0.1",
        "model_width": told.width,
        "model_depth": 3,
        "rounds": told.rounds,
        "local_steps": 10,
        "batch_size": 64,
        "lr": 0.05,
        "scale": 100,
        "distill_every": 5,
        "seed": told.seed,
        "engine": "inline",
        "evaluate_every": 0,
    }


def made(told: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the records of all methods; what is in OUT already is not made again."""
    same = settings(told)
    kept = told.out / "settings.json"
    said = json.dumps({**same, "class": told.label, "home": "", "data_dir": ""}, sort_keys=True)
    if kept.exists() and kept.read_text() != said:
        raise SystemExit(f"{told.out} must hold parts of the same settings, got others: {kept}")
    told.out.mkdir(parents=True, exist_ok=True)
    write_atomic(kept, said.encode())
    if not (told.out / "home" / "versions" / "v0001").exists():
        run(RunSettings(mode="train", **same).check(), Told())
    found = {}
    for method in told.methods:
        part = told.out / f"{method}.json"
        if not part.exists():
            request = RunSettings(
                mode="forget",
                forget_classes=str(told.label),
                method=method,
                compare="retrain",
                trial=True,
                **same,
            ).check()
            run(request, Told())
            records = (told.out / "home" / "runs").glob("*/record.json")
            newest = max(records, key=lambda path: path.parent.name)
            write_atomic(part, newest.read_bytes())
        found[method] = json.loads(part.read_text())
        write_atomic(told.out / "table.md", table(found, told).encode())
    return found


def row(name: str, scores: Mapping[str, Any], below: Mapping[str, Any], seconds: float) -> str:
    """Return a line of the table; `below` is what was measured below the last layer."""
    layers = {one["name"]: one for one in below["layers"]}
    features = layers.get("features", {"forget": None, "retain": None})
    curve, blank = scores["relearning_curve"], below["blank_head"]
    percents = (
        scores["forget_accuracy"],
        scores["retain_accuracy"],
        None if curve is None else curve["mean"],
        None if blank is None else blank["mean"],
        *(below[key] for key in ("class_means", "head_back", "probe")),
    )
    shares = (
        *(features[side] for side in ("forget", "retain")),
        *(below[f"neighbours_{side}"] for side in ("forget", "retain")),
    )
    cells = [name, *(_shown(one, 1) for one in percents), *(_shown(one, 2) for one in shares)]
    return "| " + " | ".join([*cells, f"{seconds:.1f}" if seconds else ""]) + " |"


def _shown(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def table(found: Mapping[str, Mapping[str, Any]], told: argparse.Namespace) -> str:
    """Return the table, with its command, commit and hardware."""
    first = next(iter(found.values()))
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    lines.append(row("Original", first["original"], first["features"]["original"], 0))
    spent = first["seconds"].get("retrain") or 0  # once: the others find it in the cache
    lines.append(row("**Retrained**", first["retrained"], first["features"]["retrained"], spent))
    for method, record in found.items():
        work = sum(
            seconds or 0 for phase, seconds in record["seconds"].items() if phase != "retrain"
        )
        lines.append(row(method, record["recovered"], record["features"]["result"], work))
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    lines += [
        "",
        f"`python benchmarks/features.py OUT --data-dir DATA {_options(told)}`: class {told.label} "
        f"of {told.dataset}, {told.max_samples:,} training images, 10 clients, Dirichlet 0.1, "
        f"ConvNet of width {told.width}, {told.rounds} rounds, seed {told.seed}. Commit {commit}, "
        f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores.",
    ]
    return "\n".join(lines) + "\n"


def _options(told: argparse.Namespace) -> str:
    return " ".join(
        f"--{key.replace('_', '-')} {getattr(told, key)}"
        for key in ("max_samples", "width", "rounds")
    )


def main() -> None:
    """Make what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="Folder of the parts; made if missing.")
    parser.add_argument("--data-dir", type=Path, default=Path(), help="Folder of the data files.")
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--max-samples", type=int, default=5000, help="Training images.")
    parser.add_argument("--width", type=int, default=16, help="Channels of a layer.")
    parser.add_argument("--rounds", type=int, default=30, help="Of training.")
    parser.add_argument("--class", dest="label", type=int, default=9, help="What is forgotten.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    told = parser.parse_args()
    started = time.monotonic()
    print(table(made(told), told))
    print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
