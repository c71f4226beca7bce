"""What verifications found of a request after it had ended, as a table of its page."""

from collections.abc import Sequence

from server.evidence.later import Later
from server.evidence.wording import STATES
from server.report.tables import Table
from server.report.words import as_time


def later_table(found: Sequence[Later]) -> Table | None:
    """Return a row for every verification, oldest first; None where there is none."""
    if not found:
        return None
    rows = [
        (
            f"{one.request}, {as_time(one.finished)}",
            [
                "does not verify" if one.state is None else STATES[one.state],
                str(one.retrainings or 0),
                "by hand" if one.false_alarms is None else "by their spread",
                "clients and coordinator" if one.asked_clients else "coordinator",
                one.asked_by or "not recorded",
            ],
            "",
        )
        for one in found
    ]
    return Table((), ["Verdict", "Retrained models", "Limits", "Measured by", "Asked by"], rows)
