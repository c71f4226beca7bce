"""Draw the heat map of a layer's channel scores as SVG text (see `server.report.plots`)."""

from collections.abc import Collection, Sequence
from html import escape
from itertools import groupby
from math import ceil, isfinite, isnan, nan

from server.format import class_text
from server.report.plots import WIDTH, css, percent_height, short

MOST_COLUMNS = 20
"""Columns that a heat map shows in full; of more, the forgotten and some others (ten each)."""

_TONES = 8  # shades that a heat map can tell apart, blank left out
_MOST_CELLS = 256  # along a heat map's channels: three pixels each on a wide screen


def channel_heatmap(
    scores: Sequence[Sequence[float | None] | None],
    columns: Sequence[str],
    chosen: Collection[int],
    *,
    layer: str,
    action: str,
    forgotten: Collection[str],
    class_names: Sequence[str] | None = None,
    name: str,
) -> str:
    """Draw one layer's scores: channels from left to right, the columns below one another.

    The stronger a cell's tone, the higher its score, in equal steps from 0 to the highest. Columns
    that are classes share one scale; others have units of their own, and so scales of their own.

    The cells are strokes, one path a tone: a picture could not follow the page's colours, and the
    page admits none. 512 channels by 10 classes take some 15 kB.

    Args:
        scores: One row a channel, one number a column; at least one row. What is missing counts as
            not measured.
        columns: Their names; a number is a class. At least one.
        chosen: Channel numbers to mark.
        layer: Its name.
        action: What was done to the chosen channels, as a participle.
        forgotten: Columns to emphasise.
        class_names: Name of class k at index k; None where there are numbers alone.
        name: Prefix of the ids in the SVG, unique in the page.

    Returns:
        The `<svg>` element.
    """
    places = _shown_columns(scores, columns, chosen, forgotten)
    labels = [
        short(class_text(int(c), class_names) if c.isdecimal() else c)
        for c in (columns[i] for i in places)
    ]
    num_channels = len(scores)
    a_cell = ceil(num_channels / _MOST_CELLS)
    rows = [
        [
            _highest([_score(row, i) for row in scores[first : first + a_cell]])
            for first in range(0, num_channels, a_cell)
        ]
        for i in places
    ]
    tops = [max((value for value in row if isfinite(value)), default=nan) for row in rows]
    shared = len(rows) > 1 and all(column.isdecimal() for column in columns)
    if shared:
        tops = [max((top for top in tops if isfinite(top)), default=nan)] * len(rows)

    left = 8 + 4.9 * max(len(text) for text in (*labels, action, "channel"))
    right = 0.86 * WIDTH
    top, height = 32, min(11, 160 / len(rows))  # of the cells; of a row
    bottom = top + height * len(rows)
    across = min(14, (right - left) / num_channels)  # of a channel
    end = left + across * num_channels
    marked = sorted(channel for channel in set(chosen) if 0 <= channel < num_channels)

    told = f"{num_channels} channel{'' if num_channels == 1 else 's'}, {len(marked)} {action}"
    if a_cell > 1:
        told += f"; a cell shows the highest of {a_cell} neighbours"
    parts = [
        f'<text x="0" y="10"><tspan style="fill: {css("ink")}; font-weight: 650">'
        f"{escape(layer)}</tspan>  {escape(told)}</text>",
        _text(left - 6, 23.5, action, "end", "forget"),
        _text(left - 6, bottom + 9, "channel", "end"),
        f'<rect x="{left:.4g}" y="{top}" width="{end - left:.4g}" height="{height * len(rows):.4g}"'
        f' style="fill: none; stroke: {css("rule")}"/>',
    ]
    every = next(step for step in (2**power for power in range(32)) if num_channels <= 9 * step)
    for channel in range(0, num_channels, every):
        parts.append(_text(left + across * (channel + 0.5), bottom + 9, str(channel), "middle"))
    for row, (i, label) in enumerate(zip(places, labels, strict=True)):
        y = top + height * (row + 0.5)
        colour = "forget" if columns[i] in forgotten else "muted"
        parts.append(_text(left - 6, y, label, "end", colour))
        if not shared:
            parts.append(_text(end + 8, y, _range(tops[row])))
    if shared:
        parts.append(_scale(end + 10, top, bottom, tops[0]))

    levels = [
        [_tone(value, highest) for value in row] for row, highest in zip(rows, tops, strict=True)
    ]
    parts.append(
        f'<g transform="translate({left:.4g} {top}) scale({across * a_cell:.6g} {height:.4g})" '
        f'shape-rendering="crispEdges" style="fill: none; stroke: {css("ink")}">'
    )
    for tone, path in sorted(_strokes(levels, num_channels / a_cell).items()):
        # A cell that was not measured is a thin line, as a number that was not is a dash.
        look = f'stroke-opacity="{tone / _TONES:g}"' if tone else 'stroke-width=".12"'
        parts.append(f'<path {look} d="{path}"/>')
    parts.append("</g>")
    # A mark is two pixels wide at least, so that one channel of 512 does not vanish.
    mark = max(0.85, 1.4 / across)
    if marked:
        path = "".join(f"M{channel + 0.5 - mark / 2:.6g} 0h{mark:.3g}" for channel in marked)
        parts.append(
            f'<g transform="translate({left:.4g} 25.5) scale({across:.6g} 1)">'
            f'<path class="chosen" d="{path}" '
            f'style="fill: none; stroke: {css("forget")}; stroke-width: 7"/></g>'
        )
    for row, i in enumerate(places):
        if columns[i] in forgotten:
            parts.append(
                f'<rect class="forgotten" x="{left:.4g}" y="{top + height * row:.4g}" '
                f'width="{end - left:.4g}" height="{height:.4g}" '
                f'style="fill: none; stroke: {css("forget")}; stroke-width: 1.5"/>'
            )
    title = f"Scores of the channels of layer {layer}: {told}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 16:.4g}" '
        f'role="img" aria-labelledby="{name}-title">'
        f'<title id="{name}-title">{escape(title)}</title>'
        f'<g style="font-size: 9.5px; font-family: inherit; fill: {css("muted")}">'
        f"{''.join(parts)}</g></svg>"
    )


def _shown_columns(
    scores: Sequence[Sequence[float | None] | None],
    columns: Sequence[str],
    chosen: Collection[int],
    forgotten: Collection[str],
) -> list[int]:
    """Return the places of the columns to show: of many, those that the choice was about.

    Beside ten forgotten ones, these are the ten others that score highest on the chosen channels,
    which are those that the choice may have hurt.
    """
    if len(columns) <= MOST_COLUMNS:
        return list(range(len(columns)))
    rows = [scores[channel] for channel in chosen if channel < len(scores)] or scores
    sums = [
        sum(value for row in rows if isfinite(value := _score(row, i))) for i in range(len(columns))
    ]
    own = [i for i, column in enumerate(columns) if column in forgotten][:10]
    others = [i for i, column in enumerate(columns) if column not in forgotten]
    return sorted(own + sorted(others, key=lambda i: -sums[i])[:10])


def _score(row: Sequence[float | None] | None, place: int) -> float:
    """Return a row's score in one column, or NaN where there is none."""
    return percent_height(row[place]) if row is not None and place < len(row) else nan


def _highest(values: Sequence[float]) -> float:
    return max((value for value in values if not isnan(value)), default=nan)


def _tone(value: float, highest: float) -> int | None:
    """Return the tone of a score: 0 is blank, `_TONES` the strongest; None if not measured."""
    if isnan(value):
        return None
    if value <= 0:
        return 0
    # So that every score above zero is seen, a step belongs to the tone at its upper end.
    return _TONES if value >= highest else ceil(_TONES * value / highest)


def _strokes(levels: Sequence[Sequence[int | None]], length: float) -> dict[int, str]:
    """Return by tone a path of horizontal strokes of width 1, one for each run of equal cells.

    Cells are squares of size 1. Blank ones have no stroke; those not measured are at 0.

    Args:
        levels: Tones, a row of cells after another.
        length: Cells in a row, where the last one may be a part of one.
    """
    paths: dict[int, str] = {}
    for number, row in enumerate(levels):
        ends: dict[int, int] = {}
        start = 0
        for level, cells in groupby(row):
            end = start + len(list(cells))
            if level != 0:
                tone = level or 0
                move = f"m{start - ends[tone]} 0" if tone in ends else f"M{start} {number}.5"
                paths[tone] = paths.get(tone, "") + f"{move}h{min(end, length) - start:g}"
                ends[tone] = end
            start = end
    return paths


def _scale(x: float, top: float, bottom: float, highest: float) -> str:
    """Return the tones from 0 to `highest` one above the other, with both numbers."""
    if not highest > 0:
        return _text(x, top + 5.5, _range(highest))
    step = (bottom - top) / _TONES
    cells = "".join(
        f'<rect x="{x:.4g}" y="{bottom - step * tone:.4g}" width="8" height="{step:.4g}" '
        f'fill-opacity="{tone / _TONES:g}"/>'
        for tone in range(1, _TONES + 1)
    )
    return (
        f'<g shape-rendering="crispEdges" style="fill: {css("ink")}">{cells}</g>'
        + _text(x + 12, top + 4.5, f"{highest:.3g}")
        + _text(x + 12, bottom - 4.5, "0")
    )


def _range(highest: float) -> str:
    """Return what a row's strongest tone stands for."""
    if isnan(highest):
        return "not measured"
    return f"0 to {highest:.3g}" if highest > 0 else "none above 0"


def _text(x: float, y: float, text: str, anchor: str = "start", colour: str = "muted") -> str:
    """Return a line of text around the height `y`; what was forgotten is set in bold."""
    where = f' text-anchor="{anchor}"' if anchor != "start" else ""
    look = f' style="fill: {css(colour)}; font-weight: 650"' if colour != "muted" else ""
    return f'<text x="{x:.4g}" y="{y + 3.3:.4g}"{where}{look}>{escape(text)}</text>'
