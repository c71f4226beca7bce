"""Which data these are: a fingerprint of their content, whatever they are called and wherever they
lie."""

import hashlib
from functools import lru_cache

from torch import Tensor

from client.data.splits import DataSet


def identity(data: DataSet) -> str:
    """Return the SHA-256 of a data set's training images and labels, in hexadecimal.

    It depends on their bytes, dtypes and shapes alone: not on a path, nor on how clients share the
    examples. Neither do the classes' names enter: other names do not make other images of the same
    ones. `client.data.datasets.load` gives the same tensors as long as the files are unchanged, and
    then nothing is read twice.
    """
    return _digest(data.train.images, data.train.labels)


@lru_cache(maxsize=2)  # as many as `client.data.datasets` keeps of each kind
def _digest(images: Tensor, labels: Tensor) -> str:
    found = hashlib.sha256()
    for tensor in (images, labels):
        array = tensor.contiguous().numpy()
        found.update(f"{array.dtype.str} {array.shape};".encode())
        found.update(array.reshape(-1).view("u1").data)
    return found.hexdigest()
