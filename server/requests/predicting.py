"""What a version says of examples: a class and a probability each."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from client.data.source import TABLE, is_own, parse
from client.data.whole import whole
from client.errors import BadSetting, ImageSize
from client.task import Task

BATCH: Final = 256
PARTS: Final = ("test", "train")
HEAD: Final = ("example", "class", "probability")


@dataclass(frozen=True)
class Predictions:
    """What a network says of the examples of one part of a data set, in their order.

    Attributes:
        part: `test` or `train`.
        labels: Class of each, by number.
        names: Class of each, by name.
        probabilities: Of that class, by the network's softmax, in [0, 1].
        notes: What a person should know of how the examples were read.
    """

    part: str
    labels: tuple[int, ...]
    names: tuple[str, ...]
    probabilities: tuple[float, ...]
    notes: tuple[str, ...] = ()

    def csv(self) -> str:
        """Return a head and a line for each example: its position from 0, class, probability."""
        text = StringIO()
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(HEAD)
        for position, (name, share) in enumerate(zip(self.names, self.probabilities, strict=True)):
            lines.writerow([position, name, f"{share:.6f}"])
        return text.getvalue()


def predict(
    network: nn.Module,
    task: Task,
    facts: Mapping[str, Any],
    source: str,
    data_dir: Path | None = None,
    *,
    part: str = "",
) -> Predictions:
    """Return what a network says of the examples of a data set.

    Images are normalised as the version was trained; by their own mean and deviation, which a note
    says, where every site did so.

    Args:
        network: In evaluation mode, on the CPU.
        task: What the version has learned.
        facts: Of its version (`weights.facts`).
        source: A data set, in the same forms as `--dataset`.
        data_dir: Folder of the published sets.
        part: `test` or `train`; the test part if empty, or train where there is no other.

    Raises:
        BadSetting, DataError: If there is no such data set or part, or the task has no classes.
        ImageSize: If its images have another shape than the network takes.
    """
    if part and part not in PARTS:
        raise BadSetting(f"part must be one of {', '.join(PARTS)}, got {part!r}")
    if task.own_loss:
        raise BadSetting(
            f"version must tell classes apart, got {facts['version']}, whose task {task.title} has "
            "a loss of its own; use its network: efface export"
        )
    if is_own(source) and source.startswith(f"{TABLE}:") and "columns" not in parse(source).value:
        raise BadSetting(
            f"table must name the columns file of {facts['version']}'s training, got none: by its "
            "own rows it would be scaled otherwise; make one of the table trained on (`efface data "
            "columns TABLE -o columns.toml`) and add &columns=columns.toml"
        )
    data = whole(task, source, data_dir)
    chosen = part or ("test" if len(data.test) else "train")
    split = data.test if chosen == "test" else data.train
    if not len(split):
        raise BadSetting(f"part must hold examples, got none in {chosen} of {source}")
    if split.input_shape != task.input_shape:
        raise ImageSize(
            f"examples must be {_shape(task.input_shape)} as {facts['version']} takes them, got "
            f"{_shape(split.input_shape)} in {source}"
        )
    notes = list(data.notes)
    if not part and chosen == "train":
        notes.append(f"{source} has no test part: these are its training examples")
    mean, std = facts["mean"], facts["std"]
    if mean and std:
        data = replace(data, mean=tuple(mean), std=tuple(std))
    elif data.mean:
        notes.append(
            f"normalised by their own mean and deviation, for {facts['version']} has none to go by"
        )
    shares, labels = [], []
    with torch.inference_mode():
        for batch in torch.arange(len(split)).split(BATCH):
            inputs = task.prepare(split.take(batch), data)
            outputs = network(inputs).softmax(dim=1).max(dim=1)
            shares.append(outputs.values)
            labels.append(outputs.indices)
    found = torch.cat(labels).tolist()
    names = tuple(facts["class_names"][label] for label in found)
    return Predictions(chosen, tuple(found), names, tuple(torch.cat(shares).tolist()), tuple(notes))


def _shape(sizes: Any) -> str:
    return "x".join(map(str, sizes))
