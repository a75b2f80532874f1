"""The report's pictures as pixels, for trackers that show images and not SVG."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from autoopt.report.formatting import shorten, visible
from autoopt.report.grouping import LayerGroup
from autoopt.report.pictures import group_statistics
from autoopt.report.recommendation import Recommendation
from autoopt.report.svg import marks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_COLUMNS = 60
"""Groups of layers that an image shows; of more, the ones with the most parameters."""
_LABEL = 32  # characters
_DOTS_PER_INCH = 100


def layers_image(recommendation: Recommendation) -> np.ndarray:
    """The model as a bar chart of planned rates, coloured by optimizer; uint8, `(height, width, 3)`.

    Needs matplotlib. Layers that repeat share a bar; one with a thick edge deviates from the default.
    """
    groups = _shown(recommendation)
    figure = _figure(len(groups), 4.2)
    axes = figure.add_subplot()
    legend = marks(group.config.optimizer for group in groups)
    for name, mark in legend.items():
        own = [(index, group) for index, group in enumerate(groups) if group.config.optimizer == name]
        axes.bar(
            [index for index, _ in own],
            [group.config.lr for _, group in own],
            color=mark.colour,
            edgecolor="black",
            linewidth=[2.0 if group.deviates else 0.3 for _, group in own],
            label=mark.title,
        )
    if any(group.config.lr > 0 for group in groups):
        axes.set_yscale("log")
    axes.set_ylabel("planned learning rate")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    _label_columns(axes, groups, recommendation)
    return _pixels(figure)


def statistics_image(recommendation: Recommendation) -> np.ndarray | None:
    """Warm-up statistics (rows) by layer (columns), coloured by rank within each row; uint8.

    Needs matplotlib. None where no statistics were taken.
    """
    groups = _shown(recommendation)
    table = group_statistics(groups, recommendation.statistics)
    if not table:
        return None
    ranks = np.array([_ranks(row) for row in table.values()])
    figure = _figure(len(groups), 1.8 + 0.18 * len(table))
    axes = figure.add_subplot()
    axes.imshow(ranks, aspect="auto", cmap="viridis", vmin=0.0, vmax=1.0, interpolation="nearest")
    axes.set_yticks(range(len(table)), [shorten(visible(name), _LABEL) for name in table], fontsize=7)
    _label_columns(axes, groups, recommendation)
    return _pixels(figure)


def _shown(recommendation: Recommendation) -> list[LayerGroup]:
    groups = list(recommendation.groups)
    if len(groups) <= MAX_COLUMNS:
        return groups
    largest = sorted(range(len(groups)), key=lambda index: -groups[index].num_parameters)[:MAX_COLUMNS]
    return [groups[index] for index in sorted(largest)]


def _ranks(row: list[float | None]) -> list[float]:
    known = sorted({value for value in row if value is not None})
    places = {value: index / (len(known) - 1) if len(known) > 1 else 0.5 for index, value in enumerate(known)}
    return [math.nan if value is None else places[value] for value in row]


def _figure(num_columns: int, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(3.5 + 0.22 * num_columns, height + 1.6), dpi=_DOTS_PER_INCH, layout="constrained")


def _label_columns(axes: object, groups: list[LayerGroup], recommendation: Recommendation) -> None:
    names = [
        shorten(visible(group.label), _LABEL) + (f" \u00d7{len(group.members)}" if len(group.members) > 1 else "")
        for group in groups
    ]
    # Dollar signs would start a formula.
    labels = [name.replace("$", r"\$") for name in names]
    axes.set_xticks(range(len(groups)), labels, rotation=60, ha="right", fontsize=7)  # pyright: ignore
    hidden = len(recommendation.groups) - len(groups)
    if hidden:
        axes.set_title(f"the {len(groups)} largest groups of layers, {hidden} more are not shown", fontsize=8)  # pyright: ignore


def _pixels(figure: Figure) -> np.ndarray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
