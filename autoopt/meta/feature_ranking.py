"""What each meta-feature is worth on families that were never seen, and what it says of the best rate."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoopt.meta.fitting import GroupTable, Settings, fit_group

MIN_TASKS = 10
"""Tasks that a correlation needs."""


@dataclass(frozen=True)
class RateCorrelation:
    """How a feature goes with the best recorded rate of an optimizer on a role group.

    Attributes:
        group: Role group.
        optimizer: Catalog name.
        rho: Spearman's rank correlation of the feature and the best rate, over tasks.
        num_tasks: Tasks with both.
    """

    group: str
    optimizer: str
    rho: float
    num_tasks: int


def family_folds(families: NDArray[np.str_], most: int) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Train and test masks; no family is on both sides, and each is held out once, in at most `most` folds."""
    names, counts = np.unique(families, return_counts=True)
    place = {str(name): i % most for i, name in enumerate(names[np.argsort(-counts, kind="stable")])}
    numbers = np.array([place[str(family)] for family in families], dtype=int)
    for fold in sorted(set(place.values())):
        yield numbers != fold, numbers == fold


def permutation_importance(
    table: GroupTable, settings: Settings, *, most_folds: int = 8, repeats: int = 5, seed: int = 0
) -> dict[str, float]:
    """Feature -> how much worse held-out predictions get without it, as a share of the outcomes' mean square.

    The selector is fitted with all features on the other families. Then each task of the held-out
    ones is given the feature's value of a task drawn from all: the values it takes are real, but say
    nothing of the task. Near 0 or below, the feature carries nothing to unseen families; features
    that say the same share their worth, so several near 0 may not all be dropped at once.

    Args:
        table: A role group's learning rows, with `settings.features` as their first columns.
        settings: Choices of the selector itself.
        most_folds: Folds at most.
        repeats: Draws of values.
        seed: Seed of the draws.
    """
    generator = np.random.default_rng(seed)
    names, first = np.unique(table.tasks, return_index=True)
    pool = table.x[first, : len(settings.features)]
    totals = dict.fromkeys(settings.features, 0.0)
    square = float(np.sum(table.counts * table.y**2))
    if square == 0 or len(set(table.families)) < 2:
        return totals
    for train, test in family_folds(table.families, most_folds):
        model = fit_group(table.where(train), settings)
        held_out = table.where(test)
        before = _error(model.predict(held_out.x), held_out)
        tasks, inverse = np.unique(held_out.tasks, return_inverse=True)
        for column, feature in enumerate(settings.features):
            for _ in range(repeats):
                x = held_out.x.copy()
                x[:, column] = pool[generator.integers(len(names), size=len(tasks)), column][inverse]
                totals[feature] += (_error(model.predict(x), held_out) - before) / (repeats * square)
    return totals


def _error(predicted: NDArray[np.float64], table: GroupTable) -> float:
    return float(np.sum(table.counts * (predicted - table.y) ** 2))


def best_rates(table: GroupTable, base: str) -> dict[str, dict[str, float]]:
    """Optimizer -> task -> log of the rate with the best recorded outcome.

    Only configurations that agree in all but the rate are compared, those most often recorded for the
    optimizer, and only where at least three rates were. The default itself has the outcome 0.

    Args:
        table: A role group's learning rows.
        base: The group's default configuration as canonical JSON.
    """
    kinds: dict[tuple[str, str], dict[str, dict[float, float]]] = {}
    defaults = [(task, base, 0.0) for task in np.unique(table.tasks)]
    for task, config, outcome in [*zip(table.tasks, table.configs, table.y, strict=True), *defaults]:
        value = json.loads(str(config))
        rate = float(value.pop("lr"))
        kind = (value["optimizer"], json.dumps(value, sort_keys=True))
        kinds.setdefault(kind, {}).setdefault(str(task), {})[rate] = float(outcome)
    found: dict[str, dict[str, float]] = {}
    for (optimizer, _), outcomes in sorted(kinds.items(), key=lambda item: -sum(map(len, item[1].values()))):
        rates = {task: float(np.log(min(o, key=lambda r: o[r]))) for task, o in outcomes.items() if len(o) >= 3}  # noqa: B023
        if len(rates) >= MIN_TASKS:
            found.setdefault(optimizer, rates)
    return found


def rate_correlations(
    tables: Mapping[str, GroupTable], bases: Mapping[str, str], features: Sequence[str]
) -> dict[str, list[RateCorrelation]]:
    """Feature -> its correlations with the best rates of every role group and optimizer, the strongest first.

    Args:
        tables: Learning rows by role group, with `features` as their first columns.
        bases: Default configuration of every role group, as canonical JSON.
        features: Names of the columns.
    """
    found: dict[str, list[RateCorrelation]] = {feature: [] for feature in features}
    for group, table in tables.items():
        names, first = np.unique(table.tasks, return_index=True)
        values = dict(zip(map(str, names), table.x[first], strict=True))
        for optimizer, rates in best_rates(table, bases[group]).items():
            best = np.array(list(rates.values()))
            for column, feature in enumerate(features):
                x = np.array([values[task][column] for task in rates])
                rho, count = spearman(x, best)
                if count >= MIN_TASKS and np.isfinite(rho):
                    found[feature].append(RateCorrelation(group, optimizer, rho, count))
    return {feature: sorted(row, key=lambda c: -abs(c.rho)) for feature, row in found.items()}


def spearman(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, int]:
    """Spearman's rank correlation over the pairs without NaN, and their number; NaN where one is constant."""
    known = ~(np.isnan(x) | np.isnan(y))
    a, b = _ranks(x[known]), _ranks(y[known])
    if len(a) < 3 or a.std() == 0 or b.std() == 0:
        return float("nan"), int(known.sum())
    return float(np.corrcoef(a, b)[0, 1]), int(known.sum())


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 0, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts + 1) / 2)[inverse]
