"""Whether what was learned on narrow models, or on short runs, holds on wide ones, or on long ones.

Choices are made for architecture families that were not learned from, once from all other tasks and once
from those on one side of a border alone, and are judged on the tasks on the other side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from autoopt.meta.ablations import best_changes, held_out_choices, summary
from autoopt.meta.fitting import GroupTable, Settings


class Size(NamedTuple):
    """Width of a task's model, and steps of its runs."""

    width: int
    budget_steps: int


@dataclass(frozen=True)
class Border:
    """Which tasks are learned from, and which are judged.

    Attributes:
        name: Short name.
        title: In words.
        learned: Whether a task may be learned from.
        judged: Whether a task is judged.
    """

    name: str
    title: str
    learned: Callable[[Size], bool]
    judged: Callable[[Size], bool]


BORDERS: tuple[Border, ...] = (
    Border(
        "width",
        "learned from widths up to 64, judged at 512 and above",
        lambda task: task.width <= 64,
        lambda task: task.width >= 512,
    ),
    Border(
        "width_128",
        "learned from widths up to 32, judged at 128 and above",
        lambda task: task.width <= 32,
        lambda task: task.width >= 128,
    ),
    Border(
        "longer",
        "learned from up to 600 steps, judged at 1,500 and above",
        lambda task: task.budget_steps <= 600,
        lambda task: task.budget_steps >= 1500,
    ),
    Border(
        "shorter",
        "learned from 600 steps and more, judged up to 200",
        lambda task: task.budget_steps >= 600,
        lambda task: task.budget_steps <= 200,
    ),
)


def transfers(
    tables: Mapping[str, GroupTable],
    sizes: Mapping[str, Size],
    settings: Settings,
    *,
    borders: tuple[Border, ...] = BORDERS,
    say: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """One row a border: what choices gain across it, and what they gain with all tasks to learn from.

    Args:
        tables: Learning rows by role group.
        sizes: Task -> width and steps.
        settings: Choices of the selector itself.
        borders: The borders.
        say: Called with a line on what is done.

    Returns:
        Rows with `name`, `title`, `num_learned`, `num_tasks` (judged), `across` and `all`, each of these
        two as `autoopt.meta.ablations.summary` describes, and `lost`: the share of the closed gap with all
        tasks that is lost across the border, None where there is none to lose.
    """
    oracle = best_changes(tables)
    everything = held_out_choices(tables, settings)
    rows = []
    for border in borders:
        learned = {task for task in oracle if border.learned(sizes[task])}
        judged = sorted(task for task in oracle if border.judged(sizes[task]))
        across = held_out_choices(tables, settings, learned)
        best = np.array([oracle[task] for task in judged])
        found, whole = (
            summary(np.array([choices.get(task, 0.0) for task in judged]), best) for choices in (across, everything)
        )
        closed = whole["closed"]
        lost = None if not judged or not closed or closed <= 0 else 1.0 - found["closed"] / closed
        say(f"{border.title}: {len(learned)} tasks learned from, {len(judged)} judged")
        rows.append(
            {
                "name": border.name,
                "title": border.title,
                "num_learned": len(learned),
                "num_tasks": len(judged),
                "across": found,
                "all": whole,
                "lost": lost,
            }
        )
    return rows
