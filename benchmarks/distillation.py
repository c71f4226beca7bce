"""Whether distillation earns its cost: other starts, rates, steps and augmentation, and a control.

    python benchmarks/distillation.py OUT --data-dir DATA

One training of a data set; what its clients passed through the model on the way is kept. Along this
same way each variant makes synthetic sets. They are put into the clients' stores, the methods
forget a class with them, and the same is done with random real images in their place,
three draws of as many. Each finished part is kept in OUT, and the same command goes on where it
was:

    OUT/DATASET/trajectory.pt  weights and batches at every so-manyth local step, the model
    OUT/DATASET/stores         the clients'
    OUT/DATASET/NAME.json      a variant's numbers at one scale
    OUT/DATASET/NAME.png       its images, a row a class, and the nearest real one below each
    OUT/table.md               the tables, as far as the parts go
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
from flwr.app import ArrayRecord
from PIL import Image
from torch import Tensor, nn

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.distilled import shares  # noqa: E402
from client import wire  # noqa: E402
from client.app import app  # noqa: E402
from client.data.datasets import load  # noqa: E402
from client.data.site import SIMULATED_STORES, Site, open_site  # noqa: E402
from client.files import write_atomic  # noqa: E402
from client.learning.distillation import (  # noqa: E402
    Matcher,
    condense,
    initialise,
    real_gradients,
)
from client.learning.evaluation import evaluate  # noqa: E402
from client.learning.in_situ import InSitu  # noqa: E402
from client.learning.models import ModelSpec, build, loaded, state_of  # noqa: E402
from client.node import Node  # noqa: E402
from client.seeds import generator  # noqa: E402
from client.steps import training  # noqa: E402
from client.steps.measuring import Describe  # noqa: E402
from client.store import Store, SyntheticSet  # noqa: E402
from client.wire import ForgetSpec  # noqa: E402
from server.evidence.attacks.nearness import psnr  # noqa: E402
from server.nodes.engines.inline import InlineGrid  # noqa: E402
from server.nodes.federation import GridFederation, Round  # noqa: E402
from server.nodes.grid import LOCAL_POLL_SECONDS, NamedGrid  # noqa: E402
from server.requests import messages  # noqa: E402
from server.settings import RunSettings  # noqa: E402
from server.storage.journal import Journal  # noqa: E402
from strategies.federation import Plan  # noqa: E402
from strategies.methods.quickdrop import QuickDrop  # noqa: E402
from strategies.methods.quickdrop_calibrated import CalibratedQuickDrop  # noqa: E402
from strategies.methods.retraining import train  # noqa: E402
from strategies.parts.guard import CreptBack  # noqa: E402

METHODS: Final = {"quickdrop": QuickDrop, "quickdrop-calibrated": CalibratedQuickDrop}
MATCHED_AT: Final = 5  # every so-manyth local step is kept
COPY: Final = 20.0  # dB: above, a person sees the same image


@dataclass(frozen=True)
class Variant:
    """A way to make synthetic sets.

    Attributes:
        start: "real" or "noise".
        lr: eta_S.
        steps: Image steps at every match; 0 for no match, which says what the start alone is worth.
        every: Match at every so-manyth local step; a multiple of `MATCHED_AT`.
        augment: Flips, shifts and brightness, drawn the same for real and synthetic images.
        initial: Networks with new weights to match on afterwards, fifty steps each.
        batch: Images of a class that a match moves, in turn; 0 for all.
        draw: Which draw of a control, which is not matched at all; 0 for none.
    """

    start: str = "real"
    lr: float = 0.1
    steps: int = 1
    every: int = 5
    augment: bool = False
    initial: int = 0
    batch: int = 0
    draw: int = 0

    def name(self, scale: int) -> str:
        """Return the name of the part's file."""
        if self.draw:
            return f"s{scale}-control-{self.draw}"
        more = f"-of{self.batch}" * bool(self.batch) + "-augmented" * self.augment
        more += f"-on-{self.initial}-new" * bool(self.initial)
        return f"s{scale}-{self.start}-lr{self.lr:g}-steps{self.steps}-every{self.every}{more}"

    @property
    def title(self) -> str:
        """What a line of the table says."""
        if self.draw:
            return "control: real images"
        if not self.steps:
            return f"{self.start}, not matched"
        words = [f"{self.start}, {self.lr:g}, {self.steps} x every {self.every}"]
        words += [f"{self.batch} of a class"] if self.batch else []
        words += ["augmented"] if self.augment else []
        words += [f"and {self.initial} new networks"] if self.initial else []
        return ", ".join(words)


CONTROLS: Final = tuple(Variant(draw=k) for k in (1, 2, 3))
# In the order of their importance for what they cost: what is stopped has the first ones.
PLAN: Final[Sequence[tuple[int, Variant]]] = (
    *((1000, control) for control in CONTROLS),
    (1000, Variant()),
    (1000, Variant("noise", steps=0)),
    (1000, Variant("noise", lr=1.0, steps=10)),
    (1000, Variant("noise", lr=5.0, steps=10)),
    (1000, Variant("real", lr=5.0, steps=10)),
    *((100, control) for control in CONTROLS),
    (100, Variant("noise", lr=10.0, steps=3, batch=4)),
    (100, Variant("noise", lr=3.0, steps=3, batch=4)),
    (100, Variant()),
    (100, Variant("noise", steps=0)),
    (100, Variant("noise", lr=1.0, steps=10)),
    (100, Variant("noise", lr=3.0, steps=3)),
    (100, Variant("real", lr=3.0, steps=3)),
    (100, Variant("noise", lr=1.0, steps=10, every=10)),
    (100, Variant("real", lr=1.0, steps=10, every=10)),
    (100, Variant("real", lr=1.0, steps=3)),
    (100, Variant("real", lr=5.0, steps=10)),
    (100, Variant("noise", lr=5.0, steps=10)),
    (1000, Variant("noise", lr=5.0, steps=10, augment=True)),
    (1000, Variant("noise", lr=20.0, steps=10)),
    (1000, Variant("noise", lr=5.0, steps=10, initial=2)),
    (1000, Variant("real", lr=1.0, steps=10)),
    *((10, control) for control in CONTROLS),
    (10, Variant("noise", lr=10.0, steps=3, batch=4)),
    (10, Variant("noise", lr=3.0, steps=3, batch=4)),
    (10, Variant()),
    (10, Variant("noise", steps=0)),
    (10, Variant("noise", lr=20.0)),
    (10, Variant("real", lr=20.0)),
    (100, Variant("noise", lr=20.0, steps=10)),
    (100, Variant("real", lr=1.0, steps=10)),
    (100, Variant("noise", lr=5.0, steps=10, augment=True)),
    (100, Variant("noise", lr=5.0, steps=10, initial=2)),
    (100, Variant("real", lr=5.0, steps=10, augment=True)),
    (100, Variant("real", lr=5.0, steps=10, initial=2)),
    (100, Variant("real", lr=0.1, steps=10)),
    (100, Variant("noise", lr=0.1, steps=10)),
    (100, Variant("real", lr=20.0)),
    (100, Variant("noise", lr=20.0)),
    (1000, Variant("real", lr=5.0, steps=10, augment=True)),
    (10, Variant("noise", lr=5.0, steps=10)),
    (10, Variant("real", lr=5.0, steps=10)),
)


# ---- the training, and what it passed through the model -----------------------------------------


@dataclass(frozen=True)
class Passed:
    """A local step as it was about to be taken.

    Attributes:
        client: Whose.
        round: Of training.
        step: Of the round, from 0.
        state: The model's weights.
        inputs: `(B, ...)`, prepared.
        labels: `(B,)`.
    """

    client: str
    round: int
    step: int
    state: dict[str, Tensor]
    inputs: Tensor
    labels: Tensor


class Kept(InSitu):
    """In place of distillation: keeps what a match would be made of, and matches nothing."""

    passed: ClassVar[list[Passed]] = []

    def __init__(self, node: Node, keep: Tensor, **told: Any) -> None:
        super().__init__(node, keep, **told)
        self.node = node

    def bind(self, model: nn.Module) -> Any:
        """Return what local training asks before every step."""
        told = self.node.settings

        def gradients(step: int, images: Tensor, labels: Tensor) -> None:
            if step % self.every == 0:
                state = {k: v.clone() for k, v in state_of(told.model_spec, model).items()}
                self.passed.append(
                    Passed(told.client, told.server_round, step, state, images, labels)
                )

        return gradients


@dataclass(frozen=True)
class Case:
    """One data set's training, and where its parts lie.

    Attributes:
        settings: Of training and requests.
        spec: The model.
        test: Test images, prepared, and their labels.
        folder: Of the parts.
        label: The class that is forgotten.
        flips: Whether an image's mirror image is one of its class.
    """

    settings: RunSettings
    spec: ModelSpec
    test: tuple[Tensor, Tensor]
    folder: Path
    label: int
    flips: bool

    @classmethod
    def of(cls, dataset: str, told: argparse.Namespace) -> "Case":
        """Return a data set's case."""
        settings = RunSettings(
            mode="forget",
            data_dir=str(told.data_dir),
            dataset=dataset,
            max_samples=told.max_samples,
            num_clients=told.clients,
            partition=told.partition,
            model_width=told.width,
            model_depth=3 if dataset != "digits" else 2,
            rounds=told.rounds,
            local_steps=10,
            batch_size=64,
            lr=0.05,
            distill_every=MATCHED_AT,
            engine="inline",
        ).check()
        data = load(dataset, told.data_dir)
        size = min(told.test_samples, len(data.test))
        chosen = torch.randperm(len(data.test), generator=generator(0, "test"))[:size]
        spec = settings.model_spec(data)
        test = spec.task.prepare(data.test.take(chosen), data), data.test.labels[chosen]
        flips = dataset not in ("mnist", "digits")
        return cls(settings, spec, test, told.out / dataset, told.label, flips)

    @contextmanager
    def federation(self, name: str, forget: ForgetSpec, on_round: Any) -> Iterator[GridFederation]:
        """Yield the clients, in this process, for one training or request."""
        s = self.settings
        os.environ[SIMULATED_STORES] = str((self.folder / "stores").absolute())
        asked = messages.common(
            s,
            self.spec,
            {"classes": (), "clients": ()},
            forget=forget,
            request=name,
            lineage="trained",
        )
        node = {"data-dir": s.data_dir}
        with (
            tempfile.TemporaryDirectory() as journal,
            InlineGrid(app, s.num_clients, node_config=node, workers=1) as grid,
        ):
            yield GridFederation(
                NamedGrid(grid, s.round_timeout, LOCAL_POLL_SECONDS),
                asked,
                Journal(Path(journal), {}),
                on_round,
                training=messages.ordinary(s),
                plan=Plan(s.rounds, 1.0, 0.5),
                first_weights=lambda: self.arrays(
                    state_of(self.spec, build(self.spec, generator(s.seed, "initial weights")))
                ),
            )

    @staticmethod
    def arrays(state: Mapping[str, Tensor]) -> ArrayRecord:
        """Return weights as they travel."""
        return ArrayRecord(OrderedDict(state))

    def accuracies(self, model: ArrayRecord) -> dict[str, float]:
        """Return F and R in percent of the test images."""
        network = loaded(self.spec, wire.tensors(model))
        inputs, labels = self.test
        scores = evaluate(
            network, lambda rows: (inputs[rows], labels[rows]), len(labels), self.spec.num_classes
        )
        rest = [c for c in range(self.spec.num_classes) if c != self.label]
        both = {"forget": scores.accuracy([self.label]), "retain": scores.accuracy(rest)}
        return {side: value for side, value in both.items() if value is not None}


@dataclass(frozen=True)
class Training:
    """What was trained.

    Attributes:
        passed: In the order of clients, rounds, steps.
        model: The last round's.
        seconds: CPU seconds that it took.
    """

    passed: list[Passed]
    model: dict[str, Tensor]
    seconds: float


def trained(case: Case) -> Training:
    """Return the training; made once."""
    kept, said = case.folder / "trajectory.pt", case.folder / "settings.json"
    plain = {**case.settings.training(), "test": len(case.test[1]), "class": case.label}
    text = json.dumps(plain, sort_keys=True)
    if said.exists() and said.read_text() != text:
        raise SystemExit(f"{case.folder} must hold parts of the same settings, got others: {said}")
    case.folder.mkdir(parents=True, exist_ok=True)
    write_atomic(said, text.encode())
    if not kept.exists():
        Kept.passed.clear()
        usual, training.InSitu = training.InSitu, Kept  # type: ignore[misc]
        started = time.process_time()
        try:
            with case.federation("train", ForgetSpec(), lambda done, model: None) as federation:
                model = train(federation, phase="train", scale=10**6, distill_every=MATCHED_AT)
        finally:
            training.InSitu = usual  # type: ignore[misc]
        seconds = time.process_time() - started
        found = sorted(Kept.passed, key=lambda one: (one.client, one.round, one.step))
        content = {
            "passed": [vars(one) for one in found],
            "model": {k: v.clone() for k, v in wire.tensors(model).items()},
            "seconds": seconds,
        }
        torch.save(content, kept.with_suffix(".part"))
        kept.with_suffix(".part").replace(kept)
    read = torch.load(kept, weights_only=True)
    return Training([Passed(**one) for one in read["passed"]], read["model"], read["seconds"])


@dataclass(frozen=True)
class Client:
    """A simulated client: its data, and its store with the set that training left there."""

    site: Site
    store: Store

    def put(self, made: SyntheticSet) -> None:
        """Keep a set in place of the one that is there."""
        newest = self.store.generations()[-1]
        self.store.save(newest.lineage, newest.number, made, model=newest.model)

    def real(self) -> Tensor:
        """Return all of its prepared training inputs."""
        return self.site.inputs(self.site.train)


def clients(case: Case) -> list[Client]:
    """Return the clients of a training."""
    found = []
    with case.federation("describe", ForgetSpec(), lambda done, model: None) as federation:
        for path in sorted((case.folder / "stores").glob("*/*")):
            asked = federation.settings(Describe, client=path.name, phase="describe")
            number = int(path.name.rpartition("-")[2])
            site = open_site(asked, {"partition-id": number, "data-dir": case.settings.data_dir})
            found.append(Client(site, Store(path)))
    return found


# ---- sets ---------------------------------------------------------------------------------------


class Augment(nn.Module):
    """A first layer that changes all images of a match alike (Zhao and Bilen, "Dataset
    Condensation with Differentiable Siamese Augmentation", ICML 2021).
    """

    def __init__(self, generator: torch.Generator, *, flips: bool) -> None:
        super().__init__()
        self.generator, self.flips = generator, flips
        self.draw()

    def draw(self) -> None:
        """Draw the next change: mirrored or not, moved by up to an eighth, lighter or darker."""
        numbers = torch.rand(4, generator=self.generator).tolist()
        self.mirrored = self.flips and numbers[0] < 0.5
        self.shift = (numbers[1] * 2 - 1, numbers[2] * 2 - 1)
        self.light = numbers[3] - 0.5

    def forward(self, images: Tensor) -> Tensor:
        """Return the images, changed; what moves in from outside is 0."""
        if self.mirrored:
            images = images.flip(-1)
        size = images.shape[-1]
        far = size // 8
        down, right = (far + round(far * part) for part in self.shift)
        padded = nn.functional.pad(images, (far, far, far, far))
        return padded[..., down : down + size, right : right + size] + self.light


def made(
    variant: Variant,
    scale: int,
    client: Client,
    passed: Iterable[Passed],
    case: Case,
) -> SyntheticSet:
    """Return the synthetic set that a client would have made on the way."""
    site, spec = client.site, case.spec
    every = torch.ones(len(site.train), dtype=torch.bool)
    draws = generator(variant.draw, "synthetic", 0, site.name)
    found = initialise(site, every, scale, draws, start=variant.start)
    if variant.draw or not variant.steps:
        return found
    changed = Augment(generator(0, "change", 0, site.name), flips=case.flips)
    turn = 0
    for one in passed:
        if one.client != site.name or one.step % variant.every:
            continue
        model: nn.Module = loaded(spec, one.state).train()
        if not variant.augment:
            matcher = Matcher(
                found,
                lr=variant.lr,
                momentum=0.5,
                num_steps=variant.steps,
                batch=variant.batch,
                draws=lambda label, times: generator(
                    0, f"matched of class {label}", times, site.name
                ),
                turn=turn,
            )
            turn += 1
            matcher.match(model, real_gradients(model, one.inputs, one.labels)[2])
            continue
        model = nn.Sequential(changed, model)
        matcher = Matcher(found, lr=variant.lr, momentum=0.5, num_steps=1)
        for _ in range(variant.steps):
            changed.draw()
            matcher.match(model, real_gradients(model, one.inputs, one.labels)[2])
    if variant.initial:
        found = condense(
            site,
            every,
            found,
            lambda draw: build(spec, draw),
            generator(0, "new networks", 0, site.name),
            outer_steps=variant.initial,
            inner_steps=50,
            batch_size=16,
            image_lr=variant.lr,
            lr=0.01,
        )
    return found


# ---- what they are worth ------------------------------------------------------------------------


def pixels(inputs: Tensor, site: Site) -> Tensor:
    """Return prepared inputs as pixels from 0 to 1."""
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (site.data.mean, site.data.std))
    return (inputs * std + mean).clamp(0, 1)


def nearness(sets: Sequence[SyntheticSet], owners: Sequence[Client], picture: Path) -> Any:
    """Return how near each image is to a real one of its class and client, and draw them.

    Returns:
        PSNR in dB: the median, the highest, the share above `COPY`, and the median of real images
        to the nearest other one; the median share of `benchmarks/distilled.py`.
    """
    decibels, others, parts, shown = [], [], [], []
    for held, client in zip(sets, owners, strict=True):
        labels = client.site.train.labels
        all_real = client.real()
        for label in held.labels.unique().tolist():
            own, real = held.images[held.labels == label], all_real[labels == label]
            parts.append(shares(own, real))
            seen = pixels(real, client.site)
            first: Tensor | None = None
            for image in pixels(own, client.site):
                near = psnr(image, seen)
                decibels.append(float(near.max()))
                first = torch.cat([image, seen[int(near.argmax())]], 1) if first is None else first
            if client is owners[0] and first is not None:
                shown.append(first)
            for k in range(min(10, len(seen))):
                near = psnr(seen[k], seen)
                near[k] = -torch.inf
                others.append(float(near.max()))
    strip = (torch.cat(shown, 2) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(strip.squeeze()).save(picture)
    return {
        "psnr": statistics.median(decibels),
        "psnr_most": max(decibels),
        "copies": 100 * sum(d > COPY for d in decibels) / len(decibels),
        "psnr_real": statistics.median(others),
        "share": float(torch.cat(parts).median()),
        "images": len(decibels),
    }


def forgotten(case: Case, name: str, model: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the accuracies that each method ends with on the sets that are in the stores."""
    found = {}
    for method in METHODS:
        after: dict[str, ArrayRecord] = {"original": case.arrays(model)}

        def ended(done: Round, now: ArrayRecord, after: dict[str, ArrayRecord] = after) -> None:
            after[done.phase] = now

        wanted = ForgetSpec("class", (case.label,))
        with case.federation(f"{method}-{name}", wanted, ended) as federation:
            try:
                result = METHODS[method]().forget(federation, after["original"])
            except CreptBack as error:  # a result that did not forget, and is one
                result = error.model
        after["recover"] = result
        found[method] = {when: case.accuracies(arrays) for when, arrays in after.items()}
    return found


def part(case: Case, scale: int, variant: Variant, done: Training) -> None:
    """Make a part, if it is not there."""
    name = variant.name(scale)
    kept = case.folder / f"{name}.json"
    if kept.exists():
        return
    owners = clients(case)
    started = time.process_time()
    sets = [made(variant, scale, client, done.passed, case) for client in owners]
    seconds = time.process_time() - started
    if not all(bool(one.images.isfinite().all()) for one in sets):
        write_atomic(kept, json.dumps({"seconds": seconds, "diverged": True}).encode())
        return
    near = nearness(sets, owners, kept.with_suffix(".png"))
    for one, client in zip(sets, owners, strict=True):
        client.put(one)
    ends = forgotten(case, name, done.model)
    write_atomic(kept, json.dumps({"seconds": seconds, **near, "ends": ends}).encode())


# ---- the tables ---------------------------------------------------------------------------------

COLUMNS: Final = (
    *("s", "start, rate, steps", "images", "PSNR dB", "most", "above 20 dB %", "share", "CPU s"),
    *(
        f"{method}: {what}"
        for method in METHODS
        for what in ("F % before recovery", "R % before recovery", "F %", "R %")
    ),
)


def row(scale: int, title: str, parts: Sequence[dict[str, Any]]) -> str:
    """Return a line of one or several draws; of several with mean and spread."""
    if "diverged" in parts[0]:
        return f"| {scale} | {title} | diverged |" + " |" * (len(COLUMNS) - 3)

    def said(values: Sequence[float], digits: int = 1) -> str:
        mean = f"{statistics.mean(values):.{digits}f}"
        return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean

    first = parts[0]
    cells = [str(scale), title, str(first["images"])]
    if len(parts) > 1:
        cells += ["copies", "", "100", "0", "0"]
    else:
        cells += [f"{first[key]:.1f}" for key in ("psnr", "psnr_most")]
        cells += [f"{first['copies']:.0f}", f"{first['share']:.2f}", f"{first['seconds']:.0f}"]
    for method in METHODS:
        for when in ("unlearn", "recover"):
            for side in ("forget", "retain"):
                cells.append(said([one["ends"][method][when][side] for one in parts]))
    return "| " + " | ".join(cells) + " |"


def table(told: argparse.Namespace) -> str:
    """Return the tables of what is there, with command, commit and hardware."""
    lines = []
    for dataset in told.datasets:
        folder = told.out / dataset
        found = {
            (scale, variant): json.loads(path.read_text())
            for scale, variant in PLAN
            if (path := folder / f"{variant.name(scale)}.json").exists()
        }
        if not found:
            continue
        lines += ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
        for scale in sorted({scale for scale, _ in found}):
            draws = [one for (s, v), one in found.items() if s == scale and v.draw]
            if draws:
                lines.append(row(scale, CONTROLS[0].title, draws))
            lines += [
                row(s, v.title, [one]) for (s, v), one in found.items() if s == scale and not v.draw
            ]
        first = next(one for one in found.values() if "ends" in one)
        before = first["ends"]["quickdrop"]["original"]
        seconds = torch.load(folder / "trajectory.pt", weights_only=True, mmap=True)["seconds"]
        lines += [
            "",
            f"{dataset}: {told.max_samples:,} training images, {told.clients} clients, "
            f"{told.partition}, ConvNet of width {told.width}, {told.rounds} rounds of 10 steps, "
            f"class {told.label}; "
            f"Original F {before['forget']:.1f}, R {before['retain']:.1f} %; real images lie "
            f"{first['psnr_real']:.1f} dB from the nearest other in the median; the training took "
            f"{seconds:.0f} CPU seconds.",
            "",
        ]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    lines.append(
        f"Commit {commit}, torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores."
    )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Make what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="Folder of the parts; made if missing.")
    parser.add_argument("--data-dir", type=Path, default=Path(), help="Folder of the data files.")
    parser.add_argument("--datasets", nargs="*", default=["mnist", "cifar10"])
    parser.add_argument("--max-samples", type=int, default=4000, help="Training images.")
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--partition", default="iid", help="How images are dealt to clients.")
    parser.add_argument(
        "--scales", type=int, nargs="*", default=[10, 100, 1000], help="Those of the grid to make."
    )
    parser.add_argument("--width", type=int, default=32, help="Channels of a layer.")
    parser.add_argument("--rounds", type=int, default=20, help="Of training.")
    parser.add_argument("--class", dest="label", type=int, default=9, help="What is forgotten.")
    parser.add_argument("--test-samples", type=int, default=2000, help="Test images.")
    parser.add_argument("--tables", action="store_true", help="Do no work: print what is there.")
    told = parser.parse_args()
    torch.set_num_threads(1)
    if not told.tables:
        cases = [Case.of(dataset, told) for dataset in told.datasets]
        done = [trained(case) for case in cases]
        for scale, variant in PLAN:
            if scale not in told.scales:
                continue
            for case, one in zip(cases, done, strict=True):
                part(case, scale, variant, one)
                write_atomic(told.out / "table.md", table(told).encode())
    print(table(told))


if __name__ == "__main__":
    main()
