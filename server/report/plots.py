"""Draw the report's plots as SVG text.

Each function returns one `<svg>` element to be set inside an HTML page. Text stays text, the same
numbers give the same bytes, and every colour is a CSS variable with a fall-back, so that one plot
serves a light page, a dark page and paper: the page sets `--plot-forget` and the others.

It is long because the plots share one style, and a plot is drawn element by element.
"""

import io
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import groupby
from math import isfinite, nan, sqrt
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from server.format import class_text

# Light values; each stands in the SVG as `var(--plot-<name>, <value>)`, so no two may be equal.
COLOURS: Mapping[str, str] = {
    "ink": "#1b2430",
    "muted": "#566273",
    "rule": "#d3d9e1",
    "band": "#f1f4f8",
    "retained": "#a3b0c0",
    "forget": "#b3400e",
    "retrain": "#1a5fa6",
    "original": "#4c5866",
}
_POINTS_PER_INCH = 72
WIDTH = 547  # of a plot, in points
_STYLE: Mapping[str, Any] = {
    "svg.fonttype": "none",
    "font.family": ["sans-serif"],
    "font.size": 9.5,
    "text.color": COLOURS["ink"],
    "text.parse_math": False,  # a label is data: a `$` in it is a dollar sign
    "axes.edgecolor": COLOURS["rule"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "xtick.color": COLOURS["rule"],
    "ytick.color": COLOURS["rule"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "grid.color": COLOURS["rule"],
    "grid.linewidth": 0.6,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True)
class Curve:
    """One relearning curve.

    `role` is "original", "retrain" or "result"; `steps` are SGD steps, `accuracy` is the forget
    accuracy in percent after as many steps.
    """

    label: str
    role: str
    steps: Sequence[int]
    accuracy: Sequence[float]


def accuracy_over_phases(
    timeline: Sequence[Mapping[str, Any]],
    forgotten: Collection[int],
    *,
    class_names: Sequence[str] | None = None,
    name: str,
) -> str:
    """Draw accuracy against the evaluated rounds, the phases as bands side by side.

    One line a class, the forgotten classes emphasised; or, where no class is forgotten or classes
    were not measured, the forget set as a whole emphasised. A phase's band grows with the square
    root of its rounds, so that two rounds of recovery stay readable beside thirty of training.

    Args:
        timeline: The record's entries, in order; not empty.
        forgotten: Class indices to emphasise; may be empty.
        class_names: Name of class k at index k; None where there are numbers alone.
        name: Prefix of the ids in the SVG, unique in the page.

    Returns:
        The `<svg>` element.
    """
    with _style(name):
        figure, axes = _figure(height=3.7)
        positions, bands = _place(timeline)
        for number, (phase, start, end, _) in enumerate(bands):
            if number % 2 == 0:
                axes.axvspan(start, end, facecolor=COLOURS["band"], linewidth=0, zorder=0)
            axes.text((start + end) / 2, 106, phase, ha="center", va="center", fontsize=9.5)
        ticks = [tick for *_, ticks in bands for tick in ticks]
        axes.set_xticks([x for x, _ in ticks], [label for _, label in ticks])
        right = bands[-1][2]
        axes.set_xlim(0, right)
        _percent_axis(axes)
        axes.set_xlabel("round within the phase")

        per_class = [entry.get("per_class_accuracy") or [] for entry in timeline]
        num_classes = max((len(values) for values in per_class), default=0)
        ends: list[tuple[float, str, str]] = []
        retained_end: float | None = None
        for label in range(num_classes):
            heights = [
                percent_height(values[label]) if label < len(values) else nan
                for values in per_class
            ]
            emphasised = label in forgotten
            marker = "o" if emphasised or _isolated(heights) else ""
            axes.plot(
                positions,
                heights,
                color=COLOURS["forget" if emphasised else "retained"],
                linewidth=2.4 if emphasised else 1.1,
                marker=marker,
                markersize=3.6 if emphasised else 2.4,
                zorder=4 if emphasised else 3,
            )
            if emphasised:
                ends.append((heights[-1], short(class_text(label, class_names), 17), "forget"))
            elif isfinite(heights[-1]):
                retained_end = max(heights[-1], retained_end or 0.0)
        if not any(label in forgotten for label in range(num_classes)):
            asked = any(entry.get("forget_accuracy") is not None for entry in timeline)
            for key, text, colour in (
                ("retain_accuracy", "retained data" if asked else "all classes", "retrain"),
                ("forget_accuracy", "forget set", "forget"),
            ):
                heights = [percent_height(entry.get(key)) for entry in timeline]
                if not any(isfinite(height) for height in heights):
                    continue
                axes.plot(
                    positions,
                    heights,
                    color=COLOURS[colour],
                    linewidth=2.2,
                    marker="o",
                    markersize=3.4,
                    zorder=5,
                )
                ends.append((heights[-1], text, colour))
        if retained_end is not None:
            emphasised = any(label in forgotten for label in range(num_classes))
            text = "other classes" if emphasised else "each class"
            ends.append((retained_end, text, "muted"))
        _label_ends(axes, right, ends)
        return _svg(figure, name, "Accuracy on test data after each evaluated round, by phase")


def relearning_curves(curves: Sequence[Curve], *, name: str) -> str:
    """Draw forget accuracy against relearning steps, one line a model.

    Args:
        curves: At least one.
        name: Prefix of the ids in the SVG, unique in the page.

    Returns:
        The `<svg>` element.
    """
    looks = {
        "original": ("original", (0, (5, 2.5)), "s"),
        "retrain": ("retrain", "solid", "D"),
        "result": ("forget", "solid", "o"),
    }
    with _style(name):
        figure, axes = _figure(height=3.1)
        ends = []
        for curve in curves:
            colour, dashes, marker = looks[curve.role]
            heights = [percent_height(value) for value in curve.accuracy]
            axes.plot(
                curve.steps,
                heights,
                color=COLOURS[colour],
                linestyle=dashes,
                linewidth=2.0,
                marker=marker,
                markersize=4.5,
                zorder=4 if curve.role == "result" else 3,
            )
            ends.append((heights[-1], curve.label, colour))
        steps = sorted({step for curve in curves for step in curve.steps})
        right = steps[-1] + 0.02 * max(steps[-1], 1)
        axes.set_xlim(0, right)
        axes.set_xticks(steps if len(steps) <= 12 else steps[:: len(steps) // 8])
        _percent_axis(axes)
        axes.set_xlabel("SGD steps on the relearning set")
        axes.set_title("forget accuracy, %", loc="left", fontsize=9.5, color=COLOURS["muted"])
        _label_ends(axes, right, ends)
        return _svg(figure, name, "Forget accuracy while each model relearns the forgotten data")


def cost_bars(seconds: Sequence[tuple[str, float, str]], *, name: str) -> str:
    """Draw one horizontal bar a row, on a linear scale from zero.

    Args:
        seconds: Label, wall seconds, and colour (a key of `COLOURS`); at least one.
        name: Prefix of the ids in the SVG, unique in the page.

    Returns:
        The `<svg>` element.
    """
    with _style(name):
        figure, axes = _figure(height=0.35 + 0.33 * len(seconds), left=0.17, bottom=0.02, top=0.98)
        longest = max(value for _, value, _ in seconds) or 1.0
        rows = range(len(seconds))
        axes.barh(
            rows,
            [value for _, value, _ in seconds],
            height=0.56,
            color=[COLOURS[colour] for *_, colour in seconds],
        )
        for row, (_, value, _) in zip(rows, seconds, strict=True):
            text = f"{value:,.1f} s" if value >= 1 else f"{value:.2g} s"
            axes.text(value + 0.012 * longest, row, text, va="center", fontsize=9.5)
        axes.set_yticks(rows, [label for label, *_ in seconds])
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(0, 1.02 * longest)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        axes.invert_yaxis()
        return _svg(figure, name, "Wall seconds of each phase")


def short(text: str, longest: int = 24) -> str:
    """Return a text cut to a length, with an ellipsis where something is missing."""
    return text if len(text) <= longest else text[: longest - 1] + "\N{HORIZONTAL ELLIPSIS}"


def css(colour: str) -> str:
    """Return a colour that follows the page."""
    return f"var(--plot-{colour}, {COLOURS[colour]})"


def _style(name: str) -> AbstractContextManager[None]:
    """Set matplotlib's settings for one plot, and put them back after it."""
    # The ids of clip paths are hashes: a fixed salt makes them the same in every process.
    settings: dict[Any, Any] = {**_STYLE, "svg.hashsalt": name}
    return rc_context(settings)


def _figure(
    *, height: float, left: float = 0.055, bottom: float | None = None, top: float | None = None
) -> tuple[Figure, Axes]:
    """Return an empty figure 7.6 inches wide, with room for labels at the right end."""
    figure = Figure(figsize=(7.6, height), facecolor="none")
    axes = figure.add_axes(
        (
            left,
            0.42 / height if bottom is None else bottom,
            0.86 - left,
            ((1 - 0.72 / height) if top is None else top - (bottom or 0)),
        )
    )
    axes.set_facecolor("none")
    return figure, axes


def _percent_axis(axes: Axes) -> None:
    axes.set_ylim(-3, 103)
    axes.set_yticks([0, 25, 50, 75, 100])
    axes.grid(axis="y", zorder=1)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)


def percent_height(value: float | None) -> float:
    """Return `value`, or NaN (a gap in the line) where it was not measured."""
    return nan if value is None else float(value)


def _isolated(heights: Sequence[float]) -> bool:
    """Say whether some measured point has no measured neighbour, so that no line shows it."""
    known = [isfinite(height) for height in heights]
    return any(
        here and not before and not after
        for before, here, after in zip([False, *known], known, [*known[1:], False], strict=False)
    )


def _place(
    timeline: Sequence[Mapping[str, Any]],
) -> tuple[list[float], list[tuple[str, float, float, list[tuple[float, str]]]]]:
    """Return each entry's place on the x axis, and each band's name, start, end and ticks."""
    positions: list[float] = []
    bands = []
    start = 0.0
    for phase, group in groupby(timeline, key=lambda entry: str(entry["phase"])):
        entries = list(group)
        # At least 1.6 wide, so that a phase of one round has room for its name.
        width = max(1.6, sqrt(len(entries)) * 1.35)
        places = [start + width * (index + 0.5) / len(entries) for index in range(len(entries))]
        every = max(1, len(entries) // 4)
        ticks = [
            (place, str(entry["round"]))
            for index, (place, entry) in enumerate(zip(places, entries, strict=True))
            if entry.get("round") is not None and (len(entries) - 1 - index) % every == 0
        ]
        bands.append((phase, start, start + width, ticks))
        positions += places
        start += width
    return positions, bands


def _label_ends(axes: Axes, x: float, ends: Sequence[tuple[float, str, str]]) -> None:
    """Name the lines at their right ends, moved apart where they would overlap."""
    gap = 7.0  # percent points: one line of text at the plots' heights
    placed = sorted((end for end in ends if isfinite(end[0])), key=lambda end: end[0])
    heights: list[float] = []
    for height, *_ in placed:
        heights.append(max(height, heights[-1] + gap) if heights else height)
    overflow = max(0.0, heights[-1] - 101) if heights else 0.0
    for index in reversed(range(len(heights))):
        # Push the stack down from the top; stop where the gaps already suffice.
        limit = heights[index + 1] - gap if index + 1 < len(heights) else heights[index] - overflow
        heights[index] = min(heights[index], limit)
    for height, (_, text, colour) in zip(heights, placed, strict=True):
        axes.annotate(
            text,
            (x, height),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            color=COLOURS[colour],
            fontsize=9.5,
            annotation_clip=False,
        )


def _svg(figure: Figure, name: str, title: str) -> str:
    """Render `figure`, then make it fit for a page: own ids, CSS colours, the page's own font."""
    buffer = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", facecolor="none", metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # A style sheet inside an inline SVG would rule the whole page: its one line moves to the root.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    svg = re.sub(r"font-family: [^;\"]+(?=[;\"])", "font-family: inherit", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font-size: \1", svg)
    for colour, value in COLOURS.items():
        svg = svg.replace(value, css(colour))
    width, height = (round(inches * _POINTS_PER_INCH) for inches in figure.get_size_inches())
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}" stroke-linejoin="round" '
        f'role="img" aria-labelledby="{name}-title">'
        f'<title id="{name}-title">{title}</title>'
    )
    return re.sub(r"<svg[^>]*>", lambda _: opening, svg, count=1)
