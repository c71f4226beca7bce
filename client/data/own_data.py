"""Read a site's own images: one .npz file, or folders of PNG and JPEG files, a folder a class."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from client.data.class_names import checked_names, natural_order
from client.data.splits import (
    MAX_CLASSES,
    DataSet,
    Split,
    check_labels,
    empty_like,
    make_split,
    pixel_statistics,
)
from client.errors import DataError, DataKeys, DataMissing, ImageSize

_PARTS = ("train", "val", "test")
_SUFFIXES = (".png", ".jpg", ".jpeg")
# What archives, file servers and operating systems leave beside images.
_LEFT_BEHIND = frozenset(
    {"__macosx", "@eadir", "$recycle.bin", "system volume information", "thumbs.db", "desktop.ini"}
)


def read_npz(path: Path) -> DataSet:
    """Return the data set in one NumPy archive.

    Keys: `train_images`, `train_labels`; the same with `val_` and `test_`, each pair optional;
    `train_ids` (also `val_ids`, `test_ids`), optional: the patient or device of each image;
    `num_classes`, optional, for a site that lacks the highest class; `class_names`, optional, one
    text a class. Images are uint8, (N, H, W) or
    (N, H, W, C); labels and ids are integers, (N,) or (N, 1). Other keys are not read.

    Returns:
        `num_classes` is the key's value, else 1 + the highest training label. Mean and standard
        deviation are those of the training images. Without `test_images` the test part is empty.

    Raises:
        DataError: If the file is missing, truncated, needs pickle, or breaks a rule above.
    """
    arrays, keys = _read_archive(path)
    parts: dict[str, Split] = {}
    for part in _PARTS:
        present = [key for key in (f"{part}_images", f"{part}_labels") if key in arrays]
        if not present and part != "train":
            continue
        if len(present) < 2:
            raise DataKeys(
                f"{path} must hold {part}_images and {part}_labels, got keys "
                f"{', '.join(sorted(keys)) or 'none'}"
            )
        parts[part] = make_split(
            arrays[f"{part}_images"],
            arrays[f"{part}_labels"],
            arrays.get(f"{part}_ids"),
            where=f"{path}, {part}",
        )
    train = parts["train"]
    if len(train) == 0:
        raise DataError(f"{path}: train_images must hold at least one image, got none")
    if "num_classes" in arrays:
        num_classes = _as_count(arrays["num_classes"], path)
    else:
        num_classes = int(train.labels.max()) + 1
    if num_classes > MAX_CLASSES:
        raise DataError(
            f"{path}: train_labels must be below {MAX_CLASSES}, got {num_classes - 1}; "
            "number the classes from 0"
        )
    for part, split in parts.items():
        check_labels(
            split,
            num_classes,
            where=f"{path}, {part}",
            remedy="; store num_classes in the file if the training part lacks a class",
        )
    names: tuple[str, ...] = ()
    if "class_names" in arrays:
        names = checked_names(arrays["class_names"].reshape(-1).tolist(), where=str(path))
        if len(names) != num_classes:
            raise DataError(
                f"{path}: class_names must hold one name for each of {num_classes} classes, got "
                f"{len(names)}; store num_classes too if the training part lacks a class"
            )
    return _assemble(f"npz:{path}", parts, num_classes, str(path), names)


def read_folder(path: Path) -> DataSet:
    """Return the images under PATH/train/<class>/, and PATH/val and PATH/test where they exist.

    Classes are named by the folders in PATH/train, and numbered in their natural order: "2" before
    "10". A site that lacks a class keeps an empty folder for it, so that all sites number alike.
    Files are PNG or JPEG, 8-bit grey or RGB, of one square size; where both occur, the grey ones
    become RGB. Hidden files and folders, notes (README, .txt) and what archives and operating
    systems leave behind (`__MACOSX`, Thumbs.db) are passed over; `notes` says how many.

    Returns:
        Images in order of class, then file name. Mean and standard deviation are those of the
        training images. Without PATH/test the test part is empty.

    Raises:
        DataError: Names the file or folder that breaks a rule.
    """
    if not (path / "train").is_dir():
        raise DataMissing(
            f"{path} must hold a folder train with one folder a class, got no {path / 'train'}"
        )
    passed: list[Path] = []
    found = [folder.name for folder in _visible(path / "train", []) if folder.is_dir()]
    classes = sorted(found, key=natural_order)
    if not classes:
        raise DataError(f"{path / 'train'} must hold one folder a class, got none")
    files = {
        part: _list_images(path / part, classes, passed)
        for part in _PARTS
        if (path / part).is_dir()
    }
    if not files["train"]:
        raise DataError(f"{path / 'train'} must hold at least one image, got none")
    pixels = {part: [_read_image(file) for file, _ in members] for part, members in files.items()}
    _check_one_size(files, pixels)
    colour = any(image.ndim == 3 for images in pixels.values() for image in images)
    parts = {}
    for part, images in pixels.items():
        if colour:
            images = [np.stack([i] * 3, axis=-1) if i.ndim == 2 else i for i in images]
        shape = pixels["train"][0].shape[:2] + ((3,) if colour else ())
        stacked = np.stack(images) if images else np.zeros((0, *shape), np.uint8)
        labels = np.array([label for _, label in files[part]], dtype=np.int64)
        parts[part] = make_split(stacked, labels, None, where=str(path / part))
    names = checked_names(classes, where=str(path / "train"))
    return _assemble(f"folder:{path}", parts, len(classes), str(path), names, _passed_over(passed))


def _passed_over(passed: list[Path]) -> tuple[str, ...]:
    """Return in words how many files and folders were passed over, and their commonest names."""
    if not passed:
        return ()
    names = sorted({file.name for file in passed})
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    are = (
        "file or folder that holds no images was"
        if len(passed) == 1
        else ("files and folders that hold no images were")
    )
    return (f"{len(passed)} {are} passed over: {shown}",)


def _assemble(
    name: str,
    parts: dict[str, Split],
    num_classes: int,
    where: str,
    class_names: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
) -> DataSet:
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
    return DataSet(
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
    wanted = {f"{part}_{kind}" for part in _PARTS for kind in ("images", "labels", "ids")}
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


def _visible(folder: Path, passed: list[Path]) -> list[Path]:
    """Return what a folder holds, as its names are spelt; what is no data goes to `passed`."""
    kept = []
    for entry in sorted(folder.iterdir()):
        name = entry.name.lower()
        hidden = name.startswith(".") or name in _LEFT_BEHIND
        note = name.endswith(".txt") or name.split(".")[0] == "readme"
        if hidden or (note and entry.is_file()):
            passed.append(entry)
        else:
            kept.append(entry)
    return kept


def _list_images(folder: Path, classes: list[str], passed: list[Path]) -> list[tuple[Path, int]]:
    members = []
    for class_folder in sorted(_visible(folder, passed), key=lambda f: natural_order(f.name)):
        if not class_folder.is_dir() or class_folder.name not in classes:
            raise DataError(
                f"{folder} must hold only the class folders of train "
                f"({', '.join(classes)}), got {class_folder.name}"
            )
        for file in _visible(class_folder, passed):
            if file.suffix.lower() not in _SUFFIXES:
                raise DataError(f"{file} must be a .png, .jpg or .jpeg file; convert or move it")
            members.append((file, classes.index(class_folder.name)))
    return members


def _read_image(path: Path) -> "np.ndarray[Any, Any]":
    """Return uint8 (H, W) for a grey image, (H, W, 3) for a colour one."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode in ("1", "L"):
                return np.array(image.convert("L"))
            if image.mode in ("RGB", "P"):
                return np.array(image.convert("RGB"))
            mode = image.mode
    except (OSError, ValueError, SyntaxError) as error:  # Pillow raises each for broken files
        raise DataError(f"{path} must be a complete PNG or JPEG image, got: {error}") from error
    raise DataError(f"{path} must be an 8-bit grey or RGB image, got mode {mode}; convert it first")


def _check_one_size(
    files: dict[str, list[tuple[Path, int]]], pixels: dict[str, list["np.ndarray[Any, Any]"]]
) -> None:
    rows, columns = pixels["train"][0].shape[:2]
    for part, images in pixels.items():
        for (file, _), image in zip(files[part], images, strict=True):
            if image.shape[:2] != (rows, columns):
                raise ImageSize(
                    f"images must all have one size, got {columns}x{rows} in "
                    f"{files['train'][0][0]} and {image.shape[1]}x{image.shape[0]} in {file}; "
                    "resize them first (for instance: mogrify -resize '32x32!' FILES)"
                )
