"""Inversion attacks, with pictures: a class from a model before and after, an image from an upload.

    python benchmarks/features.py FEATURES --data-dir DATA
    python benchmarks/inversion.py FEATURES OUT --data-dir DATA

The models are those of benchmarks/features.py: one training, its Retrained, and each method's
result. The class is made again from every model (figure 10 of https://arxiv.org/abs/2406.12516),
and images of it from the gradient that the trained model gives for each: the whole of it, and the
slices of the channels that matter most for the class (figure 11). How near each comes to real
images stands beside how near other real images are.

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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from client.channels.ablation import ablation  # noqa: E402
from client.channels.layout import layout, rows  # noqa: E402
from client.data.datasets import load  # noqa: E402
from client.learning.models import ModelSpec, loaded  # noqa: E402
from client.seeds import generator  # noqa: E402
from client.wire import tensors  # noqa: E402
from server.evidence.attacks import class_inversion, gradient_inversion  # noqa: E402
from server.evidence.attacks.nearness import nearest, psnr, ssim  # noqa: E402
from server.nodes.federation import from_numpy  # noqa: E402
from server.requests import weights  # noqa: E402
from server.requests.data import shares  # noqa: E402
from server.settings import RunSettings, parse  # noqa: E402
from server.storage.opened import opened  # noqa: E402
from server.storage.registry import unpack  # noqa: E402
from strategies.methods.influential import DecentralisedChannels  # noqa: E402

DELTAS: Final = (
    0.2,
    0.05,
)  # share of each layer's channels in an upload, as in the paper's figures
COSTS: Final = {"1 - p": False, "-log p": True}
CONTROLS: Final = 100  # real images whose distance to the nearest other is the control
SCALE: Final = 2  # pixels of a picture for one of an image


@dataclass(frozen=True)
class Made:
    """The models by name, the training's settings, and the bounds of inputs."""

    models: dict[str, torch.nn.Module]
    settings: RunSettings
    low: Tensor
    high: Tensor


def made(told: argparse.Namespace) -> Made:
    """Return the models that benchmarks/features.py left."""
    home, ledger = opened(str(told.features / "home"))
    first = ledger.version("v0001")
    models = {"Original": weights.network(home, ledger, first)}
    (kept,) = home.cache.glob("retrained-*.safetensors")
    spec, arrays = ModelSpec.of_card(first.card["model"]), unpack(kept.read_bytes(), kept)[0]
    models["Retrained"] = loaded(spec, tensors(from_numpy(arrays))).eval()
    for row in ledger.versions():
        if row.id != first.id:
            models[ledger.request(row.request).method] = weights.network(home, ledger, row)
    facts = weights.facts(first)
    mean, std = (torch.tensor(facts[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    shape = (1, *facts["input_shape"])
    low, high = (((value - mean) / std).expand(shape).clone() for value in (0.0, 1.0))
    settings = parse({**first.card["settings"], "engine": "inline"})
    return Made(models, replace(settings, data_dir=str(told.data_dir)), low, high)


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
                network, told.label, found.low, found.high, steps=1000, log_cost=log_cost
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
    uploads: dict[str, dict[str, Tensor] | None] = {"whole": None}
    for delta in DELTAS:
        uploads[f"slices, {delta}"] = _slices(network, found, real, told.label, delta)
    total = sum(parameter.numel() for parameter in network.parameters())
    images = real[: told.images]
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


def _slices(
    network: torch.nn.Module, found: Made, real: Tensor, label: int, delta: float
) -> dict[str, Tensor]:
    """Return the rows of each parameter that go up: of the most influential channels, and of the
    class in the last layer, as `influential-de` has them."""
    inputs = found.low + real[:256] * (found.high - found.low)
    effects = ablation(network, inputs, torch.full((len(inputs),), label))
    method = DecentralisedChannels(delta=delta)
    accuracy, loss = (
        {name: part.numpy() for name, part in each.items()}
        for each in (effects.accuracy, effects.loss)
    )
    channels = method.picked(accuracy, loss, generator(0, "channels", 0))
    layers = layout(network)
    channels[layers[-1].name] = (label,)
    own = dict(network.named_parameters())
    return {name: places for name, places in rows(layers, channels) if name in own}


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
    parser.add_argument("features", type=Path, help="The folder of benchmarks/features.py.")
    parser.add_argument("out", type=Path, help="Folder of what is made.")
    parser.add_argument("--data-dir", type=Path, required=True, help="Folder of MNIST's files.")
    parser.add_argument("--class", dest="label", type=int, default=9, help="What is forgotten.")
    parser.add_argument("--images", type=int, default=4, help="Whose uploads are attacked.")
    parser.add_argument("--steps", type=int, default=500, help="Of an attack on an upload.")
    parser.add_argument("--seed", type=int, default=0)
    told = parser.parse_args()
    told.out.mkdir(parents=True, exist_ok=True)
    found = made(told)
    data = load(found.settings.dataset, told.data_dir)
    trained_on = shares(found.settings, data)
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
            f"`python benchmarks/inversion.py FEATURES OUT --data-dir DATA`: class {told.label}, "
            f"seed {told.seed}, {told.images} uploads, {told.steps} steps each. Commit {commit}, "
            f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores.",
        ]
    )
    (told.out / "inversion.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
