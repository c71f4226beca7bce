"""Images, labels and natural ids in memory, and the rules that they keep.

Shapes: N images, C channels, H rows, W columns.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from client.data.class_names import numbers
from client.errors import DataError

# An id column given as labels by mistake must not become a linear layer with a billion outputs.
MAX_CLASSES = 10_000
READERS = 4  # threads that read examples which are not in memory


Inputs = Tensor | Dataset[Any]
"""Examples in memory, or a map-style data set that reads one at a time."""


@dataclass(frozen=True)
class Examples:
    """One part of a data set. The tensors may be shared: do not change them in place.

    Attributes:
        inputs: (N, ...): a tensor of any type, or a map-style data set that reads one at a
            time from the disk. Of the built-in task uint8, (N, C, H, W), C 1 or 3, H equal to W.
        labels: int64, (N,), in [0, num_classes).
        ids: int64, (N,): the patient or device that each example comes from; None if not known.
        targets: (N, ...): what a loss of the task's own compares outputs with; None for the labels.
    """

    inputs: Inputs
    labels: Tensor
    ids: Tensor | None = None
    targets: Tensor | None = None

    def __post_init__(self) -> None:
        """Take NumPy arrays, too.

        Raises:
            DataError: If the lengths differ, or labels are no integers.
        """
        for name in ("inputs", "labels", "ids", "targets"):
            value = getattr(self, name)
            if isinstance(value, np.ndarray | list | tuple):
                object.__setattr__(self, name, _tensor(name, np.asarray(value)))
        labels = self.labels
        if labels.dim() == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if labels.dim() != 1 or labels.is_floating_point() or labels.is_complex():
            raise DataError(
                f"labels must be integers (N,), got {labels.dtype} {tuple(labels.shape)}; other "
                "targets go into `targets`, beside labels that are all 0"
            )
        object.__setattr__(self, "labels", labels.to(torch.int64))
        for name in ("inputs", "ids", "targets"):
            value = getattr(self, name)
            if value is not None and len(value) != len(labels):
                raise DataError(f"{name} must be {len(labels)}, one a label, got {len(value)}")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one example."""
        if isinstance(self.inputs, Tensor):
            return tuple(self.inputs.shape[1:])
        return tuple(self.take(torch.zeros(1, dtype=torch.int64)).shape[1:])

    @property
    def input_dtype(self) -> torch.dtype:
        """Of the examples."""
        if isinstance(self.inputs, Tensor):
            return self.inputs.dtype
        return self.take(torch.zeros(1, dtype=torch.int64)).dtype

    def take(self, index: Tensor) -> Tensor:
        """Return some examples `(b, ...)`, from memory or read now.

        Args:
            index: Positions, int64 `(b,)`.
        """
        if isinstance(self.inputs, Tensor):
            return self.inputs[index]
        read = self.inputs.__getitem__
        with ThreadPoolExecutor(READERS) as pool:  # files are read and decoded outside of Python
            found = list(pool.map(read, index.tolist()))
        return torch.stack([torch.as_tensor(np.asarray(one)) for one in found])

    @property
    def in_memory(self) -> Tensor:
        """All examples, `(N, ...)`; those that are read from the disk are read now."""
        if isinstance(self.inputs, Tensor):
            return self.inputs
        return self.take(torch.arange(len(self)))

    def subset(self, index: Tensor) -> "Examples":
        """Return some of the examples, in memory."""
        rest = {
            name: None if (value := getattr(self, name)) is None else value[index]
            for name in ("ids", "targets")
        }
        return Examples(self.take(index), self.labels[index], **rest)

    def wanted(self, index: Tensor) -> Tensor:
        """Return what a loss compares outputs with, `(b, ...)`: targets, or else labels."""
        return (self.labels if self.targets is None else self.targets)[index]


def _tensor(name: str, given: Any) -> Tensor:
    """Return an array as a tensor.

    Raises:
        DataError: If it holds no numbers.
    """
    if given.dtype.kind in "biufc":
        return torch.as_tensor(given)
    what = "texts" if given.dtype.kind in "SU" else given.dtype
    number = f"numpy.unique({name}, return_inverse=True)[1] numbers them"
    raise DataError(
        f"{name} must be numbers, got {what}; "
        + (number if name in ("labels", "ids") else "convert them, as by numpy.stack, or encode")
    )


@dataclass(frozen=True)
class Data:
    """A data set's parts and the normalisation that all of them share.

    Attributes:
        train: Never empty.
        test: Empty where the source has no test part.
        validation: What a site holds out; None where it is drawn from `train`.
        name: As given to `load`.
        num_classes: Labels are in [0, num_classes).
        mean: Of images: mean of pixels / 255, one a channel.
        std: Of images: standard deviation of pixels / 255, one a channel. Positive.
        class_names: Name of class k at index k; its number where the source has no names.
        notes: What a person should know of how the source was read.
        fits: Models whose task found that these data are its own: a process that answers a
            thousand messages goes through all examples once.
    """

    train: Examples
    test: Examples = None  # type: ignore[assignment]  # filled below
    validation: Examples | None = None
    name: str = "data"
    num_classes: int = 0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    fits: set[Any] = field(default_factory=set, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.test is None:
            object.__setattr__(self, "test", empty_like(self.train))
        if not self.num_classes:
            highest = int(self.train.labels.max()) if len(self.train) else 0
            object.__setattr__(self, "num_classes", len(self.class_names) or highest + 1)
        if not self.class_names:
            object.__setattr__(self, "class_names", numbers(self.num_classes))

    def named(self, names: Sequence[str]) -> "Data":
        """Return the same data with classes of these names, and no others."""
        return replace(self, class_names=tuple(names), num_classes=len(names))


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return (images / 255 - mean) / std as float32, on the device of `images`.

    Args:
        images: uint8, (N, C, H, W). Not changed.
        mean: One a channel, of pixels / 255.
        std: One a channel, of pixels / 255. Positive.

    Raises:
        DataError: If `images` is not uint8, or has another number of channels than `mean`.
    """
    if images.dtype != torch.uint8:
        raise DataError(f"images must be uint8, got {images.dtype}")
    if not images.dim() == 4 or not images.shape[1] == len(mean) == len(std):
        raise DataError(
            f"images must have shape (N, {len(mean)}, H, W) for {len(mean)} means and {len(std)} "
            f"standard deviations, got {tuple(images.shape)}"
        )
    means = torch.tensor(mean, device=images.device).view(-1, 1, 1)
    stds = torch.tensor(std, device=images.device).view(-1, 1, 1)
    # In place after the first copy: one float copy of the batch, not three.
    return images.to(torch.float32).div_(255).sub_(means).div_(stds)


def pixel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of `images` / 255, one a channel.

    Args:
        images: uint8, (N, C, H, W), not empty.

    Returns:
        Exact up to float64 rounding: taken from a count of the 256 grey values. A constant channel
        gets one grey step (1/255) as standard deviation, so that it can be divided by.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in range(images.shape[1]):
        # Some images at a time: a channel of all of them would be copied.
        each = (
            torch.bincount(some[:, channel].flatten(), minlength=256) for some in images.split(1024)
        )
        counts = torch.stack(list(each)).sum(0).to(torch.float64)
        mean = (counts @ values) / counts.sum()
        variance = (counts @ (values - mean) ** 2) / counts.sum()
        means.append(float(mean))
        stds.append(max(float(variance.sqrt()), 1 / 255))
    return tuple(means), tuple(stds)


def make_split(
    images: "np.ndarray[Any, Any]",
    labels: "np.ndarray[Any, Any]",
    ids: "np.ndarray[Any, Any] | None",
    *,
    where: str,
) -> Examples:
    """Return arrays as a Examples, after checking every rule but the labels' upper bound.

    Args:
        images: uint8, (N, H, W) or (N, H, W, C), C 1 or 3.
        labels: Integers, (N,) or (N, 1), not negative.
        ids: Integers, (N,) or (N, 1), or None.
        where: File and part, to open each message.

    Raises:
        DataError: If a rule is broken.
    """
    if images.dtype != np.uint8:
        found = _describe(images)
        raise DataError(
            f"{where}: images must be uint8 (0 to 255), got {found}; scale and round them first"
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape[1:]:
        raise DataError(
            f"{where}: images must have shape (N, H, W), (N, H, W, 1) or (N, H, W, 3), "
            f"got {images.shape}"
        )
    if images.shape[1] != images.shape[2]:
        raise DataError(
            f"{where}: images must be square, got {images.shape[1]}x{images.shape[2]}; "
            "crop, pad or resize them first"
        )
    return Examples(
        inputs=torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))),
        labels=_column(labels, len(images), where, "labels"),
        ids=None if ids is None else _column(ids, len(images), where, "ids", smallest=None),
    )


def check_labels(split: Examples, num_classes: int, *, where: str, remedy: str = "") -> None:
    """Refuse labels that are not in [0, num_classes).

    Raises:
        DataError: Names the first label that is out of range and its position.
    """
    if len(split) == 0:
        return
    wrong = (split.labels < 0) | (split.labels >= num_classes)
    if bool(wrong.any()):
        position = int(wrong.nonzero()[0])
        raise DataError(
            f"{where}: labels must be in [0, {num_classes}), got {int(split.labels[position])} "
            f"at position {position}{remedy}"
        )


def empty_like(split: Examples) -> Examples:
    """Return a Examples of no examples, of the form of those of `split`."""
    if not isinstance(split.inputs, Tensor):
        return Examples(
            torch.empty((0, *split.input_shape), dtype=split.input_dtype), split.labels[:0]
        )
    return Examples(split.inputs[:0], split.labels[:0])


def _column(
    values: "np.ndarray[Any, Any]",
    length: int,
    where: str,
    what: str,
    smallest: int | None = 0,
) -> Tensor:
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.shape != (length,):
        raise DataError(
            f"{where}: {what} must have shape ({length},) or ({length}, 1), one an image, "
            f"got {values.shape}"
        )
    if values.dtype.kind not in "iu" or values.dtype == np.uint64:
        raise DataError(f"{where}: {what} must be integers, got {_describe(values)}")
    if smallest is not None and length and int(values.min()) < smallest:
        raise DataError(f"{where}: {what} must be at least {smallest}, got {int(values.min())}")
    return torch.from_numpy(values.astype(np.int64))


def _describe(values: "np.ndarray[Any, Any]") -> str:
    if values.dtype.kind == "f":
        num_nan = int(np.isnan(values).sum())
        if num_nan:
            return f"{values.dtype} with {num_nan} NaN values"
    return str(values.dtype)
