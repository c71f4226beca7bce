"""Which cheats a verdict catches, and how many honest retrainings it refuses.

    python benchmarks/cheats.py --dataset mnist --data-dir DATA --class 9 --out FOLDER

One network is trained on all classes, `--count` ones without the class (the stock that sets the
limits) and `--honest` more, which the verdict must not refuse. The cheats are edits of the first.
Training is plain SGD on one machine: the verdict sees weights and does not ask where they come
from. FOLDER keeps every finished model's measures; the same command goes on where it was.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from flwr.app import ArrayRecord
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from client.data.datasets import Data, Examples, load
from client.learning.models import ModelSpec, build, loaded, state_of, traced
from client.learning.spec import image_model
from client.learning.training import local_sgd, minibatches
from client.seeds import derive, generator
from client.wire import ForgetSpec
from server.evidence.features.blank_head import blank_rows
from server.evidence.features.measures import of_retrained
from server.evidence.features.scores import FeatureMeasures
from server.evidence.measures import Judge
from server.evidence.scores import ModelScores
from server.evidence.serial import plain, read
from server.evidence.stock import Retraining
from server.evidence.verdict import Limits, Verdict, decide
from server.storage.home import write_json

State = dict[str, Tensor]
MARKS = {"exceeded": " above", "below": " below", "cannot-tell": " ?", "held": ""}


@dataclass(frozen=True)
class Bench:
    """What all models of one table share.

    Attributes:
        data: Its training part teaches, its test part measures.
        spec: The network.
        label: The class to forget.
        steps: SGD steps of a training.
        lr: Learning rate.
        batch: Images a step.
    """

    data: Data
    spec: ModelSpec
    label: int
    steps: int = 300
    lr: float = 0.05
    batch: int = 64

    @property
    def judge(self) -> Judge:
        """What measures."""
        return Judge(self.spec, self.data, ForgetSpec("class", (self.label,)))

    def train(
        self,
        without: int | None,
        seed: int,
        *,
        steps: int | None = None,
        start: State | None = None,
        last_layer_only: bool = False,
    ) -> State:
        """Return the weights of a model that was trained without one class, or on all."""
        model = build(self.spec, generator(seed, "initial weights"))
        if start is not None:
            model = self.network(start)
        head = str(traced(self.spec).head)
        for name, weight in model.named_parameters():
            weight.requires_grad_(not last_layer_only or name.startswith(f"{head}."))
        labels, task = self.data.train.labels, self.spec.task
        index = (labels != (-1 if without is None else without)).nonzero().flatten()

        def pick(batch: Tensor) -> tuple[Tensor, Tensor]:
            chosen = index[batch]
            return task.prepare(self.data.train.take(chosen), self.data), labels[chosen]

        order = minibatches(
            len(index), self.batch, self.steps if steps is None else steps, generator(seed, "order")
        )
        local_sgd(model, pick, order, lr=self.lr)
        return {name: value.detach().clone() for name, value in state_of(self.spec, model).items()}

    def network(self, state: State) -> nn.Module:
        """Return a network with these weights."""
        return loaded(self.spec, {name: value.clone() for name, value in state.items()})

    def measure(self, number: int, seed: int, state: State, original: State) -> Retraining:
        """Return all that a verdict reads of one model."""
        arrays, judge = ArrayRecord(state), self.judge
        scores = {**judge.quick(arrays), "relearning_curve": judge.relearning(arrays)}
        below = of_retrained(judge, (self.spec, ArrayRecord(original)), (self.spec, arrays))
        return Retraining(number, seed, read(ModelScores, scores, "scores"), below)


def cheats(bench: Bench, original: State) -> Iterator[tuple[str, Callable[[], State]]]:
    """Yield what a coordinator might serve in place of a model that forgot, each when it is asked.

    Args:
        bench: What they are made with.
        original: The model that was trained on all classes; it is not changed.
    """
    head, label = str(traced(bench.spec).head), bench.label
    others = [c for c in range(bench.spec.num_classes) if c != label]

    def masked(state: State) -> State:
        made = {name: value.clone() for name, value in state.items()}
        made[f"{head}.bias"][label] = -100.0
        return made

    def averaged() -> State:
        model = bench.network(original)
        blank_rows(model, head, [label], others)
        return {n: value.detach().clone() for n, value in state_of(bench.spec, model).items()}

    def noised() -> State:
        draws = generator(0, "noise")
        return {
            name: value + 0.3 * value.std() * torch.randn(value.shape, generator=draws)
            if value.dim() > 1
            else value.clone()
            for name, value in original.items()
        }

    wrong, half = others[0], bench.steps // 2
    yield "nothing done", lambda: original
    yield "logit masked", lambda: masked(original)
    yield "row averaged away", averaged
    yield (
        "last layer fine-tuned",
        lambda: bench.train(label, 1, steps=half, start=averaged(), last_layer_only=True),
    )
    yield "wrong class", lambda: bench.train(wrong, 0)
    yield "older version", lambda: bench.train(None, 0, steps=half)
    yield "noise on the weights", noised
    yield "logit masked, channels turned", lambda: turned(bench, masked(original))
    yield (
        "retrained, taught the class again, masked",
        lambda: masked(bench.train(None, 2, steps=half, start=bench.train(label, 0))),
    )


def turned(bench: Bench, state: State) -> State:
    """Return the same function with the last convolution's channels in another order.

    Original's last layer then makes nothing of the features, which still hold all they did.
    """
    head = f"{traced(bench.spec).head}.weight"
    names = list(bench.network(state).state_dict())  # in the order of the layers
    last = [name for name in names if state[name].dim() == 4][-1]
    channels = len(state[last])
    order = torch.randperm(channels, generator=generator(0, "turn"))
    made = {name: value.clone() for name, value in state.items()}
    for name in names[names.index(last) : names.index(head)]:
        made[name] = state[name][order]  # the convolution, its bias, and its norm's parameters
    wide = state[head].reshape(len(state[head]), channels, -1)
    made[head] = wide[:, order].reshape(state[head].shape)
    return made


def judged(
    result: Retraining, original: Retraining, stock: list[Retraining], bench: Bench
) -> Verdict:
    """Return the verdict on one model."""
    features = FeatureMeasures(original.features, stock[0].features, result.features)
    return decide(
        bench.judge.forget.level,
        result.scores,
        original=original.scores,
        retrained=stock[0].scores,
        limits=Limits(),
        retrainings=stock,
        features=features,
    )


def table(rows: list[tuple[str, Retraining, Verdict | None]]) -> str:
    """Return a Markdown table: a model a row, its measures, and the verdict on it."""
    names = list(rows[0][1].numbers)
    codes = {"forget": "forget-accuracy", "relearning": "relearning-curve"}
    lines = [
        f"| model | {' | '.join(names)} | verdict |",
        f"| --- |{' ---: |' * len(names)} --- |",
    ]
    for name, model, verdict in rows:
        cells = []
        for key, value in model.numbers.items():
            code = codes.get(key, key.replace(" ", "-"))
            found = next((f for f in verdict.findings if f.code == code), None) if verdict else None
            mark = "" if found is None else MARKS.get(found.state, "")
            cells.append("" if value is None else f"{value:.1f}{mark}")
        lines.append(f"| {name} | {' | '.join(cells)} | {verdict.state if verdict else ''} |")
    return "\n".join(lines)


def main() -> None:
    """Train, cheat, judge, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data-dir", default="")
    parser.add_argument("--class", type=int, default=9, dest="label")
    parser.add_argument("--max-samples", type=int, default=4000, help="training images")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--count", type=int, default=10, help="retrained models in the stock")
    parser.add_argument("--honest", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True)
    told = parser.parse_args()

    data = load(told.dataset, Path(told.data_dir) if told.data_dir else None)
    some = torch.randperm(len(data.train.labels), generator=generator(0, "images"))
    some = some[: told.max_samples]
    train = Examples(data.train.take(some), data.train.labels[some])
    data = replace(data, train=train)
    shape = data.train.take(some[:1]).shape
    spec = image_model(
        "convnet",
        data.num_classes,
        channels=shape[1],
        image_size=shape[2],
        width=told.width,
        depth=2,
    )
    bench = Bench(data, spec, told.label, told.steps)
    told.out.mkdir(parents=True, exist_ok=True)
    asked = {k: v for k, v in vars(told).items() if k not in ("out", "data_dir", "honest", "count")}
    note = told.out / "asked.json"
    if note.exists() and json.loads(note.read_text()) != asked:
        raise SystemExit(f"out must be of the same settings or new, got {told.out}")
    write_json(note, asked)
    first = told.out / "original.safetensors"
    if not first.exists():
        save_file(bench.train(None, 0), first)
    original = load_file(first)

    def part(name: str, make: Callable[[], State], number: int = 0, seed: int = 0) -> Retraining:
        path = told.out / f"{name.replace(' ', '-').replace(',', '')}.json"
        if not path.exists():
            write_json(path, plain(bench.measure(number, seed, make(), original)))
            print(f"{name}: done", flush=True)
        return read(Retraining, json.loads(path.read_text()), "measures")

    def retrained(number: int) -> Retraining:
        seed = derive(0, "yardstick", number)
        return part(f"retrained {number}", lambda: bench.train(told.label, seed), number, seed)

    before = part("original", lambda: original)
    made = [(name, part(name, make)) for name, make in cheats(bench, original)]
    stock = [retrained(number) for number in range(told.count)]
    rows: list[tuple[str, Retraining, Verdict | None]] = [("Original", before, None)]
    rows += [(f"Retrained {one.number}", one, None) for one in stock]
    rows += [(name, one, judged(one, before, stock, bench)) for name, one in made]
    honest = [retrained(told.count + number) for number in range(told.honest)]
    found = [judged(one, before, stock, bench) for one in honest]
    rows += [
        (f"honest {one.number}", one, verdict)
        for one, verdict in zip(honest, found, strict=True)
        if verdict.state != "passed"
    ]
    text = table(rows)
    refused = sum(verdict.state != "passed" for verdict in found)
    text += f"\n\n{refused} of {len(found)} honest retrainings were refused.\n"
    (told.out / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
