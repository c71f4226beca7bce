"""The tables in Markdown, as the papers have them: Original and Retrained first."""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from server.bench.columns import COLUMNS, OF_COSTS, Row, further_retrained, is_further_retrained
from server.bench.recipe import Recipe

NOTHING: Final = "–"
MOST_COLUMNS: Final = 14  # of one table


def page(recipe: Recipe, rows: Sequence[Row], *, command: str, drawn: Sequence[Path] = ()) -> str:
    """Return the whole page: where it comes from, a table a partition and level, the plots.

    Args:
        recipe: What was asked for.
        rows: The tidy table (see `server.bench.columns.rows`).
        command: The command line that made it.
        drawn: Plots to show, relative to the page.
    """
    lines = [f"# {recipe.title}", ""]
    if recipe.source:
        lines += [recipe.source, ""]
    lines += ["```", command, "```", "", _provenance(recipe, rows), "", _READING]
    partitions = dict.fromkeys(cell.partition for cell in recipe.cells)
    for partition in partitions:
        for level in recipe.levels:
            here = [r for r in rows if (r["partition"], r["level"]) == (partition, level.label)]
            lines += ["", f"## {level.label}, {partition}", ""]
            if any(forget.clients for forget in level.requests):
                lines += [CLIENT_LEVEL, ""]
            for number, columns in enumerate(_parts(recipe.columns)):
                part = level_table(here, columns, steps=level.in_a_row, reasons=not number)
                lines += [*part, ""]
            lines = [*lines[:-1], *_troubles(here)]
    for path in drawn:
        lines += ["", f"![{path.stem}]({path.as_posix()})"]
    return "\n".join(lines) + "\n"


def _parts(columns: Sequence[str]) -> list[Sequence[str]]:
    """Return the columns of each table: wide ones part in two, what was forgotten and its costs."""
    costs = [name for name in columns if name in OF_COSTS]
    others = [name for name in columns if name not in OF_COSTS]
    return [part for part in (others, costs) if part] if len(columns) > MOST_COLUMNS else [columns]


_READING: Final = (
    'Means ± standard deviations over the seeds, with "(2 of 3)" where only some have a number; '
    "accuracies and gaps in percentage points. Gaps, "
    'KL and TV are against Retrained of the same seed, and "spread" is the standard deviation of '
    "Retrained models that differ in their seed alone (over partitions as well where none do). "
    "Attack AUC: 0.5 cannot tell forgotten training examples from unseen ones; Retrained's is the "
    "aim. Relearning is the mean forget accuracy during 30 steps on 50 images of the class. Times "
    "are wall seconds without evaluation; a method's checks are the measurings on held-out data "
    "that it waits for, to go back or to end; the training overhead is what distillation, "
    "or keeping updates, added for the method's sake."
)
CLIENT_LEVEL: Final = (
    "Where the client held most examples of a class, that class leaves with it: Retrained's R is "
    "then below Original's, and a good method's R is expected to fall towards Retrained's."
)


def _provenance(recipe: Recipe, rows: Sequence[Row]) -> str:
    def all_of(key: str) -> str:
        return ", ".join(dict.fromkeys(str(row[key]) for row in rows if row[key])) or NOTHING

    seeds = ", ".join(str(s) for s in dict.fromkeys(cell.seed for cell in recipe.cells))
    jobs = max((row["jobs"] or 1 for row in rows), default=1)
    beside = f" {jobs} cells ran side by side, so times are too long." if jobs > 1 else ""
    peak = max((row["peak_bytes"] or 0 for row in rows), default=0) / 2**30
    return (
        f"{all_of('hardware')}; commit {all_of('commit')}; seeds {seeds}; "
        f"peak memory {peak:.2f} GiB.{beside}"
    )


def level_table(
    rows: Sequence[Row], columns: Sequence[str], *, steps: bool = False, reasons: bool = True
) -> list[str]:
    """Return one table in Markdown: a line a model, and a step or swept value if there are several.

    Args:
        rows: Of one partition and level, all seeds.
        columns: Names in `COLUMNS`; those without any number are left out.
        steps: Whether the rows are requests in a row.
        reasons: Whether a row that did not end says why.
    """
    headings, lines = cells(rows, columns, steps=steps, reasons=reasons)
    made = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    return made + ["| " + " | ".join(line) + " |" for line in lines]


def cells(
    rows: Sequence[Row], columns: Sequence[str], *, steps: bool = False, reasons: bool = True
) -> tuple[list[str], list[list[str]]]:
    """Return the headings and lines of one table (see `level_table`), with reasons or without."""
    used = [name for name in columns if any(row[name] is not None for row in rows)]
    lines = []
    for label, group in _lines(rows, steps=steps):
        done = [row for row in group if row["state"] == "done"]
        if done:
            told = [number([row[name] for row in done], name) for name in used]
        else:
            told = [ended(group[0]) if reasons else group[0]["state"]]
            told += [NOTHING] * (len(used) - 1)
        lines.append([label, *told])
    return ["model", *(COLUMNS[name].heading for name in used)], lines


def _lines(rows: Sequence[Row], *, steps: bool) -> Iterator[tuple[str, list[Row]]]:
    """Yield each line's label and its rows over the seeds, Original and Retrained first.

    Retrained models of other seeds serve the spread; they have no line of their own.
    """
    groups: dict[tuple[str, int, str], list[Row]] = {}
    for row in rows:
        if not is_further_retrained(row["method"]):
            groups.setdefault((row["sweep"], row["step"], row["method"]), []).append(row)
    first = {"Original": 0, "Retrained": 1}
    places = list(dict.fromkeys(key[:2] for key in groups))
    names = list(dict.fromkeys(name for *_, name in groups))
    names.sort(key=lambda name: first.get(name, 2))  # stable: the rest as the recipe has it
    for name in names:
        for sweep, step in places:
            if (sweep, step, name) in groups:
                numbered = f"request {step}" if steps else ""
                label = ", ".join(filter(None, [name, sweep, numbered]))
                yield label, groups[sweep, step, name]


def number(values: Iterable[float | None], name: str) -> str:
    """Return mean and standard deviation of a column's values; a dash where nothing is known.

    Where only some are known, it says of how many they are: "22.3 ± 4.0 (2 of 3)".
    """
    column = COLUMNS[name]
    values = list(values)
    known = [value / column.unit for value in values if value is not None]
    if not known:
        return NOTHING
    mean = f"{statistics.fmean(known):,.{column.digits}f}"
    if name.startswith("speed_up"):
        mean += "x"
    if len(known) > 1:
        mean += f" ± {statistics.stdev(known):,.{column.digits}f}"
    return mean if len(known) == len(values) else f"{mean} ({len(known)} of {len(values)})"


def _troubles(rows: Sequence[Row]) -> Iterator[str]:
    """Yield a line for what the table cannot say of a method.

    That is: it did not end on some seeds, or a result was turned away, whose numbers stand there.
    """
    groups: dict[tuple[str, int, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["sweep"], row["step"], row["method"]), []).append(row)
    for (*_, name), group in groups.items():
        lost = [row for row in group if row["state"] != "done"]
        away = [row for row in group if row["state"] == "done" and row["reason"]]
        for troubled in (lost if len(lost) < len(group) else [], away):
            if troubled:
                seeds = ", ".join(str(row["seed"]) for row in troubled)
                yield ""
                yield f"{name}, on seed {seeds}: {ended(troubled[0])}"


def ended(row: Row) -> str:
    """Return how a row ended: its state where that is not "done", and the first part of its reason.

    What follows is a remedy for whoever asked.
    """
    reason = " ".join(row["reason"].partition(";")[0].split()).replace("|", "/")
    return reason if row["state"] == "done" else f"{row['state']}: {reason}"


def by_class(results: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
    """Yield the accuracy of every class, for each model of every cell and level."""
    opened = set()
    keys = ("partition", "sweep", "seed", "level", "step")
    for result in results:
        record = result.get("record")
        if not record:
            continue
        place = {key: result[key] for key in keys}
        models: dict[str, Any] = {}
        if tuple(place.values()) not in opened and record["retrained"]:
            opened.add(tuple(place.values()))
            models |= {"Original": record["original"], "Retrained": record["retrained"]}
        name = result["method"] or further_retrained(result["oracle"])
        models[name] = record["recovered"]
        for model, scores in models.items():
            for label, accuracy in enumerate(scores["per_class_accuracy"]):
                yield {**place, "method": model, "class": label, "accuracy": accuracy}
