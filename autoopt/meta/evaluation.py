"""How good choices are on what was never seen: strict folds over families and bootstrap intervals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoopt.meta.fitting import GroupTable, Settings, fit_group, proposable

HARM = 0.02
"""Log ratio above which a change counts as having done harm (the size of seed noise)."""


def strict_folds(
    families: NDArray[np.str_], sources: NDArray[np.str_]
) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Train and test masks, one pair for each (architecture family, data source).

    The training side shares neither the architecture family nor the data source with the test side.

    Args:
        families: Architecture family of each row.
        sources: Data source of each row.
    """
    for family, source in sorted(set(zip(families.tolist(), sources.tolist(), strict=True))):
        yield (families != family) & (sources != source), (families == family) & (sources == source)


@dataclass(frozen=True, eq=False)
class ChoiceOutcomes:
    """What choosing did on held-out tasks, one entry a task, as log ratios to the default.

    Attributes:
        tasks: Names of the tasks.
        families: Their architecture families.
        chosen: Recorded outcome of the chosen candidate, 0 where the default was kept.
        oracle: Recorded outcome of the best candidate, at most 0.
        constant: Recorded outcome of the candidate that is best on average over the training side.
        applied: Whether anything was changed.
        predictions: Predicted mean, standard deviation and recorded outcome of every candidate,
            `(num_rows, 3)`.
    """

    tasks: NDArray[np.str_]
    families: NDArray[np.str_]
    chosen: NDArray[np.float64]
    oracle: NDArray[np.float64]
    constant: NDArray[np.float64]
    applied: NDArray[np.bool_]
    predictions: NDArray[np.float64]

    def closed_gap(self) -> float:
        """The share of the oracle's mean gain over the default that the choice realises."""
        total = self.oracle.mean()
        return float(self.chosen.mean() / total) if total < 0 else 0.0

    def harmed(self) -> float:
        """The share of tasks that the choice made worse by more than `HARM`."""
        return float((self.chosen > HARM).mean())

    def coverage(self, z: float = 1.2816) -> float:
        """The share of recorded outcomes within `z` standard deviations of the prediction."""
        mean, std, actual = self.predictions.T
        return float((np.abs(actual - mean) <= z * std).mean())


def evaluate_choices(table: GroupTable, settings: Settings, min_tasks: int = 8) -> ChoiceOutcomes:
    """Single-change choices of one role group under the strict protocol.

    In each fold the selector is fitted on the training side alone; for every test task it ranks the
    candidates recorded there, and the outcome of its choice is read from the recordings.

    Args:
        table: The role group's rows.
        settings: Choices of the selector itself.
        min_tasks: Training tasks that a candidate needs to be proposed.
    """
    found: list[tuple[str, str, float, float, float, bool]] = []
    predictions: list[NDArray[np.float64]] = []
    for train, test in strict_folds(table.families, table.sources):
        if len(set(table.tasks[train])) < min_tasks:
            continue
        training = table.where(train)
        model = fit_group(training, settings)
        allowed = set(proposable(training, min_tasks))
        means = {config: training.y[training.configs == config].mean() for config in allowed}
        best_constant = min(means, key=lambda config: means[config]) if means else None
        held_out = table.where(test)
        mean, std = model.predict_with_spread(held_out.x)
        std = settings.spread * std
        predictions.append(np.stack([mean, std, held_out.y], axis=1))
        for task in np.unique(held_out.tasks):
            rows = np.flatnonzero(held_out.tasks == task)
            rows = np.array([row for row in rows if held_out.configs[row] in allowed], dtype=int)
            if not len(rows):
                continue
            pessimistic = mean[rows] + settings.caution * std[rows]
            best = rows[np.argmin(pessimistic)]
            applied = bool(pessimistic.min() < -settings.margin)
            constant = 0.0
            if best_constant is not None and means[best_constant] < 0:
                same = rows[held_out.configs[rows] == best_constant]
                constant = float(held_out.y[same[0]]) if len(same) else 0.0
            found.append(
                (
                    str(task),
                    str(held_out.families[rows[0]]),
                    float(held_out.y[best]) if applied else 0.0,
                    float(min(0.0, held_out.y[rows].min())),
                    constant,
                    applied,
                )
            )
    columns = list(zip(*found, strict=True)) if found else [(), (), (), (), (), ()]
    return ChoiceOutcomes(
        np.array(columns[0], dtype=str),
        np.array(columns[1], dtype=str),
        np.array(columns[2], dtype=float),
        np.array(columns[3], dtype=float),
        np.array(columns[4], dtype=float),
        np.array(columns[5], dtype=bool),
        np.concatenate(predictions) if predictions else np.zeros((0, 3)),
    )


def bootstrap_interval(
    values: NDArray[np.float64], *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean over tasks.

    Args:
        values: One value a task.
        level: Nominal coverage.
        draws: Bootstrap samples.
        seed: Seed of the resampling.
    """
    if not len(values):
        return float("nan"), float("nan")
    generator = np.random.default_rng(seed)
    means = values[generator.integers(0, len(values), size=(draws, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
