"""Which data these are: fingerprints of their content, whatever they are called, wherever they lie.

They depend on the bytes of training images and labels alone: not on a path, nor on how clients
share the examples. Neither do the classes' names enter: other names do not make other images of the
same ones. `client.data.datasets.load` gives the same tensors as long as the files are unchanged:
then nothing is read twice.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np
from torch import Tensor

from client.data.splits import Data, Inputs

CLASS_DIGITS: Final = 16  # hexadecimal, of a fingerprint of a class or of an image
SKETCH: Final = 16  # images of a class that its sketch holds


def identity(data: Data) -> str:
    """Return the SHA-256 of a data set's training images and labels, in hexadecimal."""
    return _digest(data.train.inputs, data.train.labels)


def class_identities(data: Data) -> dict[int, str]:
    """Return a fingerprint of every class's training images, by label.

    Neither the images' order nor the class's number enters, nor the other classes: a file with the
    same images of one class is known by it, whatever else it holds.
    """
    return dict(_digests_by_class(data.train.inputs, data.train.labels))


def class_sketches(data: Data) -> dict[int, list[str]]:
    """Return a few of every class's images as fingerprints: those with the smallest digests.

    They are a random sample of the images that depends on nothing else, so that another data set
    can be asked how many of the class's images it holds (`overlap`).
    """
    members = _members(data.train.inputs, data.train.labels)
    return {
        label: [digest.hex()[:CLASS_DIGITS] for digest in each[:SKETCH]] for label, each in members
    }


def overlap(data: Data, sketch: Sequence[str]) -> float:
    """Return the share of a class's sketched images that a data set trains on, in [0, 1].

    Args:
        data: Where they are looked for, under any label.
        sketch: As `class_sketches` gives it for one class.
    """
    known = _image_digests(data.train.inputs, data.train.labels)
    return sum(digest in known for digest in sketch) / max(1, len(sketch))


@lru_cache(maxsize=2)  # as many as `client.data.datasets` keeps of each kind
def _digest(images: Inputs, labels: Tensor) -> str:
    found = hashlib.sha256()
    for each, count in ((images, len(labels)), (labels, len(labels))):
        for number, row in enumerate(_rows(each, count)):
            if not number:
                found.update(f"{row.dtype.str} {(count, *row.shape)};".encode())
            found.update(row.data)
    return found.hexdigest()


def _rows(examples: Inputs, count: int) -> Iterator["np.ndarray[Any, Any]"]:
    """Yield one example after the other, in memory or read now."""
    if isinstance(examples, Tensor):
        yield from np.ascontiguousarray(examples.numpy())
    else:
        for number in range(count):
            yield np.ascontiguousarray(np.asarray(examples[number]))


@lru_cache(maxsize=2)
def _digests_by_class(images: Inputs, labels: Tensor) -> tuple[tuple[int, str], ...]:
    first = next(_rows(images, len(labels)))
    shape = f"{first.dtype.str} {first.shape};".encode()
    return tuple(
        (label, hashlib.sha256(shape + b"".join(each)).hexdigest()[:CLASS_DIGITS])
        for label, each in _members(images, labels)
    )


@lru_cache(maxsize=2)
def _members(images: Inputs, labels: Tensor) -> tuple[tuple[int, tuple[bytes, ...]], ...]:
    """Return the digests of every class's images, sorted, by label."""
    found: dict[int, list[bytes]] = {}
    for image, label in zip(_rows(images, len(labels)), labels.tolist(), strict=True):
        found.setdefault(label, []).append(hashlib.sha256(image.data).digest())
    return tuple((label, tuple(sorted(each))) for label, each in sorted(found.items()))


@lru_cache(maxsize=2)
def _image_digests(images: Inputs, labels: Tensor) -> frozenset[str]:
    return frozenset(
        digest.hex()[:CLASS_DIGITS] for _, each in _members(images, labels) for digest in each
    )
