"""How good choices are on what was never seen: strict folds over families and bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoopt.meta.fitting import GroupTable, Settings, fit_group, proposable
from autoopt.meta.selector import OptimizerSelector

Masks = tuple[NDArray[np.bool_], NDArray[np.bool_]]

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
class HeldOut:
    """Predictions for the rows of tasks whose fold was left out when the selector was fitted.

    Attributes:
        tasks: Task of each row.
        families: Its architecture family.
        configs: The candidate.
        mean: Predicted log ratio to the default.
        std: Standard deviation of the predicted effect.
        noise: Standard deviation that an outcome has around its effect.
        actual: Recorded log ratio.
        proposable: Whether the candidate was recorded on enough training tasks to be proposed.
        constant: Whether it is the one with the best mean on the training side.
    """

    tasks: NDArray[np.str_]
    families: NDArray[np.str_]
    configs: NDArray[np.str_]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    noise: NDArray[np.float64]
    actual: NDArray[np.float64]
    proposable: NDArray[np.bool_]
    constant: NDArray[np.bool_]

    def errors(self, spread: float = 1.0) -> NDArray[np.float64]:
        """Differences of outcome and prediction in standard deviations, with `spread` times those of effects."""
        return (self.actual - self.mean) / np.sqrt((spread * self.std) ** 2 + self.noise**2)

    def of(self, tasks: Collection[str]) -> HeldOut:
        """The rows of some tasks."""
        here = np.isin(self.tasks, list(tasks))
        return HeldOut(**{field.name: getattr(self, field.name)[here] for field in fields(self)})


def predict_held_out(
    table: GroupTable,
    settings: Settings,
    min_tasks: int = 8,
    *,
    folds: Iterable[Masks] | None = None,
    fit: Callable[[GroupTable, Settings], OptimizerSelector] = fit_group,
) -> HeldOut:
    """What selectors predict for tasks under the strict protocol, each fitted on its training side alone.

    Args:
        table: The role group's rows.
        settings: Choices of the selector itself.
        min_tasks: Training tasks that a candidate needs to be proposed; folds with fewer are left out.
        folds: Train and test masks of the rows; those of the strict protocol without it.
        fit: Fits a selector on the rows of a training side.
    """
    found: dict[str, list[NDArray]] = {field.name: [] for field in fields(HeldOut)}
    for train, test in strict_folds(table.families, table.sources) if folds is None else folds:
        if len(set(table.tasks[train])) < min_tasks:
            continue
        training, held_out = table.where(train), table.where(test)
        model = fit(training, settings)
        allowed = proposable(training, min_tasks)
        means = {config: training.y[training.configs == config].mean() for config in allowed}
        best = min(means, key=lambda config: means[config]) if means and min(means.values()) < 0 else None
        mean, std = model.predict_with_spread(held_out.x)
        given = model.hyperparameters_
        noise = np.sqrt(given.noise**2 / held_out.counts + given.task_noise**2)
        parts = (held_out.tasks, held_out.families, held_out.configs, mean, std, noise, held_out.y)
        parts += (np.isin(held_out.configs, allowed), held_out.configs == best)
        for name, part in zip(found, parts, strict=True):
            found[name].append(part)
    kinds = {"tasks": str, "families": str, "configs": str, "proposable": bool, "constant": bool}
    columns: dict[str, Any] = {
        name: np.concatenate(parts) if parts else np.zeros(0, dtype=kinds.get(name, float))
        for name, parts in found.items()
    }
    return HeldOut(**columns)


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
    """

    tasks: NDArray[np.str_]
    families: NDArray[np.str_]
    chosen: NDArray[np.float64]
    oracle: NDArray[np.float64]
    constant: NDArray[np.float64]
    applied: NDArray[np.bool_]

    def closed_gap(self) -> float:
        """The share of the oracle's mean gain over the default that the choice realises."""
        total = self.oracle.mean()
        return float(self.chosen.mean() / total) if total < 0 else 0.0

    def harmed(self) -> float:
        """The share of tasks that the choice made worse by more than `HARM`."""
        return float((self.chosen > HARM).mean())


def choose_held_out(found: HeldOut, settings: Settings) -> ChoiceOutcomes:
    """The outcomes of choosing, for every task, the candidate of the best pessimistic prediction.

    Args:
        found: Held-out predictions.
        settings: Of these the spread, the caution and the margin count.
    """
    pessimistic = found.mean + settings.caution * settings.spread * found.std
    rows: list[tuple[str, str, float, float, float, bool]] = []
    for task in np.unique(found.tasks):
        here = np.flatnonzero((found.tasks == task) & found.proposable)
        if not len(here):
            continue
        best = here[np.argmin(pessimistic[here])]
        applied = bool(pessimistic[best] < -settings.margin)
        constant = found.actual[here[found.constant[here]]]
        rows.append(
            (
                str(task),
                str(found.families[best]),
                float(found.actual[best]) if applied else 0.0,
                float(min(0.0, found.actual[here].min())),
                float(constant[0]) if len(constant) else 0.0,
                applied,
            )
        )
    columns = list(zip(*rows, strict=True)) if rows else [(), (), (), (), (), ()]
    kinds = (str, str, float, float, float, bool)
    return ChoiceOutcomes(*(np.array(column, dtype=kind) for column, kind in zip(columns, kinds, strict=True)))


def evaluate_choices(table: GroupTable, settings: Settings, min_tasks: int = 8) -> ChoiceOutcomes:
    """Single-change choices of one role group under the strict protocol; see `predict_held_out`."""
    return choose_held_out(predict_held_out(table, settings, min_tasks), settings)


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
