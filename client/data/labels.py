"""Labels as they come: numbers, names, one-hot rows. What is not one class an image is refused."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from client.data.class_names import checked_names, natural_order
from client.data.splits import MAX_CLASSES
from client.errors import DataError

Array = np.ndarray[Any, Any]
OWN_TASK: Final = "write a task of your own (--task)"


@dataclass(frozen=True)
class Understood:
    """Labels as numbers from 0 up.

    Attributes:
        labels: Of each part, integers, (N,) or as they came if `make_split` will refuse them.
        num_classes: What the labels' form says; None if it does not.
        names: Of the classes, if the labels are names.
        notes: In words, what was done.
    """

    labels: dict[str, Array]
    num_classes: int | None = None
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def understood(
    parts: Mapping[str, Array], *, names: tuple[str, ...], named: bool, where: str
) -> Understood:
    """Return the labels of all parts as numbers.

    Args:
        parts: Labels of each part; one is "train".
        names: The classes' names, if the source has them.
        named: Whether each value that occurs in training is a class, called by the value.
        where: Opens each message.

    Raises:
        DataError: If an image has several classes, or a name is not that of a class.
    """
    flat = {
        part: labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
        for part, labels in parts.items()
    }
    train = flat["train"]
    if train.ndim == 2:
        return _one_hot(flat, where)
    if train.dtype.kind in "US":
        return _named({part: _texts(labels) for part, labels in flat.items()}, names, where)
    notes: tuple[str, ...] = ()
    if train.dtype.kind == "b":
        notes = ("labels are true or false: false is class 0, true class 1",)
        flat = {part: v.astype(np.int64) if v.dtype.kind == "b" else v for part, v in flat.items()}
        return Understood(flat, 2, notes=notes)
    if train.dtype.kind == "f" and all(map(_whole, flat.values())):
        flat = {part: labels.astype(np.int64) for part, labels in flat.items()}
        notes = ("labels are whole numbers stored as floats, and were read as numbers",)
    if named and train.dtype.kind in "iu" and train.ndim == 1:
        return _named({part: _texts(labels) for part, labels in flat.items()}, (), where)
    return Understood(flat, notes=notes)


def check_every_class(labels: Array, num_classes: int, *, where: str) -> None:
    """Refuse training labels that skip a number, where nothing says how many classes there are.

    Args:
        labels: Integers from 0 up, (N,).
        num_classes: 1 + the largest of them.
        where: Opens the message.

    Raises:
        DataError: With what to do. Labels from 1 up would become a class more than there are, of
            which nobody holds an image.
    """
    present = np.unique(labels)
    if len(present) == num_classes:
        return
    missing = sorted(set(range(num_classes)) - set(present.tolist()))
    listed = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
    raise DataError(
        f"{where}: train_labels must be 0 to {num_classes - 1} with none left out, got none of "
        f"{listed}; if this site lacks these classes, store num_classes={num_classes} (or what "
        "all sites have) in the file; if the numbers are only names, as where they count from 1, "
        "add ?labels=named"
    )


def _one_hot(flat: Mapping[str, Array], where: str) -> Understood:
    """Return the position of the one in each row."""
    for part, labels in flat.items():
        if labels.ndim != 2 or labels.shape[1] != flat["train"].shape[1]:
            return Understood(dict(flat))  # `make_split` says what its shape must be
        if labels.dtype.kind not in "biuf" or not bool(np.isin(labels, (0, 1)).all()):
            return Understood(dict(flat))
        ones = labels.sum(axis=1, dtype=np.int64)
        if num_wrong := int((ones != 1).sum()):
            raise DataError(
                f"{where}, {part}: labels must be one class an image, got none or several for "
                f"{num_wrong} of {len(labels)} images; to learn several at once, {OWN_TASK}"
            )
    num_classes = int(flat["train"].shape[1])
    return Understood(
        {part: labels.argmax(axis=1).astype(np.int64) for part, labels in flat.items()},
        num_classes,
        notes=(f"labels are one-hot, and were read as the numbers 0 to {num_classes - 1}",),
    )


def _named(flat: dict[str, Array], names: tuple[str, ...], where: str) -> Understood:
    """Return each text's place among the names, or among the texts that occur in training."""
    for part, labels in flat.items():
        if labels.ndim != 1 or labels.dtype.kind != "U":
            raise DataError(f"{where}, {part}: labels must be texts as in training, got others")
    found = names or tuple(sorted(set(flat["train"].tolist()), key=natural_order))
    if len(found) > MAX_CLASSES:
        raise DataError(
            f"{where}: labels must be of at most {MAX_CLASSES} classes, got {len(found)} texts"
        )
    names = checked_names(found, where=where)
    place = {name: number for number, name in enumerate(found)}
    for part, labels in flat.items():
        unknown = sorted(set(labels.tolist()) - set(place))
        if unknown:
            raise DataError(
                f"{where}, {part}: labels must be those of training ({', '.join(found[:10])}), got "
                f"{unknown[0]!r}; store class_names if the training part lacks a class"
            )
    shown = ", ".join(f"{i} {name}" for i, name in enumerate(names[:10]))
    return Understood(
        {part: np.array([place[t] for t in v.tolist()], np.int64) for part, v in flat.items()},
        len(names),
        names,
        (
            f"labels are names, numbered in their natural order: {shown}"
            + (", ..." if len(names) > 10 else ""),
        ),
    )


def _texts(labels: Array) -> Array:
    if labels.dtype.kind == "S":
        return np.char.decode(labels, "utf-8", "replace")
    return labels.astype(str) if labels.dtype.kind in "iu" else labels


def _whole(labels: Array) -> bool:
    return labels.dtype.kind == "f" and bool((np.isfinite(labels) & (labels % 1 == 0)).all())
