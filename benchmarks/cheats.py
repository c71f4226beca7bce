"""Which cheats a verdict catches, and how many honest retrainings it refuses.

    python benchmarks/cheats.py --dataset mnist --data-dir DATA --class 9 --jobs 8 --out FOLDER

One network is trained on all classes, `--count` ones without the class (the stock that sets the
limits) and `--honest` more, which the verdict must not refuse. A cheat is a model that a
coordinator might serve in place of one that forgot; most are made of the first. Training is plain
SGD on one machine: the verdict sees weights and does not ask where they come from. It measures on
the test part; cheats are made with the training part alone.

A client that alone holds the class is judged by the same measures. Of others see
`benchmarks/cheats_of_clients.py`.

FOLDER keeps every finished model; the same command goes on where it was. A model is trained in a
process of its own, `--jobs` of them side by side.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from time import monotonic
from typing import Any, Final, cast

import torch
from flwr.app import ArrayRecord
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from client.data.datasets import Data, Examples, load
from client.learning.models import ModelSpec, build, loaded, state_of, traced
from client.learning.spec import image_model
from client.learning.training import local_sgd, minibatches
from client.seeds import derive, generator
from client.wire import ForgetSpec
from server.evidence import spread
from server.evidence.features import found_head
from server.evidence.features.blank_head import blank_rows
from server.evidence.features.layers import features
from server.evidence.features.matched_head import matching
from server.evidence.features.measures import LABELLED, SHOWN, of_retrained
from server.evidence.features.scores import FeatureMeasures
from server.evidence.features.turned_head import turn
from server.evidence.measures import RELEARN_FORGET, RELEARN_LR, RELEARN_OTHERS, Judge
from server.evidence.scores import ModelScores
from server.evidence.serial import plain, read
from server.evidence.stock import UPPER_ONLY, Measure, Retraining, values
from server.evidence.verdict import Limits, Verdict, decide
from server.storage.home import write_json

State = dict[str, Tensor]
Last = tuple[Tensor, Tensor]  # weight and bias of a last layer
MARKS: Final = {"exceeded": " above", "below": " below", "cannot-tell": " ?", "held": ""}
TUNED: Final[tuple[Measure, ...]] = (
    *("forget-accuracy", "relearning-curve", "head-back", "blank-head"),
    *("class-means", "probe", "matched-head", "turned-head"),
)
MASKED: Final = -100.0  # a bias that no logit makes up for
BLOCKS: Final = 30  # how often a tuned cheat looks at its measure, at most
STEPS: Final = 3  # between two looks
SPLITS: Final = 200
STOCKS: Final = (3, 5, 10, 20)  # retrained models that set limits


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
        device: Where models are trained; they are measured on the CPU.
    """

    data: Data
    spec: ModelSpec
    label: int
    steps: int = 300
    lr: float = 0.05
    batch: int = 64
    device: str = "cpu"

    @property
    def judge(self) -> Judge:
        """What measures."""
        return Judge(self.spec, self.data, ForgetSpec("class", (self.label,)))

    @property
    def head(self) -> str:
        """Name of the last layer."""
        return str(traced(self.spec).head)

    @property
    def others(self) -> list[int]:
        """The classes that stay."""
        return [c for c in range(self.spec.num_classes) if c != self.label]

    def positions(self, *, forgotten: bool) -> Tensor:
        """Return where the training images of the class, or of the others, are."""
        return ((self.data.train.labels == self.label) == forgotten).nonzero().flatten()

    def pick(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs and labels of training images, on the device."""
        inputs = self.data.train.take(chosen).to(self.device)
        labels = self.data.train.labels[chosen].to(self.device)
        return self.spec.task.prepare(inputs, self.data), labels

    def train(
        self,
        index: Tensor,
        seed: int,
        *,
        steps: int | None = None,
        start: State | None = None,
        last_layer_only: bool = False,
    ) -> State:
        """Return the weights of a model that was trained on some training images."""
        model = build(self.spec, generator(seed, "initial weights"))
        if start is not None:
            model = self.network(start)
        for name, weight in model.named_parameters():
            weight.requires_grad_(not last_layer_only or name.startswith(f"{self.head}."))
        order = minibatches(
            len(index), self.batch, self.steps if steps is None else steps, generator(seed, "order")
        )
        local_sgd(model.to(self.device), lambda b: self.pick(index[b]), order, lr=self.lr)
        return self.state(model)

    def network(self, state: State) -> nn.Module:
        """Return a network with these weights, on the CPU."""
        return loaded(self.spec, {name: value.clone() for name, value in state.items()})

    def state(self, model: nn.Module) -> State:
        """Return its weights, on the CPU."""
        found = state_of(self.spec, model.cpu())
        return {name: value.detach().clone() for name, value in found.items()}

    def last(self, state: State) -> Last:
        """Return weight and bias of the last layer."""
        return state[f"{self.head}.weight"], state[f"{self.head}.bias"]

    def features(self, state: State, chosen: Tensor) -> Tensor:
        """Return the last layer's inputs for training images, `(n, F)`, on the CPU."""
        model = self.network(state).to(self.device)
        return features(model, self.head, lambda b: self.pick(chosen[b]), len(chosen),
                        batch_size=200)[0]  # fmt: skip

    def measure(self, number: int, seed: int, state: State, original: State) -> Retraining:
        """Return all that a verdict reads of one model."""
        arrays, judge = ArrayRecord(state), self.judge
        scores = {**judge.quick(arrays), "relearning_curve": judge.relearning(arrays)}
        below = of_retrained(judge, (self.spec, ArrayRecord(original)), (self.spec, arrays))
        return Retraining(number, seed, read(ModelScores, scores, "scores"), below)


@dataclass
class Cheater:
    """A coordinator that has Original, and knows what retrained models come to.

    Attributes:
        bench: Its data.
        original: The model that was trained on all classes; it is not changed.
        goals: What retrained models have, in percent, by measure: what `tuned` ones are brought to.
    """

    bench: Bench
    original: State
    goals: Mapping[Measure, float] = field(default_factory=dict)

    @property
    def cheats(self) -> dict[str, Callable[[], State]]:
        """What it might serve, by name; each is made when it is called."""
        all_images = torch.arange(len(self.bench.data.train.labels))
        without = self.bench.positions(forgotten=False)
        half = self.bench.steps // 2
        train = self.bench.train
        return {
            "nothing done": lambda: self.original,
            "logit masked": lambda: self.masked(self.original),
            "row averaged away": self.averaged,
            "last layer fine-tuned": lambda: train(
                without, 1, steps=half, start=self.averaged(), last_layer_only=True
            ),
            "wrong class": lambda: train(self.of_wrong_class(), 0),
            "wrong client": lambda: train(self.of_wrong_client(), 0),
            "older version": lambda: train(all_images, 0, steps=half),
            "noise on the weights": self.noised,
            "masked, channels in another order": lambda: self.reordered(self.masked(self.original)),
            "masked, channels longer and shorter": lambda: self.reordered(
                self.masked(self.original), longer=True
            ),
            "class learned again in recovery": self.relearned,
            "retrained, taught the class again, masked": lambda: self.masked(
                train(all_images, 2, steps=half, start=train(without, 0))
            ),
            "another training on all, masked": lambda: self.masked(train(all_images, 5)),
            "one holder of three": self.one_holder,
            "one tiny step, held down": self.held_down,
        }

    @property
    def all(self) -> dict[str, Callable[[], State]]:
        """Those and the ones tuned against one measure each."""

        def tuned(measure: Measure) -> Callable[[], State]:
            return lambda: self.tuned(measure)

        return {**self.cheats, **{f"tuned: {name}": tuned(name) for name in TUNED}}

    def masked(self, state: State) -> State:
        """Return the same with a bias that never lets the class be named."""
        made = {name: value.clone() for name, value in state.items()}
        made[f"{self.bench.head}.bias"][self.bench.label] = MASKED
        return made

    def averaged(self) -> State:
        """Return Original with the class's row the mean of the others'."""
        model = self.bench.network(self.original)
        blank_rows(model, self.bench.head, [self.bench.label], self.bench.others)
        return self.bench.state(model)

    def of_wrong_class(self) -> Tensor:
        """Return the images of all classes but another."""
        return (self.bench.data.train.labels != self.bench.others[0]).nonzero().flatten()

    def of_wrong_client(self) -> Tensor:
        """Return the images of all clients but another, which has a fifth of the other classes."""
        kept = self.bench.positions(forgotten=False)
        kept = kept[torch.randperm(len(kept), generator=generator(0, "clients"))]
        return torch.cat([self.bench.positions(forgotten=True), kept[len(kept) // 5 :]])

    def noised(self) -> State:
        """Return Original with noise of 0.3 of each weight's spread."""
        draws = generator(0, "noise")
        return {
            name: value + 0.3 * value.std() * torch.randn(value.shape, generator=draws)
            if value.dim() > 1
            else value.clone()
            for name, value in self.original.items()
        }

    def reordered(self, state: State, *, longer: bool = False) -> State:
        """Return the same function with the last convolution's channels in another order.

        Original's last layer then makes nothing of the features, which still hold all they did.

        Args:
            state: Not changed.
            longer: Each channel is made longer or shorter as well, by up to twice.
        """
        head = f"{self.bench.head}.weight"
        names = list(self.bench.network(state).state_dict())  # in the order of the layers
        last = [name for name in names if state[name].dim() == 4][-1]
        channels = len(state[last])
        draws = generator(0, "order of channels")
        order = torch.randperm(channels, generator=draws)
        size = 2.0 ** (2 * torch.rand(channels, generator=draws) - 1) if longer else 1.0
        made = {name: value.clone() for name, value in state.items()}
        between = names[names.index(last) : names.index(head)]
        for name in between:  # the convolution, its bias, and its norm's parameters
            made[name] = state[name][order]
        # A norm behind the convolution undoes its length: there, the norm's own parameters count.
        scaled = [name for name in between if state[name].dim() == 1 and len(between) > 2]
        scaled = scaled[-2:] or between
        for name in scaled:
            shape = (-1, *(1,) * (state[name].dim() - 1))
            made[name] = made[name] * torch.as_tensor(size).reshape(shape)
        wide = state[head].reshape(len(state[head]), channels, -1)
        turned = wide[:, order] / torch.as_tensor(size).reshape(1, -1, 1)
        made[head] = turned.reshape(state[head].shape)
        return made

    def relearned(self) -> State:
        """Return a retrained model whose recovery had a twentieth of the class's images in it."""
        bench = self.bench
        named, kept = bench.positions(forgotten=True), bench.positions(forgotten=False)
        few = torch.cat([kept, named[: max(1, len(named) // 20)]])
        return bench.train(few, 3, steps=bench.steps // 2, start=bench.train(kept, 0))

    def one_holder(self) -> State:
        """Return what comes of it where three clients hold the class and one alone unlearns it.

        In turn, that one ascends on its images and the others train on theirs, as they do in a
        federation that was told to forget the client's copy only; a recovery without the class
        follows.
        """
        bench = self.bench
        named, kept = bench.positions(forgotten=True), bench.positions(forgotten=False)
        ascending, rest = named[: len(named) // 3], named[len(named) // 3 :]
        made = self.original
        for turn_number in range(3):
            made = self.ascended(made, ascending, 5, bench.lr / 5)
            both = torch.cat([kept, rest])
            made = bench.train(both, 10 + turn_number, steps=bench.steps // 10, start=made)
        return bench.train(kept, 14, steps=bench.steps // 10, start=made)

    def ascended(self, state: State, index: Tensor, steps: int, lr: float) -> State:
        """Return the weights after steps up the loss on some images."""
        bench = self.bench
        model = bench.network(state).to(bench.device).train()
        for batch in minibatches(len(index), bench.batch, steps, generator(0, "ascent")):
            inputs, labels = bench.pick(index[batch])
            grads = torch.autograd.grad(-cross_entropy(model(inputs), labels), _weights(model))
            _descend(model, grads, lr)
        return bench.state(model)

    def held_down(self) -> State:
        """Return Original after one tiny step up, the class's bias just low enough to be silent."""
        bench = self.bench
        named = bench.positions(forgotten=True)
        made = self.ascended(self.original, named, 1, bench.lr / 50)
        weight, bias = bench.last(made)
        logits = bench.features(made, named) @ weight.T + bias
        margin = logits[:, bench.label] - logits[:, bench.others].amax(dim=1)
        made[f"{bench.head}.bias"][bench.label] -= float(margin.max()) + 0.5
        return made

    # ---- tuned against one measure --------------------------------------------------------------

    def tuned(self, measure: Measure) -> State:
        """Return Original, fine-tuned until one measure says what it says of retrained models.

        Every measure reads the features with some last layer (`reader`). Between two looks at it,
        SGD on the retained images has a penalty on how far the class lies above the others as that
        layer reads it. The class's logit is masked in the end.
        """
        bench, goal = self.bench, self.goals[measure]
        named, kept = bench.positions(forgotten=True), bench.positions(forgotten=False)
        draws = generator(0, "tuned", str(measure))
        made = self.original
        for _ in range(BLOCKS):
            weight, bias = self.reader(made, measure)
            if self.value(made, measure, (weight, bias)) <= goal:
                break
            model = bench.network(made).to(bench.device).train()
            weight, bias = weight.to(bench.device).float(), bias.to(bench.device).float()
            ours = minibatches(len(kept), bench.batch, STEPS, draws)
            theirs = minibatches(len(named), bench.batch, STEPS, draws)
            for one, other in zip(ours, theirs, strict=True):
                inputs, labels = bench.pick(kept[one])
                loss = cross_entropy(model(inputs), labels)
                found = _inputs_of_head(model, bench.head, bench.pick(named[other])[0])
                if measure == "forget-accuracy":
                    layer = cast(nn.Linear, model.get_submodule(bench.head))
                    weight, bias = layer.weight, layer.bias
                loss = loss + _margin(found @ weight.T + bias, bench).clamp(min=-0.5).mean()
                _descend(model, torch.autograd.grad(loss, _weights(model)), bench.lr / 2)
            made = bench.state(model)
        return made if measure == "forget-accuracy" else self.masked(made)

    def value(self, state: State, measure: Measure, reader: Last) -> float:
        """Return the measure in percent: of the class's training images, curves of test images."""
        bench = self.bench
        if measure in ("relearning-curve", "blank-head"):
            model = bench.network(self.masked(state) if measure == "relearning-curve" else state)
            if measure == "blank-head":
                blank_rows(model, bench.head, [bench.label], bench.others)
            return float((bench.judge.relearned(model) or {})["mean"])
        weight, bias = reader
        found = bench.features(state, bench.positions(forgotten=True)).to(weight.dtype)
        return 100.0 * float((_margin(found @ weight.T + bias, bench) > 0).double().mean())

    def reader(self, state: State, measure: Measure) -> Last:
        """Return the last layer with which a measure reads the features of a model."""
        bench = self.bench
        own, first = bench.last(state), bench.last(self.original)
        if measure == "head-back":
            weight, bias = own[0].clone(), own[1].clone()
            weight[bench.label], bias[bench.label] = first[0][bench.label], first[1][bench.label]
            return weight, bias
        if measure in ("matched-head", "turned-head"):
            shared = bench.positions(forgotten=False)[:1000]
            shown = found_head.Shown(
                bench.features(state, shared),
                bench.features(self.original, shared),
                own,
                first,
                [bench.label],
                bench.others,
            )
            return found_head.rows(shown, matching if measure == "matched-head" else turn)
        if measure in ("class-means", "probe"):
            return self._by_examples(state, SHOWN if measure == "class-means" else LABELLED)
        if measure in ("relearning-curve", "blank-head"):
            return self._relearned(state, blank=measure == "blank-head")
        return own

    def _by_examples(self, state: State, count: int) -> Last:
        """Return class means as a layer (of 50 images), or a probe (of 10), as the measures do."""
        bench = self.bench
        labels = bench.data.train.labels
        classes = range(bench.spec.num_classes)
        chosen = torch.cat([(labels == c).nonzero().flatten()[:count] for c in classes])
        found, of = bench.features(state, chosen), labels[chosen]
        if count == SHOWN:
            means = torch.stack([found[of == c].mean(dim=0) for c in classes])
            return 2 * means, -means.square().sum(dim=1)
        from sklearn.linear_model import LogisticRegression

        mean, spread = found.mean(dim=0), found.std(dim=0, correction=0)
        spread = spread.where(spread > 0, 1.0)
        probe = LogisticRegression(max_iter=200).fit(((found - mean) / spread).numpy(), of.numpy())
        weight = torch.as_tensor(probe.coef_).float() / spread
        return weight, torch.as_tensor(probe.intercept_).float() - weight @ mean

    def _relearned(self, state: State, *, blank: bool) -> Last:
        """Return the last layer after relearning on a few training images."""
        bench = self.bench
        model = bench.network(state if blank else self.masked(state))
        if blank:
            blank_rows(model, bench.head, [bench.label], bench.others)
        few = torch.cat(
            [
                bench.positions(forgotten=True)[:RELEARN_FORGET],
                bench.positions(forgotten=False)[:RELEARN_OTHERS],
            ]
        )
        order = minibatches(len(few), bench.batch, 30, generator(0, "relearning"))
        local_sgd(model.to(bench.device), lambda b: bench.pick(few[b]), order, lr=RELEARN_LR)
        return bench.last(bench.state(model))


def _margin(logits: Tensor, bench: Bench) -> Tensor:
    """Return how far the class's logit lies above the highest of the others, `(n,)`."""
    return logits[:, bench.label] - logits[:, bench.others].amax(dim=1)


def _weights(model: nn.Module) -> list[nn.Parameter]:
    return list(model.parameters())


@torch.no_grad()
def _descend(model: nn.Module, grads: Any, lr: float) -> None:
    """Take a step of SGD, the gradient clipped to length 5: an ascent has no bound of its own."""
    norm = torch.stack([grad.norm() for grad in grads]).norm()
    for weight, grad in zip(_weights(model), grads, strict=True):
        weight -= lr * grad * min(1.0, 5.0 / float(norm + 1e-12))


def _inputs_of_head(model: nn.Module, head: str, inputs: Tensor) -> Tensor:
    """Return the last layer's inputs, `(n, F)`, with their gradients."""
    seen: list[Tensor] = []
    layer = model.get_submodule(head)
    hook = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        model(inputs)
    finally:
        hook.remove()
    return seen[0].flatten(1)


def judged(
    result: Retraining,
    original: Retraining,
    stock: list[Retraining],
    bench: Bench,
    level: str = "class",
) -> Verdict:
    """Return the verdict on one model."""
    below = None
    if result.features is not None:
        below = FeatureMeasures(original.features, stock[0].features, result.features)
    return decide(
        level,
        result.scores,
        original=original.scores,
        retrained=stock[0].scores,
        limits=Limits(),
        retrainings=stock,
        features=below,
    )


def false_alarms(level: str, models: list[Retraining]) -> str:
    """Return in a sentence how many honest retrainings lie beyond limits, over many splits.

    One split into a stock and twenty others says little of a rate of one in twenty. Here stocks of
    several sizes are drawn from the models, and the others judged, `SPLITS` times each.
    """
    found = values(level, models)
    whole = {name: each for name, each in found.items() if len(each) == len(models)}
    told = []
    for count in (size for size in STOCKS if size < len(models)):
        draws, beyond = generator(0, "splits", count), 0
        for _ in range(SPLITS):
            order = torch.randperm(len(models), generator=draws).tolist()
            stock, rest = order[:count], order[count:]
            limits = spread.ranges({n: [v[i] for i in stock] for n, v in whole.items()}, UPPER_ONLY)
            beyond += sum(any(spread.side(whole[n][i], limits[n]) for n in whole) for i in rest)
        share = 100 * beyond / (SPLITS * (len(models) - count))
        told.append(f"{share:.1f} % by {count}")
    return (
        f"Over {SPLITS} splits of all {len(models)} into some that set limits and the others, of "
        f"the others lie beyond any limit: {', '.join(told)}."
    )


def goals_of(stock: list[Retraining]) -> dict[Measure, float]:
    """Return the mean of each measure over retrained models."""
    return {name: sum(found) / len(found) for name, found in values("class", stock).items()}


def table(rows: list[tuple[str, Retraining, Verdict | None]]) -> str:
    """Return a Markdown table: a model a row, its measures, and the verdicts on it."""
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


# ---- models in processes of their own -----------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """What a table is of: the options that change its models."""

    dataset: str
    data_dir: str
    label: int
    max_samples: int
    width: int
    depth: int
    steps: int
    batch: int
    lr: float

    def bench(self, device: str) -> Bench:
        """Load the data."""
        data = load(self.dataset, Path(self.data_dir) if self.data_dir else None)
        some = torch.randperm(len(data.train.labels), generator=generator(0, "images"))
        some = some[: self.max_samples]
        train = Examples(data.train.take(some), data.train.labels[some])
        data = replace(data, train=train)
        shape = data.train.take(torch.tensor([0])).shape
        spec = image_model(
            "convnet",
            data.num_classes,
            channels=shape[1],
            image_size=shape[2],
            width=self.width,
            depth=self.depth,
        )
        return Bench(data, spec, self.label, self.steps, self.lr, self.batch, device)


@dataclass(frozen=True)
class Folder:
    """What is kept of the models."""

    path: Path

    def weights(self, name: str) -> Path:
        """Return the file of a model's weights."""
        return self.path / f"{self._plain(name)}.safetensors"

    def measures(self, name: str) -> Path:
        """Return the file of what was measured of it."""
        return self.path / f"{self._plain(name)}.json"

    def read(self, name: str) -> Retraining:
        """Return what was measured of a model."""
        return read(Retraining, json.loads(self.measures(name).read_text()), "measures")

    def _plain(self, name: str) -> str:
        return name.replace(":", "").replace(",", "").replace(" ", "-")


_ready: dict[str, Bench] = {}  # of a process: it loads the data once


def _start(asked: Asked, device: str) -> None:
    torch.set_num_threads(1)
    _ready["bench"] = asked.bench(device)


def _make(name: str, folder: Folder, goals: dict[Measure, float]) -> tuple[str, float, float]:
    """Make a model and measure it; return its name and the seconds that either took."""
    bench, began = _ready["bench"], monotonic()
    original = load_file(folder.weights("Original")) if name != "Original" else {}
    number = seed = 0
    if name == "Original":
        original = state = bench.train(torch.arange(len(bench.data.train.labels)), 0)
    elif name.startswith("Retrained "):
        number = int(name.removeprefix("Retrained "))
        seed = derive(0, "yardstick", number)
        state = bench.train(bench.positions(forgotten=False), seed)
    else:
        state = Cheater(bench, original, goals).all[name]()
    made = monotonic()
    save_file({key: value.contiguous() for key, value in state.items()}, folder.weights(name))
    write_json(folder.measures(name), plain(bench.measure(number, seed, state, original)))
    return name, made - began, monotonic() - made


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dataset", default="digits", choices=["digits", "mnist", "cifar10"])
    parser.add_argument("--data-dir", default="")
    parser.add_argument("--class", type=int, default=9, dest="label")
    parser.add_argument("--max-samples", type=int, default=4000, help="training images")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--count", type=int, default=10, help="retrained models in the stock")
    parser.add_argument("--honest", type=int, default=20)
    parser.add_argument("--no-cheats", action="store_true", help="honest retrainings alone")
    parser.add_argument("--jobs", type=int, default=1, help="models trained side by side")
    parser.add_argument("--device", default="cpu", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    """Train, cheat, judge, and print the table."""
    told = _options()
    names = (*("dataset", "data_dir", "label", "max_samples", "width", "depth"), "steps", "batch")
    asked = Asked(*(getattr(told, name) for name in (*names, "lr")))
    device = told.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    told.out.mkdir(parents=True, exist_ok=True)
    note, folder = told.out / "asked.json", Folder(told.out)
    kept = {**vars(asked), "data_dir": ""}
    if note.exists() and json.loads(note.read_text()) != kept:
        raise SystemExit(f"out must be of the same settings or new, got {told.out}")
    write_json(note, kept)

    began = monotonic()
    stock_names = [f"Retrained {number}" for number in range(told.count)]
    honest_names = [f"Retrained {told.count + number}" for number in range(told.honest)]
    bench = asked.bench(device)
    cheats = [] if told.no_cheats else list(Cheater(bench, {}).all)
    tuned = [name for name in cheats if name.startswith("tuned: ")]
    with ProcessPoolExecutor(
        told.jobs, get_context("spawn"), initializer=_start, initargs=(asked, device)
    ) as pool:

        def make(wanted: list[str], goals: dict[Measure, float]) -> None:
            missing = [name for name in wanted if not folder.measures(name).exists()]
            going = [pool.submit(_make, name, folder, goals) for name in missing]
            for done in as_completed(going):
                name, training, measuring = done.result()
                print(f"{monotonic() - began:6.1f} s  {name}: {training:.1f} s to make, "
                      f"{measuring:.1f} s to measure", flush=True)  # fmt: skip

        make(["Original"], {})
        # What is tuned needs the stock; the honest ones keep the other processes busy meanwhile.
        make([*stock_names, *(name for name in cheats if name not in tuned)], {})
        stock = [folder.read(name) for name in stock_names]
        make([*tuned, *honest_names], goals_of(stock))

    before = folder.read("Original")
    rows: list[tuple[str, Retraining, Verdict | None]]
    rows = [("Original", before, None)]
    rows += [(name, one, None) for name, one in zip(stock_names, stock, strict=True)]

    def row(name: str) -> tuple[str, Retraining, Verdict]:
        one = folder.read(name)
        return name, one, judged(one, before, stock, bench)

    rows += [row(name) for name in cheats]
    honest = [row(name) for name in honest_names]
    rows += (refused := [found for found in honest if found[2].state != "passed"])
    text = table(rows)
    text += f"\n\n{len(refused)} of {len(honest)} honest retrainings were refused. "
    text += false_alarms("class", [*stock, *(found[1] for found in honest)])
    print(text)
    (told.out / "table.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
