"""How well the best rate itself is predicted on architecture families that were not learned from.

For each optimizer on a role group: the rate whose predicted loss is lowest, read off the selector's
response in the logarithm of the rate, against the rate that was best in the recordings, between which a
parabola is drawn. For AdamW on all layers, whose sweep has twelve rates: a ridge regression of the best rate.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoopt.meta.encoding import encode_candidate
from autoopt.meta.feature_ranking import family_folds
from autoopt.meta.fitting import GroupTable, Settings, fit_group
from autoopt.meta.pairs import canonical

MIN_TASKS = 20
"""Tasks with a recorded best rate that an optimizer needs."""

NUM_FOLDS = 8

FACTOR = 2.0
"""A predicted rate within this factor of the best one counts as found."""


@dataclass(frozen=True)
class RateScore:
    """How often a rate is predicted well.

    Attributes:
        group: Role group, `"all"` for one rate of all layers.
        optimizer: Catalog name.
        num_tasks: Tasks with a recorded best rate.
        predicted: Share of tasks whose predicted rate is within a factor of 2 of the best.
        constant: The same of the one rate that suits the other families best.
        error: Median distance of predicted and best rate, in factors of 2.
        constant_error: The same of the one rate.
        at_border: Share of tasks whose best rate is the lowest or highest recorded, so that it may lie
            further out.
    """

    group: str
    optimizer: str
    num_tasks: int
    predicted: float
    constant: float
    error: float
    constant_error: float
    at_border: float


def interpolated_best(log_rates: NDArray[np.float64], losses: NDArray[np.float64]) -> tuple[float, bool]:
    """The log2 rate of the lowest loss, and whether it is at a border.

    A parabola through the best rate and its two neighbours; the best rate itself at a border.

    Args:
        log_rates: Rates in log2, rising, `(num_rates,)`.
        losses: Their losses, `(num_rates,)`.

    >>> x = np.array([-1.0, 0.0, 1.0, 2.0])
    >>> interpolated_best(x, (x - 0.4) ** 2)
    (0.4, False)
    """
    best = int(np.argmin(losses))
    if best in (0, len(losses) - 1):
        return float(log_rates[best]), True
    x, y = log_rates[best - 1 : best + 2], losses[best - 1 : best + 2]
    if not np.isfinite(y).all():
        return float(log_rates[best]), False
    a, b, _ = np.polyfit(x - x[1], y, 2)
    top = 0.0 if a <= 0 else float(np.clip(-b / (2 * a), x[0] - x[1], x[2] - x[1]))
    return round(float(x[1]) + top, 9), False


def group_scores(tables: Mapping[str, GroupTable], bases: Mapping[str, str], settings: Settings) -> list[RateScore]:
    """The scores of the selector's own response in the rate, for the default's optimizer of every role group.

    Args:
        tables: Learning rows by role group.
        bases: Default configuration of every role group, as canonical JSON.
        settings: Choices of the selector itself.
    """
    found = []
    for group, table in tables.items():
        base = json.loads(bases[group])
        shifts = {config: _shift(config, base) for config in set(table.configs.tolist())}
        best: dict[str, tuple[float, bool]] = {}
        for task in np.unique(table.tasks):
            rows = [i for i in np.flatnonzero(table.tasks == task) if shifts[table.configs[i]] is not None]
            points = sorted([(shifts[table.configs[i]], table.y[i]) for i in rows] + [(0.0, 0.0)])
            if len(points) >= 4:
                x, y = (np.array(column, dtype=np.float64) for column in zip(*points, strict=True))
                best[str(task)] = interpolated_best(x, y)
        if len(best) < MIN_TASKS:
            continue
        reach = max(abs(shift) for shift in shifts.values() if shift is not None)
        grid = np.linspace(-reach, reach, 4 * round(reach) * 2 + 1)
        configs = [canonical({**base, "lr": base["lr"] * 2.0**step}) for step in grid]
        candidates = [encode_candidate(config, bases[group]) for config in configs]
        predicted: dict[str, float] = {}
        constant: dict[str, float] = {}
        for train, test in family_folds(table.families, NUM_FOLDS):
            model = fit_group(table.where(train), settings)
            known = [best[t][0] for t in np.unique(table.tasks[train]).tolist() if t in best]
            for task in np.unique(table.tasks[test]).tolist():
                if task in best and known:
                    features = table.x[table.tasks == task][0, : len(settings.features)]
                    rows = np.stack([np.concatenate([features, columns]) for columns in candidates])
                    predicted[task] = float(grid[np.argmin(model.predict(rows))])
                    constant[task] = _most_central(known)
        found.append(_score(group, base["optimizer"], best, predicted, constant))
    return found


def sweep_score(
    best: Mapping[str, tuple[float, bool]],
    features: Mapping[str, NDArray[np.float64]],
    families: Mapping[str, str],
    optimizer: str = "adamw",
) -> RateScore:
    """The score of a ridge regression of the best rate of one optimizer on all layers.

    Args:
        best: Task -> log2 of the best rate, and whether it is at a border.
        features: Task -> its meta-features, NaN where one is missing.
        families: Task -> its architecture family.
        optimizer: Catalog name.
    """
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    tasks = sorted(task for task in best if task in features)
    x, y = np.stack([features[task] for task in tasks]), np.array([best[task][0] for task in tasks])
    predicted: dict[str, float] = {}
    constant: dict[str, float] = {}
    for train, test in family_folds(np.array([families[task] for task in tasks]), NUM_FOLDS):
        model = make_pipeline(
            SimpleImputer(keep_empty_features=True), StandardScaler(), RidgeCV(np.logspace(0.0, 4.0, 9))
        )
        model.fit(x[train], y[train])
        for index, value in zip(np.flatnonzero(test), model.predict(x[test]), strict=True):
            predicted[tasks[index]] = float(value)
            constant[tasks[index]] = _most_central(y[train].tolist())
    return _score("all", optimizer, best, predicted, constant)


def _shift(config: str, base: Mapping[str, object]) -> float | None:
    """How many factors of 2 a configuration's rate is from the base's, None where it differs otherwise."""
    value = json.loads(config)
    rate = value.pop("lr")
    if value != {key: part for key, part in base.items() if key != "lr"}:
        return None
    return float(np.log2(rate / base["lr"]))


def _most_central(rates: list[float]) -> float:
    """The rate (log2) within a factor of 2 of which most of the given ones lie."""
    grid = np.arange(np.floor(min(rates)), np.ceil(max(rates)) + 0.25, 0.25)
    near = np.abs(np.array(rates)[None, :] - grid[:, None]) <= np.log2(FACTOR)
    return float(np.mean(grid[near.sum(axis=1) == near.sum(axis=1).max()]))


def _score(
    group: str,
    optimizer: str,
    best: Mapping[str, tuple[float, bool]],
    predicted: Mapping[str, float],
    constant: Mapping[str, float],
) -> RateScore:
    tasks = sorted(predicted)
    truth = np.array([best[task][0] for task in tasks])
    ours, theirs = (np.abs(np.array([by[task] for task in tasks]) - truth) for by in (predicted, constant))
    near = np.log2(FACTOR) + 1e-9
    return RateScore(
        group=group,
        optimizer=optimizer,
        num_tasks=len(tasks),
        predicted=float(np.mean(ours <= near)),
        constant=float(np.mean(theirs <= near)),
        error=float(np.median(ours)),
        constant_error=float(np.median(theirs)),
        at_border=float(np.mean([best[task][1] for task in tasks])),
    )
