"""Coordinate search of the calibrated default: which single changes gain on average over all tasks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from autoopt.meta.evaluation import bootstrap_interval
from autoopt.meta.options import runs_of_plan
from autoopt.meta.pairs import canonical, log_ratio, paired_outcomes
from autoopt.meta.trial import TrialStatus

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


@dataclass(frozen=True, eq=False)
class Progress:
    """What one default gained over another, on the tasks and seeds that were trained with both.

    Attributes:
        num_tasks: Tasks with both.
        mean: Mean log ratio of the new default's loss to the old one's; negative is better.
        low: Lower end of the 95 % bootstrap interval over tasks.
        high: Upper end.
        by_family: Architecture family -> (mean, number of tasks), the best first.
        seed_noise: Median over tasks of the standard deviation of the log loss over seeds, NaN where no
            run was repeated.
    """

    num_tasks: int
    mean: float
    low: float
    high: float
    by_family: dict[str, tuple[float, int]]
    seed_noise: float


def progress(trials: pd.DataFrame, new: str, old: str) -> Progress:
    """What a round has brought: a default against the one before it.

    Args:
        trials: `MetaDataset.trials`.
        new: Canonical JSON of the new default.
        old: Canonical JSON of the one before.
    """
    frame: Any = trials
    runs = frame[(frame["mode"] == "plan") & (frame["status"] != TrialStatus.FAILED)]
    ours, theirs = (runs_of_plan(runs, plan).set_index(["task", "seed"]) for plan in (new, old))
    both = ours.join(theirs["best_val_loss"].rename("before"), how="inner")
    both["ratio"] = [log_ratio(*pair) for pair in both[["best_val_loss", "before"]].to_numpy().tolist()]
    ratios = both.groupby(["family", "task"], observed=True)["ratio"].mean()
    families = ratios.groupby(level=0).agg(["mean", "size"]).sort_values("mean")
    low, high = bootstrap_interval(ratios.to_numpy())
    return Progress(
        num_tasks=len(ratios),
        mean=float(ratios.mean()),
        low=low,
        high=high,
        by_family={str(name): (float(row["mean"]), int(row["size"])) for name, row in families.iterrows()},
        seed_noise=seed_noise(trials),
    )


def seed_noise(trials: pd.DataFrame) -> float:
    """The median over tasks of the standard deviation of one plan's log loss over its seeds.

    A task counts by the mean variance of its plans that were repeated; NaN where none was. Losses
    that are not positive have no logarithm and do not count.
    """
    frame: Any = trials
    runs = frame[(frame["mode"] == "plan") & np.isfinite(frame["best_val_loss"]) & (frame["best_val_loss"] > 0)]
    runs = runs.assign(log_loss=np.log(runs["best_val_loss"]))
    variances = runs.groupby(["task", "plan"], observed=True)["log_loss"].var().dropna()
    by_task = np.sqrt(variances.groupby(level=0).mean())
    return float(by_task.median()) if len(by_task) else float("nan")
