"""Write server/requests/known_to_forget.py: the methods that the results show to forget, by level.

    python benchmarks/shown.py

They are what `efface forget --method auto` prefers. Looked at are the tables that compare methods,
in the means over trainings. Classes: in each table, forget accuracy within 2 points of Retrained's,
retain accuracy at most 1.5 below, and at most a fifth of Original's lead over Retrained left in the
relearning curve and, where a table has them, in head back and matched head (not in the turned head:
of all that start from Original none is near Retrained's on all of CIFAR-10). Clients: forget
accuracy within 3 points of Retrained's in the mean over clients, whatever the sign, and retain
accuracy at most 1.5 below for each. Retraining forgets by construction, and can always serve. A
test says that nothing there was changed by hand.
"""

import csv
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from strategies.table import METHODS

HERE: Final = Path(__file__).parent
KNOWN_TO_FORGET: Final = HERE.parent / "server" / "requests" / "known_to_forget.py"
TABLES: Final[Mapping[str, tuple[str, ...]]] = {
    "class": (
        *("quickdrop-table2-cpu", "quickdrop-table2-cifar10-cpu"),
        "quickdrop-table2-full-cpu",
    ),
    "client": ("quickdrop-clients-cpu", "quickdrop-table4-cpu"),
}
LEADS: Final = ("relearning", "head_back", "matched_head")
COLUMNS: Final = ("forget_accuracy", "retain_accuracy", *LEADS)

Models = dict[str, dict[str, float]]  # means over trainings, by model and column


def means(table: str) -> Iterator[Models]:
    """Yield the means over trainings of each partition and request of a table.

    Retrained's are over those of other seeds, too.
    """
    with (HERE / "results" / table / "results.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["state"] == "done"]
    groups: dict[tuple[str, str], dict[str, list[dict[str, str]]]] = {}
    for row in rows:
        group = groups.setdefault((row["partition"], row["level"]), {})
        group.setdefault(row["method"].partition(",")[0], []).append(row)
    for models in groups.values():
        yield {
            model: {
                column: statistics.fmean(float(row[column]) for row in found if row.get(column))
                for column in COLUMNS
                if any(row.get(column) for row in found)
            }
            for model, found in models.items()
        }


def gap(models: Models, name: str, column: str) -> float:
    """Return by how much a model's mean is above Retrained's."""
    return models[name][column] - models["Retrained"][column]


def forgets_classes(name: str, tables: list[Models]) -> bool:
    """Return whether a method forgets classes, in each table."""
    return all(
        abs(gap(models, name, "forget_accuracy")) <= 2.0
        and gap(models, name, "retain_accuracy") >= -1.5
        and all(
            lead in models[name] and gap(models, name, lead) <= gap(models, "Original", lead) / 5
            for lead in LEADS
            if lead in models["Retrained"]
        )
        for models in tables
    )


def forgets_clients(name: str, tables: list[Models]) -> bool:
    """Return whether a method forgets clients, in the mean over them."""
    # One client's held-out examples are 40 to 60: what counts is the mean over clients.
    far = statistics.fmean(abs(gap(models, name, "forget_accuracy")) for models in tables)
    return far <= 3.0 and all(gap(models, name, "retain_accuracy") >= -1.5 for models in tables)


def shown(level: str, tables: list[Models]) -> tuple[str, ...]:
    """Return the methods that stand in all tables and forget, in the order of the methods' table.

    Args:
        level: "class" or "client".
        tables: Means over trainings.
    """
    forgets = {"class": forgets_classes, "client": forgets_clients}[level]
    measured = set.intersection(*map(set, tables))
    return tuple(
        name
        for name in METHODS
        if name == "retraining" or (name in measured and forgets(name, tables))
    )


def source() -> str:
    """Return the module as the results have it now."""
    lines = []
    for level, names in TABLES.items():
        found = shown(level, [models for table in names for models in means(table)])
        listed = "".join(f'        "{name}",\n' for name in found)
        lines.append(f'    "{level}": (\n{listed}    ),\n')
    return (
        '"""The methods that benchmarks/RESULTS.md shows to forget as Retrained does, by level.\n\n'
        "Written by `python benchmarks/shown.py`, which says by what rule; not by hand.\n"
        '"""\n\n'
        "from collections.abc import Mapping\nfrom typing import Final\n\n"
        "KNOWN_TO_FORGET: Final[Mapping[str, tuple[str, ...]]] = {\n" + "".join(lines) + "}\n"
    )


if __name__ == "__main__":
    KNOWN_TO_FORGET.write_text(source())
