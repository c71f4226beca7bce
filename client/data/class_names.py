"""The classes' names: in which order folders are numbered, and how names travel.

A class is a number to the model and a name to people. Every site sends its names with `describe`,
so that the coordinator can refuse sites whose numbers mean different things.
"""

import json
import re
import unicodedata
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from client.errors import DataError

ARRAY: Final = "class-names"  # of a reply to `describe`: the names as uint8, JSON in UTF-8
MAX_LENGTH: Final = 200  # characters of a name
MAX_BYTES: Final = 4_000_000  # of all names on the wire

FASHION_MNIST: Final = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
CIFAR10: Final = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)

# Marks that turn the direction of writing: with them a name can read as another.
_TURNING: Final = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def numbers(num_classes: int) -> tuple[str, ...]:
    """Return the names of classes that have none: their numbers."""
    return tuple(map(str, range(num_classes)))


def natural_order(name: str) -> tuple[tuple[str | int, ...], str]:
    """Return a sort key by which "2" comes before "10", and other texts as they are spelt."""
    parts = re.split(r"([0-9]+)", name)  # texts and numbers by turns, a text first
    return tuple(int(p) if i % 2 else p for i, p in enumerate(parts)), name


def checked_names(names: Sequence[object], *, where: str) -> tuple[str, ...]:
    """Return names in Unicode's composed form, if each is one that can be shown and compared.

    Raises:
        DataError: If one is no text, empty, too long, twice there, or holds control characters. The
            message begins with `where`.
    """
    found: dict[str, int] = {}
    for number, name in enumerate(names):
        if not isinstance(name, str):
            raise DataError(f"{where}: class names must be texts, got {name!r} for class {number}")
        text = unicodedata.normalize("NFC", name)
        if not text.strip() or len(text) > MAX_LENGTH:
            raise DataError(
                f"{where}: class names must have 1 to {MAX_LENGTH} characters, got {len(text)} "
                f"for class {number}"
            )
        if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in _TURNING for c in text):
            raise DataError(
                f"{where}: class names must hold no control characters, got {text!a} for "
                f"class {number}"
            )
        if text in found:
            raise DataError(
                f"{where}: class names must differ, got {text!r} for classes {found[text]} and "
                f"{number}"
            )
        found[text] = number
    return tuple(found)


def to_array(names: Sequence[str]) -> Tensor:
    """Return names as uint8 `(n,)`: JSON in UTF-8, for a record that holds no text."""
    return torch.tensor(
        list(json.dumps(list(names), ensure_ascii=False).encode()), dtype=torch.uint8
    )


def from_bytes(data: bytes, *, num_classes: int, where: str) -> tuple[str, ...]:
    """Return the names that `to_array` made into bytes, checked: a site may send anything.

    Raises:
        DataError: If they are no JSON list of names, or more than `num_classes`.
    """
    if len(data) > MAX_BYTES:
        raise DataError(
            f"{where}: class names must take at most {MAX_BYTES} bytes, got {len(data)}"
        )
    try:
        found = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: class names must be JSON, got what is none") from error
    if not isinstance(found, list) or not 0 < len(found) <= num_classes:
        size = f"{len(found)} of them" if isinstance(found, list) else type(found).__name__
        raise DataError(
            f"{where}: class names must be a list of 1 to {num_classes}, one for each class of the "
            f"model, got {size}"
        )
    return checked_names(found, where=where)
