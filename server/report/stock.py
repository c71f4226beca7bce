"""The stock of retrained models as a table of the page."""

from itertools import groupby
from typing import Final

from server.evidence.record import Record
from server.report.tables import Table
from server.report.words import BELOW, as_number

OUTPUTS: Final = "Accuracy and relearning, %"
BELOW_GROUP: Final = "Below the last layer, %"
GROUPS: Final = {
    **dict.fromkeys(("forget", "retain", "relearning"), OUTPUTS),
    **dict.fromkeys(("membership", "client relearning"), "Surer of members, points"),
}


def stock_table(record: Record) -> Table | None:
    """Return a row for every retrained model; None where no stock was read or trained."""
    if not record.stock:
        return None
    shown = [
        (group, name)
        for name in {name: None for one in record.stock for name in one.numbers}
        if any(one.numbers.get(name) is not None for one in record.stock)
        for group in [GROUPS.get(name, BELOW_GROUP)]
    ]
    rows = [
        (f"Retrained {one.number}", [as_number(one.numbers.get(name)) for _, name in shown], "")
        for one in record.stock
    ]
    groups = [(group, len(list(found))) for group, found in groupby(shown, lambda pair: pair[0])]
    return Table(groups, [BELOW.get(name, name) for _, name in shown], rows)
