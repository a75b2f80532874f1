"""The measures of the evaluation, with bootstrap intervals over tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoopt.meta.contenders import Contender
from autoopt.meta.profiles import R_MAX
from autoopt.meta.runs import Recordings, Run, Runs
from autoopt.meta.targets import Target, time_to_target, upper_median

Array = NDArray[np.float64]

DRAWS = 2000
TOLERANCE = math.log(1.01)
"""Log ratio of losses up to which a run ends no worse."""
MAX_TOLERANCE = math.log(1.05)
"""What seed noise may widen it to."""


@dataclass(frozen=True, eq=False)
class Yardstick:
    """What every contender is measured against.

    Attributes:
        recordings: The recorded runs, which losses are ranked among.
        targets: Target of every task that has one.
        sbs: The single best solver.
        vbs: The virtual best solver.
        calibrated_adamw: AdamW at the one rate that is best on the training side.
        tuned_adamw: AdamW at each task's own best rate.
    """

    recordings: Recordings
    targets: Mapping[str, Target]
    sbs: Contender
    vbs: Contender
    calibrated_adamw: Contender
    tuned_adamw: Contender


def times_to_target(contender: Contender, targets: Mapping[str, Target], *, seconds: bool = False) -> dict[str, float]:
    """Task -> time to the target over tuned AdamW's own, infinite for a miss.

    With several seeds it is their median, the later one of the two middle runs of an even number.

    Args:
        contender: Whose runs.
        targets: Targets by task.
        seconds: Whether to count seconds, those of choosing included, instead of steps: at the pace of
            the machine when tuned AdamW was recorded.
    """
    found = {}
    for task, runs in contender.runs.items():
        target = targets.get(task)
        if target is None or (seconds and target.seconds <= 0):
            continue
        times = []
        for run in runs.values():
            time = time_to_target(run, target.loss)
            if seconds:
                spent = time * run.step_seconds + run.selection_seconds
                times.append(spent * run.pace(target.run) / target.seconds)
            else:
                times.append(time / target.steps)
        found[task] = upper_median(times)
    return found


def measure(contender: Contender, yardstick: Yardstick) -> dict[str, Any]:
    """All measures of a contender, each `name` with its 95 % bootstrap interval `name_ci`.

    A measure counts the tasks on which everything it needs is recorded; `num_tasks` is the number of
    tasks that the contender was run on. What cannot be told is None.

    Args:
        contender: Who is measured.
        yardstick: Against what.
    """
    recordings, targets = yardstick.recordings, yardstick.targets
    tasks = [task for task in recordings.tasks if task in contender.runs]
    row: dict[str, Any] = {
        "title": contender.title,
        "oracle": contender.oracle,
        "num_tasks": len(tasks),
        "num_runs": sum(len(contender.runs[task]) for task in tasks),
    }
    steps = times_to_target(contender, targets)
    seconds = times_to_target(contender, targets, seconds=True)
    row["num_targets"] = len(steps)
    _put(row, "time_to_target", _capped_logs(steps), then=math.exp)
    _put(row, "missed", [float(not math.isfinite(ratio)) for ratio in steps.values()])
    _put(row, "seconds_to_target", _capped_logs(seconds), then=math.exp)
    sbs_steps = times_to_target(yardstick.sbs, targets)
    shared = [task for task in steps if task in sbs_steps]
    capped = _capped_logs({t: steps[t] for t in shared}), _capped_logs({t: sbs_steps[t] for t in shared})
    _put(row, "time_over_sbs", [a - b for a, b in zip(*capped, strict=True)], then=math.exp)
    _put(row, "log_excess", [_mean(contender.runs[t], _excess(recordings, t)) for t in tasks])
    _put(row, "rank", [_mean(contender.runs[t], _rank(recordings, t)) for t in tasks])
    _put(row, "loss_over_sbs", list(loss_ratios(contender, yardstick.sbs, recordings).values()))
    for name, outcome in (("closed_gap_loss", _excess), ("closed_gap_rank", _rank)):
        gap, room = _gaps(contender, yardstick, tasks, outcome)
        row[name], row[f"{name}_ci"] = ratio_of_means(gap, room)
    for name, other in (("no_harm", yardstick.calibrated_adamw), ("no_harm_tuned", yardstick.tuned_adamw)):
        _put(row, name, [float(value) for value in unharmed(contender, other, recordings).values()])
    _put_costs(row, contender, yardstick)
    return row


def loss_ratios(contender: Contender, reference: Contender, recordings: Recordings) -> dict[str, float]:
    """Task -> mean log ratio of best losses over the seeds that both were run with, negative is better."""
    found = {}
    for task, runs in contender.runs.items():
        other = reference.runs.get(task, {})
        shared = runs.keys() & other.keys()
        if shared:
            found[task] = float(
                np.mean([recordings.log_ratio(task, runs[s].loss, other[s].loss) for s in sorted(shared)])
            )
    return found


def unharmed(contender: Contender, reference: Contender, recordings: Recordings) -> dict[str, bool]:
    """Task -> whether the contender ends no worse than the reference.

    Seeds are paired. No worse means: by at most 1 %, or by at most the standard error of the mean log
    ratio over three seeds or more, of which no more than 5 % count.
    """
    found = {}
    for task, runs in contender.runs.items():
        other = reference.runs.get(task, {})
        shared = sorted(runs.keys() & other.keys())
        if not shared:
            continue
        ratios = [recordings.log_ratio(task, runs[seed].loss, other[seed].loss) for seed in shared]
        noise = float(np.std(ratios, ddof=1)) / math.sqrt(len(ratios)) if len(ratios) >= 3 else 0.0
        found[task] = float(np.mean(ratios)) <= max(TOLERANCE, min(noise, MAX_TOLERANCE))
    return found


def mean_interval(values: Array, *, draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval (95 %) of a mean over tasks."""
    index = np.random.default_rng(seed).integers(0, len(values), size=(draws, len(values)))
    low, high = np.quantile(values[index].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def ratio_of_means(
    top: Array, bottom: Array, *, draws: int = DRAWS, seed: int = 0
) -> tuple[float | None, list[float] | None]:
    """The ratio of two means over the same tasks, and its bootstrap interval; both resampled together.

    Args:
        top: One value a task.
        bottom: One value a task.
        draws: Bootstrap samples.
        seed: Seed of the resampling.

    Returns:
        None twice where the bottom's mean is not above 0: there is no gap to close.
    """
    if not len(top) or bottom.mean() <= 1e-12:
        return None, None
    index = np.random.default_rng(seed).integers(0, len(top), size=(draws, len(top)))
    below = bottom[index].sum(axis=1)
    ratios = np.where(below > 0, top[index].sum(axis=1) / np.where(below > 0, below, 1.0), -np.inf)
    low, high = np.quantile(ratios, [0.025, 0.975], method="nearest")
    return float(top.mean() / bottom.mean()), [float(low), float(high)]


def _gaps(
    contender: Contender,
    yardstick: Yardstick,
    tasks: list[str],
    outcome: Callable[[Recordings, str], Callable[[Run], float]],
) -> tuple[Array, Array]:
    gap, room = [], []
    for task in tasks:
        sbs, vbs = yardstick.sbs.runs.get(task), yardstick.vbs.runs.get(task)
        if sbs and vbs:
            value = outcome(yardstick.recordings, task)
            gap.append(_difference(sbs, contender.runs[task], value))
            room.append(_difference(sbs, vbs, value))
    return np.array(gap), np.array(room)


def _difference(a: Runs, b: Runs, value: Callable[[Run], float]) -> float:
    """Mean outcome of `a` minus that of `b`, over the seeds that both have where there are any."""
    shared = sorted(a.keys() & b.keys())
    if not shared:
        return _mean(a, value) - _mean(b, value)
    return float(np.mean([value(a[seed]) - value(b[seed]) for seed in shared]))


def _mean(runs: Runs, value: Callable[[Run], float]) -> float:
    return float(np.mean([value(run) for run in runs.values()]))


def _excess(recordings: Recordings, task: str) -> Callable[[Run], float]:
    return lambda run: recordings.excess(task, run.loss)


def _rank(recordings: Recordings, task: str) -> Callable[[Run], float]:
    return lambda run: recordings.rank(task, run.loss)


def _capped_logs(ratios: Mapping[str, float]) -> list[float]:
    return [math.log(min(R_MAX, max(ratio, 1e-6))) for ratio in ratios.values()]


def _put(row: dict[str, Any], name: str, values: list[float], then: Callable[[float], float] = float) -> None:
    """Nothing; adds a mean over tasks and its interval to a row."""
    if not values:
        row[name], row[f"{name}_ci"] = None, None
        return
    array = np.array(values)
    low, high = mean_interval(array)
    row[name], row[f"{name}_ci"] = then(float(array.mean())), [then(low), then(high)]


def _put_costs(row: dict[str, Any], contender: Contender, yardstick: Yardstick) -> None:
    """Nothing; adds step time and state bytes over tuned AdamW's, and the seconds of choosing."""
    times, bytes_, chosen = [], [], []
    for task, runs in contender.runs.items():
        other = yardstick.tuned_adamw.runs.get(task)
        if not other:
            continue
        beside = next(iter(other.values()))
        one = _mean(runs, lambda run, beside=beside: run.step_seconds * run.pace(beside))
        if one > 0 and beside.step_seconds > 0:
            times.append(math.log(one / beside.step_seconds))
        one, two = _mean(runs, lambda run: run.state_bytes), _mean(other, lambda run: run.state_bytes)
        if one > 0 and two > 0:
            bytes_.append(math.log(one / two))
        chosen.append(_mean(runs, lambda run: run.selection_seconds))
    _put(row, "step_seconds_ratio", times, then=math.exp)
    _put(row, "state_bytes_ratio", bytes_, then=math.exp)
    row["selection_seconds"] = float(np.median(chosen)) if chosen else None
