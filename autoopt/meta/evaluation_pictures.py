"""Results as pictures: profiles, times, gaps and the reliability of predicted intervals, as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autoopt.meta.measures import times_to_target
from autoopt.meta.profiles import R_MAX, performance_profile
from autoopt.meta.scoreboard import Scores

_INK, _GREY, _LIGHT = "#22303c", "#7b8794", "#d5dbe1"
_COLOURS = {"selector": "#0b6e4f", "selector_online": "#0b6e4f", "sbs": "#1f6feb", "tuned_adamw": "#b3541e"}
_STYLE = {
    "svg.fonttype": "path",
    # Element names from a fixed salt: the same results give the same bytes.
    "svg.hashsalt": "autoopt",
    "font.size": 9,
    "axes.edgecolor": _LIGHT,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
}


def write_pictures(
    scores: Scores, folder: str | Path, positions: Mapping[str, Sequence[float]] | None = None
) -> dict[str, str]:
    """File name -> what the picture shows, after writing those that the results allow.

    Args:
        scores: Results of the strict protocol.
        folder: Where the files go.
        positions: Role group -> where held-out outcomes lie in their predicted distributions, as
            `Selections.predictions` has them.
    """
    import matplotlib

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written: dict[str, str] = {}
    style: Any = _STYLE
    with matplotlib.rc_context(style):
        if scores.ratios:
            written |= _saved(_profiles(scores), folder / "profiles.svg", "Performance profiles")
        if any(row.get("time_to_target") is not None for row in scores.rows.values()):
            figure = _dots(scores.rows, "time_to_target", "steps to the target, over tuned AdamW's", 1.0)
            written |= _saved(figure, folder / "times.svg", "Time to target")
            written |= _saved(_families(scores), folder / "families.svg", "Time to target by family")
        rows = {name: row for name, row in scores.rows.items() if (row.get("closed_gap_loss") or -9.0) > -2.0}
        if rows:
            figure = _dots(rows, "closed_gap_loss", "closed gap by log loss: 0 is the SBS, 1 the VBS", 0.0)
            written |= _saved(figure, folder / "gaps.svg", "Closed gap")
        if positions and any(positions.values()):
            figure = _reliability(positions)
            written |= _saved(figure, folder / "reliability.svg", "Reliability of predicted intervals")
    return written


def coverage(positions: Sequence[float], levels: Sequence[float]) -> list[float]:
    """The share of outcomes inside the central interval of each level.

    >>> coverage([0.5, 0.2, 0.99], [0.5, 0.9])
    [0.3333333333333333, 0.6666666666666666]
    """
    depth = np.abs(2.0 * np.asarray(positions, dtype=np.float64) - 1.0)
    return [float(np.mean(depth <= level)) for level in levels]


def _profiles(scores: Scores) -> Any:
    figure, axes = _figure(6.4, 3.8)
    taus = np.linspace(1.0, R_MAX, 301)
    order = sorted(scores.ratios, key=lambda name: -(scores.rows[name]["profile_integral"] or 0.0))
    for name in order:
        shown = name in _COLOURS
        axes.plot(
            taus,
            performance_profile(scores.ratios[name], taus),
            color=_COLOURS.get(name, _LIGHT if len(order) > 8 and not shown else _GREY),
            linewidth=2.0 if shown else 1.0,
            zorder=3 if shown else 2,
            label=f"{scores.rows[name]['title']}  {scores.rows[name]['profile_integral']:.2f}",
        )
    axes.set(xlim=(1.0, R_MAX), ylim=(0.0, 1.0))
    axes.set_xlabel("factor on the steps of the fastest contender")
    axes.set_ylabel("share of tasks")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=7, title="integral over 1 to 4")
    return figure


def _dots(rows: Mapping[str, Mapping[str, Any]], name: str, label: str, mark: float) -> Any:
    """A dot and an interval for each contender, the best at the top."""
    known = [
        (row[name], row[f"{name}_ci"], key, row["title"]) for key, row in rows.items() if row.get(name) is not None
    ]
    known.sort(key=lambda item: item[0], reverse=name == "time_to_target")
    figure, axes = _figure(6.4, 0.8 + 0.24 * len(known))
    axes.axvline(mark, color=_LIGHT, linewidth=1.0, zorder=1)
    for height, (value, interval, key, _) in enumerate(known):
        colour = _COLOURS.get(key, _GREY)
        low, high = (max(bound, -3.0) for bound in interval or (value, value))
        axes.plot([low, high], [height, height], color=colour, linewidth=1.2, zorder=2)
        axes.plot([value], [height], "o", color=colour, markersize=4, zorder=3)
    axes.set_yticks(range(len(known)), [title for *_, title in known])
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(label)
    return figure


def _families(scores: Scores) -> Any:
    """A dot for each task, by architecture family, misses at the right border."""
    steps = times_to_target(scores.contenders[scores.main], scores.yardstick.targets)
    tasks = scores.yardstick.recordings.tasks
    by_family: dict[str, list[float]] = {}
    for task, ratio in steps.items():
        by_family.setdefault(tasks[task].family, []).append(min(R_MAX, ratio))
    order = sorted(by_family, key=lambda family: -float(np.mean(np.log(by_family[family]))))
    figure, axes = _figure(6.4, 0.8 + 0.2 * len(order))
    axes.axvline(1.0, color=_LIGHT, linewidth=1.0, zorder=1)
    colour = _COLOURS.get(scores.main, _INK)
    for height, family in enumerate(order):
        values = by_family[family]
        missed = [value for value in values if value >= R_MAX]
        axes.plot(values, [height] * len(values), "o", color=colour, alpha=0.45, markersize=4, markeredgewidth=0)
        axes.plot([R_MAX] * len(missed), [height] * len(missed), "x", color=colour, markersize=4)
        mean = math.exp(float(np.mean(np.log(values))))
        axes.plot([mean], [height], "|", color=_INK, markersize=9, markeredgewidth=1.6)
    axes.set_xscale("log")
    ticks = [0.125, 0.25, 0.5, 1.0, 2.0, R_MAX]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks[:-1]] + ["missed"])
    axes.minorticks_off()
    axes.set_yticks(range(len(order)), order)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"steps to the target, over tuned AdamW's ({scores.main})")
    return figure


def _reliability(positions: Mapping[str, Sequence[float]]) -> Any:
    figure, axes = _figure(4.4, 3.8)
    levels = np.linspace(0.05, 0.99, 48)
    axes.plot([0.0, 1.0], [0.0, 1.0], color=_LIGHT, linewidth=1.0)
    for group, values in sorted(positions.items()):
        if len(values):
            axes.plot(levels, coverage(values, levels.tolist()), linewidth=1.2, label=f"{group} ({len(values)})")
    together = [value for values in positions.values() for value in values]
    axes.plot(levels, coverage(together, levels.tolist()), color=_INK, linewidth=2.0, label=f"all ({len(together)})")
    axes.set(xlim=(0.0, 1.0), ylim=(0.0, 1.0), aspect="equal")
    axes.set_xlabel("nominal share of the predicted interval")
    axes.set_ylabel("share of held-out outcomes inside")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=7)
    return figure


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, figure.subplots()


def _saved(figure: Any, path: Path, title: str) -> dict[str, str]:
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None, "Title": title})
    return {path.name: title}
