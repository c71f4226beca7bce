"""The channels that a method scored and chose, as a section of the report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from server.evidence.record import Record
from server.report.heatmap import MOST_COLUMNS, channel_heatmap
from server.report.tables import Table
from server.report.words import as_count, as_share, forgotten_classes

_MOST_LAYERS_OPEN = 6
_MOST_CHANNELS_IN_CELL = 8


@dataclass(frozen=True)
class Channels:
    """What a method found of the channels, and which it chose.

    `open` and `folded` are the layers' heat maps, those with the most chosen channels open;
    `by_class` says whether scores are of classes, `cut` whether some classes are not shown.
    """

    title: str
    action: str
    summary: str
    table: Table
    open: Sequence[Markup]
    folded: Sequence[Markup]
    by_class: bool
    cut: bool


def channel_section(record: Record) -> Channels | None:
    """Return the channels that a method scored and chose, or None where it did neither."""
    found = record.channels or {}
    scores = {str(name): layer or {} for name, layer in (found.get("scores") or {}).items()}
    chosen = {
        str(name): sorted({int(channel) for channel in channels or []})
        for name, channels in (found.get("chosen") or {}).items()
    }
    names = [*scores, *(name for name in chosen if name not in scores)]
    if not names:
        return None
    action = str(found.get("action") or "chosen")
    sizes = {name: len(scores.get(name, {}).get("values") or []) or None for name in names}
    forgotten = {str(label) for label in forgotten_classes(record)}

    def plot(name: str) -> Markup:
        return Markup(
            channel_heatmap(
                scores[name]["values"],
                columns[name],
                chosen.get(name, []),
                layer=name,
                action=action,
                forgotten=forgotten,
                class_names=record.class_names,
                name=f"channels-{names.index(name)}",
            )
        )

    columns = {name: [str(c) for c in layer.get("columns") or []] for name, layer in scores.items()}
    drawn = [name for name in scores if sizes[name] and columns[name]]
    open_ = sorted(drawn, key=lambda name: -len(chosen.get(name, [])))[:_MOST_LAYERS_OPEN]
    return Channels(
        title=str(found.get("title") or "Score of each channel"),
        action=action,
        summary=_channels_summary(sizes, chosen, action),
        table=_channel_table(sizes, chosen, action),
        open=[plot(name) for name in drawn if name in open_],
        folded=[plot(name) for name in drawn if name not in open_],
        by_class=any(column.isdecimal() for name in drawn for column in columns[name]),
        cut=any(len(columns[name]) > MOST_COLUMNS for name in drawn),
    )


def _channels_summary(
    sizes: Mapping[str, int | None], chosen: Mapping[str, Sequence[int]], action: str
) -> str:
    num_chosen, total = _chosen_of(sizes, chosen)
    layers = sum(1 for channels in chosen.values() if channels)
    were = "was" if num_chosen == 1 else "were"
    of = "channel" + ("" if num_chosen == 1 else "s")
    if total is not None:
        of = f"of {as_count(total)} channels ({as_share(num_chosen, total)})"
    place = f", in {layers} of {len(sizes)} layer{'' if len(sizes) == 1 else 's'}"
    return f"{as_count(num_chosen)} {of} {were} {action}{place if num_chosen else ''}."


def _channel_table(
    sizes: Mapping[str, int | None], chosen: Mapping[str, Sequence[int]], action: str
) -> Table:
    rows: list[tuple[str, Sequence[str], str]] = []
    for name, size in sizes.items():
        channels = chosen.get(name, [])
        cells = [as_count(size), as_count(len(channels)), as_share(len(channels), size)]
        rows.append((name, [*cells, _channel_list(channels)], ""))
    if len(rows) > 1:
        num_chosen, total = _chosen_of(sizes, chosen)
        cells = [as_count(total), as_count(num_chosen), as_share(num_chosen, total)]
        rows.append(("all layers", [*cells, ""], "total"))
    return Table([], ["channels", action, "share", f"channels {action}, from 0"], rows)


def _channel_list(channels: Sequence[int]) -> str:
    """Return channel numbers; of many, the first ones, with all of them one click away."""
    texts = [str(channel) for channel in channels]
    if len(texts) <= _MOST_CHANNELS_IN_CELL:
        return ", ".join(texts) or "none"
    first = ", ".join(texts[:_MOST_CHANNELS_IN_CELL])
    return Markup("<details><summary>{}, … (all {})</summary>{}</details>").format(
        first, len(texts), ", ".join(texts)
    )


def _chosen_of(
    sizes: Mapping[str, int | None], chosen: Mapping[str, Sequence[int]]
) -> tuple[int, int | None]:
    """Return how many channels were chosen, and of how many: None if a layer's are not known."""
    known = [size for size in sizes.values() if size is not None]
    total = sum(known) if len(known) == len(sizes) else None
    return sum(len(channels) for channels in chosen.values()), total
