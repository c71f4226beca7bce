"""What is learned: a network, its data, and optionally how inputs are prepared and outputs judged.

A task of one's own is a class in one Python file:

    import torch
    from torch import nn
    from client.task import Data, Examples, Task

    class Heart(Task):
        input_shape = (13,)
        class_names = ("healthy", "ill")
        hidden: int = 32                      # an option: --task-options hidden=64

        def network(self) -> nn.Module:
            return nn.Sequential(nn.Linear(13, self.hidden), nn.ReLU(), nn.Linear(self.hidden, 2))

        def data(self, source: str) -> Data:
            table = numpy.load(source)
            return Data(Examples(table["x"], table["y"]))

and is used with `--task heart.py:Heart`. The built-in images are a task like it
(`client.learning.images`).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from client.data import datasets
from client.data.splits import Data, Examples
from client.errors import BadSetting, DataError

__all__ = ["Data", "Examples", "Task"]

Value = bool | int | float | str
Judge: TypeAlias = Callable[[Tensor, Tensor], Tensor]
KINDS: Final[Mapping[Any, type]] = {
    **{kind: kind for kind in (bool, int, float, str)},
    **{kind.__name__: kind for kind in (bool, int, float, str)},  # `from __future__ import ...`
}


class Task:
    """What is learned. Its annotated values are its options, which a training may change.

    Attributes:
        input_shape: Of one example, as `data` gives it.
        input_dtype: Of the examples.
        class_names: Names of the classes, in the order of their numbers; none where a loss of its
            own needs no classes.
    """

    input_shape: ClassVar[tuple[int, ...] | None] = None
    input_dtype: ClassVar[torch.dtype] = torch.float32
    class_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, **options: Value) -> None:
        """Take the values of its options.

        Raises:
            BadSetting: If one is unknown, or its value of another type.
        """
        known = self.known_options()
        for name, value in options.items():
            if name not in known:
                raise BadSetting(
                    f"option of task {self.title} must be one of "
                    f"{', '.join(known) or 'none'}, got {name!r}"
                )
            kind = type(known[name])
            if kind is float and type(value) is int:
                value = float(value)
            if type(value) is not kind:
                raise BadSetting(
                    f"option {name} of task {self.title} must be {kind.__name__}, got {value!r}"
                )
            setattr(self, name, value)

    # ---- what a task must say --------------------------------------------------------------------

    def network(self) -> nn.Module:
        """Return a new network, from prepared inputs `(B, ...)` to outputs `(B, K)`.

        It may draw its weights from torch's generator, which is seeded before. Parameters without
        gradient stay where they are, and must be the same everywhere.
        """
        raise NotImplementedError(f"task {self.title} must have a method `network`")

    def data(self, source: str) -> Data:
        """Return a data set: a site's own, or the one that simulated clients share.

        Args:
            source: What the site's operator, or `--dataset`, names; empty where nobody names
                anything.

        Raises:
            BadSetting: If nobody names anything: a task without a `data` of its own reads what
                `--dataset` can name.
        """
        if not source:
            raise BadSetting(
                f"task {self.title} must have a method `data`, or a data set that is named, got "
                "neither; write one, or name data with --dataset"
            )
        return datasets.load(source)

    # ---- what it may say -------------------------------------------------------------------------

    def transform(self, inputs: Tensor) -> Tensor:
        """Return what the network sees of examples `(B, ...)`, on their device."""
        return inputs

    def augment(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Return transformed inputs, changed at random; asked in training alone.

        Args:
            inputs: `(B, ...)`, as `transform` returned them.
            generator: On the CPU. The only source of randomness.
        """
        return inputs

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each example, `(B,)`; without one of its own, cross-entropy."""
        return cross_entropy(outputs, targets, reduction="none")

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return how right each output is, `(B,)` in [0, 1]; else whether the class is right."""
        return (outputs.argmax(dim=1) == targets).float()

    def check(self) -> None:
        """Check what single options cannot say, before anything is built.

        Raises:
            BadSetting: If they do not go together.
        """

    # ---- what Efface asks ------------------------------------------------------------------------

    @classmethod
    def known_options(cls) -> dict[str, Value]:
        """Return the options' defaults by name: class values annotated bool, int, float or str."""
        found: dict[str, Value] = {}
        for parent in reversed(cls.__mro__):
            if not issubclass(parent, Task) or parent is Task:
                continue
            for name, annotation in vars(parent).get("__annotations__", {}).items():
                kind = KINDS.get(annotation) if annotation.__hash__ else None
                if kind is not None and not name.startswith("_"):
                    found[name] = kind(getattr(cls, name, kind()))
        return found

    @property
    def options(self) -> dict[str, Value]:
        """The values of all options by name."""
        return {name: getattr(self, name) for name in self.known_options()}

    @property
    def num_classes(self) -> int:
        """K; 1 where examples have no classes."""
        return max(1, len(self.class_names))

    @property
    def is_own(self) -> bool:
        """Whether it is a user's, not the built-in one."""
        return True

    @property
    def own_loss(self) -> bool:
        """Whether it is judged by more than which class is the right one."""
        return type(self).loss is not Task.loss or type(self).score is not Task.score

    def load(self, source: str, data_dir: Path | None = None) -> Data:
        """Return the data set that `data` reads, checked.

        Args:
            source: As in `data`.
            data_dir: Folder of the published sets' files, for the built-in task.

        Raises:
            BadSetting: If the source is wrong.
            DataError: If the data cannot be read, or are not what the task says they are.
        """
        return self.checked(self.data(source))

    def checked(self, data: Data) -> Data:
        """Return data that are what the task says, with its classes' names.

        Raises:
            DataError: If they are not.
        """
        if not isinstance(data, Data):
            raise DataError(f"data of task {self.title} must be a Data, got {type(data).__name__}")
        for part in (data.train, data.test, data.validation):
            if part is None or not len(part):
                continue
            shape, dtype = part.input_shape, part.input_dtype
            if self.input_shape is not None and shape != tuple(self.input_shape):
                raise DataError(
                    f"examples must have shape {tuple(self.input_shape)}, as task "
                    f"{type(self).__name__} says, got {shape}"
                )
            if self.input_shape is not None and dtype != self.input_dtype:
                raise DataError(
                    f"examples must be {self.input_dtype}, as task {self.title} says, got {dtype}; "
                    "convert them in `data`, or set input_dtype"
                )
            lowest, highest = int(part.labels.min()), int(part.labels.max())
            if self.class_names and not 0 <= lowest <= highest < self.num_classes:
                wrong = lowest if lowest < 0 else highest
                raise DataError(
                    f"labels must lie in [0, {self.num_classes}), got {wrong}; count from 0"
                )
        named = data.named(self.class_names) if self.class_names else data
        return replace(named, notes=(*named.notes, *_not_finite(data)))

    def fitted(self, data: Data | None) -> Self:
        """Return the task with what it leaves to the data: here, nothing.

        Args:
            data: The coordinator's; None where it has none.

        Raises:
            BadSetting: If the task does not say what examples and classes it is for.
        """
        if self.input_shape is None:
            raise BadSetting(
                f"task {self.title} must have an input_shape, got none; add to the class, for "
                "instance, input_shape = (1, 28, 28)"
            )
        if len(self.class_names) < 2 and not self.own_loss:
            raise BadSetting(
                f"task {self.title} must have class_names, or a loss of its own, got "
                f"{len(self.class_names)} names; add to the class, for instance, "
                'class_names = ("healthy", "ill")'
            )
        return self

    def prepare(self, inputs: Tensor, data: Data) -> Tensor:
        """Return what the network sees of examples `(B, ...)` of a data set."""
        return self.transform(inputs)

    def example(self, count: int) -> Tensor:
        """Return prepared inputs of the right form, `(count, ...)`: of examples that are all 0."""
        shape = (count, *(self.input_shape or ()))
        return self.transform(torch.zeros(shape, dtype=self.input_dtype))

    @property
    def title(self) -> str:
        """What a person calls it."""
        return type(self).__name__

    def text(self) -> str:
        """Return what names the model of this task in stores and logs."""
        return f"{self.title}({canonical(self.options)}, num_classes={self.num_classes})"


def _not_finite(data: Data) -> list[str]:
    """Return what is to be said of numbers that no network can learn from, unless mended.

    Examples that are read from the disk are not looked at.
    """
    found = []
    for name, part in (("train", data.train), ("test", data.test)):
        if isinstance(part.inputs, Tensor) and part.inputs.is_floating_point():
            broken = ~part.inputs.isfinite().flatten(1).all(dim=1)
            if count := int(broken.sum()):
                found.append(
                    f"{count:,} of {len(part):,} {name} examples hold NaN or infinite numbers, the "
                    f"first at {int(broken.nonzero()[0])}: fill them in `data` or `transform`"
                )
    return found


def judge(task: Task, what: Literal["loss", "score"]) -> Judge | None:
    """Return a task's own loss or score, which refuses what is not one number an example.

    Args:
        task: What is learned.
        what: Which of the two.

    Returns:
        A function from outputs `(B, ...)` and targets `(B, ...)` to `(B,)`, which raises
        `BadSetting` if the task's gives anything else. None where the task has none of its own.
    """
    if not task.own_loss:
        return None
    own = task.loss if what == "loss" else task.score

    def judged(outputs: Tensor, targets: Tensor) -> Tensor:
        found: Any = own(outputs, targets)
        if not isinstance(found, Tensor) or found.shape != (len(targets),):
            form = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise BadSetting(
                f"{what} of task {task.title} must give one number an example, ({len(targets)},), "
                f"got {form}; leave the examples' axis as it is (reduction='none'), and average "
                "over the others"
            )
        return found

    return judged


def canonical(options: Mapping[str, Value]) -> str:
    """Return options as JSON, always in the same form."""
    return json.dumps(dict(options), sort_keys=True, separators=(",", ":"))


def option_values(known: Mapping[str, Value], texts: Sequence[str]) -> dict[str, Value]:
    """Return options from texts of the form NAME=VALUE.

    Args:
        known: All options' defaults, which say their types.
        texts: As the command line gives them.

    Raises:
        BadSetting: If one has another form, an unknown name, or a value of another type.
    """
    found: dict[str, Value] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise BadSetting(f"task-options must be NAME=VALUE, got {text!r}")
        if name not in known:
            if not known:
                raise BadSetting(
                    f"task-options must be left out with a task that has none, got {name!r}; "
                    f"values with a type are options, as {name}: int = 32 in the class"
                )
            raise BadSetting(f"option of the task must be one of {', '.join(known)}, got {name!r}")
        kind = type(known[name])
        try:
            found[name] = _boolean(value) if kind is bool else kind(value.strip())
        except ValueError as error:
            raise BadSetting(f"{name} must be {kind.__name__}, got {value.strip()!r}") from error
    return found


def _boolean(text: str) -> bool:
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.strip().lower() not in words:
        raise ValueError(text)
    return words[text.strip().lower()]
