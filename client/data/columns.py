"""The columns file of a table: what makes its cells inputs, the same at every site.

Each site makes one of its own rows and gives it away in place of them: of a column of numbers how
many there are, their sum and the sum of their squares, of a column of categories their names.
Files of several sites are merged into the one that all of them read their tables by. So no row
leaves a site, and no number that fewer than `MIN_ROWS` rows stand behind.
"""

import json
import math
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

from client.data.class_names import checked_names, natural_order
from client.errors import DataError, DataMissing

FORMAT: Final = 1
MIN_ROWS: Final = 5  # as many as a site's policy wants behind an answer, unless it says another
MAX_CATEGORIES: Final = 100  # of a column: more are ids, dates or free text
_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_MISSING: Final = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})


@dataclass(frozen=True)
class Number:
    """A column of numbers: an input is (cell - mean) / std.

    Attributes:
        mean: Of the rows behind it.
        std: Of the same rows, divided by their number; 1 where all are equal.
        count: Rows with a number; 0 where mean and std were given without their origin.
        total: Sum of the numbers.
        squares: Sum of their squares.
    """

    mean: float
    std: float
    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, count: int, total: float, squares: float) -> "Number":
        """Return the column with mean and std from sums, computed without rounding in between."""
        mean = Fraction(total) / count
        variance = max(Fraction(0), Fraction(squares) / count - mean**2)
        return cls(float(mean), math.sqrt(variance) or 1.0, count, total, squares)


@dataclass(frozen=True)
class Category:
    """A column of categories: an input each, 1 for the row's and 0 for the others."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class Columns:
    """What a columns file says.

    Attributes:
        label: Column of the classes.
        classes: Their names, in natural order; class k is the k-th.
        rows: Rows behind the numbers.
        inputs: The columns that are inputs, in natural order of their names.
    """

    label: str
    classes: tuple[str, ...]
    rows: int
    inputs: Mapping[str, Number | Category]

    @property
    def num_inputs(self) -> int:
        """How many numbers a row becomes."""
        return sum(1 if isinstance(c, Number) else len(c.names) for c in self.inputs.values())


def is_missing(cell: str) -> bool:
    """Return whether a cell holds nothing: empty, NA, N/A, NaN, null, none or ?."""
    return cell.strip().lower() in _MISSING


def number(cell: str) -> float | None:
    """Return a cell's number, None if it is none."""
    text = cell.strip()
    found = float(text) if _NUMBER.fullmatch(text) else math.inf
    return found if math.isfinite(found) else None


def describe(
    cells: Mapping[str, Sequence[str]],
    *,
    label: str,
    classes: tuple[str, ...],
    categories: Iterable[str] = (),
    where: str,
) -> Columns:
    """Return what a table's own rows say of its columns.

    Args:
        cells: The columns that are inputs, each a text a row.
        label: Name of the classes' column.
        classes: The classes' names.
        categories: Columns of numbers that stand for categories.
        where: Opens each message.

    Raises:
        DataError: If a column is empty, or has too many categories.
    """
    inputs: dict[str, Number | Category] = {}
    for name in sorted(cells, key=natural_order):
        held = [cell.strip() for cell in cells[name] if not is_missing(cell)]
        if not held:
            raise DataError(
                f"{where}: column {name!r} must hold something, got only missing cells; leave it "
                "out: &drop=COLUMN"
            )
        values = [number(cell) for cell in held]
        numbers = [value for value in values if value is not None]
        if len(numbers) == len(held) and name not in categories:
            squares = math.fsum(value * value for value in numbers)
            inputs[name] = Number.of(len(numbers), math.fsum(numbers), squares)
            continue
        found = sorted(set(held), key=natural_order)
        if len(found) > MAX_CATEGORIES:
            wrong = next((c for c, v in zip(held, values, strict=True) if v is None), held[0])
            raise DataError(
                f"{where}: column {name!r} must hold numbers, or at most {MAX_CATEGORIES} "
                f"categories, got {len(found)}, such as {wrong!r}; leave it out: &drop=COLUMN"
            )
        inputs[name] = Category(tuple(found))
    rows = max((len(column) for column in cells.values()), default=0)
    return Columns(label, classes, rows, inputs)


def to_give_away(
    columns: Columns, cells: Mapping[str, Sequence[str]], *, where: str
) -> tuple[Columns, list[str]]:
    """Return a table's columns without what only a few rows stand behind, and what that was.

    Args:
        columns: As `describe` made it of `cells`.
        cells: The columns that are inputs, each a text a row.
        where: Opens each message.

    Raises:
        DataError: If the table, or a column of numbers, has too few rows for its sums to be told.
    """
    if columns.rows < MIN_ROWS:
        raise DataError(
            f"{where} must have at least {MIN_ROWS} rows for sums of them to be given away, got "
            f"{columns.rows}"
        )
    notes: list[str] = []
    kept: dict[str, Number | Category] = {}
    for name, column in columns.inputs.items():
        counts = Counter(cell.strip() for cell in cells[name] if not is_missing(cell))
        if isinstance(column, Category):
            names = tuple(n for n in column.names if counts[n] >= MIN_ROWS)
            if len(names) < len(column.names):
                notes.append(
                    f"{len(column.names) - len(names)} categories of {name!r} have fewer than "
                    f"{MIN_ROWS} rows each, and were left out"
                )
            if not names:
                raise DataError(
                    f"{where}: column {name!r} must have a category of {MIN_ROWS} rows, got none; "
                    "leave it out: &drop=COLUMN"
                )
            kept[name] = Category(names)
            continue
        others = column.count - counts.most_common(1)[0][1]
        if column.count < MIN_ROWS or 0 < others < MIN_ROWS:
            few = column.count if column.count < MIN_ROWS else others
            what = "with a number" if column.count < MIN_ROWS else "beside its commonest value"
            raise DataError(
                f"{where}: column {name!r} must have at least {MIN_ROWS} rows {what} for its sum "
                f"to be given away, got {few}; leave it out: &drop=COLUMN"
            )
        kept[name] = column
    return Columns(columns.label, columns.classes, columns.rows, kept), notes


def merge(found: Mapping[str, Columns]) -> Columns:
    """Return the columns of several sites as one: counts and sums added, names united.

    Mean and std are those that all rows together have, up to the rounding of each site's sums. The
    files' order does not matter.

    Args:
        found: What each file says, by the file's name.

    Raises:
        DataError: If two do not go together, or are the same.
    """
    files = list(found.items())
    first_file, first = files[0]
    for position, (file, columns) in enumerate(files):
        for other, known in files[:position]:
            if known == columns:
                raise DataError(f"{other} and {file} must be of different sites, got the same rows")
        if columns.label != first.label:
            raise DataError(
                f"{file}: label must be {first.label!r} as in {first_file}, got {columns.label!r}"
            )
        for name in [*first.inputs, *columns.inputs]:
            kinds = [_KIND[type(c.inputs.get(name))] for c in (first, columns)]
            if kinds[0] != kinds[1]:
                raise DataError(
                    f"{file}: column {name!r} must be {kinds[0]} as in {first_file}, got "
                    f"{kinds[1]}; write &drop=COLUMN or &categories=COLUMN at every site"
                )
    inputs: dict[str, Number | Category] = {}
    for name, column in first.inputs.items():
        alike = [columns.inputs[name] for _, columns in files]
        if isinstance(column, Number):
            numbers = [each for each in alike if isinstance(each, Number)]
            if not all(each.count for each in numbers):
                raise DataError(f"column {name!r} must have its count and sums in every file")
            inputs[name] = Number.of(
                sum(each.count for each in numbers),
                math.fsum(each.total for each in numbers),
                math.fsum(each.squares for each in numbers),
            )
        else:
            inputs[name] = Category(
                _united(each.names for each in alike if isinstance(each, Category))
            )
    classes = _united(columns.classes for _, columns in files)
    return Columns(first.label, classes, sum(columns.rows for _, columns in files), inputs)


_KIND: Final = {Number: "numbers", Category: "categories", type(None): "not there"}


def _united(names: Iterable[Sequence[str]]) -> tuple[str, ...]:
    return tuple(sorted({name for each in names for name in each}, key=natural_order))


def to_toml(columns: Columns) -> str:
    """Return the text of a columns file."""
    lines = [
        "# What makes a table's cells inputs; the same file belongs to every site.",
        f"format = {FORMAT}",
        f"label = {_quoted(columns.label)}",
        f"classes = {_list(columns.classes)}",
        f"rows = {columns.rows}",
    ]
    for name, column in columns.inputs.items():
        lines += ["", f"[columns.{_quoted(name)}]"]
        if isinstance(column, Category):
            lines += ['kind = "category"', f"categories = {_list(column.names)}"]
            continue
        lines += ['kind = "number"', f"mean = {column.mean!r}", f"std = {column.std!r}"]
        if column.count:
            lines += [
                f"count = {column.count}",
                f"sum = {column.total!r}",
                f"squares = {column.squares!r}",
            ]
    return "\n".join(lines) + "\n"


def load(path: Path) -> Columns:
    """Read a columns file.

    Raises:
        DataError: If it is missing, or not of this form.
    """
    if not path.is_file():
        raise DataMissing(f"columns file must exist, got {path}")
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise DataError(f"{path} must be a columns file in TOML, got: {error}") from error
    if told.get("format") != FORMAT:
        raise DataError(f"{path}: format must be {FORMAT}, got {told.get('format')!r}")
    try:
        inputs = {str(name): _column(told["columns"][name]) for name in told["columns"]}
        label, classes, rows = str(told["label"]), _texts(told["classes"]), int(told["rows"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path} must say label, classes, rows and for each column kind, and mean and std or "
            f"categories, got a bad {error}; `efface data columns` writes one"
        ) from error
    ordered = {name: inputs[name] for name in sorted(inputs, key=natural_order)}
    return Columns(label, checked_names(classes, where=str(path)), rows, ordered)


def _column(told: Mapping[str, Any]) -> Number | Category:
    if told["kind"] == "category":
        names = _texts(told["categories"])
        if not names or len(set(names)) < len(names):
            raise ValueError("list of categories, empty or with one twice")
        return Category(names)
    if told["kind"] != "number":
        raise ValueError(f"kind {told['kind']!r}")
    mean, std = float(told["mean"]), float(told["std"])
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise ValueError(f"mean and std, {mean} and {std}")
    count = int(told.get("count", 0))
    return Number(mean, std, count, float(told.get("sum", 0)), float(told.get("squares", 0)))


def _texts(told: Any) -> tuple[str, ...]:
    if not isinstance(told, list) or not all(isinstance(text, str) for text in told):
        raise ValueError("list of texts")
    return tuple(told)


def _quoted(text: str) -> str:
    # A JSON text in ASCII is a TOML text, too, but for what lies beyond 16 bits.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _list(texts: Sequence[str]) -> str:
    return f"[{', '.join(map(_quoted, texts))}]"
