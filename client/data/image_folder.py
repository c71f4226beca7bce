"""Read a site's own images from folders, a folder a class, as they really come.

Files are looked at first and decoded afterwards, one at a time, each into its place: what is in
memory are the finished images and one that is being read.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import torch

from client.data.class_names import checked_names, natural_order
from client.data.dicom import record_of
from client.data.image_file import SUFFIXES, is_image, peek, read
from client.data.own_data import PARTS, assemble, same_all_over
from client.data.picture import Broken, Peek
from client.data.pixels import check_used, finished, how_fitted
from client.data.source import ImageReading
from client.data.splits import Data, Examples
from client.errors import DataError, DataMissing, ImageSize

# What archives, file servers and operating systems leave beside images.
_LEFT_BEHIND: Final = frozenset(
    {"__macosx", "@eadir", "$recycle.bin", "system volume information", "thumbs.db", "desktop.ini"}
)
_NOTES: Final = (".txt", ".md", ".rst")
_SHOWN: Final = 10  # files that a message names


@dataclass(frozen=True)
class _Member:
    """A file of the set; `inside` is its place below the class's folder."""

    path: Path
    label: int
    inside: tuple[str, ...]


@dataclass
class _Seen:
    """What reading a whole set comes to know."""

    passed: list[Path] = field(default_factory=list)
    broken: dict[Path, str] = field(default_factory=dict)
    how: dict[str, int] = field(default_factory=dict)
    constant: list[Path] = field(default_factory=list)
    num_resized: int = 0
    num_not_square: int = 0
    num_colour: int = 0
    highest: tuple[float, float] | None = None  # of images whose range was not said


def read_folder(path: Path, reading: ImageReading | None = None) -> Data:
    """Return the images under PATH/train/<class>/, and PATH/val and PATH/test where they exist.

    Classes are named by the folders in PATH/train, and numbered in their natural order: "2" before
    "10". A site that lacks a class keeps an empty folder for it, so that all sites number alike.
    Folders inside a class's folder are searched, too; each is taken for a patient.
    Hidden files and folders, notes (README, .txt, .md) and what archives and operating systems
    leave behind (`__MACOSX`, Thumbs.db) are passed over; `notes` says how many.

    Images are turned upright by their EXIF orientation, and transparency becomes white. Without
    `reading.color`, all become RGB if any has a colour; a palette of greys has none. More than
    8 bits are scaled from the range that the file states by its type, or from
    `reading.value_range`: never from the values that happen to be there, which differ by site. Of
    a DICOM file the window counts.

    Returns:
        Images in order of class, then file name. `ids` are hashes of the DICOM files' patients or
        of the folders' names inside the class's, None unless each image of the part has one. Mean
        and standard deviation are those of the training images. Without PATH/test the test part is
        empty.

    Raises:
        DataError: Names the files that break a rule; all that cannot be read at once.
    """
    reading = reading or ImageReading()
    if not (path / "train").is_dir():
        raise DataMissing(
            f"{path} must hold a folder train with one folder a class, got no {path / 'train'}"
        )
    seen = _Seen()
    found = [folder.name for folder in _visible(path / "train", []) if folder.is_dir()]
    classes = sorted(found, key=natural_order)
    if not classes:
        raise DataError(f"{path / 'train'} must hold one folder a class, got none")
    files = {
        part: list(_members(path / part, classes, seen)) for part in PARTS if (path / part).is_dir()
    }
    looks = {part: _looked_at(members, seen) for part, members in files.items()}
    if not looks["train"]:
        _check_broken(seen, reading)
        raise DataError(f"{path / 'train'} must hold at least one image, got none")
    if reading.size is None:
        _check_one_size([each for part in looks.values() for each in part])
    colour = reading.color == "rgb" or (reading.color is None and seen.num_colour > 0)
    first = looks["train"][0][1]
    shape = (first.rows, first.columns) if reading.size is None else (reading.size, reading.size)
    parts = {
        part: _pixels([member for member, _ in members], shape, colour, reading, seen)
        for part, members in looks.items()
    }
    _check_broken(seen, reading)
    if not len(parts["train"]):
        raise DataError(f"{path / 'train'} must hold at least one image, got none")
    if seen.highest is not None:
        check_used(*seen.highest, where=str(path))
    names = checked_names(classes, where=str(path / "train"))
    num_images = sum(map(len, parts.values()))
    notes = tuple(_said(seen, num_images, reading))
    return assemble(f"folder:{path}", parts, len(classes), str(path), names, notes)


def _visible(folder: Path, passed: list[Path]) -> list[Path]:
    """Return what a folder holds, as its names are spelt; what is no data goes to `passed`."""
    kept = []
    for entry in sorted(folder.iterdir()):
        name = entry.name.lower()
        hidden = name.startswith(".") or name in _LEFT_BEHIND
        note = name.endswith(_NOTES) or name.split(".")[0] == "readme"
        if hidden or (note and entry.is_file()):
            passed.append(entry)
        else:
            kept.append(entry)
    return kept


def _members(folder: Path, classes: list[str], seen: _Seen) -> Iterator[_Member]:
    for class_folder in sorted(_visible(folder, seen.passed), key=lambda f: natural_order(f.name)):
        if not class_folder.is_dir() or class_folder.name not in classes:
            raise DataError(
                f"{folder} must hold only the class folders of train "
                f"({', '.join(classes)}), got {class_folder.name}"
            )
        label = classes.index(class_folder.name)
        for file in _files(class_folder, seen.passed):
            yield _Member(file, label, file.relative_to(class_folder).parts[:-1])


def _files(folder: Path, passed: list[Path]) -> Iterator[Path]:
    for entry in _visible(folder, passed):
        if entry.is_dir():
            yield from _files(entry, passed)
        else:
            yield entry


def _looked_at(members: list[_Member], seen: _Seen) -> list[tuple[_Member, Peek]]:
    """Return the files that are images, and what they are like."""
    found = []
    for member in members:
        if not is_image(member.path):
            kinds = ", ".join(SUFFIXES)
            seen.broken[member.path] = f"no image by its name ({kinds}); convert or move it"
            continue
        try:
            look = peek(member.path)
        except Broken as error:
            seen.broken[member.path] = str(error)
            continue
        seen.num_colour += look.colour
        found.append((member, look))
    return found


def _pixels(
    members: list[_Member],
    shape: tuple[int, int],
    colour: bool,
    reading: ImageReading,
    seen: _Seen,
) -> Examples:
    """Return the images of a part; what turns out to be broken goes to `seen`."""
    images = np.zeros((len(members), 3 if colour else 1, *shape), np.uint8)
    labels: list[int] = []
    records: list[int | None] = []
    for member in members:
        try:
            picture = read(member.path, reading.value_range)
        except Broken as error:
            seen.broken[member.path] = str(error)
            continue
        rows, columns = picture.pixels.shape[:2]
        seen.num_resized += (rows, columns) != shape
        seen.num_not_square += rows != columns
        if picture.pixels.min() == picture.pixels.max():
            seen.constant.append(member.path)
        if picture.how:
            seen.how[picture.how] = seen.how.get(picture.how, 0) + 1
        if picture.used is not None and (seen.highest is None or picture.used > seen.highest):
            seen.highest = picture.used
        pixels = finished(picture.pixels, reading, colour)
        # Filled from the front, so that leaving out a file needs no second copy of the others.
        images[len(labels)] = pixels.transpose(2, 0, 1) if colour else pixels
        labels.append(member.label)
        records.append(
            record_of("/".join(member.inside)) if picture.record is None else picture.record
        )
    known = [record for record in records if record is not None]
    ids = torch.tensor(known, dtype=torch.int64) if known and len(known) == len(records) else None
    return Examples(
        inputs=torch.from_numpy(images[: len(labels)]),
        labels=torch.tensor(labels, dtype=torch.int64),
        ids=ids,
    )


def _check_broken(seen: _Seen, reading: ImageReading) -> None:
    """Refuse files that cannot be read, all at once, unless they are to be left out."""
    if not seen.broken or reading.skip_broken:
        return
    remedy = "mend or remove them, or leave them out and say so: ?skip-broken=1"
    listed = [f"{path} ({why})" for path, why in sorted(seen.broken.items())[:_SHOWN]]
    if len(seen.broken) == 1:
        raise DataError(f"files must be complete images, got {listed[0]}; {remedy}")
    more = "; ..." if len(seen.broken) > _SHOWN else ""
    raise DataError(
        f"files must be complete images, got {len(seen.broken)} that are not: "
        f"{'; '.join(listed)}{more}; {remedy}"
    )


def _check_one_size(looks: list[tuple[_Member, Peek]]) -> None:
    first, upright = looks[0]
    for member, look in looks:
        if (look.rows, look.columns) != (upright.rows, upright.columns):
            raise ImageSize(
                f"images must all have one size, got {upright.columns}x{upright.rows} in "
                f"{first.path} and {look.columns}x{look.rows} in {member.path}; have them "
                "resized: ?size=64 (--image-size 64)"
            )
    if upright.rows != upright.columns:
        raise ImageSize(
            f"images must be square, got {upright.columns}x{upright.rows} in {first.path}; have "
            "them padded or stretched: ?size=64&fit=pad (--image-size 64 --fit pad)"
        )


def _said(seen: _Seen, num_images: int, reading: ImageReading) -> list[str]:
    """Return in words what was done to the images, and what was left out."""
    found = _passed_over(seen.passed)
    if seen.broken:
        listed = "; ".join(f"{path} ({why})" for path, why in sorted(seen.broken.items()))
        many = "file was" if len(seen.broken) == 1 else "files were"
        found.append(f"{len(seen.broken)} broken {many} left out: {listed}")
    num_grey = num_images - seen.num_colour
    if reading.color is None and seen.num_colour and num_grey > 0:
        found.append(
            f"{seen.num_colour} of {num_images} images have colours, and so all were read as RGB; "
            "?color=grey or ?color=rgb says it for all sites"
        )
    found += how_fitted(seen.num_resized, seen.num_not_square, reading)
    for how, count in sorted(seen.how.items()):
        found.append(f"{count} {'image was' if count == 1 else 'images were'} {how}")
    if seen.constant:
        found.append(same_all_over(len(seen.constant), str(seen.constant[0])))
    return found


def _passed_over(passed: list[Path]) -> list[str]:
    """Return in words how many files and folders were passed over, and their commonest names."""
    if not passed:
        return []
    names = sorted({file.name for file in passed})
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    are = (
        "file or folder that holds no images was"
        if len(passed) == 1
        else ("files and folders that hold no images were")
    )
    return [f"{len(passed)} {are} passed over: {shown}"]
