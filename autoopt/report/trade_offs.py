"""The trade-off curve of loss, time and memory: its table, the same in every format, and its picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from autoopt.report.content import TradeOff
from autoopt.report.formatting import UNKNOWN, format_bytes, format_loss_change, format_number, visible
from autoopt.report.svg import even_ticks, node, percent, picture, write

if TYPE_CHECKING:
    from autoopt.report.recommendation import Recommendation

_HEADINGS = ("Plan", "Loss", "Step time", "Run time", "State bytes")

_LEFT, _WIDE = 0.15, 0.79  # the plot, in fractions of the picture's width
_TOP, _HEIGHT = 34, 190  # pixels
_FADE = ".25"
_CHOSEN, _OTHER = "#E69F00", "#56B4E9"


def shown_points(recommendation: Recommendation) -> tuple[TradeOff, ...]:
    """The points of the curve, none where the calibrated default is the only one."""
    points = recommendation.trade_offs
    return points if len(points) > 1 else ()


def table(points: Sequence[TradeOff]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and rows; the first column is text, the others are numbers. What nobody measured has no column."""
    rows = [_cells(point) for point in points]
    known = [place for place in range(len(_HEADINGS)) if any(row[place] != UNKNOWN for row in rows)]
    return tuple(_HEADINGS[place] for place in known), [tuple(row[place] for place in known) for row in rows]


def _cells(point: TradeOff) -> tuple[str, ...]:
    return (
        visible(point.name) + (" (chosen)" if point.chosen else ""),
        format_loss_change(point.predicted_gain),
        format_number(point.step_time_ratio),
        format_number(point.time_ratio),
        f"{point.state_bytes:,}",
    )


def reading(recommendation: Recommendation) -> str:
    """How the table is to be read."""
    points = shown_points(recommendation)
    text = (
        "Loss is the expected change against the calibrated default; what is not surely a gain counts as a small loss"
    )
    if any(point.step_time_ratio is not None for point in points):
        text += "; step time is measured on this device and run time predicted from both, as multiples of the default's"
    return f"{text}. State bytes are exact."


def trade_off_chart(points: Sequence[TradeOff]) -> str:
    """The points over optimizer state and loss, numbered as in the table, the chosen one in a thick frame.

    A line joins those that no other one beats in both. Where times were measured, the area of a point
    is the time of a step.

    Args:
        points: At least two, in the order of the table.
    """
    losses = [point.predicted_gain or 0.0 for point in points]
    most = max(max(point.state_bytes for point in points), 1)
    low, high = min(*losses, 0.0), max(*losses, 0.0)
    margin = 0.12 * (high - low) or 0.02
    low, high = low - margin, high + margin
    chosen = next((index for index, point in enumerate(points, start=1) if point.chosen), None)
    root = picture(
        "Trade-off of loss and memory",
        "; ".join(
            f"{index}: {visible(point.name)}, loss {format_loss_change(point.predicted_gain)}, "
            f"{format_bytes(point.state_bytes)}"
            for index, point in enumerate(points, start=1)
        )
        + ("" if chosen is None else f"; chosen: {chosen}"),
        width="100%",
        height=_TOP + _HEIGHT + 44,
    )

    def across(state_bytes: float) -> float:
        # By the square root: plans that take little memory are many, and far apart in loss.
        return _LEFT + _WIDE * (0.04 + 0.92 * math.sqrt(state_bytes / most))

    def down(loss: float) -> float:
        return _TOP + _HEIGHT * (high - loss) / (high - low)

    _axes(root, most, low, high, across, down)
    order = sorted(range(len(points)), key=lambda index: (points[index].state_bytes, losses[index]))
    leanest = [
        index
        for place, index in enumerate(order)
        if losses[index] < min([losses[i] for i in order[:place]], default=math.inf)
    ]
    for before, after in zip(leanest, leanest[1:], strict=False):
        node(
            root,
            "line",
            x1=percent(across(points[before].state_bytes)),
            y1=down(losses[before]),
            x2=percent(across(points[after].state_bytes)),
            y2=down(losses[after]),
            stroke="currentColor",
            stroke_opacity=_FADE,
        )
    for index in sorted(order, key=lambda index: points[index].chosen):  # the chosen one on top
        point = points[index]
        x, y = percent(across(point.state_bytes)), down(losses[index])
        mark = node(root, "g")
        node(mark, "title", ", ".join(cell for cell in _cells(point) if cell != UNKNOWN))
        radius = 9.0 * math.sqrt(min(max(point.step_time_ratio or 1.0, 0.6), 2.5))
        node(
            mark,
            "circle",
            cx=x,
            cy=y,
            r=radius,
            fill=_CHOSEN if point.chosen else _OTHER,
            stroke="currentColor",
            stroke_width=3 if point.chosen else 1,
        )
        node(mark, "text", str(index + 1), x=x, y=y + 4, text_anchor="middle", fill="#000", class_="letter")
    return write(root)


def _axes(root: ElementTree.Element, most: float, low: float, high: float, across, down) -> None:
    even = even_ticks(0, most / 2**20)
    for tick in (*even, even[1] / 4) if len(even) > 1 else even:
        x = percent(across(tick * 2**20))
        node(root, "line", x1=x, x2=x, y1=_TOP, y2=_TOP + _HEIGHT, stroke="currentColor", stroke_opacity=_FADE)
        label = format_number(tick)
        node(root, "text", label, x=x, y=_TOP + _HEIGHT + 16, text_anchor="middle", class_="small")
    for tick in even_ticks(100 * math.expm1(low), 100 * math.expm1(high)):
        y = down(math.log1p(tick / 100))
        ends = {"x1": percent(_LEFT), "x2": percent(_LEFT + _WIDE)}
        node(root, "line", **ends, y1=y, y2=y, stroke="currentColor", stroke_opacity=_FADE if tick else "1")
        label = f"{tick:+g} %" if tick else "0 %"
        node(root, "text", label, x=percent(_LEFT - 0.01), y=y + 4, text_anchor="end", class_="small")
    node(root, "text", "expected change of the loss", x=0, y=12, class_="small")
    label = {"x": percent(_LEFT + _WIDE / 2), "y": _TOP + _HEIGHT + 36, "text_anchor": "middle", "class_": "small"}
    node(root, "text", "optimizer state (MiB)", **label)
