"""Inversion attacks, with pictures: a class from a model before and after, an image from an upload.

    python benchmarks/inversion.py OUT --data-dir DATA

One training of MNIST; then each method forgets a class of it as a trial. The class is made again
from every model (figure 10 of https://arxiv.org/abs/2406.12516), and images of it from the gradient
that the trained model gives for each: the whole of it, and the influential channels' slices alone
(figure 11). How near each comes to real images stands beside how near other real images are.

    OUT/home           the versions
    OUT/classes.png    a row an attack, a column a model; the nearest training image below each
    OUT/uploads.png    a column an image: it, its nearest neighbour, what each upload gave
    OUT/inversion.md   the numbers
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from client.channels.layout import layout, rows  # noqa: E402
from client.data.datasets import load  # noqa: E402
from client.seeds import generator  # noqa: E402
from server.evidence.attacks import class_inversion, gradient_inversion  # noqa: E402
from server.evidence.attacks.nearness import nearest, psnr, ssim  # noqa: E402
from server.evidence.record import to_json  # noqa: E402
from server.requests import records, weights  # noqa: E402
from server.requests.data import shares  # noqa: E402
from server.runner import run  # noqa: E402
from server.settings import RunSettings  # noqa: E402
from server.storage.opened import opened  # noqa: E402

METHODS: Final = {
    "Retrained": ("retraining", ""),
    "quickdrop-calibrated": ("quickdrop-calibrated", ""),
    "influential-de 0.2": ("influential-de", "delta=0.2"),
    "influential-de 0.05": ("influential-de", "delta=0.05"),
}
COSTS: Final = {"1 - p": False, "-log p": True}
IMAGES: Final = 4  # whose uploads are attacked
CONTROLS: Final = 100  # real images whose distance to the nearest other is the control
SCALE: Final = 2  # pixels of a picture for one of an image


class Told:
    """Says on stderr how far it is."""

    def round(self, done: Any, scores: Any) -> None: ...

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Made:
    """The models by name, the channels that methods chose, the training, and inputs' bounds."""

    models: dict[str, torch.nn.Module]
    channels: dict[str, dict[str, Any]]
    settings: RunSettings
    low: Tensor
    high: Tensor


def made(told: argparse.Namespace) -> Made:
    """Return the models; what is in OUT already is not made again."""
    home = told.out / "home"
    same: dict[str, Any] = {
        "home": str(home.absolute()),
        "data_dir": str(told.data_dir),
        "dataset": "mnist",
        "max_samples": told.max_samples,
        "num_clients": 5,
        "partition": "dirichlet:0.5",
        "model_width": 16,
        "model_depth": 3,
        "rounds": told.rounds,
        "local_steps": 10,
        "batch_size": 64,
        "lr": 0.05,
        "scale": 100,
        "seed": told.seed,
        "engine": "inline",
        "evaluate_every": 0,
    }
    told.out.mkdir(parents=True, exist_ok=True)
    if not (home / "versions" / "v0001").exists():
        run(RunSettings(mode="train", **same).check(), Told())
    versions, channels = {"Original": "v0001"}, {}
    for number, (name, (method, options)) in enumerate(METHODS.items(), 2):
        versions[name] = f"v{number:04d}"
        if not (home / "versions" / versions[name]).exists():
            request = RunSettings(
                mode="forget",
                forget_classes=str(told.label),
                method=method,
                method_options=options,
                trial=True,
                **same,
            )
            run(request.check(), Told())
    reading, ledger = opened(str(home))
    models = {}
    for name, version in versions.items():
        row = weights.version(reading, ledger, version)
        models[name] = weights.network(reading, ledger, row)
        record = records.read(reading, ledger.request(row.request))
        found = None if record is None else to_json(record)["channels"]
        if found is not None:
            channels[name] = found["chosen"]
    facts = weights.facts(ledger.version("v0001"))
    mean, std = (torch.tensor(facts[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    shape = (1, *facts["input_shape"])
    low, high = (((value - mean) / std).expand(shape).clone() for value in (0.0, 1.0))
    return Made(models, channels, RunSettings(mode="train", **same).check(), low, high)


# ---- a class from a model -----------------------------------------------------------------------


def of_class(found: Made, real: Tensor, others: Tensor, told: argparse.Namespace) -> list[str]:
    """Attack every model, and return the table's lines.

    Args:
        found: The models.
        real: `(n, 1, H, W)` training images of the class, pixels from 0 to 1.
        others: Real images of the class that were not trained on.
        told: Says which class.
    """
    near = [nearest(image, real) for image in others[:CONTROLS]]
    black = nearest(torch.zeros_like(real[0]), real)
    lines = [
        "| model | descent on | p of the class | steps | PSNR | SSIM |",
        "|---|---|---|---|---|---|",
        f"| *real images* | | | | {_middle(n[0] for n in near)} | {_middle(n[1] for n in near)} |",
        f"| *a black image* | | | 0 | {black[0]:.1f} | {black[1]:.2f} |",
    ]
    pictures = []
    for cost, log_cost in COSTS.items():
        attacks, beside = [], []
        for name, network in found.models.items():
            attack = class_inversion.inverted(
                network, told.label, found.low, found.high, log_cost=log_cost
            )
            image = _pixels(attack.inputs, found)[0]
            decibels, likeness, place = nearest(image, real)
            lines.append(
                f"| {name} | {cost} | {attack.probability:.3f} | {attack.steps} | "
                f"{decibels:.1f} | {likeness:.2f} |"
            )
            attacks.append(image)
            beside.append(real[place])
        pictures += [attacks, beside]
    _picture(told.out / "classes.png", pictures)
    return lines


# ---- an image from an upload --------------------------------------------------------------------


def of_uploads(found: Made, real: Tensor, told: argparse.Namespace) -> list[str]:
    """Attack uploads of single images, and return the table's lines."""
    network, label = found.models["Original"], torch.tensor([told.label])
    layers = layout(network)
    uploads: dict[str, dict[str, Tensor] | None] = {"whole": None}
    for name, chosen in found.channels.items():
        channels = {layer: tuple(numbers) for layer, numbers in chosen.items()}
        own = dict(network.named_parameters())
        uploads[name.replace("influential-de", "slices,")] = {
            tensor: places for tensor, places in rows(layers, channels) if tensor in own
        }
    total = sum(parameter.numel() for parameter in network.parameters())
    images = real[:IMAGES]
    pictures = [list(images)]
    neighbours = [nearest(image, _without(real, k)) for k, image in enumerate(images)]
    pictures.append([_without(real, k)[near[2]] for k, near in enumerate(neighbours)])
    lines = [
        "| upload | share of the model | PSNR to the image | SSIM |",
        "|---|---|---|---|",
        "| *another real image, the nearest* | | "
        f"{_middle(n[0] for n in neighbours)} | {_middle(n[1] for n in neighbours)} |",
    ]
    for name, held in uploads.items():
        got, numbers, size = [], [], 0
        for k, image in enumerate(images):
            inputs = found.low + image[None] * (found.high - found.low)
            seen = gradient_inversion.gradient_of(network, inputs, label, held)
            size = sum(part.numel() for part in seen)
            draws = generator(told.seed, "gradient inversion", k)
            back = gradient_inversion.inverted(
                network, seen, label, found.low, found.high, draws, rows=held, steps=told.steps
            )
            made_image = _pixels(back, found)[0]
            got.append(made_image)
            numbers.append(
                (float(psnr(made_image, image[None])[0]), float(ssim(made_image, image[None])[0]))
            )
        print(f"{name}: {numbers}", file=sys.stderr, flush=True)
        lines.append(
            f"| {name} | {100 * size / total:.1f} % | {_middle(n[0] for n in numbers)} | "
            f"{_middle(n[1] for n in numbers)} |"
        )
        pictures.append(got)
    _picture(told.out / "uploads.png", pictures)
    return lines


def _without(images: Tensor, place: int) -> Tensor:
    return torch.cat([images[:place], images[place + 1 :]])


# ---- shared -------------------------------------------------------------------------------------


def _pixels(inputs: Tensor, found: Made) -> Tensor:
    return (inputs - found.low) / (found.high - found.low)


def _middle(values: Any) -> str:
    value = statistics.median(values)
    return f"{value:.1f}" if abs(value) > 1 else f"{value:.2f}"


def _picture(path: Path, lines: Sequence[Sequence[Tensor]]) -> None:
    """Write images `(1, H, W)` in rows as one grey PNG."""
    padded = [
        torch.cat([torch.nn.functional.pad(image[0], (1, 1, 1, 1), value=0.5) for image in line], 1)
        for line in lines
    ]
    sheet = (torch.cat(padded, 0).clamp(0, 1) * 255).round().to(torch.uint8)
    sheet = sheet.repeat_interleave(SCALE, 0).repeat_interleave(SCALE, 1)
    Image.fromarray(sheet.numpy()).save(path, optimize=True)


def main() -> None:
    """Make what is missing, attack, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="Folder of what is made.")
    parser.add_argument("--data-dir", type=Path, required=True, help="Folder of MNIST's files.")
    parser.add_argument("--max-samples", type=int, default=3000, help="Training images.")
    parser.add_argument("--rounds", type=int, default=15, help="Of training.")
    parser.add_argument("--class", dest="label", type=int, default=3, help="What is forgotten.")
    parser.add_argument("--steps", type=int, default=500, help="Of an attack on an upload.")
    parser.add_argument("--seed", type=int, default=0)
    told = parser.parse_args()
    found = made(told)
    trained_on = shares(found.settings, data := load("mnist", told.data_dir))
    if trained_on is None:
        raise SystemExit("clients must be simulated, got others")
    places = torch.cat(trained_on)
    of_label = [
        inputs[labels == told.label].float() / 255
        for inputs, labels in (
            (data.train.inputs[places], data.train.labels[places]),
            (data.test.inputs, data.test.labels),
        )
    ]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    text = "\n".join(
        [
            *of_class(found, of_label[0], of_label[1], told),
            "",
            *of_uploads(found, of_label[0], told),
            "",
            f"`python benchmarks/inversion.py OUT --data-dir DATA`: class {told.label} of MNIST, "
            f"{told.max_samples:,} training images, 5 clients, Dirichlet 0.5, ConvNet of width "
            f"16, {told.rounds} rounds, seed {told.seed}. Commit {commit}, torch "
            f"{torch.__version__}, {platform.machine()}, {os.cpu_count()} cores.",
        ]
    )
    (told.out / "inversion.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
