"""Which data these are: fingerprints of their content, whatever they are called, wherever they lie.

They depend on the bytes of training images and labels alone: not on a path, nor on how clients
share the examples. Neither do the classes' names enter: other names do not make other images of the
same ones. `client.data.datasets.load` gives the same tensors as long as the files are unchanged:
then nothing is read twice.
"""

import hashlib
from functools import lru_cache

from torch import Tensor

from client.data.splits import DataSet

CLASS_DIGITS = 16  # hexadecimal, of a class's fingerprint


def identity(data: DataSet) -> str:
    """Return the SHA-256 of a data set's training images and labels, in hexadecimal."""
    return _digest(data.train.images, data.train.labels)


def class_identities(data: DataSet) -> dict[int, str]:
    """Return a fingerprint of every class's training images, by label.

    Neither the images' order nor the class's number enters, nor the other classes: a file with the
    same images of one class is known by it, whatever else it holds.
    """
    return dict(_digests_by_class(data.train.images, data.train.labels))


@lru_cache(maxsize=2)  # as many as `client.data.datasets` keeps of each kind
def _digest(images: Tensor, labels: Tensor) -> str:
    found = hashlib.sha256()
    for tensor in (images, labels):
        array = tensor.contiguous().numpy()
        found.update(f"{array.dtype.str} {array.shape};".encode())
        found.update(array.reshape(-1).view("u1").data)
    return found.hexdigest()


@lru_cache(maxsize=2)
def _digests_by_class(images: Tensor, labels: Tensor) -> tuple[tuple[int, str], ...]:
    pixels = images.contiguous().numpy()
    shape = f"{pixels.dtype.str} {pixels.shape[1:]};".encode()
    members: dict[int, list[bytes]] = {}
    for image, label in zip(pixels, labels.tolist(), strict=True):
        members.setdefault(label, []).append(hashlib.sha256(image.data).digest())
    return tuple(
        (label, hashlib.sha256(shape + b"".join(sorted(each))).hexdigest()[:CLASS_DIGITS])
        for label, each in sorted(members.items())
    )
