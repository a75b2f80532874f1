"""Charts of predictions and of training, as inline SVG that is as wide as its place.

Positions are fractions of the width and text keeps its size, so a chart reads on a phone as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autoopt.report.content import Event
from autoopt.report.formatting import format_interval, format_loss_change, format_number, shorten, visible
from autoopt.report.svg import even_ticks, node, percent, picture, write
from autoopt.report.wording import EvidenceLine

_FADE = ".25"
_LABEL = 54  # characters of a line's label: as many as fit on a phone


@dataclass(frozen=True)
class IntervalRow:
    """One line of an interval chart.

    Attributes:
        label: What the line is about.
        gain: Predicted change of log loss.
        ends: Its interval, or None.
        strong: Whether the line is drawn in full colour.
    """

    label: str
    gain: float
    ends: tuple[float, float] | None = None
    strong: bool = True


# In the order in which they are worth a label; one is dropped where it would touch another.
_PERCENT_TICKS = (0, -50, 100, -10, 10, -20, 25, -5, 5, -75, 300, -90, 1000, -30, 50, -2, 2, -1, 1, -0.5, 0.5)


def interval_chart(heading: str, rows: Sequence[IntervalRow], coverage: str) -> str:
    """Predicted changes of the loss with their intervals, one line each, on a log axis.

    Args:
        heading: Title of the picture.
        rows: At least one line.
        coverage: What the intervals promise, in words; said only where a line has an interval.
    """
    promise = f"; {coverage}" if any(row.ends for row in rows) else ""
    ends = [end for row in rows for end in (*(row.ends or ()), row.gain, 0.0)]
    low, high = max(min(ends), -6.0), min(max(ends), 6.0)
    span = max(high - low, 0.01)

    def position(gain: float) -> float:
        return 0.06 + 0.88 * (min(max(gain, low), high) - low) / span

    height = 40 * len(rows)
    words = "; ".join(
        f"{visible(row.label)} {format_loss_change(row.gain)}" + (f" ({format_interval(row.ends)})" if row.ends else "")
        for row in rows[:40]
    )
    root = picture(heading, f"Predicted change of the loss{promise}: {words}", width="100%", height=height + 44)
    kept: list[float] = []
    for tick in _PERCENT_TICKS:
        gain = math.log1p(tick / 100)
        if not low - 1e-9 <= gain <= high + 1e-9:
            continue
        if all(abs(position(gain) - position(other)) > 0.15 for other in kept):
            kept.append(gain)
            x = percent(position(gain))
            node(
                root,
                "line",
                x1=x,
                x2=x,
                y1=2,
                y2=height,
                stroke="currentColor",
                stroke_opacity=1 if tick == 0 else _FADE,
                stroke_dasharray="none" if tick else "4 3",
            )
            node(
                root,
                "text",
                f"{tick:+g} %" if tick else "0 %",
                x=x,
                y=height + 16,
                text_anchor="middle",
                class_="small",
            )
    for index, row in enumerate(rows):
        y, opacity = 40 * index + 28, 1 if row.strong else 0.6
        line = node(root, "g")
        node(
            line,
            "title",
            f"{row.label}: {format_loss_change(row.gain)}" + (f" ({format_interval(row.ends)})" if row.ends else ""),
        )
        name = node(line, "text", shorten(visible(row.label), _LABEL), x="0", y=y - 12, class_="small halo")
        if row.strong:
            name.set("font-weight", "bold")
        if row.ends:
            node(
                line,
                "line",
                x1=percent(position(row.ends[0])),
                x2=percent(position(row.ends[1])),
                y1=y,
                y2=y,
                stroke="#0072B2" if row.strong else "currentColor",
                stroke_width=4,
                stroke_opacity=opacity,
                stroke_linecap="round",
            )
        node(
            line,
            "circle",
            cx=percent(position(row.gain)),
            cy=y,
            r=5,
            stroke="currentColor",
            fill="#E69F00" if row.strong else "#999",
        )
    node(
        root,
        "text",
        f"predicted change of the loss (%, log axis{promise})",
        x="50%",
        y=height + 36,
        text_anchor="middle",
        class_="small",
    )
    return write(root)


def percentile_strip(line: EvidenceLine) -> str:
    """A small track from 0 to 100 with the percentile of a value among the recorded tasks."""
    if line.percentile is None or line.percentiles is None:
        return ""
    root = node(None, "svg", width=112, height=16, role="img", aria_label=line.position, class_="percentile")
    node(root, "title", line.position)
    node(root, "rect", x=6, y=6, width=100, height=4, rx=2, fill="currentColor", fill_opacity=_FADE)
    node(
        root,
        "rect",
        x=6 + line.percentiles[0],
        y=6,
        height=4,
        fill="#0072B2",
        width=max(line.percentiles[1] - line.percentiles[0], 0.5),
    )
    for quarter in (6, 56, 106):
        node(root, "line", x1=quarter, x2=quarter, y1=3, y2=13, stroke="currentColor", stroke_opacity=".5")
    node(root, "circle", cx=6 + line.percentile, cy=8, r=5, fill="#E69F00", stroke="currentColor")
    return write(root)


def loss_curve(losses: Sequence[tuple[int, float | None]], events: Sequence[Event], warmup_steps: int = 0) -> str:
    """The training loss over steps, with the warm-up shaded and events marked by number.

    Args:
        losses: `(step, loss)` with at least two finite losses.
        events: Marked in the order given, from 1.
        warmup_steps: Steps shaded at the start.

    Raises:
        ValueError: If fewer than two losses are finite.
    """
    points = [(step, loss) for step, loss in losses if loss is not None]
    if len(points) < 2:
        raise ValueError(f"a loss curve needs two finite losses, got {len(points)}")
    last = max(max(step for step, _ in points), max((event.step for event in events), default=0), 1)
    low, high = min(loss for _, loss in points), max(loss for _, loss in points)
    margin = 0.06 * (high - low) or 0.5
    low, high = low - margin, high + margin
    left, wide, top, height = 0.13, 0.84, 42, 180
    root = picture(
        "Training loss",
        f"Loss from {format_number(points[0][1])} at step {points[0][0]} to {format_number(points[-1][1])} "
        f"at step {points[-1][0]}; lowest {format_number(min(loss for _, loss in points))}.",
        width="100%",
        height=top + height + 44,
    )
    if warmup_steps:
        node(
            root,
            "rect",
            x=percent(left),
            width=percent(wide * min(warmup_steps / last, 1)),
            y=top,
            height=height,
            fill="#56B4E9",
            fill_opacity=_FADE,
        )
    for tick in even_ticks(low, high):
        y = top + height * (high - tick) / (high - low)
        node(
            root,
            "line",
            x1=percent(left),
            x2=percent(left + wide),
            y1=y,
            y2=y,
            stroke="currentColor",
            stroke_opacity=_FADE,
        )
        node(
            root,
            "text",
            format_number(tick),
            x=percent(left - 0.01),
            y=y + 4,
            text_anchor="end",
            class_="small",
        )
    for tick in even_ticks(0, last):
        node(
            root,
            "text",
            f"{tick:,.0f}",
            x=percent(left + wide * tick / last),
            y=top + height + 16,
            text_anchor="middle",
            class_="small",
        )
    # The curve alone is stretched to the width: a path cannot be given in fractions.
    inner = node(
        root,
        "svg",
        x=percent(left),
        y=top,
        width=percent(wide),
        height=height,
        viewBox="0 0 1000 1000",
        preserveAspectRatio="none",
    )
    path = " ".join(f"{1000 * s / last:.0f},{1000 * (high - v) / (high - low):.0f}" for s, v in points)
    node(
        inner,
        "polyline",
        points=path,
        fill="none",
        stroke="#D55E00",
        stroke_width=2,
        vector_effect="non-scaling-stroke",
    )
    for index, event in enumerate(events, start=1):
        x = percent(left + wide * min(max(event.step, 0) / last, 1))
        marker = node(root, "g")
        node(marker, "title", f"step {event.step}, {event.kind}: {event.message}")
        node(marker, "line", x1=x, x2=x, y1=top, y2=top + height, stroke="currentColor", stroke_dasharray="3 3")
        node(marker, "circle", cx=x, cy=top - 10, r=8, fill="#F0E442")
        node(marker, "text", str(index), x=x, y=top - 6, text_anchor="middle", fill="#000", class_="letter")
    node(root, "text", "training loss", x=0, y=12, class_="small")
    node(
        root,
        "text",
        "step",
        x=percent(left + wide / 2),
        y=top + height + 36,
        text_anchor="middle",
        class_="small",
    )
    return write(root)
