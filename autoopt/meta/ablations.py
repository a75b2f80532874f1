"""Ablations: what the selector's choices are worth without a part of what it sees or may do.

They are scored on recorded single changes: a choice in a role group counts what that change alone did
to the task, summed over its groups. That is no run of the whole choice, so the rows compare with each
other, not with the contenders that were really trained.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoopt.meta.artifact import NEVER
from autoopt.meta.calibration import calibrated_by
from autoopt.meta.evaluation import HARM, choose_held_out, predict_held_out
from autoopt.meta.fitting import GroupTable, Settings, fit_group
from autoopt.meta.measures import mean_interval, ratio_of_means
from autoopt.meta.selector import OptimizerSelector

NUM_FOLDS = 8

ABLATIONS: dict[str, str] = {
    "whole": "the selector as it is",
    "rate_only": "only the rate may change",
    "family_only": "only the optimizer may change, at its calibrated rate",
    "architecture_only": "features of the architecture alone",
    "statistics_only": "features of the gradients alone",
    "shuffled": "features of another task, drawn at random",
    "half": "learned from half of the tasks",
}
"""Ablation -> what it leaves."""


def ablations(
    tables: Mapping[str, GroupTable],
    default: str,
    settings: Settings,
    statistics: Collection[str],
    *,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """One row an ablation: what it chose on architecture families that it was not fitted on.

    Args:
        tables: Learning rows by role group.
        default: Canonical JSON of the default.
        settings: Choices of the selector itself.
        statistics: Features that are measured in training; the others describe the architecture and
            the run.
        seed: Seed of the shuffling and of the halves.
        say: Called with a line on what is done.

    Returns:
        Rows with `name`, `title`, `num_tasks`, `gain` (mean log ratio to the default, negative is
        better), `closed` (its share of what the best recorded change of every role group gains),
        `harmed` (share of tasks made worse by more than 2 %), `changed` (share of tasks on which
        anything was changed), and intervals `gain_ci`, `closed_ci`.
    """
    oracle = best_changes(tables)
    tasks = sorted(oracle)
    generator = np.random.default_rng(seed)
    half = set(generator.choice(tasks, len(tasks) // 2, replace=False).tolist()) if tasks else set()
    rows = []
    for name, title in ABLATIONS.items():
        changed = {
            group: _changed(name, table, _base(default, group), settings.features, statistics, seed)
            for group, table in tables.items()
        }
        changed = {group: table for group, table in changed.items() if len(table.y)}
        chosen = held_out_choices(changed, settings, half if name == "half" else None)
        gains = np.array([chosen.get(task, 0.0) for task in tasks])
        say(f"ablation {name}: mean log ratio {gains.mean() if len(gains) else 0.0:+.4f}")
        rows.append({"name": name, "title": title, **summary(gains, np.array([oracle[task] for task in tasks]))})
    return rows


def best_changes(tables: Mapping[str, GroupTable]) -> dict[str, float]:
    """Task -> what the best recorded change of every role group did, added up; at most 0."""
    found: dict[str, float] = {}
    for table in tables.values():
        for task in np.unique(table.tasks):
            best = float(min(0.0, table.y[table.tasks == task].min()))
            found[str(task)] = found.get(str(task), 0.0) + best
    return found


def _changed(
    name: str,
    table: GroupTable,
    base: Mapping[str, Any],
    features: Sequence[str],
    statistics: Collection[str],
    seed: int,
) -> GroupTable:
    """The learning rows that an ablation leaves."""
    if name in ("rate_only", "family_only"):
        kept = [_kind(config, base) == name for config in table.configs]
        return table.where(np.array(kept, dtype=bool))
    x = table.x.copy()
    if name in ("architecture_only", "statistics_only"):
        hidden = [i for i, feature in enumerate(features) if (feature in statistics) == (name == "architecture_only")]
        x[:, hidden] = np.nan
    elif name == "shuffled":
        x[:, : len(features)] = x[_other_task(table.tasks, seed), : len(features)]
    return replace(table, x=x)


def _kind(config: str, base: Mapping[str, Any]) -> str:
    value = json.loads(config)
    if value["optimizer"] != base["optimizer"]:
        return "family_only"
    return "rate_only" if value["hyperparameters"] == base["hyperparameters"] else "other"


def _other_task(tasks: NDArray[np.str_], seed: int) -> NDArray[np.int_]:
    """For each row the first row of the task that a random permutation of the tasks puts in its place."""
    names, first, inverse = np.unique(tasks, return_index=True, return_inverse=True)
    return first[np.random.default_rng(seed).permutation(len(names))][inverse]


def held_out_choices(
    tables: Mapping[str, GroupTable], settings: Settings, learned: Collection[str] | None = None
) -> dict[str, float]:
    """Task -> what the choices for its role groups did, added up, without its family in the fit.

    Args:
        tables: Learning rows by role group.
        settings: Choices of the selector itself.
        learned: Tasks that may be learned from and calibrated on; all where None.
    """

    def fit(table: GroupTable, settings: Settings) -> OptimizerSelector:
        return fit_group(table if learned is None else table.where(np.isin(table.tasks, list(learned))), settings)

    if not tables:
        return {}
    place = _folds(tables)
    families = {str(t): str(f) for table in tables.values() for t, f in zip(table.tasks, table.families, strict=True)}
    predictions = {}
    for group, table in tables.items():
        numbers = np.array([place[family] for family in table.families])
        masks = [(numbers != fold, numbers == fold) for fold in np.unique(numbers)]
        predictions[group] = predict_held_out(table, settings, folds=masks, fit=fit)
    found: dict[str, float] = {}
    for fold in range(NUM_FOLDS):
        test = [task for task, family in families.items() if place[family] == fold]
        train = [t for t, family in families.items() if place[family] != fold and (learned is None or t in learned)]
        tuned, cautions, _ = calibrated_by({g: held.of(train) for g, held in predictions.items()}, settings)
        for group, held in predictions.items():
            here = replace(tuned, caution=cautions.get(group, NEVER))
            outcomes = choose_held_out(held.of(test), here)
            for task, outcome in zip(outcomes.tasks.tolist(), outcomes.chosen.tolist(), strict=True):
                found[task] = found.get(task, 0.0) + outcome
    return found


def _folds(tables: Mapping[str, GroupTable]) -> dict[str, int]:
    """Architecture family -> fold, so that folds have about as many rows each."""
    counts: dict[str, int] = {}
    for table in tables.values():
        for family in table.families.tolist():
            counts[family] = counts.get(family, 0) + 1
    sizes, place = [0] * NUM_FOLDS, {}
    for family in sorted(counts, key=lambda name: (-counts[name], name)):
        place[family] = sizes.index(min(sizes))
        sizes[place[family]] += counts[family]
    return place


def summary(gains: NDArray[np.float64], oracle: NDArray[np.float64]) -> dict[str, Any]:
    """Gain, closed gap, harm and changes of choices, as `ablations` returns them.

    Args:
        gains: What the choices did to each task.
        oracle: What the best recorded changes did.
    """
    if not len(gains):
        unknown = ("gain", "gain_ci", "closed", "closed_ci", "harmed", "changed")
        return {"num_tasks": 0, **dict.fromkeys(unknown)}
    closed, interval = ratio_of_means(-gains, -oracle)
    return {
        "num_tasks": len(gains),
        "gain": float(gains.mean()),
        "gain_ci": list(mean_interval(gains)),
        "closed": closed,
        "closed_ci": interval,
        "harmed": float(np.mean(gains > HARM)),
        "changed": float(np.mean(gains != 0.0)),
    }


def _base(default: str, group: str) -> dict[str, Any]:
    return json.loads(default)["groups"][group]
