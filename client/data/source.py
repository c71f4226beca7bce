"""The text that names a data set of one's own, and how it is to be read.

    npz:PATH?size=64&color=grey          folder:PATH?size=64&fit=pad&skip-broken=1
    table:PATH?label=COLUMN&id=COLUMN&columns=columns.toml

A site's operator and the coordinator write the same. `%26` stands for an ampersand in a value,
`%2C` for a comma and `%25` for a percent sign. The last question mark begins the options: a path
that holds one itself ends with one more.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

from client.errors import BadSetting, DataError

IMAGES: Final = ("npz", "folder")
TABLE: Final = "table"
KINDS: Final = (*IMAGES, TABLE)
FORMS: Final = "npz:PATH, folder:PATH, table:PATH?label=COLUMN"
_OF_IMAGES: Final = ("size", "color", "fit", "range", "skip-broken")
KNOWN: Final = {
    "npz": (*_OF_IMAGES, "labels"),
    "folder": _OF_IMAGES,
    TABLE: ("label", "id", "site", "drop", "categories", "columns", "test"),
}
_SEE: Final = "efface data list"
_NUMBER: Final = r"-?[0-9]+(?:\.[0-9]+)?"
_SIZE: Final = "be a whole number of pixels from 8 to 4096"


@dataclass(frozen=True)
class Source:
    """A data set of one's own, as it was named.

    Attributes:
        kind: One of `KINDS`.
        path: Of the file or folder, as it is spelt.
        options: Pairs of key and value, as they are spelt, in order.
    """

    kind: str
    path: str
    options: tuple[tuple[str, str], ...] = ()

    @property
    def text(self) -> str:
        """What `parse` makes this of."""
        query = "&".join(f"{key}={value}" for key, value in self.options)
        return f"{self.kind}:{self.path}" + (f"?{query}" if query or "?" in self.path else "")

    @property
    def value(self) -> Mapping[str, str]:
        """The options' values, decoded."""
        return {key: unquote(value) for key, value in self.options}

    def rooted(self, folder: Path | None = None) -> "Source":
        """Return the same with absolute paths, seen from a folder: the working directory's."""
        options = tuple(
            (
                key,
                quote(_absolute(unquote(value), folder), safe="/ ~") if key == "columns" else value,
            )
            for key, value in self.options
        )
        return replace(self, path=_absolute(self.path, folder), options=options)


@dataclass(frozen=True)
class ImageReading:
    """How images become squares of 8 bits.

    Attributes:
        size: Pixels along a side; None to take images as they are.
        color: "grey" or "rgb"; None for what they are.
        fit: What becomes of images that are not square: "pad" with black, or "stretch".
        value_range: Value of black and of white, for images of more than 8 bits or of floats; None
            for the whole range of their type.
        named: Whether each label that occurs is a class, called by its value.
        skip_broken: Whether files that cannot be read are left out.
    """

    size: int | None = None
    color: str | None = None
    fit: str = "pad"
    value_range: tuple[float, float] | None = None
    named: bool = False
    skip_broken: bool = False


@dataclass(frozen=True)
class TableReading:
    """Which columns of a table mean what.

    Attributes:
        label: Column of the classes.
        record: Column that says whose a row is; "" for none. It is no input.
        site: Column that says which site a row is of, for `--partition natural`; "" for none. It is
            no input.
        drop: Columns that are no input.
        categories: Columns of numbers that stand for categories.
        columns: File with the columns' statistics; None to take the table's own.
        test: Share of the rows that is the test part, 0 to 0.5.
    """

    label: str
    record: str = ""
    site: str = ""
    drop: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    columns: Path | None = None
    test: float = 0.0


def is_own(text: str) -> bool:
    """Return whether a text names a data set of one's own, rightly or not."""
    kind, colon, _ = text.partition(":")
    return bool(colon) and kind in KINDS


def parse(text: str) -> Source:
    """Return what a text names.

    Raises:
        BadSetting: If its kind or an option is unknown, twice there or without a value, or it names
            no path.
    """
    kind, colon, rest = text.partition(":")
    if kind not in KINDS or not colon:
        raise BadSetting(f"data set must be one of {FORMS}, got '{text}'", see=_SEE)
    path, _, query = rest.rpartition("?") if "?" in rest else (rest, "", "")
    if not path:
        raise BadSetting(f"data set must name a path after '{kind}:', got '{text}'", see=_SEE)
    options: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        key, equals, value = part.partition("=")
        if not equals:
            raise BadSetting(
                f"what follows the ? of a data set must be KEY=VALUE&KEY=VALUE, got {part!r}; end "
                "a path that holds a ? itself with one more"
            )
        if key not in KNOWN[kind]:
            raise BadSetting(
                f"option of {kind}: must be one of {', '.join(KNOWN[kind])}, got {key!r}"
            )
        if not value or key in options:
            what = "it twice" if key in options else "none"
            raise BadSetting(f"option {key} of {kind}: must have one value, got {what}")
        options[key] = value
    return Source(kind, path, tuple(options.items()))


def image_reading(source: Source) -> ImageReading:
    """Return how a source's images are to be read.

    Raises:
        BadSetting: If an option breaks its rule.
    """
    value = source.value
    size = value.get("size")
    if size is not None and not (size.isascii() and size.isdecimal() and 8 <= int(size) <= 4096):
        raise BadSetting(f"size must {_SIZE}, got {size!r}")
    return ImageReading(
        size=None if size is None else int(size),
        color=_choice(value, "color", ("grey", "rgb")),
        fit=_choice(value, "fit", ("pad", "stretch")) or "pad",
        value_range=_range(value.get("range")),
        named=_choice(value, "labels", ("numbers", "named")) == "named",
        skip_broken=_choice(value, "skip-broken", ("0", "1")) == "1",
    )


def table_reading(source: Source) -> TableReading:
    """Return how a source's table is to be read.

    Raises:
        BadSetting: If an option breaks its rule, or the label is missing.
    """
    value, spelt = source.value, dict(source.options)
    if "label" not in value:
        raise BadSetting(
            f"table must name the classes' column: {TABLE}:PATH?label=COLUMN, got none"
        )
    lists = {
        key: tuple(unquote(name) for name in spelt.get(key, "").split(",") if name)
        for key in ("drop", "categories")
    }
    test = value.get("test", "0")
    if not re.fullmatch(_NUMBER, test) or not 0 <= float(test) <= 0.5:
        raise BadSetting(f"test must be the share of the test part, 0 to 0.5, got {test!r}")
    return TableReading(
        label=value["label"],
        record=value.get("id", ""),
        site=value.get("site", ""),
        drop=lists["drop"],
        categories=lists["categories"],
        columns=Path(_absolute(value["columns"])) if "columns" in value else None,
        test=float(test),
    )


def with_options(text: str, options: Mapping[str, str]) -> str:
    """Return a text with more options; one that it has already gets the new value.

    Raises:
        BadSetting: If the text names no images of one's own, or an option breaks its rule.
    """
    if not options:
        return text
    if text.partition(":")[0] not in IMAGES:
        raise BadSetting(
            f"{', '.join(options)} must come with images of one's own, npz:PATH or folder:PATH, "
            f"got {text!r}"
        )
    source = parse(text)
    source = replace(source, options=tuple({**dict(source.options), **options}.items()))
    image_reading(source)
    return source.text


def rooted(text: str, folder: Path | None = None) -> str:
    """Return a text with absolute paths; one that names no data of one's own as it is.

    Raises:
        BadSetting: If an option is unknown.
    """
    if not is_own(text) or not text.partition(":")[2]:
        return text
    return parse(text).rooted(folder).text


def check_site(text: str) -> None:
    """Refuse what a single site must not read on its own terms.

    Raises:
        DataError: If it is a table without a columns file: each site would scale by its own rows,
            and one number would mean something else at every site.
    """
    if is_own(text) and text.startswith(f"{TABLE}:") and "columns" not in parse(text).value:
        raise DataError(
            "a site's table must name the columns file that all sites share, got none; make it of "
            "every site's own (`efface data columns`) and add &columns=FILE"
        )


def _absolute(path: str, folder: Path | None = None) -> str:
    return str((folder or Path()).joinpath(Path(path).expanduser()).absolute())


def _choice(value: Mapping[str, str], key: str, known: tuple[str, ...]) -> str | None:
    found = value.get(key)
    if found is not None and found not in known:
        raise BadSetting(f"{key} must be {' or '.join(known)}, got {found!r}")
    return found


def _range(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    found = re.fullmatch(rf"({_NUMBER})\.\.({_NUMBER})", text)
    if not found or not float(found[1]) < float(found[2]):
        raise BadSetting(
            f"range must be the values of black and white, such as 0..4095, got {text!r}"
        )
    return float(found[1]), float(found[2])
