"""Pictures of the model, as inline SVG drawn by code: no plotting library, no font, no network.

Every picture has a title, a description for screen readers, and axis labels with units. Text takes
the page's colour, so the pictures follow the light and the dark theme and print in black.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

from autoopt.report.formatting import format_number, shorten, visible
from autoopt.report.grouping import LayerGroup
from autoopt.report.svg import (
    decades,
    fill,
    heat,
    marks,
    node,
    sized_picture,
    write,
)
from autoopt.report.wording import title

_FADE = ".25"
_LABEL = 26  # characters of a slanted column label


def _column_labels(
    root: ElementTree.Element, groups: Sequence[LayerGroup], left: float, width: float, top: float
) -> None:
    for index, group in enumerate(groups):
        x, y = left + (index + 0.5) * width, top + 10
        label = node(
            root,
            "text",
            shorten(visible(group.label), _LABEL),
            x=x,
            y=y,
            text_anchor="end",
            transform=f"rotate(-50 {x:.1f} {y:.1f})",
            class_="small",
        )
        node(label, "title", group.label)


def _label_overhang(groups: Sequence[LayerGroup], width: float) -> float:
    """How far the slanted labels reach to the left of the first column, in pixels."""
    # About 6 px a character at this size, and cos 50 degrees of that sideways.
    return max(
        (
            min(len(visible(group.label)), _LABEL) * 6 * 0.65 - (index + 0.5) * width + 8
            for index, group in enumerate(groups)
        ),
        default=0.0,
    )


def _label_depth(groups: Sequence[LayerGroup]) -> float:
    """How far the slanted labels reach below the columns, in pixels."""
    longest = max((min(len(visible(group.label)), _LABEL) for group in groups), default=0)
    return longest * 6 * 0.77 + 16  # sin 50 degrees


def _column_width(count: int) -> float:
    return min(max(680 / max(count, 1), 16.0), 44.0)


def layer_strip(groups: Sequence[LayerGroup]) -> str:
    """The model as a strip of columns: colour, pattern and letter tell the optimizer, height the rate.

    Args:
        groups: Layers that repeat share a column, marked with their number.
    """
    top, height, width = 26, 150, _column_width(len(groups))
    left = max(64.0, _label_overhang(groups, width))
    legend = marks(group.config.optimizer for group in groups)
    low, high = decades([group.config.lr for group in groups])
    words = "; ".join(f"{visible(g.label)}: {title(g.config)} at {format_number(g.config.lr)}" for g in groups[:40])
    total = left + len(groups) * width + 12
    root = sized_picture(
        "Optimizer and learning rate of every layer", words, max(total, 300.0), top + height + _label_depth(groups)
    )
    node(root, "text", "planned learning rate (log scale)", x=4, y=12, class_="small")
    for exponent in range(low, high + 1):
        y = top + height * (high - exponent) / (high - low)
        node(root, "line", x1=left, x2=total - 12, y1=y, y2=y, stroke="currentColor", stroke_opacity=_FADE)
        node(
            root,
            "text",
            format_number(10.0**exponent),
            x=left - 6,
            y=y + 4,
            text_anchor="end",
            class_="small",
        )
    for index, group in enumerate(groups):
        mark, rate = legend[group.config.optimizer], group.config.lr
        share = (math.log10(rate) - low) / (high - low) if rate > 0 else 0.0
        x, bar = left + index * width + 1, max(2.0, share * height)
        column = node(root, "g")
        node(column, "title", f"{group.label}: {title(group.config)}, rate {format_number(rate)}")
        node(
            column,
            "rect",
            x=x,
            y=top + height - bar,
            width=width - 2,
            height=bar,
            fill=fill(root, "strip", mark),
            stroke="currentColor",
            stroke_width=2 if group.deviates else 0.5,
        )
        if bar > 18:
            node(column, "circle", cx=x + width / 2 - 1, cy=top + height - 9, r=7, fill=mark.colour)
            node(
                column,
                "text",
                mark.letter,
                x=x + width / 2 - 1,
                y=top + height - 5,
                fill=mark.ink,
                text_anchor="middle",
                class_="letter",
            )
        if len(group.members) > 1:
            node(
                column,
                "text",
                f"\u00d7{len(group.members)}",
                x=x + width / 2 - 1,
                y=top + height - bar - 4,
                text_anchor="middle",
                class_="small",
            )
    _column_labels(root, groups, left, width, top + height)
    return write(root)


def optimizer_legend(groups: Sequence[LayerGroup]) -> list[tuple[str, str, int]]:
    """Swatch (SVG), optimizer title and number of tensors, for every optimizer in the groups."""
    result = []
    for name, mark in marks(group.config.optimizer for group in groups).items():
        root = node(None, "svg", width=22, height=22, viewBox="0 0 22 22", aria_hidden="true", class_="swatch")
        node(root, "rect", width=22, height=22, fill=fill(root, "legend", mark))
        node(root, "circle", cx=11, cy=11, r=7.5, fill=mark.colour)
        node(root, "text", mark.letter, x=11, y=15, fill=mark.ink, text_anchor="middle", class_="letter")
        count = sum(len(group.members) for group in groups if group.config.optimizer == name)
        result.append((write(root), mark.title, count))
    return result


def group_statistics(
    groups: Sequence[LayerGroup], values: Mapping[str, Mapping[str, float | None]]
) -> dict[str, list[float | None]]:
    """Statistic -> its value for each group: the median over the members, None where none has it."""
    names = dict.fromkeys(name for row in values.values() for name in row)
    table: dict[str, list[float | None]] = {}
    for name in names:
        row: list[float | None] = []
        for group in groups:
            known = [values.get(member.name, {}).get(name) for member in group.members]
            numbers = [value for value in known if value is not None]
            row.append(statistics.median(numbers) if numbers else None)
        table[name] = row
    return table


def statistics_heatmap(groups: Sequence[LayerGroup], values: Mapping[str, Mapping[str, float | None]]) -> str:
    """A heat map of statistics (rows) by layer (columns), coloured by rank within each row.

    Ranks, since the statistics have different units and heavy tails. A cell without a value is
    crossed out.

    Args:
        groups: The columns; a group shows the median of its members.
        values: Parameter name -> statistic -> value.
    """
    table = group_statistics(groups, values)
    left, top, cell, width = 166.0, 8, 20, _column_width(len(groups))
    right = left + width * len(groups)
    root = sized_picture(
        "Statistics of every layer",
        f"{len(table)} statistics by {len(groups)} groups of layers, coloured from the lowest value of a "
        "row (dark) to its highest (bright); the values are in the table below.",
        max(right + 12, left + 260),
        top + cell * len(table) + _label_depth(groups) + 32.0,
    )
    for line, (name, row) in enumerate(table.items()):
        y = top + line * cell
        node(root, "text", shorten(visible(name), 24), x=left - 6, y=y + 14, text_anchor="end", class_="small")
        ranks = sorted({value for value in row if value is not None})
        for index, (group, value) in enumerate(zip(groups, row, strict=True)):
            x = left + index * width
            if value is None:
                node(
                    root,
                    "path",
                    d=f"M{x + 3:.1f} {y + 3}l{width - 7:.1f} {cell - 7}",
                    fill="none",
                    stroke="currentColor",
                    stroke_opacity=_FADE,
                )
                continue
            colour, _ = heat(ranks.index(value) / (len(ranks) - 1) if len(ranks) > 1 else 0.5)
            box = node(root, "rect", x=x, y=y, width=width - 1, height=cell - 1, fill=colour)
            node(box, "title", f"{group.label}: {name} {format_number(value)}")
    bottom = top + cell * len(table)
    _column_labels(root, groups, left, width, bottom)
    scale = bottom + _label_depth(groups) + 8
    for step in range(20):
        node(root, "rect", x=left + step * 6, y=scale, width=6, height=10, fill=heat(step / 19)[0])
    node(root, "text", "lowest", x=left - 6, y=scale + 9, text_anchor="end", class_="small")
    node(root, "text", "highest of the row (rank)", x=left + 126, y=scale + 9, class_="small")
    return write(root)
