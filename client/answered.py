"""Which examples earlier answers were made from: two that differ by a few would tell of those few.

    <store>/answers.bin    records of 544 bytes, the newest last: SHA-256 of the arrays that came
                           down, then the sketch of the examples behind the answer (client.touched)

The file is bounded: the newest `KEPT` records stay, 18 MB, of which equal ones are one. Three days
of messages at a policy's default rate fit in; whoever asks again after that meets new answers.
"""

import fcntl
import hashlib
import os
from pathlib import Path
from typing import Final

import numpy as np
from flwr.app import ArrayRecord

from client.files import write_atomic
from client.policy import PolicyRefused
from client.touched import BUCKETS, Sketch

FILE: Final = "answers.bin"
KEPT: Final = 32_768
RECORD: Final = np.dtype([("weights", "V32"), ("sketch", "<u8", (BUCKETS,))])


def digest_of(arrays: ArrayRecord) -> bytes:
    """Return the SHA-256 of what came down: names, shapes, dtypes and bytes."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        found.update(f"{name} {array.dtype} {tuple(array.shape)};".encode())
        found.update(array.data)
    return found.digest()


def keep(folder: Path, weights: bytes, sketch: Sketch, *, least: int) -> None:
    """Remember the examples of an answer that is about to go up.

    Args:
        folder: The site's store.
        weights: `digest_of` what came down.
        sketch: Of the examples (`client.touched.Touched.sketch`).
        least: Examples by which two answers with equal weights must differ, unless they are made
            from the same ones.

    Raises:
        PolicyRefused: If they differ by fewer from an earlier answer's; it must not go up.
    """
    path = folder / FILE
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        raw = file.read()
        whole = len(raw) // RECORD.itemsize * RECORD.itemsize  # a power cut may have cut the last
        known = np.frombuffer(raw[:whole], RECORD)
        same = known[known["weights"] == np.void(weights)]["sketch"]
        differing = (same != sketch).sum(axis=1)
        if bool((differing == 0).any()):
            return
        if bool((differing < least).any()):
            raise PolicyRefused(
                f"answers with the same weights must be made from examples that are the same, or "
                f"differ by at least {least}, got fewer; what one answer tells more than another "
                "would be theirs alone"
            )
        record = np.zeros(1, RECORD)
        record["weights"], record["sketch"] = np.void(weights), sketch
        file.seek(whole)
        file.truncate()
        file.write(record.tobytes())
        file.flush()
        os.fsync(file.fileno())
    if len(known) >= 2 * KEPT:
        write_atomic(path, known[-KEPT:].tobytes() + record.tobytes())
