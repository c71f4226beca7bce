"""Errors a user can act on. Each message says the rule, the value it got, and the remedy.

A program goes by an error's code, never by its words: codes stand in the ledger, in events and in
JSON documents (docs/json.md lists them).
"""

import re
from collections.abc import Iterator
from typing import ClassVar, Final

UNEXPECTED: Final = "unexpected"  # an error that Efface does not raise on purpose
INTERRUPTED: Final = "interrupted"
_CODE: Final = re.compile(r"\[([a-z]+(?:-[a-z]+)*)\] ")


class EffaceError(Exception):
    """Base of every error that Efface raises on purpose.

    Attributes:
        code: What kind of error it is, for programs; every class has its own.
        see: Command that shows what would have been right, if there is one.
        remedy: What the message says to do next, where a program is told that by itself.
    """

    code: ClassVar[str] = "error"
    remedy: str = ""

    def __init__(self, message: str = "", *, see: str = "") -> None:
        super().__init__(message)
        self.see = see


class BadSetting(EffaceError, ValueError):
    """A setting is unknown, missing or out of range; nothing has started."""

    code = "bad-setting"


class DataError(EffaceError):
    """A data file is missing, truncated, or of the wrong shape."""

    code = "data-error"


class DataMissing(DataError):
    """A data file or folder is not where it was said to be; it may be back later."""

    code = "data-missing"


class DataKeys(DataError):
    """A data file lacks arrays that it must hold, such as its labels."""

    code = "data-keys"


class ImageSize(DataError):
    """Images have another size, or other channels, than the model takes."""

    code = "image-size"


class StoreError(EffaceError):
    """A client's store cannot be read, or belongs to another model."""

    code = "store-error"


class NoSyntheticSet(StoreError):
    """A node has no synthetic examples of the training that a request needs."""

    code = "no-synthetic-set"


class NoBaseModel(StoreError):
    """A node does not have the model that a request started from."""

    code = "no-base-model"


class Diverged(EffaceError):
    """Loss or weights stopped being finite numbers: the steps were too large."""

    code = "diverged"


class AggregationRefused(EffaceError):
    """A node takes no further part in a sum: what it was told does not keep to the protocol."""

    code = "aggregation-refused"


class ForeignBundle(EffaceError):
    """Code came to a site that its operator has not allowed; none of it ran."""

    code = "foreign-bundle"


class NotIsolated(EffaceError):
    """A site's executor could reach what it must not, and was told to insist."""

    code = "not-isolated"


class DiskFull(EffaceError):
    """A file cannot be written, for its disk has no room left; what was there before still is."""

    code = "disk-full"


class NotPrivate(EffaceError):
    """A private file or folder is open to others than its owner."""

    code = "not-private"


def code_of(error: BaseException) -> str:
    """Return the code that stands for any error."""
    if isinstance(error, EffaceError):
        return error.code
    return INTERRUPTED if isinstance(error, KeyboardInterrupt | SystemExit) else UNEXPECTED


def kind_of(code: str | None) -> type[EffaceError]:
    """Return the class of a code, among those loaded; `EffaceError` where none has it."""
    return next((kind for kind in _kinds(EffaceError) if kind.code == code), EffaceError)


def marked(error: BaseException, text: str) -> str:
    """Return `text` with the error's code before it: Flower carries errors as one text."""
    return f"[{code_of(error)}] {text}"


def split_mark(text: str) -> tuple[str | None, str]:
    """Return the code that `marked` put into `text`, and the text without it.

    The code is None where there is none of a class loaded here: a text from elsewhere must not
    bring in names of its own.
    """
    found = _CODE.search(text)
    if found is None or found[1] not in {UNEXPECTED, *(kind.code for kind in _kinds(EffaceError))}:
        return None, text
    return found[1], text[: found.start()] + text[found.end() :]


def _kinds(kind: type[EffaceError]) -> Iterator[type[EffaceError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _kinds(below)


class CodeMismatch(EffaceError):
    """Server and node do not run the same client code, or not that of the same task."""

    code = "code-mismatch"
