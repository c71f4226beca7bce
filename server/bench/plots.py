"""The plots of a benchmark, as PNG: accuracy against time, accuracy by class, costs."""

import io
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from client.files import write_atomic
from server.bench.columns import COLUMNS, Row, is_further_retrained
from server.bench.recipe import Level, Recipe, slug
from server.bench.table import by_class
from server.evidence.phases import OF_THE_REQUEST

_STYLE: Final[Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,  # a label is data: a `$` in it is a dollar sign
}
_DPI: Final = 130
_COSTS: Final = ("seconds", "client_seconds", "samples", "bytes_up", "bytes_down", "storage_bytes")
_FIXED: Final = {"Original": "#4c5866", "Retrained": "#111111"}

Result = Mapping[str, Any]


def draw(
    recipe: Recipe, results: Sequence[Result], rows: Sequence[Row], folder: Path
) -> list[Path]:
    """Draw what there is to draw; return the files.

    Args:
        recipe: What was asked for.
        results: What cells kept, one entry a request.
        rows: The tidy table made from them.
        folder: Made if it does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made: list[Path] = []
    partitions = list(dict.fromkeys(cell.partition for cell in recipe.cells))
    swept = any(cell.sweep for cell in recipe.cells)
    for partition in partitions:
        for level in recipe.levels:
            here = [r for r in results if (r["partition"], r["level"]) == (partition, level.label)]
            table = [r for r in rows if (r["partition"], r["level"]) == (partition, level.label)]
            if not any(r["state"] == "done" and r["oracle"] is None for r in here):
                continue
            title = f"{level.label}, {partition}"
            for kind, figure in _figures(level, here, table, swept=swept, title=title):
                path = folder / f"{slug(f'{kind}-{partition}-{level.label}')[:120]}.png"
                drawn = io.BytesIO()
                figure.savefig(drawn, dpi=_DPI, format="png", bbox_inches="tight")
                write_atomic(path, drawn.getvalue())
                made.append(path)
    return made


def _figures(
    level: Level, results: Sequence[Result], rows: Sequence[Row], *, swept: bool, title: str
) -> Iterator[tuple[str, Figure]]:
    with rc_context(_STYLE):
        if level.in_a_row:
            yield "row", _in_a_row(results, title)
            return
        if swept:
            yield "sweep", _sweep(rows, title)
        yield "time", _over_time(results, title)
        yield "classes", _by_class(results, title)
        yield "costs", _costs(rows, title)


def colours(names: Sequence[str]) -> dict[str, Any]:
    """Return a colour for every model; Original and Retrained have the same in all plots."""
    palette = colormaps["tab20"].colors  # type: ignore[attr-defined]
    others = [name for name in names if name not in _FIXED]
    order = [*palette[0::2], *palette[1::2]]  # strong ones first
    return {**_FIXED, **{name: order[i % len(order)] for i, name in enumerate(others)}}


def curve(
    record: Mapping[str, Any], timeline: Sequence[Mapping[str, Any]], phases: Sequence[str]
) -> list[tuple[float, float | None, float | None]]:
    """Return seconds, forget and retain accuracy after each round that was evaluated.

    A round is taken to last its phase's mean: the record has seconds a phase.
    """
    points = []
    before, seen = 0.0, 0
    for phase in phases:
        seconds, rounds = record["seconds"].get(phase, 0.0), record["rounds"].get(phase, 0)
        for note in timeline:
            if note["phase"] == phase:
                at = before + seconds * min(1.0, note["round"] / max(1, rounds))
                points.append((at, note["forget_accuracy"], note["retain_accuracy"]))
                seen += 1
        before += seconds
    return points


def _over_time(results: Sequence[Result], title: str) -> Figure:
    """One line a method, the first seed that ended; logarithmic time since the request."""
    figure = Figure(figsize=(9.5, 4.8), layout="constrained")
    forget, retain = figure.subplots(1, 2)
    shown: dict[str, Any] = {}
    swept = next((r["sweep"] for r in results if r.get("record")), "")
    for result in results:
        record = result.get("record")
        if not record or result["oracle"] is not None or result["sweep"] != swept:
            continue
        if "Retrained" not in shown and record["retrained"]:
            shown["Retrained"] = curve(record, record["retrained"]["timeline"], ("retrain",))
        if result["method"] not in shown:
            original = record["original"]
            start = (0.0, original["forget_accuracy"], original["retain_accuracy"])
            points = curve(record, record["timeline"], OF_THE_REQUEST)
            end = record["recovered"]
            total = sum(record["seconds"].get(phase, 0.0) for phase in OF_THE_REQUEST)
            points.append((total, end["forget_accuracy"], end["retain_accuracy"]))
            shown[result["method"]] = [start, *sorted(points, key=lambda point: point[0])]
    colour = colours(list(shown))
    longest = max((p[0] for points in shown.values() for p in points), default=0.0) or 1.0
    for side, (axes, name) in enumerate(((forget, "forget"), (retain, "retain")), start=1):
        for model, points in shown.items():
            known = [(p[0], p[side]) for p in points if p[side] is not None]
            if known:
                axes.plot(
                    *zip(*known, strict=True),
                    color=colour[model],
                    marker=".",
                    linewidth=2.0 if model == "Retrained" else 1.2,
                    label=model,
                )
        linear_until = longest / 1000  # labels there would lie upon each other
        axes.set_xscale("symlog", linthresh=linear_until)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda x, _, start=linear_until: f"{x:g}" if x == 0 or x >= start else "")
        )
        axes.set_ylim(-3, 103)
        axes.set_xlabel("seconds since the request (logarithmic)")
        axes.set_ylabel(f"{name} accuracy, %")
        axes.grid(alpha=0.25)
    title = ", ".join(filter(None, [title, swept]))
    figure.suptitle(f"{title}: accuracy against time, first seed")
    _legend(figure, *retain.get_legend_handles_labels())
    return figure


def _by_class(results: Sequence[Result], title: str) -> Figure:
    """A table in colours: models down, classes across, the mean over seeds."""
    values: dict[tuple[str, int], list[float]] = {}
    for row in by_class(results):
        if row["accuracy"] is not None and not is_further_retrained(row["method"]):
            name = ", ".join(filter(None, [row["method"], row["sweep"]]))
            values.setdefault((name, row["class"]), []).append(row["accuracy"])
    models = list(dict.fromkeys(name for name, _ in values))
    classes = sorted({label for _, label in values})
    grid = [
        [statistics.fmean(values.get((model, c), [float("nan")])) for c in classes]
        for model in models
    ]
    height = 1.1 + 0.28 * len(models)
    figure = Figure(figsize=(2.6 + 0.52 * max(6, len(classes)), height), layout="constrained")
    axes = figure.subplots()
    axes.imshow(grid, vmin=0, vmax=100, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(classes)), [str(c) for c in classes])
    axes.set_yticks(range(len(models)), models)
    axes.set_xlabel("class")
    if len(classes) <= 20:
        for y, line in enumerate(grid):
            for x, value in enumerate(line):
                ink = "white" if value < 60 else "black"
                axes.text(x, y, f"{value:.0f}", ha="center", va="center", color=ink, fontsize=7)
    axes.set_title(f"{title}: accuracy by class, %", loc="left")
    return figure


def _costs(rows: Sequence[Row], title: str) -> Figure:
    """Bars, the mean over seeds; a cost of nothing has no bar, and its number says so."""
    lines = [r for r in rows if r["state"] == "done" and r["method"] != "Original"]
    lines = [r for r in lines if not is_further_retrained(r["method"])]
    label = {id(r): ", ".join(filter(None, [r["method"], r["sweep"]])) for r in lines}
    models = list(dict.fromkeys(label.values()))
    figure = Figure(figsize=(11, 0.9 + 0.5 * len(models)), layout="constrained")
    panels = figure.subplots(2, 3, sharey=True).flatten()
    colour = colours(models)
    for axes, key in zip(panels, _COSTS, strict=True):
        column = COLUMNS[key]
        for place, model in enumerate(models):
            values = [r[key] for r in lines if label[id(r)] == model and r[key] is not None]
            mean = statistics.fmean(values) / column.unit if values else 0.0
            if mean > 0:
                axes.barh(place, mean, color=colour[model])
                shown = f"{mean:,.0f}" if mean >= 100 else f"{mean:.3g}"
                axes.text(mean, place, f" {shown}", va="center", fontsize=7)
                continue
            shown, at_the_axis = "0" if values else "not measured", axes.get_yaxis_transform()
            axes.text(0, place, f" {shown}", va="center", fontsize=7, transform=at_the_axis)
        axes.set_yticks(range(len(models)), models)
        axes.set_title(column.heading, loc="left")
        _logarithmic(axes)
    panels[0].invert_yaxis()
    figure.suptitle(f"{title}: what a request costs (logarithmic)")
    return figure


def _logarithmic(axes: Axes) -> None:
    """Scale the bars' axis, with decades as ticks; there is none where no bar is."""
    widths = [bar.get_width() for bar in axes.patches]  # type: ignore[attr-defined]
    if not widths:
        axes.set_xticks([])
        return
    axes.set_xscale("log")
    axes.set_xlim(min(widths) / 3, max(widths) * 8)
    axes.xaxis.set_major_locator(LogLocator(numticks=7))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.set_xticks([], minor=True)
    axes.tick_params(axis="x", labelsize=7)
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)


def _in_a_row(results: Sequence[Result], title: str) -> Figure:
    """One panel a method: every class's accuracy after each request (first seed that has it)."""
    methods = list(dict.fromkeys(r["method"] for r in results if r.get("record")))
    figure = Figure(figsize=(8.5, 0.6 + 2.4 * len(methods)), layout="constrained")
    panels = figure.subplots(len(methods), 1, squeeze=False).flatten()
    for axes, method in zip(panels, methods, strict=True):
        mine = [r for r in results if r["method"] == method and r.get("record")]
        mine = [r for r in mine if (r["seed"], r["sweep"]) == (mine[0]["seed"], mine[0]["sweep"])]
        steps = [mine[0]["record"]["original"], *(r["record"]["recovered"] for r in mine)]
        gone = [c for r in mine for c in r["record"]["forget"]["classes"]]
        colour = colormaps["tab10" if len(steps[0]["per_class_accuracy"]) <= 10 else "tab20"]
        for label in range(len(steps[0]["per_class_accuracy"])):
            heights = [step["per_class_accuracy"][label] for step in steps]
            axes.plot(range(len(steps)), heights, color=colour(label % colour.N), label=str(label))
            if label in gone:
                at = gone.index(label) + 1
                axes.plot(
                    at, heights[min(at, len(heights) - 1)], "o", color=colour(label % colour.N)
                )
        names = ["Original", *(r["forget"].removeprefix("class ") for r in mine)]
        axes.set_xticks(range(len(steps)), names)
        axes.set_ylim(-3, 103)
        axes.set_ylabel("accuracy, %")
        axes.set_title(method, loc="left")
        axes.grid(alpha=0.25)
    if len(panels):
        panels[-1].set_xlabel("what each request named; a dot where a class was forgotten")
        panels[0].legend(title="class", loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    figure.suptitle(title, fontsize=9)
    return figure


def _sweep(rows: Sequence[Row], title: str) -> Figure:
    """Retain accuracy and request time against the swept value, a line a model."""
    figure = Figure(figsize=(9.5, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    models = list(dict.fromkeys(r["method"] for r in rows if r["state"] == "done"))
    models = [model for model in models if not is_further_retrained(model)]
    values = list(dict.fromkeys(r["sweep"] for r in rows))
    colour = colours(models)
    settings = [value.partition("=")[2] for value in values]
    line = ".-" if all(map(_is_number, settings)) else "o"  # nothing lies between two networks
    panels = ((left, "retain_accuracy", "retain accuracy, %"), (right, "seconds", "request, s"))
    for axes, key, name in panels:
        for model in models:
            points = []
            for place, value in enumerate(values):
                found = [r[key] for r in rows if (r["method"], r["sweep"]) == (model, value)]
                if known := [v for v in found if v is not None]:
                    points.append((place, statistics.fmean(known)))
            if points:
                axes.plot(*zip(*points, strict=True), line, color=colour[model], label=model)
        axes.set_xticks(range(len(values)), settings)
        axes.set_xlim(-0.5, len(values) - 0.5)
        axes.set_xlabel(values[0].partition("=")[0])
        axes.set_ylabel(name)
        axes.grid(alpha=0.25)
    right.set_yscale("log")
    right.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    bottom, top = right.get_ylim()
    if top / bottom > 10:  # within one decade the minor ticks alone have labels
        right.yaxis.set_minor_formatter(NullFormatter())
    else:
        right.yaxis.set_minor_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    figure.suptitle(title)
    _legend(figure, *left.get_legend_handles_labels())
    return figure


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Put one legend for all panels below them: names with options are long."""
    columns = 2 if max(map(len, labels), default=0) > 40 else 4
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8
    )
