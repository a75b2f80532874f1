"""Targets: what AdamW tuned for a task reaches, how late, and when another run gets there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autoopt.meta.runs import Recordings, Run, Runs, uniform_configuration

NUM_RATES = 12
"""Rates of plain AdamW that a task's sweep must have on one seed before it sets a target."""


@dataclass(frozen=True)
class Target:
    """What plain AdamW reaches on a task at the best rate of its sweep.

    Attributes:
        lr: The best rate.
        plan: What the plan comes to on this task, as `Recordings.plans` names it.
        loss: Median over seeds of the best validation loss: the target.
        steps: Tuned AdamW's own time to it.
        seconds: The same in seconds of its training steps.
        run: The run of tuned AdamW that its seconds are taken from.
        at_border: Whether the best rate is the lowest or highest of the sweep, so that a wider one
            might find a better.
        num_seeds: Seeds of the best rate.
        num_rates: Rates of the sweep on the seed that has most of them.
    """

    lr: float
    plan: str
    loss: float
    steps: float
    seconds: float
    run: Run
    at_border: bool
    num_seeds: int
    num_rates: int


def time_to_target(run: Run, target: float) -> float:
    """Steps after which a run first has the target loss, infinite where it never has it.

    That is found at the first validation that is no worse; between it and the validation before, the
    loss is interpolated linearly. A loss that falls fast first and slowly later lies below the chord,
    so this is rather late than early; before the first validation nothing is interpolated. A run that
    diverges in the end has not reached anything.

    >>> steps, losses = np.array([10.0, 20.0, 30.0]), np.array([3.0, 2.0, 1.0], dtype=np.float32)
    >>> run = Run(0, 1.0, steps, losses, 30)
    >>> [time_to_target(run, target) for target in (5.0, 2.0, 1.25, 0.5)]
    [10.0, 20.0, 27.5, inf]
    """
    if run.diverged:
        return math.inf
    # Curves are float32: the target is rounded alike, so that the run which set it reaches it.
    reached = np.flatnonzero(run.losses <= np.float32(target))
    if not len(reached):
        return math.inf
    first = int(reached[0])
    if first == 0 or not math.isfinite(run.losses[first - 1]):
        return float(run.steps[first])
    before, after = float(run.losses[first - 1]), float(run.losses[first])
    share = min(1.0, (before - target) / (before - after))
    return float(run.steps[first - 1] + share * (run.steps[first] - run.steps[first - 1]))


def sweep(recordings: Recordings, task: str) -> dict[float, tuple[str, Runs]]:
    """The recorded rates of plain AdamW on a task, in rising order, each with its plan and runs."""
    found = {}
    for plan, runs in recordings.plans(task).items():
        configuration = uniform_configuration(plan)
        if configuration is not None and configuration[0] == "adamw" and configuration[2] == {"weight_decay": 0.01}:
            found[configuration[1]] = plan, runs
    return dict(sorted(found.items()))


def find_target(recordings: Recordings, task: str) -> Target | None:
    """The task's target, or None while no seed has the whole sweep.

    The rate is chosen by the median of its best losses over its seeds, among the rates that have as many
    seeds as the better covered of the two that are best on the whole sweep's seed (these are what is
    repeated on further seeds). Choosing and scoring on the same seeds is generous to AdamW.
    """
    rates = sweep(recordings, task)
    seeds = {seed for _, runs in rates.values() for seed in runs}
    counts = {seed: sum(seed in runs for _, runs in rates.values()) for seed in seeds}
    if max(counts.values(), default=0) < NUM_RATES:
        return None
    base = min(counts, key=lambda seed: (-counts[seed], seed))
    order = sorted((runs[base].loss, lr) for lr, (_, runs) in rates.items() if base in runs)
    most = max(len(rates[lr][1]) for _, lr in order[:2])
    medians = {
        lr: float(np.median([run.loss for run in runs.values()]))
        for lr, (_, runs) in rates.items()
        if len(runs) >= most
    }
    lr = min(medians, key=lambda rate: medians[rate])
    plan, runs = rates[lr]
    loss = medians[lr]
    if not math.isfinite(loss):
        return None
    times = {seed: time_to_target(run, loss) for seed, run in runs.items()}
    steps = lower_median(list(times.values()))
    timed = runs[min(seed for seed, time in times.items() if time == steps)]
    return Target(
        lr=lr,
        plan=plan,
        loss=loss,
        steps=steps,
        seconds=steps * timed.step_seconds,
        run=timed,
        at_border=lr in (next(iter(rates)), next(reversed(rates))),
        num_seeds=len(runs),
        num_rates=max(counts.values()),
    )


def find_targets(recordings: Recordings) -> dict[str, Target]:
    """The targets of all tasks that have one."""
    found = {task: find_target(recordings, task) for task in recordings.tasks}
    return {task: target for task, target in found.items() if target is not None}


def lower_median(values: Sequence[float]) -> float:
    """The middle value, of an even number of them the smaller middle one.

    >>> lower_median([3.0, 1.0, float("inf")]), lower_median([1.0, float("inf")])
    (3.0, 1.0)
    """
    return sorted(values)[(len(values) - 1) // 2]


def upper_median(values: Sequence[float]) -> float:
    """The middle value, of an even number of them the larger middle one.

    >>> upper_median([3.0, 1.0, 2.0]), upper_median([1.0, float("inf")])
    (2.0, inf)
    """
    return sorted(values)[len(values) // 2]
