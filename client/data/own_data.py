"""Read a site's own images from one .npz file, and make a data set of its own parts."""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from client.data.class_names import checked_names
from client.data.labels import check_every_class, understood
from client.data.npz_images import eight_bits
from client.data.source import ImageReading
from client.data.splits import (
    MAX_CLASSES,
    Data,
    Examples,
    check_labels,
    empty_like,
    make_split,
    pixel_statistics,
)
from client.errors import DataError, DataKeys, DataMissing

PARTS = ("train", "val", "test")


def read_npz(path: Path, reading: ImageReading | None = None) -> Data:
    """Return the data set in one NumPy archive.

    Keys: `train_images`, `train_labels`; the same with `val_` and `test_`, each pair optional;
    `train_ids` (also `val_ids`, `test_ids`), optional: the patient or device of each image;
    `num_classes`, optional, for a site that lacks the highest class; `class_names`, optional, one
    text a class. Other keys are not read.

    Images are (N, H, W), (N, H, W, 1) or (N, H, W, 3): three of the last axis are red, green and
    blue. Those that are not uint8 are scaled (`client.data.npz_images`).
    Labels are integers from 0 up, (N,) or (N, 1), or what `client.data.labels` makes integers of;
    ids are integers of the same shape.

    Returns:
        `num_classes` is the key's value, else what the labels' form or the names say, else 1 + the
        highest training label, none of which may be left out then. Mean and standard deviation are
        those of the training images. Without `test_images` the test part is empty.

    Raises:
        DataError: If the file is missing, truncated, needs pickle, or breaks a rule above.
    """
    reading = reading or ImageReading()
    arrays, keys = _read_archive(path)
    present = []
    for part in PARTS:
        held = [key for key in (f"{part}_images", f"{part}_labels") if key in arrays]
        if not held and part != "train":
            continue
        if len(held) < 2:
            raise DataKeys(
                f"{path} must hold {part}_images and {part}_labels, got keys "
                f"{', '.join(sorted(keys)) or 'none'}"
            )
        present.append(part)
    names: tuple[str, ...] = ()
    if "class_names" in arrays:
        names = checked_names(arrays["class_names"].reshape(-1).tolist(), where=str(path))
    labels = understood(
        {part: arrays.pop(f"{part}_labels") for part in present},
        names=names,
        named=reading.named,
        where=str(path),
    )
    names = labels.names or names
    images, notes = eight_bits(
        {part: arrays.pop(f"{part}_images") for part in present}, reading, where=str(path)
    )
    parts: dict[str, Examples] = {}
    for part in present:
        of_part, kept = images[part], labels.labels[part]
        ids = arrays.get(f"{part}_ids")
        if of_part.kept is not None and kept.shape[:1] == of_part.kept.shape:
            kept = kept[of_part.kept]
            ids = ids if ids is None or len(ids) != len(of_part.kept) else ids[of_part.kept]
        parts[part] = make_split(of_part.pixels, kept, ids, where=f"{path}, {part}")
    train = parts["train"]
    if len(train) == 0:
        raise DataError(f"{path}: train_images must hold at least one image, got none")
    highest = int(train.labels.max()) + 1
    if "num_classes" in arrays:
        num_classes = _as_count(arrays["num_classes"], path)
    else:
        num_classes = labels.num_classes or max(highest, len(names))
    if num_classes > MAX_CLASSES:
        raise DataError(
            f"{path}: train_labels must be below {MAX_CLASSES}, got {num_classes - 1}; "
            "number the classes from 0"
        )
    if not (names or labels.num_classes or "num_classes" in arrays):
        check_every_class(train.labels.numpy(), num_classes, where=str(path))
    for part, split in parts.items():
        check_labels(
            split,
            num_classes,
            where=f"{path}, {part}",
            remedy="; store num_classes in the file if the training part lacks a class",
        )
    if names and len(names) != num_classes:
        raise DataError(
            f"{path}: class_names must hold one name for each of {num_classes} classes, got "
            f"{len(names)}; store num_classes too if the training part lacks a class"
        )
    said = (*labels.notes, *notes, *_constant(parts))
    return assemble(f"npz:{path}", parts, num_classes, str(path), names, said)


def _constant(parts: Mapping[str, Examples]) -> list[str]:
    """Return in words how many images are of one value all over, and where the first is."""
    found = []
    for part, split in parts.items():
        pixels = split.in_memory.flatten(1)
        found += [(part, int(i)) for i in (pixels.amin(1) == pixels.amax(1)).nonzero()]
    if not found:
        return []
    part, position = found[0]
    return [same_all_over(len(found), f"that at position {position} of {part}_images")]


def same_all_over(count: int, first: str) -> str:
    """Return in words that images show nothing."""
    return (
        f"{count} {'image is' if count == 1 else 'images are'} of one value all over: {first}"
        + (", ..." if count > 1 else "")
    )


def assemble(
    name: str,
    parts: dict[str, Examples],
    num_classes: int,
    where: str,
    class_names: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
) -> Data:
    train = parts["train"]
    for part, split in parts.items():
        if split.in_memory.shape[1:] != train.in_memory.shape[1:]:
            raise DataError(
                f"{where}, {part}: images must have the training images' shape (C, H, W) "
                f"{tuple(train.in_memory.shape[1:])}, got {tuple(split.in_memory.shape[1:])}"
            )
    if num_classes < 2:
        raise DataError(
            f"{where} must hold at least 2 classes, got {num_classes}; if this site has one of "
            "several classes, say so: num_classes in the .npz file, or empty class folders"
        )
    mean, std = pixel_statistics(train.in_memory)
    return Data(
        name=name,
        train=train,
        test=parts.get("test", empty_like(train)),
        validation=parts.get("val"),
        num_classes=num_classes,
        mean=mean,
        std=std,
        class_names=class_names,
        notes=notes,
    )


def _read_archive(path: Path) -> tuple[dict[str, "np.ndarray[Any, Any]"], list[str]]:
    """Return the arrays that have a meaning here, and the names of all."""
    if not path.is_file():
        raise DataMissing(f"npz file must exist, got {path}")
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path} must be a complete .npz archive, got a truncated or other file")
    wanted = {f"{part}_{kind}" for part in PARTS for kind in ("images", "labels", "ids")}
    try:
        # allow_pickle=False: an object array could run code while it is read.
        with np.load(path, allow_pickle=False) as archive:
            known = wanted | {"num_classes", "class_names"}
            return {key: archive[key] for key in archive.files if key in known}, archive.files
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path} must be a complete .npz archive of plain arrays, got: {error}"
        ) from error


def _as_count(value: "np.ndarray[Any, Any]", path: Path) -> int:
    if value.size != 1 or value.dtype.kind not in "iu" or int(value.reshape(())) < 2:
        raise DataError(f"{path}: num_classes must be one integer of at least 2, got {value!r}")
    return int(value.reshape(()))
