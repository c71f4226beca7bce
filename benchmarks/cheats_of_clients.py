"""Which cheats a verdict on a client catches, and how many honest retrainings it does not pass.

    python benchmarks/cheats_of_clients.py --dataset mnist --data-dir DATA --out FOLDER

As `benchmarks/cheats.py`, of a client in place of a class: the training images are dealt to
`--clients`, each of which holds out a fifth of its own, and the first is to be forgotten. What is
measured is accuracy on what it holds out, how much surer the model is of its training images than
of what the others hold out (the median of their means, as `server.nodes.federation` takes it), the
same of each half of its images when the other half was learned again, and, of classes that only it
holds, all that is measured of a class.
"""

import argparse
import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, fields
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any, Final

import torch
from cheats import Asked, Bench, Cheater, Folder, State, _descend, _weights, false_alarms, judged
from flwr.app import ArrayRecord
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from client.learning.evaluation import losses_of
from client.learning.membership import confidence, relearned, surer
from client.learning.training import Pick, minibatches
from client.seeds import derive, generator
from client.simulation.partition import partition
from client.wire import ForgetSpec
from server.evidence.features.measures import of_retrained
from server.evidence.measures import Judge
from server.evidence.scores import ModelScores
from server.evidence.serial import plain, read
from server.evidence.stock import Retraining, values
from server.evidence.verdict import Verdict
from server.storage.home import write_json

BLOCKS: Final = 30  # how often a tuned cheat looks at its measure, at most
STEPS: Final = 3  # between two looks
MARKS: Final = {"exceeded": " above", "below": " below", "cannot-tell": " ?", "held": ""}
TUNED: Final = ("forget-accuracy", "membership", "client-relearning")


@dataclass(frozen=True)
class ClientBench(Bench):
    """What all models of one table share; `label` says nothing here.

    Attributes:
        shares: Positions of the clients' training images; the first is to be forgotten.
        heldout: Positions of what each holds out.
    """

    shares: tuple[Tensor, ...] = ()
    heldout: tuple[Tensor, ...] = ()

    def positions(self, *, forgotten: bool) -> Tensor:
        """Return where the training images of the client, or of the others, are."""
        return self.shares[0] if forgotten else torch.cat(self.shares[1:])

    @cached_property
    def alone(self) -> tuple[int, ...]:
        """The classes that only the client holds."""
        own, rest = (
            self.data.train.labels[self.positions(forgotten=forgotten)].unique().tolist()
            for forgotten in (True, False)
        )
        return tuple(label for label in own if label not in rest)

    @property
    def judge(self) -> Judge:
        """What measures at the coordinator."""
        return Judge(
            self.spec, self.data, ForgetSpec("client", (), ("client-0",)), alone=self.alone
        )

    def told(self, state: State) -> tuple[float, float, float]:
        """Return what the nodes tell, in percent: held-out accuracy, membership, relearning."""
        model, (own, *others) = self.network(state).eval(), self.heldout

        def sure(index: Tensor) -> float:
            return float(confidence(losses_of(model, self.picker(index), len(index))).mean())

        with torch.no_grad():
            guessed = model(self.picker(own)(torch.arange(len(own)))[0])
        right = float((guessed.argmax(dim=1) == self.data.train.labels[own]).double().mean())
        unseen = median(sure(index) for index in others if len(index))
        members = self.shares[0]
        labels = self.data.train.labels[members]
        again = relearned(lambda: self.network(state), self.picker(members), labels, 0)
        half = again.confidence / len(members)
        return 100 * right, surer(sure(members), unseen), surer(half, unseen)

    def picker(self, index: Tensor) -> Pick:
        """Return what picks inputs and labels of training images, on the CPU, by places in it."""

        def pick(batch: Tensor) -> tuple[Tensor, Tensor]:
            chosen = index[batch]
            inputs = self.data.train.take(chosen)
            return self.spec.task.prepare(inputs, self.data), self.data.train.labels[chosen]

        return pick

    def measure(self, number: int, seed: int, state: State, original: State) -> Retraining:
        """Return all that a verdict reads of one model."""
        arrays, judge = ArrayRecord(state), self.judge
        accuracy, membership, again = self.told(state)
        scores = {
            **judge.quick(arrays),
            "forget_accuracy": accuracy,
            "membership": membership,
            "client_relearning": again,
            "relearning_curve": judge.relearning(arrays),
        }
        below = None
        if (of_classes := judge.of_classes) is not None:
            known = (self.spec, ArrayRecord(original))
            below = of_retrained(of_classes, known, (self.spec, arrays))
        return Retraining(number, seed, read(ModelScores, scores, "scores"), below)


@dataclass
class ClientCheater(Cheater):
    """A coordinator that serves something else than a model that forgot a client."""

    @property
    def cheats(self) -> dict[str, Callable[[], State]]:
        """What it might serve, by name; each is made when it is called."""
        bench = self.bench
        assert isinstance(bench, ClientBench)
        kept, own = bench.positions(forgotten=False), bench.positions(forgotten=True)
        everything, half, train = torch.cat([own, kept]), bench.steps // 2, bench.train
        few = torch.cat([kept, own[: max(1, len(own) // 20)]])
        wrong = torch.cat([own, *bench.shares[2:]])
        return {
            "nothing done": lambda: self.original,
            "last layer fine-tuned": lambda: train(
                kept, 1, steps=half, start=self.original, last_layer_only=True
            ),
            "a tenth of the steps on the others": lambda: train(
                kept, 1, steps=bench.steps // 10, start=self.original
            ),
            "wrong client": lambda: train(wrong, 0),
            "older version": lambda: train(everything, 0, steps=half),
            "noise on the weights": self.noised,
            "another training on all": lambda: train(everything, 5),
            "retrained, taught the client again": lambda: train(
                everything, 2, steps=half, start=train(kept, 0)
            ),
            "client learned again in recovery": lambda: train(
                few, 3, steps=half, start=train(kept, 0)
            ),
            "one tiny step": lambda: self.ascended(self.original, own, 1, bench.lr / 50),
        }

    @property
    def all(self) -> dict[str, Callable[[], State]]:
        """Those and the ones tuned against what the node tells, one or both at once."""
        return {
            **self.cheats,
            **{f"tuned: {name}": lambda name=name: self.up(name) for name in TUNED},  # type: ignore[misc]
            "tuned: accuracy and membership": lambda: self.up(*TUNED[:2]),
            "tuned: accuracy and membership, longer channels": lambda: self.longer(
                self.up(*TUNED[:2])
            ),
            "tuned: all three": lambda: self.up(*TUNED),
        }

    def longer(self, state: State) -> State:
        """Return the same function with weights of which a step of SGD would be a small share.

        Convolutions are five times as long, which the norms behind them undo, and the last one's
        channels longer and shorter, which the last layer takes back.
        """
        long = {
            name: value * 5
            if value.dim() == 4 or state.get(f"{name.removesuffix('bias')}weight", value).dim() == 4
            else value
            for name, value in state.items()
        }
        return self.reordered(long, longer=True)

    def up(self, *names: str) -> State:
        """Return Original, sent up the client's loss until it has what retrained models have.

        SGD on the others' images holds it meanwhile.
        """
        bench = self.bench
        assert isinstance(bench, ClientBench)
        own, kept = bench.positions(forgotten=True), bench.positions(forgotten=False)
        draws, made = generator(0, "tuned", *names), self.original
        for _ in range(BLOCKS):
            now = dict(zip(TUNED, bench.told(made), strict=True))
            if all(now[name] <= self.goals[name] for name in names):  # type: ignore[index]
                break
            model = bench.network(made).to(bench.device).train()
            ours = minibatches(len(kept), bench.batch, STEPS, draws)
            theirs = minibatches(len(own), bench.batch, STEPS, draws)
            for one, other in zip(ours, theirs, strict=True):
                inputs, labels = bench.pick(kept[one])
                named, wanted = bench.pick(own[other])
                loss = cross_entropy(model(inputs), labels)
                loss = loss - 0.3 * cross_entropy(model(named), wanted).clamp(max=6.0)
                _descend(model, torch.autograd.grad(loss, _weights(model)), bench.lr / 2)
            made = bench.state(model)
        return made


@dataclass(frozen=True)
class AskedOfClient(Asked):
    """What a table is of: the options that change its models."""

    partition: str
    clients: int

    def bench(self, device: str) -> ClientBench:
        """Load the data and deal them."""
        base = super().bench(device)
        labels = base.data.train.labels
        parts = partition(self.partition, labels, self.clients, generator(0, "partition", 0))
        parts = [
            part[torch.randperm(len(part), generator=generator(0, "held out", client))]
            for client, part in enumerate(parts)
        ]
        counts = [max(1, len(part) // 5) for part in parts]
        told = {f.name: getattr(base, f.name) for f in fields(Bench)}
        return ClientBench(
            **told,
            shares=tuple(part[count:] for part, count in zip(parts, counts, strict=True)),
            heldout=tuple(part[:count] for part, count in zip(parts, counts, strict=True)),
        )


_ready: dict[str, ClientBench] = {}  # of a process: it loads the data once


def _start(asked: AskedOfClient, device: str) -> None:
    torch.set_num_threads(1)
    _ready["bench"] = asked.bench(device)


def _make(name: str, folder: Folder, goals: dict[Any, float]) -> tuple[str, float]:
    """Make a model and measure it; return its name and the seconds that it took."""
    bench, began = _ready["bench"], monotonic()
    original = load_file(folder.weights("Original")) if name != "Original" else {}
    number = seed = 0
    if name.startswith("Retrained "):
        number = int(name.removeprefix("Retrained "))
        seed = derive(0, "yardstick", number)
    if folder.weights(name).exists():  # what is measured has changed
        state = load_file(folder.weights(name))
    elif name == "Original":
        state = bench.train(torch.cat(bench.shares), 0)
    elif name.startswith("Retrained "):
        state = bench.train(bench.positions(forgotten=False), seed)
    else:
        state = ClientCheater(bench, original, goals).all[name]()
    save_file({key: value.contiguous() for key, value in state.items()}, folder.weights(name))
    measured = bench.measure(number, seed, state, original or state)
    write_json(folder.measures(name), plain(measured))
    return name, monotonic() - began


def table(rows: list[tuple[str, Retraining, Verdict | None]]) -> str:
    """Return a Markdown table: a model a row, its measures, and the verdict on it."""
    names = [name for name, value in rows[0][1].numbers.items() if value is not None]
    codes = {"forget": "forget-accuracy", "relearning": "relearning-curve"}
    heads = [{"forget": "held-out accuracy"}.get(name, name) for name in names]
    lines = [f"| model | {' | '.join(heads)} | verdict |", f"| --- |{' ---: |' * len(names)} --- |"]
    for name, model, verdict in rows:
        cells = []
        for key in names:
            code, value = codes.get(key, key.replace(" ", "-")), model.numbers[key]
            found = (
                None
                if verdict is None
                else next(
                    (f for f in verdict.findings if f.code == code and f.spread is not None), None
                )
            )
            mark = "" if found is None else MARKS.get(found.state, "")
            cells.append("" if value is None else f"{value:.1f}{mark}")
        lines.append(f"| {name} | {' | '.join(cells)} | {verdict.state if verdict else ''} |")
    return "\n".join(lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dataset", default="digits", choices=["digits", "mnist", "cifar10"])
    parser.add_argument("--data-dir", default="")
    parser.add_argument("--partition", default="dirichlet:0.5")
    parser.add_argument("--clients", type=int, default=5)
    parser.add_argument("--max-samples", type=int, default=4000, help="training images of all")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--count", type=int, default=10, help="retrained models in the stock")
    parser.add_argument("--honest", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=1, help="models trained side by side")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    """Train, cheat, judge, and print the table."""
    told = _options()
    names = [f.name for f in fields(AskedOfClient) if f.name != "label"]
    asked = AskedOfClient(label=0, **{name: getattr(told, name) for name in names})
    told.out.mkdir(parents=True, exist_ok=True)
    note, folder = told.out / "asked.json", Folder(told.out)
    kept = {**vars(asked), "data_dir": ""}
    if note.exists() and json.loads(note.read_text()) != kept:
        raise SystemExit(f"out must be of the same settings or new, got {told.out}")
    write_json(note, kept)

    began, bench = monotonic(), asked.bench(told.device)
    stock_names = [f"Retrained {number}" for number in range(told.count)]
    honest_names = [f"Retrained {told.count + number}" for number in range(told.honest)]
    cheats = list(ClientCheater(bench, {}).all)
    tuned = [name for name in cheats if name.startswith("tuned: ")]
    with ProcessPoolExecutor(
        told.jobs, get_context("spawn"), initializer=_start, initargs=(asked, told.device)
    ) as pool:

        def make(wanted: list[str], goals: dict[Any, float]) -> None:
            missing = [name for name in wanted if not folder.measures(name).exists()]
            for done in as_completed([pool.submit(_make, n, folder, goals) for n in missing]):
                name, seconds = done.result()
                print(f"{monotonic() - began:6.1f} s  {name}: {seconds:.1f} s", flush=True)

        make(["Original"], {})
        make([*stock_names, *(name for name in cheats if name not in tuned)], {})
        stock = [folder.read(name) for name in stock_names]
        goals = {n: sum(found) / len(found) for n, found in values("client", stock).items()}
        make([*tuned, *honest_names], dict(goals))

    before = folder.read("Original")

    def row(name: str) -> tuple[str, Retraining, Verdict | None]:
        one = folder.read(name)
        return name, one, judged(one, before, stock, bench, "client")

    rows: list[tuple[str, Retraining, Verdict | None]] = [("Original", before, None)]
    rows += [(name, one, None) for name, one in zip(stock_names, stock, strict=True)]
    rows += [row(name) for name in cheats]
    honest = [row(name) for name in honest_names]
    states = [found[2].state for found in honest if found[2] is not None]
    every = [*stock, *(found[1] for found in honest)]
    text = table(rows + [found for found in honest if found[2] and found[2].state == "failed"])
    counts = {s: states.count(s) for s in ("passed", "not-shown", "failed")}
    text += f"\n\nOf {len(states)} honest retrainings: {counts}. "
    text += false_alarms("client", every)
    own = bench.data.train.labels[bench.shares[0]].bincount(minlength=10).tolist()
    rest = bench.data.train.labels[bench.positions(forgotten=False)].bincount(minlength=10).tolist()
    text += f"\n\nTraining images by class: the client's {own}, the others' {rest}."
    print(text)
    (told.out / "table.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
