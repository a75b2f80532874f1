"""Results as text: the tables of the terminal and of the documentation's page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from autoopt.meta.protocols import PROTOCOLS

COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("time_to_target", "time", "steps to the target over tuned AdamW's, geometric mean, a miss counts 4"),
    ("missed", "missed", "share of tasks on which the target is missed"),
    ("seconds_to_target", "seconds", "the same in seconds, those of choosing included"),
    ("profile_integral", "profile", "integral of the performance profile over 1 to 4, over 3: 1 is best"),
    ("closed_gap_loss", "gap, loss", "closed gap between SBS and VBS by log excess"),
    ("closed_gap_rank", "gap, rank", "closed gap by rank"),
    ("no_harm", "no harm", "share of tasks that end no worse than with calibrated AdamW"),
    ("no_harm_tuned", "vs tuned", "share of tasks that end no worse than with AdamW tuned for the task"),
    ("log_excess", "excess", "mean log excess over the best loss recorded for the task"),
    ("rank", "rank", "mean share of recorded plans that are better"),
    ("step_seconds_ratio", "step", "seconds of a step over AdamW's"),
    ("state_bytes_ratio", "state", "bytes of optimizer state over AdamW's"),
)
"""Measure, heading, and what it is."""

_SHARES = ("missed", "no_harm", "no_harm_tuned")


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain-text table: the first column to the left, the others to the right.

    >>> print(table(["task", "time"], [["mlp", "0.5"], ["transformer", "1"]]))
    task         time
    mlp           0.5
    transformer     1
    """
    lines = [list(headings), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        ).rstrip()
        for line in lines
    )


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table.

    >>> print(markdown_table(["task", "time"], [["mlp", "0.5"]]))
    | task | time |
    | --- | --- |
    | mlp | 0.5 |
    """
    lines = [list(headings), ["---"] * len(headings), *(list(row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(row: Mapping[str, Any], name: str, interval: bool = False) -> str:
    """One measure as text, with its interval where it is asked for; `"-"` for what is not known."""
    value = row.get(name)
    if value is None:
        return "-"
    show: Callable[[float], str] = (lambda v: f"{100 * v:.0f} %") if name in _SHARES else (lambda v: f"{v:.2f}")
    bounds = row.get(f"{name}_ci")
    if not interval or not bounds or None in bounds:
        return show(value)
    return f"{show(value)} ({show(bounds[0])} to {show(bounds[1])})"


def score_rows(
    rows: Mapping[str, Mapping[str, Any]], columns: Sequence[str], interval: bool = False
) -> list[list[str]]:
    """A line for each contender: title, number of tasks and the named measures."""
    return [
        [row["title"], str(row["num_tasks"]), *(cell(row, name, interval) for name in columns)] for row in rows.values()
    ]


def results_table(result: Mapping[str, Any]) -> str:
    """The whole evaluation for a terminal."""
    headings = {name: heading for name, heading, _ in COLUMNS}
    data = result["data"]
    parts = [
        f"{data['num_trials']} trials on {data['num_tasks']} tasks, {data['num_families']} architecture families, "
        f"{data['num_sources']} data sources; {data['num_targets']} tasks have a target, "
        f"{data['num_targets_on_3_seeds']} on 3 seeds or more"
    ]
    if data["targets_at_border"]:
        parts.append(f"best rate at the border of the sweep: {', '.join(data['targets_at_border'])}")
    for protocol in PROTOCOLS:
        if protocol not in result:
            continue
        names = list(headings) if protocol == "strict" else list(headings)[:8]
        parts.append(f"{protocol}: {PROTOCOLS[protocol]}")
        parts.append(
            table(["contender", "tasks", *(headings[name] for name in names)], score_rows(result[protocol], names))
        )
        if protocol == "strict" and result["main"] in result["strict"]:
            parts.append(_intervals(result))
    parts.append(f"by architecture family ({result['main']}, strict)\n" + table(*family_table(result)))
    parts.append(f"the ten worst tasks ({result['main']}, strict)\n" + table(*worst_table(result)))
    missing = result["missing"]["strict"]
    if missing:
        parts.append("missing: " + "; ".join(f"{name} {how}" for name, how in missing.items()))
    parts.append("\n".join(f"{heading}: {meaning}" for _, heading, meaning in COLUMNS))
    return "\n\n".join(parts)


def family_table(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and lines of the table by architecture family."""
    names = ("time_to_target", "missed", "no_harm_tuned", "loss_over_tuned", "log_excess")
    headings = ["family", "tasks", "time", "missed", "vs tuned", "log loss ratio to tuned", "excess"]
    return headings, [
        [row["family"], str(row["num_tasks"]), *(cell(row, name) for name in names)] for row in result["by_family"]
    ]


def worst_table(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and lines of the table of the worst tasks."""
    headings = ["task", "time", "log loss ratio to tuned", "chosen", "reasons"]
    lines = []
    for row in result["worst"]:
        time = "missed" if row["missed"] else cell(row, "time_to_target")
        lines.append([row["task"], time, cell(row, "loss_over_tuned"), row["chosen"], "; ".join(row["reasons"])])
    return headings, lines


def _intervals(result: Mapping[str, Any]) -> str:
    row = result["strict"][result["main"]]
    names = [name for name, _, _ in COLUMNS if row.get(f"{name}_ci")]
    found = ", ".join(f"{name} {cell(row, name, interval=True)}" for name in names)
    return f"{result['main']}, with 95 % bootstrap intervals over tasks: {found}"
