"""Whether a round of proposals raises the best known plan more often than as many random plans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from autoopt.meta.evaluation import bootstrap_interval
from autoopt.meta.pairs import log_ratio

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Worth:
    """What a round's plans did to the best plan known before, over tasks.

    Attributes:
        round: The round.
        num_tasks: Tasks that are compared.
        num_plans: Plans of the round, over all of them.
        raised: Share of tasks with a plan that is better than all known before.
        gain: Mean log ratio of the best loss after to the best before, at most 0.
        interval: Its 95 % bootstrap interval over tasks.
    """

    round: str
    num_tasks: int
    num_plans: int
    raised: float
    gain: float
    interval: tuple[float, float]


def compare(trials: pd.DataFrame, proposed: str, others: str, seed: int = 0) -> tuple[Worth, Worth]:
    """The worth of two rounds on the tasks that have both, with as many plans of each on every task.

    Known before are all plans of all other rounds. Of the round with more plans on a task, the first ones
    in the order of their names count.

    Args:
        trials: `MetaDataset.trials`.
        proposed: One round.
        others: The other.
        seed: Seed of the runs that are compared.
    """
    frame: Any = trials[(trials["mode"] == "plan") & (trials["seed"] == seed)]
    known = frame[~frame["round"].isin([proposed, others])]
    plans = {task: set(rows["plan"]) for task, rows in known.groupby("task")}
    best = known.groupby("task")["best_val_loss"].min()
    new = {
        name: {
            task: rows[~rows["plan"].isin(plans.get(task, set()))].sort_values("plan_name")["best_val_loss"].tolist()
            for task, rows in frame[frame["round"] == name].groupby("task")
        }
        for name in (proposed, others)
    }
    tasks = sorted(task for task in set(new[proposed]) & set(new[others]) if task in best.index)
    gains: dict[str, list[float]] = {proposed: [], others: []}
    counts = {proposed: 0, others: 0}
    for task in tasks:
        count = min(len(new[name][task]) for name in new)
        for name in new:
            counts[name] += count
            after = [log_ratio(loss, float(best[task])) for loss in new[name][task][:count]]
            gains[name].append(min([0.0, *after]))
    found = []
    for name in (proposed, others):
        values = np.array(gains[name])
        raised = float(np.mean(values < 0)) if len(values) else 0.0
        mean = float(values.mean()) if len(values) else 0.0
        found.append(Worth(name, len(tasks), counts[name], raised, mean, bootstrap_interval(values)))
    return found[0], found[1]
