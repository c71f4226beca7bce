"""The stock of retrained models as a table of the page."""

from server.evidence.record import Record
from server.report.tables import Table
from server.report.words import as_number


def stock_table(record: Record) -> Table | None:
    """Return a row for every retrained model; None where no stock was read or trained."""
    if not record.stock:
        return None
    rows = [
        (f"Retrained {one.number}", [as_number(value) for value in one.numbers.values()], "")
        for one in record.stock
    ]
    headings = list(record.stock[0].numbers)
    groups = [("Accuracy and relearning, %", 3), ("Below the last layer, %", len(headings) - 3)]
    return Table(groups, headings, rows)
