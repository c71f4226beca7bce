"""The coordinator's judgement of a version: accuracies, and how fast it relearns."""

import functools
import operator
import os
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from flwr.app import ArrayRecord
from torch import Tensor, nn

from client.data.datasets import Data, Examples
from client.learning.evaluation import BATCH, Scores, evaluate, relearning_curve
from client.learning.models import ModelSpec, loaded
from client.learning.repeatable import repeatable
from client.learning.sizes import at_once
from client.learning.training import Pick
from client.seeds import generator
from client.task import judge
from client.wire import ForgetSpec, tensors
from server.evidence.scores import Heldout, ModelScores, SiteScores
from server.evidence.serial import read
from server.nodes.federation import GridFederation, Sides

RELEARN_STEPS: Final = (5, 10, 15, 20, 25, 30)
RELEARN_FORGET: Final = 50  # images of the forgotten classes in the relearning set, at most
RELEARN_OTHERS: Final = 450
RELEARN_LR: Final = 0.02
RELEARN_BATCH: Final = 64
CPU: Final = torch.device("cpu")
GPU_BATCH: Final = 1000  # images a pass on a GPU, which small passes leave idle


def measuring_device(told: str) -> torch.device:
    """Return where the coordinator measures, given the `device` setting.

    A GPU that only the clients have is no error here: the coordinator then takes its CPU.
    """
    return torch.device("cpu" if told == "cpu" or not torch.cuda.is_available() else _gpu(told))


def _gpu(told: str) -> str:
    """Return the GPU of that name, or the first where there is none of that number."""
    number = int(told.partition(":")[2] or 0)
    return f"cuda:{number}" if number < torch.cuda.device_count() else "cuda:0"


@dataclass(frozen=True)
class Judge:
    """Scores versions for one request.

    Attributes:
        spec: The model.
        data: The coordinator's data set, whose test part is used; None if it has none.
        forget: What the request names.
        erased: Classes that earlier requests erased: neither forgotten now nor retained.
        device: Where the coordinator's own measuring computes.
        alone: Of clients: classes that only they hold. Who forgets them forgets these.
    """

    spec: ModelSpec
    data: Data | None
    forget: ForgetSpec
    erased: tuple[int, ...] = ()
    device: torch.device = CPU
    alone: tuple[int, ...] = ()

    @property
    def of_classes(self) -> "Judge | None":
        """What scores the classes that must go; None where clients share all theirs with others."""
        if self.forget.level == "class":
            return self
        if not self.alone:
            return None
        return replace(self, forget=ForgetSpec("class", self.alone), alone=())

    @property
    def retained(self) -> list[int]:
        """Classes that must stay."""
        gone = {*self.erased, *self.forget.classes}
        return [c for c in range(self.spec.num_classes) if c not in gone]

    def model(self, arrays: ArrayRecord, spec: ModelSpec | None = None) -> nn.Module:
        """Return a network, `spec` if it is not this one's, with these weights, on the device."""
        return loaded(spec or self.spec, tensors(arrays)).to(self.device)

    def batch_size(self, spec: ModelSpec | None = None) -> int:
        """Return how many examples pass through the network, `spec` or this one's, together."""
        whole = BATCH if self.device.type == "cpu" else GPU_BATCH
        return min(whole, at_once(spec or self.spec) or whole)

    def test(self, arrays: ArrayRecord) -> Scores | None:
        """Return the scores on the coordinator's test part."""
        if self.data is None or not len(self.data.test.labels):
            return None
        return self._scores(self.model(arrays), self.data.test)

    def _scores(self, model: nn.Module, split: Examples, index: Tensor | None = None) -> Scores:
        """Score a model on some examples, the machine's cores side by side.

        Each core takes a stretch on one thread: torch's own threads wait for one another at every
        layer, and for ever when the machine is busy. A GPU takes all as one.
        """
        pick, task = self._split_picker(split, index), self.spec.task
        positions = torch.arange(len(split.labels) if index is None else len(index))
        cores = (os.cpu_count() or 1) if self.device.type == "cpu" else 1
        stretches = [part for part in positions.chunk(cores) if len(part)]

        def score(part: Tensor) -> Scores:
            torch.set_num_threads(1)
            return evaluate(
                model,
                lambda b: pick(part[b]),
                len(part),
                task.num_classes,
                batch_size=self.batch_size(),
                loss=judge(task, "loss"),
                score=judge(task, "score"),
            )

        model.eval()
        with repeatable(self.device), ThreadPoolExecutor(max(1, len(stretches))) as pool:
            parts = list(pool.map(score, stretches))
        return functools.reduce(operator.add, parts)

    def quick(self, arrays: ArrayRecord) -> dict[str, Any]:
        """Return what is shown after every round, from the coordinator's test part alone."""
        scores = self.test(arrays)
        if scores is None:
            return {}
        return self._numbers(scores)

    def full(self, arrays: ArrayRecord, federation: GridFederation) -> ModelScores:
        """Return a version's scores on test data and on the clients' held-out data.

        Classes are judged on the coordinator's test part, clients on their own held-out part.
        Where the coordinator has no data, everything is held-out data.
        """
        sides = federation.heldout(arrays, self.spec)
        scores = self.test(arrays)
        decides = scores is None or self.forget.level == "client"
        heldout = heldout_scores(sides, decides=decides)
        numbers = self._numbers(scores if scores is not None else sides.forget + sides.retain)
        if self.forget.level == "client":
            numbers["forget_accuracy"] = heldout.forget_accuracy
            surer = federation.membership(arrays, self.spec)
            numbers["membership"] = surer.membership
            numbers["client_relearning"] = surer.client_relearning
        return replace(read(ModelScores, numbers, "scores"), heldout=heldout)

    def relearning(self, arrays: ArrayRecord) -> dict[str, Any] | None:
        """Return the relearning curve, or None where it is not defined.

        It needs test images of forgotten classes: half of them, 50 at most, are in the relearning
        set with 450 others; the rest measure. The set and its order are the same for all versions.
        """
        return self.relearned(self.model(arrays))

    def relearned(self, model: nn.Module) -> dict[str, Any] | None:
        """Return the same of a network, which is trained in place."""
        if self.forget.level != "class":
            judge = self.of_classes
            return None if judge is None else judge.relearned(model)
        if self.data is None:
            return None
        test = self.data.test
        named = torch.isin(test.labels, torch.tensor(self.forget.classes))
        kept = torch.isin(test.labels, torch.tensor(self.retained))
        draws = generator(0, "relearning set", 0, *map(str, self.forget.classes))
        forgotten, others = _shuffled(named, draws), _shuffled(kept, draws)
        num_forget = min(RELEARN_FORGET, len(forgotten) // 2)
        if not num_forget or not len(others):
            return None
        chosen = torch.cat([forgotten[:num_forget], others[:RELEARN_OTHERS]])
        measured = forgotten[num_forget:]

        def forget_accuracy(trained: nn.Module) -> float:
            return self._scores(trained, test, measured).accuracy() or 0.0

        torch.set_num_threads(1)
        with repeatable(self.device):
            curve = relearning_curve(
                model,
                self._split_picker(test, chosen),
                len(chosen),
                forget_accuracy,
                steps=RELEARN_STEPS,
                lr=RELEARN_LR,
                batch_size=RELEARN_BATCH,
                generator=draws,
            )
        return {
            "steps": list(RELEARN_STEPS),
            "forget_accuracy": curve,
            "mean": sum(curve) / len(curve),
        }

    def picker(self, index: Tensor) -> Pick:
        """Return what picks inputs and labels of the test part, by positions in `index`."""
        if self.data is None:
            raise ValueError("data must be given, got None")
        return self._split_picker(self.data.test, index)

    def _split_picker(self, split: Examples, index: Tensor | None = None) -> Pick:
        data, task = self.data, self.spec.task
        if data is None:
            raise ValueError("data must be given, got None")

        def pick(batch: Tensor) -> tuple[Tensor, Tensor]:
            chosen = batch if index is None else index[batch]
            inputs, wanted = split.take(chosen).to(self.device), split.wanted(chosen)
            return task.prepare(inputs, data), wanted.to(self.device)

        return pick

    def _numbers(self, scores: Scores) -> dict[str, Any]:
        named = self.forget.classes if self.forget.level == "class" else ()
        return {
            "forget_accuracy": scores.accuracy(named) if named else None,
            "retain_accuracy": scores.accuracy(self.retained),
            "loss": scores.mean_loss(),
            "per_class_accuracy": [scores.accuracy([c]) for c in range(self.spec.num_classes)],
        }


def heldout_scores(sides: Sides, *, decides: bool) -> Heldout:
    """Return the clients' scores together, by client, and their medians."""
    sites = tuple(
        SiteScores(
            name,
            forget.accuracy(),
            retain.accuracy(),
            int(forget.count.sum()),
            int(retain.count.sum()),
        )
        for name, (forget, retain) in sides.sites.items()
    )
    both = [forget + retain for forget, retain in sides.sites.values()]
    classes = range(len(sides.forget.count))
    return Heldout(
        sides.forget.accuracy(),
        sides.retain.accuracy(),
        _median([site.forget_accuracy for site in sites]),
        _median([site.retain_accuracy for site in sites]),
        tuple(_median([scores.accuracy([c]) for scores in both]) for c in classes),
        sites,
        decides,
    )


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _shuffled(mask: Tensor, draws: torch.Generator) -> Tensor:
    positions = mask.nonzero().flatten()
    return positions[torch.randperm(len(positions), generator=draws)]
