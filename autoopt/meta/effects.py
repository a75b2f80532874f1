"""What recorded trials say of changes on average: what they do to the loss, and what a loss is worth in steps.

The selector predicts for one model; these are means over all recorded tasks. Budgets fall back on them
for optimizers that the selector does not propose, which are mostly those that nobody would choose
for the loss alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from autoopt.meta.pairs import paired_outcomes
from autoopt.meta.trial import TrialStatus

if TYPE_CHECKING:
    import pandas as pd

MIN_TASKS = 3
"""Recorded tasks that a change needs."""

MIN_TASKS_BEFORE = 4
"""The same where it was recorded around an earlier default."""

EDGES = (0.02, 0.05, 0.1, 0.2, 0.5)
"""Differences of log loss between which steps are averaged; smaller ones are noise between seeds."""

MIN_VALIDATIONS = 8
"""Points of a validation curve from which a step is interpolated."""


@dataclass(frozen=True)
class MeanEffect:
    """What one configuration of a role group does to the loss, over the recorded tasks.

    Attributes:
        config: The configuration: `"optimizer"`, `"lr"` (relative), `"hyperparameters"`.
        mean: Mean log ratio to the default, every architecture family counting the same.
        error: Standard error of that mean.
        spread: Standard deviation of the families' means, which is what a model of another family may
            differ by; that of the tasks where there is one family alone.
        num_tasks: Tasks it was recorded on.
        num_families: Their architecture families.
    """

    config: dict[str, Any]
    mean: float
    error: float
    spread: float
    num_tasks: int
    num_families: int


def structure(config: dict[str, Any]) -> tuple[str, bool]:
    """What of a configuration decides its memory and its time: the optimizer, and whether it has momentum."""
    return config["optimizer"], config["hyperparameters"].get("momentum") != 0


def mean_effects(
    trials: pd.DataFrame, default: str, min_tasks: int = MIN_TASKS, earlier: Sequence[str] = ()
) -> dict[str, list[MeanEffect]]:
    """Role group -> for each kind of optimizer recorded there, the rate with the best mean.

    Args:
        trials: `MetaDataset.trials`.
        default: Canonical JSON of the default recipe.
        min_tasks: Tasks that a configuration must have been recorded on.
        earlier: Earlier defaults, the latest first. A kind of optimizer that was recorded around one of them
            alone has its effect there: what replaces a rule costs about the same around the next default.
    """
    found = _effects_around(trials, default, min_tasks)
    for before in earlier:
        for group, effects in _effects_around(trials, before, max(min_tasks, MIN_TASKS_BEFORE)).items():
            known = {structure(effect.config) for effect in found.setdefault(group, [])}
            found[group] += [effect for effect in effects if structure(effect.config) not in known]
    return {group: sorted(effects, key=lambda effect: effect.mean) for group, effects in found.items()}


def _effects_around(trials: pd.DataFrame, default: str, min_tasks: int) -> dict[str, list[MeanEffect]]:
    # pandas types what its methods return too loosely to be checked.
    pairs: Any = paired_outcomes(trials, default)
    found: dict[str, list[MeanEffect]] = {}
    for group, rows in pairs[pairs["group"] != "*"].groupby("group", sort=True):
        best: dict[tuple[str, bool], MeanEffect] = {}
        for text, outcomes in rows.groupby("config", sort=True):
            by_task = outcomes.groupby(["family", "task"], observed=True)["outcome"].mean()
            if len(by_task) < min_tasks:
                continue
            by_family = by_task.groupby(level=0).mean()
            values = by_family if len(by_family) > 1 else by_task
            effect = MeanEffect(
                config=json.loads(text),
                mean=float(by_family.mean()),
                error=float(values.std() / len(values) ** 0.5),
                spread=float(values.std()),
                num_tasks=len(by_task),
                num_families=len(by_family),
            )
            key = structure(effect.config)
            if key not in best or effect.mean < best[key].mean:
                best[key] = effect
        found[str(group)] = sorted(best.values(), key=lambda effect: effect.mean)
    return found


@dataclass(frozen=True)
class StepsKnot:
    """How much sooner a run is where another one ends.

    Attributes:
        log_loss: Median difference of the log loss at the end.
        log_steps: Median log ratio of the steps to the worse run's loss, every family counting the same.
        num_pairs: Pairs of runs.
    """

    log_loss: float
    log_steps: float
    num_pairs: int


def steps_of_loss(trials: pd.DataFrame, edges: Sequence[float] = EDGES) -> list[StepsKnot]:
    """What differences of the final loss are worth in steps, read off recorded validation curves.

    On every task and seed, the run with the lowest loss is compared with all others: the step at which it
    passes their best loss, over the step of its own best. The steps are those of one schedule that
    decays to the end of the budget; a run that is planned shorter decays sooner, so that these are
    rather too few.

    Args:
        trials: `MetaDataset.trials`.
        edges: Borders of the bins of log loss.
    """
    frame: Any = trials
    usable = frame[(frame["mode"] == "plan") & (frame["status"] == TrialStatus.COMPLETED)]
    rows: list[tuple[str, float, float]] = []
    for (family, _, _), runs in usable.groupby(["family", "task", "seed"], observed=True, sort=True):
        columns = (runs["val_steps"], runs["val_losses"], runs["best_val_loss"])
        curves = [curve for curve in zip(*columns, strict=True) if curve[2] > 0 and len(curve[0]) >= MIN_VALIDATIONS]
        if curves:
            steps, losses, best = min(curves, key=lambda curve: curve[2])
            rows += [(family, *pair) for pair in _earlier(steps, losses, [curve[2] / best for curve in curves])]
    knots = []
    for low, high in zip(edges, edges[1:], strict=False):
        inside = [row for row in rows if low <= row[1] < high]
        if not inside:
            continue
        families = {family for family, _, _ in inside}
        medians = [np.median([y for name, _, y in inside if name == family]) for family in sorted(families)]
        log_loss = float(np.median([x for _, x, _ in inside]))
        # More loss is never worth fewer steps: where it looks so, the tasks in the bins differ.
        least = knots[-1].log_steps if knots else 0.0
        knots.append(StepsKnot(log_loss, max(least, float(np.median(medians))), len(inside)))
    return knots


def _earlier(steps: Sequence[int], losses: Sequence[float], ratios: Iterable[float]) -> Iterable[tuple[float, float]]:
    """`(log loss, log steps)` for each ratio of a loss to this curve's lowest, where the curve crosses it."""
    values = np.asarray(losses, dtype=np.float64)
    lowest = np.minimum.accumulate(values)
    end, best = float(steps[int(np.argmin(values))]), float(values.min())
    for ratio in ratios:
        index = int(np.argmax(lowest <= ratio * best))
        if ratio <= 1 or index == 0 or lowest[index - 1] <= 0:
            continue
        share = math.log(lowest[index - 1] / (ratio * best)) / math.log(lowest[index - 1] / lowest[index])
        step = steps[index - 1] + share * (steps[index] - steps[index - 1])
        yield math.log(ratio), math.log(end / step)
