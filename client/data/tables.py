"""Read a table, CSV or Parquet, as float32 inputs: numbers standardised, categories one-hot."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from client.data.class_names import checked_names, natural_order
from client.data.columns import Columns, Number, describe, is_missing, load, number
from client.data.dicom import record_of
from client.data.source import TableReading
from client.data.splits import MAX_CLASSES, Data, Examples
from client.errors import DataError, DataKeys, DataMissing

Cells = Mapping[str, Sequence[str]]
SUFFIXES: Final = (".csv", ".tsv", ".parquet", ".pq")
_DELIMITERS: Final = (",", ";", "\t")


@dataclass(frozen=True)
class Rows:
    """A table's rows, as texts.

    Attributes:
        inputs: The columns that are inputs, each a text a row.
        labels: The class of each row, by name.
        records: Whose row each is; None where no column says.
        sites: Which site each is of; None where no column says.
        test: Which rows are the test part, bool, (N,).
    """

    inputs: Cells
    labels: list[str]
    records: list[str] | None
    sites: list[str] | None
    test: "np.ndarray[Any, Any]"

    def training(self) -> Cells:
        """Return the inputs' cells of the rows that are not the test part."""
        rows = np.flatnonzero(~self.test).tolist()
        return {name: [cells[row] for row in rows] for name, cells in self.inputs.items()}


def read_table(path: Path, reading: TableReading) -> Data:
    """Return a table's rows as examples.

    What makes a cell an input comes from `reading.columns`, the same file at every site, or else
    from the table's own training rows: that serves where one table is shared out over simulated
    clients, and `notes` says it. A missing number becomes the mean; a missing category, or one
    that the columns file lacks, is none of them; `notes` says how many. Labels are names.

    Returns:
        A data set whose `images` are float32 (N, F), ready to be learned from: `mean` and `std` are
        empty. F is 1 for each column of numbers and one for each category, columns in natural
        order of their names. `ids` are the numbers of `reading.record`, or hashes of its texts;
        with `reading.site` the sites' places in their names' natural order, which `notes` says.
        The test part is the given share of each class's rows, or of the ids, spread evenly in
        the file's order.

    Raises:
        DataError: If the file cannot be read, or a column is missing or no input.
    """
    rows = read_rows(path, reading)
    columns = own_columns(rows, path, reading) if reading.columns is None else load(reading.columns)
    notes: list[str] = []
    if reading.columns is None:
        notes.append(
            "numbers were scaled by this table's own rows; sites with a table each need one "
            "columns file for all (`efface data columns`)"
        )
    elif columns.label != reading.label:
        raise DataError(
            f"{reading.columns}: label must be {reading.label!r} as named, got {columns.label!r}"
        )
    where = str(path)
    if missing := [name for name in columns.inputs if name not in rows.inputs]:
        raise DataKeys(
            f"{where} must have the columns of {reading.columns}, got no {', '.join(missing)}"
        )
    if extra := [name for name in rows.inputs if name not in columns.inputs]:
        notes.append(f"columns that the columns file lacks were passed over: {', '.join(extra)}")
    inputs, said = _encoded(rows.inputs, columns, where)
    place = {name: label for label, name in enumerate(columns.classes)}
    if unknown := sorted(set(rows.labels) - set(place)):
        raise DataError(
            f"{where}: {reading.label} must be one of {', '.join(columns.classes[:10])}, got "
            f"{unknown[0]!r}, which the columns file lacks"
        )
    labels = np.array([place[label] for label in rows.labels], np.int64)
    ids = None if rows.records is None else _ids(rows.records)
    if rows.sites is not None:
        ids, said_of_sites = _sites(rows.sites, where)
        notes.append(said_of_sites)
    if len(columns.classes) < 2:
        raise DataError(
            f"{where} must hold at least 2 classes, got {len(columns.classes)}; if this site has "
            "one of several, a columns file of all sites says so"
        )
    train, test = (_split(inputs, labels, ids, chosen) for chosen in (~rows.test, rows.test))
    return Data(
        name=f"table:{path}",
        train=train,
        test=test,
        validation=None,
        num_classes=len(columns.classes),
        mean=(),
        std=(),
        class_names=columns.classes,
        notes=(*notes, *said),
    )


def own_columns(rows: Rows, path: Path, reading: TableReading) -> Columns:
    """Return what a table's own training rows say of its columns.

    Raises:
        DataError: As `client.data.columns.describe`.
    """
    classes = tuple(sorted(set(rows.labels), key=natural_order))
    return describe(
        rows.training(),
        label=reading.label,
        classes=checked_names(classes, where=f"{path}, {reading.label}"),
        categories=reading.categories,
        where=str(path),
    )


def read_rows(path: Path, reading: TableReading) -> Rows:
    """Return a table's cells.

    Raises:
        DataError: If the file cannot be read, lacks a named column, or labels are no classes.
    """
    cells = dict(_cells(path))
    for name in (reading.label, reading.record, reading.site, *reading.drop, *reading.categories):
        if name and name not in cells:
            raise DataKeys(f"{path} must have a column {name!r}, got {', '.join(cells)}")
    labels = _labels(cells[reading.label], reading.label, path)
    records = [cell.strip() for cell in cells[reading.record]] if reading.record else None
    sites = [cell.strip() for cell in cells[reading.site]] if reading.site else None
    away = {reading.label, reading.record, reading.site, *reading.drop}
    inputs = {name: column for name, column in cells.items() if name not in away}
    if not inputs:
        raise DataError(f"{path} must have a column beside {', '.join(sorted(away - {''}))}")
    test = _test_rows(records or labels, reading.test, bool(records))
    return Rows(inputs, labels, records, sites, test)


def _cells(path: Path) -> Cells:
    if not path.is_file():
        raise DataMissing(f"table must exist, got {path}")
    suffix = path.suffix.lower()
    if suffix in (".parquet", ".pq"):
        found = _parquet(path)
    elif suffix in (".csv", ".tsv"):
        found = _csv(path)
    else:
        raise DataError(f"{path} must be a table by its name ({', '.join(SUFFIXES)})")
    if not found or not len(next(iter(found.values()))):
        raise DataError(f"{path} must hold at least one row, got none")
    return found


def _csv(path: Path) -> Cells:
    """Return the columns of a file with a head line; commas, semicolons or tabs between cells."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            head = file.readline()
            delimiter = max(_DELIMITERS, key=head.count)
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            names = [name.strip() for name in next(reader, [])]
            rows = []
            for row in reader:
                if row and len(row) != len(names):
                    raise DataError(
                        f"{path}: line {reader.line_num} must have {len(names)} cells as the first "
                        f"has, got {len(row)}"
                    )
                if row:
                    rows.append(row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} must be a CSV file in UTF-8, got: {error}") from error
    if len(set(names)) < len(names) or "" in names:
        raise DataError(f"{path}: columns must have names that differ, got {', '.join(names)}")
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


def _parquet(path: Path) -> Cells:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(
            "Parquet files must be read by the package pyarrow, got none; install it: "
            "pip install 'efface[tables]', or store the table as CSV"
        ) from error
    try:
        table = parquet.read_table(path)
        return {
            name: [_text(v) for v in table.column(name).to_pylist()] for name in table.schema.names
        }
    except Exception as error:  # pyarrow raises whatever a damaged file leads to
        raise DataError(f"{path} must be a complete Parquet file, got: {error}") from error


def _text(value: object) -> str:
    if value is None or value != value:  # nothing, or NaN
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _labels(cells: Sequence[str], name: str, path: Path) -> list[str]:
    """Return each row's class: the cell's text, whole numbers without a point."""
    if (wrong := next((i for i, cell in enumerate(cells) if is_missing(cell)), None)) is not None:
        raise DataError(
            f"{path}: column {name!r} must say every row's class, got none in row {wrong + 1}"
        )
    values = [number(cell) for cell in cells]
    numbers = [value for value in values if value is not None]
    if len(numbers) == len(cells):
        if any(value % 1 for value in numbers):
            raise DataError(
                f"{path}: column {name!r} must hold classes, got numbers that are not whole; to "
                "learn a quantity, write a task of your own (--task)"
            )
        found = [str(int(value)) for value in numbers]
    else:
        found = [cell.strip() for cell in cells]
    if (num_classes := len(set(found))) > MAX_CLASSES:
        raise DataError(
            f"{path}: column {name!r} must hold at most {MAX_CLASSES} classes, got {num_classes}"
        )
    return found


def _test_rows(keys: list[str], share: float, whole: bool) -> "np.ndarray[Any, Any]":
    """Return which rows are the test part: evenly spread, in the file's order.

    Args:
        keys: Whose row each is, or its class.
        share: Of the test part.
        whole: Whether all rows of a key stay together; else the share is taken of each key's rows.
    """
    exact = Fraction(str(share))
    places: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        places.setdefault(key, []).append(row)
    units = [list(places.values())] if whole else [[[row] for row in p] for p in places.values()]
    test = np.zeros(len(keys), bool)
    for unit in units:
        for number_, rows in enumerate(unit):
            if int((number_ + 1) * exact) > int(number_ * exact):
                test[rows] = True
    return test


def _encoded(
    cells: Cells, columns: Columns, where: str
) -> tuple["np.ndarray[Any, Any]", list[str]]:
    """Return the inputs, float32 (N, F), and in words what was missing."""
    num_rows = len(next(iter(cells.values())))
    inputs = np.zeros((num_rows, columns.num_inputs), np.float32)
    start, num_missing, num_unknown = 0, 0, 0
    for name, column in columns.inputs.items():
        if isinstance(column, Number):
            for row, cell in enumerate(cells[name]):
                if is_missing(cell):
                    num_missing += 1
                elif (value := number(cell)) is None:
                    raise DataError(
                        f"{where}: column {name!r} must hold numbers, got {cell!r} in row {row + 1}"
                    )
                else:
                    inputs[row, start] = (value - column.mean) / column.std
            start += 1
            continue
        place = {category: i for i, category in enumerate(column.names)}
        for row, cell in enumerate(cells[name]):
            if is_missing(cell):
                num_missing += 1
            elif (found := place.get(cell.strip())) is None:
                num_unknown += 1
            else:
                inputs[row, start + found] = 1
        start += len(column.names)
    notes = [f"{num_rows} rows of {len(columns.inputs)} columns became {inputs.shape[1]} inputs"]
    if num_missing:
        notes.append(
            f"{num_missing} cells are missing: numbers were taken for the mean, categories for none"
        )
    if num_unknown:
        notes.append(
            f"{num_unknown} cells hold categories that the columns file lacks, and were taken for "
            "none"
        )
    return inputs, notes


def _ids(records: list[str]) -> "np.ndarray[Any, Any]":
    """Return whole numbers as they are, and else the texts' hashes; a missing one is its own."""
    if all(r.lstrip("-").isdecimal() and r.isascii() and abs(int(r)) < 2**63 for r in records):
        return np.array([int(r) for r in records], np.int64)
    return np.array(
        [
            record_of(r) if not is_missing(r) else record_of(f"row {i}")
            for i, r in enumerate(records)
        ],
        np.int64,
    )


def _sites(sites: list[str], where: str) -> tuple["np.ndarray[Any, Any]", str]:
    """Return each row's site as a number, and in words which is which."""
    if (wrong := next((i for i, name in enumerate(sites) if is_missing(name)), None)) is not None:
        raise DataError(f"{where}: each row must name its site, got none in row {wrong + 1}")
    names = sorted(set(sites), key=natural_order)
    place = {name: number_ for number_, name in enumerate(names)}
    shown = ", ".join(f"{number_} is {name}" for number_, name in enumerate(names[:10]))
    more = ", ..." if len(names) > 10 else ""
    told = f"rows of {len(names)} sites: {shown}{more}; with --partition natural, client by client"
    return np.array([place[name] for name in sites], np.int64), told


def _split(
    inputs: "np.ndarray[Any, Any]",
    labels: "np.ndarray[Any, Any]",
    ids: "np.ndarray[Any, Any] | None",
    chosen: "np.ndarray[Any, Any]",
) -> Examples:
    return Examples(
        inputs=torch.from_numpy(inputs[chosen]),
        labels=torch.from_numpy(labels[chosen]),
        ids=None if ids is None else torch.from_numpy(ids[chosen]),
    )
