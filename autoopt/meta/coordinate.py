"""Coordinate search of the calibrated default: which single changes gain on average over all tasks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from autoopt.meta.evaluation import bootstrap_interval
from autoopt.meta.pairs import canonical, paired_outcomes

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Move:
    """The mean effect of one change of the default.

    Attributes:
        group: Role group, or `"*"` for the plan-wide fields.
        config: Canonical JSON of what it is changed to.
        mean: Mean log ratio, every family counting the same; negative is better.
        low: Lower end of the 95 % bootstrap interval over families.
        high: Upper end.
        better: Share of tasks that gain over 2 %.
        worse: Share of tasks that lose over 2 %.
        num_tasks: Tasks it was recorded on.
    """

    group: str
    config: str
    mean: float
    low: float
    high: float
    better: float
    worse: float
    num_tasks: int


def moves(trials: pd.DataFrame, default: str, min_tasks: int = 8) -> list[Move]:
    """The recorded changes of the default, the best mean first.

    A family (architecture, source) counts once, whatever the number of its tasks: the default is to
    hold on families that were never seen.

    Args:
        trials: `MetaDataset.trials`.
        default: Canonical JSON of the default.
        min_tasks: Tasks that a change must have been recorded on.
    """
    # pandas types what its methods return too loosely to be checked.
    pairs: Any = paired_outcomes(trials, default)
    found = []
    for (group, config), rows in pairs.groupby(["group", "config"], observed=True):
        by_task = rows.groupby(["family", "source", "task"], observed=True)["outcome"].mean()
        if len(by_task) < min_tasks:
            continue
        by_family = by_task.groupby(level=[0, 1]).mean().to_numpy()
        low, high = bootstrap_interval(by_family)
        values = by_task.to_numpy()
        found.append(
            Move(
                str(group),
                str(config),
                float(by_family.mean()),
                low,
                high,
                float(np.mean(values < -0.02)),
                float(np.mean(values > 0.02)),
                len(values),
            )
        )
    return sorted(found, key=lambda move: move.mean)


def moved_default(default: str, found: list[Move], min_gain: float = 0.005) -> tuple[str, list[Move]]:
    """The default after the best move of every group that surely gains, and the moves made.

    Args:
        default: Canonical JSON of the default.
        found: What `moves` returned for it.
        min_gain: Mean gain below which a group stays as it is.
    """
    value: dict[str, Any] = json.loads(default)
    made: list[Move] = []
    for move in found:
        if move.group in {other.group for other in made} or move.mean > -min_gain or move.high >= 0:
            continue
        if move.group == "*":
            value |= json.loads(move.config)
        else:
            value["groups"][move.group] = json.loads(move.config)
        made.append(move)
    return canonical(value), made
