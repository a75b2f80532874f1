"""What racing is worth on tasks that nothing was learned from: recorded short runs against recorded long ones."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from autoopt.meta.artifact import NEVER
from autoopt.meta.evaluation import HARM, HeldOut, bootstrap_interval
from autoopt.meta.extrapolation import (
    SHARES,
    Extrapolation,
    direction,
    fit_measurement,
    is_contrary,
    num_steps,
    short_log_ratio,
)
from autoopt.meta.halving import Contestant, RaceResult, run
from autoopt.meta.pairs import canonical

SURPRISES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3)
"""Values of `Extrapolation.surprise` that are tried."""


@dataclass(frozen=True)
class RacedCandidate:
    """A candidate with its prediction, its long run and its short ones.

    Attributes:
        group: Role group.
        config: Canonical JSON of its configuration.
        way: Its `direction`.
        mean: Predicted log ratio, by a selector that knows neither the task's family nor its data.
        std: Its calibrated standard deviation.
        actual: Recorded log ratio of the long runs.
        shorts: Steps -> recorded log ratio of the short runs.
    """

    group: str
    config: str
    way: int
    mean: float
    std: float
    actual: float
    shorts: Mapping[int, float]


@dataclass(frozen=True)
class RacedTask:
    """A task whose short runs are recorded.

    Attributes:
        name: Name of the task.
        family: Architecture family.
        source: Data source.
        budget_steps: Steps of a long run.
        candidates: All candidates with a prediction and a long run.
    """

    name: str
    family: str
    source: str
    budget_steps: int
    candidates: tuple[RacedCandidate, ...]


def raced_tasks(short_runs: Any, predictions: Mapping[str, HeldOut], default: str, spread: float) -> list[RacedTask]:
    """The tasks with short runs, in the order of their names.

    Args:
        short_runs: The table that `scripts/record_races.py` writes.
        predictions: Held-out predictions by role group.
        default: Canonical JSON of the default recipe.
        spread: Factor on predicted standard deviations.
    """
    base = {group: canonical(config) for group, config in json.loads(default)["groups"].items()}
    found = []
    for name, rows in short_runs.groupby("task", sort=True):
        own = rows[rows["group"] == ""].set_index("steps")["held_back_loss"]
        shorts: dict[tuple[str, str], dict[int, float]] = {}
        for row in rows[rows["group"] != ""].to_dict("records"):
            steps = int(row["steps"])
            value = short_log_ratio(row["held_back_loss"], float(own[steps]), float(own[0]))
            shorts.setdefault((row["group"], row["config"]), {})[steps] = value
        candidates = [
            RacedCandidate(
                group,
                str(config),
                direction(str(config), base[group]),
                float(mean),
                spread * float(std),
                float(actual),
                shorts.get((group, str(config)), {}),
            )
            for group, held_out in predictions.items()
            for task, config, mean, std, actual, allowed in zip(
                held_out.tasks,
                held_out.configs,
                held_out.mean,
                held_out.std,
                held_out.actual,
                held_out.proposable,
                strict=True,
            )
            if task == name and allowed
        ]
        first = rows.iloc[0]
        if candidates:
            place = str(first["family"]), str(first["source"]), int(first["budget_steps"])
            found.append(RacedTask(str(name), *place, tuple(candidates)))
    return found


def learned(tasks: Sequence[RacedTask], groups: Collection[str], caution: float = 1.0) -> Extrapolation:
    """The extrapolation that the contrary results of these tasks give.

    Args:
        tasks: Tasks to learn from.
        groups: Role groups that are raced.
        caution: Standard deviations that a decision after a short run looks to the bad side.
    """
    measurements = {}
    for share in SHARES:
        results = [
            (candidate.shorts[steps], candidate.actual)
            for task in tasks
            for candidate in task.candidates
            if candidate.group in groups
            and (steps := num_steps(share, task.budget_steps)) in candidate.shorts
            and is_contrary(candidate.way, candidate.shorts[steps])
        ]
        measurements[share] = fit_measurement([s for s, _ in results], [y for _, y in results])
    return Extrapolation(measurements, tuple(groups), caution, info={"num_tasks": len(tasks)})


@dataclass(frozen=True)
class RaceOutcome:
    """What a race changed on one task.

    Attributes:
        task: Name of the task.
        family: Its architecture family.
        without: Outcome of the choice without a race, as a log ratio to the default.
        raced: Outcome of the choice after it.
        oracle: Outcome of the best recorded single change, at most 0.
        choice: (role group, configuration) chosen after the race, None for the default.
        choice_without: The same without it.
        num_steps: Steps that the race took.
        result: What the race found.
    """

    task: str
    family: str
    without: float
    raced: float
    oracle: float
    choice: tuple[str, str] | None
    choice_without: tuple[str, str] | None
    num_steps: int
    result: RaceResult


def race_task(
    task: RacedTask, extrapolation: Extrapolation, share: float, cautions: Mapping[str, float], margin: float
) -> RaceOutcome:
    """A race on recorded short runs, and the recorded long run of what it chooses.

    The choice is the single change of one role group with the best pessimistic prediction, so that its
    outcome is recorded.

    Args:
        task: The task.
        extrapolation: What was learned without its family and data.
        share: Share of the step budget that the race may take.
        cautions: Caution of each role group without a race.
        margin: Pessimistic gain that a change must promise.
    """
    known = {(item.group, item.config): item for item in task.candidates}
    sure = {key: item.mean + cautions.get(item.group, NEVER) * item.std for key, item in known.items()}
    lengths = {num_steps(part, task.budget_steps) for part in SHARES}
    contestants = [
        Contestant(
            item.group, item.config, item.way, (item.mean, item.std), extrapolation.caution, extrapolation.surprise
        )
        for item in task.candidates
        if item.way and item.group in extrapolation.groups and lengths <= item.shorts.keys()
    ]
    result = run(
        contestants,
        task.budget_steps,
        math.floor(share * task.budget_steps),
        extrapolation,
        margin,
        lambda chosen, rung: [known[item.group, item.config].shorts[rung.num_steps] for item in chosen],
    )
    ran = {(item.group, item.config): item for item in result.contestants}
    after = sure | {key: item.pessimistic(sure[key]) for key, item in ran.items()}
    outcomes = {None: 0.0} | {key: item.actual for key, item in known.items()}
    without, choice = _best(sure, margin), _best(after, margin)
    return RaceOutcome(
        task.name,
        task.family,
        outcomes[without],
        outcomes[choice],
        min(outcomes.values()),
        choice,
        without,
        result.num_steps,
        result,
    )


def _best(pessimistic: Mapping[tuple[str, str], float], margin: float) -> tuple[str, str] | None:
    key = min(pessimistic, key=lambda item: pessimistic[item], default=None)
    return key if key is not None and pessimistic[key] < -margin else None


def race_held_out(
    tasks: Sequence[RacedTask], share: float, cautions: Mapping[str, float], margin: float, groups: Collection[str]
) -> list[RaceOutcome]:
    """Races on every task, each with what was learned on tasks of neither its family nor its data source.

    Args:
        tasks: All tasks.
        share: Share of the step budget that the races may take.
        cautions: Caution of each role group without a race.
        margin: Pessimistic gain that a change must promise.
        groups: Role groups that are raced.
    """
    fitted: dict[tuple[str, str], Extrapolation] = {}
    for task in tasks:
        key = task.family, task.source
        if key not in fitted:
            fitted[key] = learned([other for other in tasks if _apart(other, task)], groups)
    tried: dict[float, list[RaceOutcome]] = {
        surprise: [
            race_task(task, replace(fitted[task.family, task.source], surprise=surprise), share, cautions, margin)
            for task in tasks
        ]
        for surprise in SURPRISES
    }
    found = []
    for index, task in enumerate(tasks):
        apart = [_apart(other, task) for other in tasks]
        known = {surprise: [o for o, keep in zip(tried[surprise], apart, strict=True) if keep] for surprise in tried}
        found.append(tried[boldest(known)][index])
    return found


def boldest(tried: Mapping[float, Sequence[RaceOutcome]]) -> float:
    """The largest of `SURPRISES` with which races lose nothing on average.

    A kind of task that was never seen is what a race is for, so that no task shows what it gains there; that
    it loses nothing elsewhere can be seen.

    Args:
        tried: Surprise -> outcomes of races with it.
    """
    harmless = [s for s, found in tried.items() if sum(item.raced - item.without for item in found) <= 1e-9]
    return max(harmless, default=0.0)


def _apart(other: RacedTask, task: RacedTask) -> bool:
    return other.family != task.family and other.source != task.source


def summary(outcomes: Sequence[RaceOutcome], *, draws: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Closed gaps with and without the race, their difference, each with a bootstrap interval over tasks.

    Args:
        outcomes: What `race_held_out` returned.
        draws: Bootstrap samples.
        seed: Seed of the resampling.

    Returns:
        `gap_without`, `gap_raced`, `gap_gain` (each with `_ci`), `loss_gain` (mean log loss) with its
        interval, `harmed_without`, `harmed` (shares of tasks that end over 2 % worse than the default),
        `num_tasks`, `num_changed` (tasks whose choice the race changed).
    """
    table = np.array([(item.without, item.raced, item.oracle) for item in outcomes])
    index = np.random.default_rng(seed).integers(0, len(table), size=(draws, len(table)))
    samples = table[index].mean(axis=1)
    row: dict[str, Any] = {"num_tasks": len(table)}
    without, raced, oracle = table.mean(axis=0)
    parts = {"gap_without": (without, 0, None), "gap_raced": (raced, 1, None), "gap_gain": (raced - without, 1, 0)}
    for name, (top, column, minus) in parts.items():
        open_gap = samples[:, 2] < 0  # a draw of tasks without a gap has none to close
        drawn = samples[open_gap, column] - (samples[open_gap, minus] if minus is not None else 0.0)
        row[name] = float(top / oracle)
        row[f"{name}_ci"] = [float(end) for end in np.quantile(drawn / samples[open_gap, 2], [0.025, 0.975])]
    row["loss_gain"] = float(raced - without)
    row["loss_gain_ci"] = list(bootstrap_interval(table[:, 1] - table[:, 0], draws=draws, seed=seed))
    row["harmed_without"] = float((table[:, 0] > HARM).mean())
    row["harmed"] = float((table[:, 1] > HARM).mean())
    row["num_changed"] = sum(item.choice != item.choice_without for item in outcomes)
    row["num_raced"] = sum(item.num_steps > 0 for item in outcomes)
    return row
