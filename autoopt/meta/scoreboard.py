"""The whole evaluation in one go: from a meta-dataset to results as plain data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autoopt.errors import MetaDatasetError
from autoopt.meta.contenders import CALIBRATED, RUN_BASELINES, Contender, contenders
from autoopt.meta.measures import Yardstick, loss_ratios, measure, times_to_target, unharmed
from autoopt.meta.profiles import R_MAX, performance_ratios, profile_integral
from autoopt.meta.protocols import PROTOCOLS, folds
from autoopt.meta.runs import Recordings
from autoopt.meta.selections import Selections
from autoopt.meta.targets import Target, find_targets

if TYPE_CHECKING:
    from autoopt.meta.dataset import MetaDataset

NUM_WORST = 10
FULL = 0.9
"""Share of the tasks with a target that a contender needs runs on to be in the performance profile."""

EXPECTED: tuple[str, ...] = (
    "selector",
    "selector_online",
    "selector_aside",
    "sbs",
    "nearest",
    "adamw_0.001",
    *CALIBRATED,
    *(name.replace("-", "_") for name in RUN_BASELINES),
    "random",
    "tuned_adamw",
    "vbs",
)
"""Contenders that a complete evaluation has."""


@dataclass(frozen=True, eq=False)
class Scores:
    """The results of one protocol, and what pictures and tables are drawn from.

    Attributes:
        rows: Contender -> measures.
        ratios: Contender -> performance ratio on every task of the profile.
        yardstick: What it was measured against.
        contenders: By name.
        missing: Contenders without any recorded run, and those with runs on a part of the tasks only.
    """

    rows: dict[str, dict[str, Any]]
    ratios: dict[str, NDArray[np.float64]]
    yardstick: Yardstick
    contenders: dict[str, Contender]
    missing: dict[str, str]

    @property
    def main(self) -> str:
        """The contender that the tables by family are about: the selector, else the SBS."""
        most = self.rows["sbs"]["num_tasks"]
        for name in ("selector_online", "selector"):
            if self.rows.get(name, {"num_tasks": 0})["num_tasks"] >= FULL * most:
                return name
        return "sbs"


def score(
    recordings: Recordings,
    protocol: str,
    *,
    selections: Selections | None = None,
    features: Any = None,
    default: str | None = None,
) -> Scores:
    """The measures of all contenders under a protocol.

    Args:
        recordings: Recorded runs.
        protocol: One of `PROTOCOLS`.
        selections: What the folds' selectors chose, if any were fitted.
        features: `MetaDataset.features`.
        default: Canonical JSON of the default that the package ships.

    Raises:
        MetaDatasetError: If no whole plan was recorded on the protocol's tasks.
    """
    judged = [task for fold in folds(recordings.tasks, protocol) for task in fold.test]
    targets = find_targets(recordings)
    chosen = selections.by_protocol.get(protocol) if selections else None
    found = contenders(recordings, targets, protocol, selections=chosen, features=features, default=default)
    by_name = {c.name: only(c, judged) for c in found}
    by_name = {name: contender for name, contender in by_name.items() if contender.runs}
    if "sbs" not in by_name:
        raise MetaDatasetError(
            f"protocol {protocol!r} has no whole plan on its tasks; record a coordinate round or the portfolio"
        )
    yardstick = Yardstick(
        recordings.restricted(judged),
        {task: target for task, target in targets.items() if task in judged},
        by_name["sbs"],
        by_name["vbs"],
        by_name.get("calibrated_adamw", Contender("calibrated_adamw", "", {})),
        by_name.get("tuned_adamw", Contender("tuned_adamw", "", {})),
    )
    rows = {name: measure(contender, yardstick) for name, contender in by_name.items()}
    ratios = _profile(by_name, yardstick.targets)
    for name, row in rows.items():
        row["profile_integral"] = profile_integral(ratios[name]) if name in ratios else None
    return Scores(rows, ratios, yardstick, by_name, _missing(rows))


def only(contender: Contender, tasks: Iterable[str]) -> Contender:
    """The contender with its runs on some tasks only."""
    return replace(contender, runs={task: contender.runs[task] for task in tasks if task in contender.runs})


def evaluate(
    dataset: MetaDataset,
    *,
    selections: Selections | None = None,
    default: str | None = None,
    evaluation_only: Iterable[str] = (),
) -> tuple[dict[str, Any], dict[str, Scores]]:
    """All results as plain data for JSON, and the scores behind them, by protocol.

    Args:
        dataset: Recorded trials and meta-features.
        selections: What the folds' selectors chose.
        default: Canonical JSON of the default that the package ships.
        evaluation_only: Names of the tasks that nothing may be learned from.

    Raises:
        MetaDatasetError: If there is not enough to evaluate anything.
    """
    recordings = Recordings.of(dataset, evaluation_only)
    protocols = [name for name in PROTOCOLS if folds(recordings.tasks, name)]
    scores = {
        name: score(recordings, name, selections=selections, features=dataset.features, default=default)
        for name in protocols
    }
    result: dict[str, Any] = {name: found.rows for name, found in scores.items()}
    strict = scores["strict"]
    result["main"] = strict.main
    result["by_family"] = by_family(strict)
    result["worst"] = worst_tasks(strict)
    result["missing"] = {name: found.missing for name, found in scores.items()}
    result["data"] = _data(dataset, recordings, strict) | {"selections": selections.info if selections else None}
    return _finite(result), scores


def by_family(scores: Scores) -> list[dict[str, Any]]:
    """Measures of the main contender by architecture family, the slowest family first."""
    steps, ratios, harm_free, excess, names = _by_task(scores)
    families = sorted({scores.yardstick.recordings.tasks[task].family for task in names})
    rows = []
    for family in families:
        tasks = [task for task in names if scores.yardstick.recordings.tasks[task].family == family]
        known = [steps[task] for task in tasks if task in steps]
        rows.append(
            {
                "family": family,
                "num_tasks": len(tasks),
                "time_to_target": _geometric(known),
                "missed": _average([float(not math.isfinite(value)) for value in known]),
                "no_harm_tuned": _average([float(harm_free[task]) for task in tasks if task in harm_free]),
                "loss_over_tuned": _average([ratios[task] for task in tasks if task in ratios]),
                "log_excess": _average([excess[task] for task in tasks]),
            }
        )
    return sorted(rows, key=lambda row: -(row["time_to_target"] or 0.0))


def worst_tasks(scores: Scores, count: int = NUM_WORST) -> list[dict[str, Any]]:
    """The tasks on which the main contender fares worst against tuned AdamW, each with the reasons.

    They are ordered by the time to the target, misses first, then by the loss.
    """
    steps, ratios, _, excess, names = _by_task(scores)

    def badness(task: str) -> tuple[float, float]:
        return steps.get(task, 0.0), ratios.get(task, excess[task])

    rows = []
    for task in sorted(names, key=badness, reverse=True)[:count]:
        facts = scores.yardstick.recordings.tasks[task]
        rows.append(
            {
                "task": task,
                "family": facts.family,
                "source": facts.source,
                "time_to_target": steps[task] if math.isfinite(steps.get(task, math.inf)) else None,
                "missed": not math.isfinite(steps[task]) if task in steps else None,
                "loss_over_tuned": ratios.get(task),
                "log_excess": excess[task],
                "chosen": scores.contenders[scores.main].chosen.get(task, ""),
                "reasons": reasons(scores, task),
            }
        )
    return rows


def reasons(scores: Scores, task: str) -> list[str]:
    """What the recordings say about why the main contender fares badly on a task."""
    yardstick = scores.yardstick
    runs = scores.contenders[scores.main].runs[task]
    found = []
    if all(run.diverged for run in runs.values()):
        return ["it diverged"]
    if any(run.diverged for run in runs.values()):
        found.append("it diverged on a part of the seeds")
    early = [run.best_step / run.budget_steps for run in runs.values() if run.best_step > 0]
    if early and np.median(early) <= 0.5:
        found.append(f"it over-fits: the best validation is at {100 * np.median(early):.0f} % of the run")
    target = yardstick.targets.get(task)
    if target is not None:
        tuned = yardstick.tuned_adamw.runs[task].values()
        if target.at_border:
            found.append(f"AdamW's best rate, {target.lr:g}, is at the border of its sweep")
        best = [run.best_step / run.budget_steps for run in tuned if run.best_step > 0]
        if best and np.median(best) <= 0.5:
            found.append(f"tuned AdamW over-fits too: its best is at {100 * np.median(best):.0f} % of the run")
        if abs(target.loss) < 1e-3:
            found.append(f"the target is nearly zero, {target.loss:.1g}: log ratios are large there")
        if target.num_seeds < 3:
            found.append(f"the target rests on {target.num_seeds} seed{'s' if target.num_seeds > 1 else ''}")
    if scores.main != "sbs" and task in yardstick.sbs.runs:
        ratio = loss_ratios(scores.contenders[scores.main], yardstick.sbs, yardstick.recordings).get(task, 0.0)
        words = scores.contenders[scores.main].chosen.get(task, "")
        if ratio > 0.01:
            found.append(f"the changed groups ({words}) cost {100 * (math.exp(ratio) - 1):.0f} % loss against the SBS")
        elif abs(ratio) <= 0.01:
            found.append("the SBS fares the same: nothing was chosen that helps here")
    gap = loss_ratios(yardstick.vbs, scores.contenders[scores.main], yardstick.recordings).get(task)
    if gap is not None and gap < -0.05:
        found.append(f"{yardstick.vbs.chosen[task]!r} was recorded {100 * (1 - math.exp(gap)):.0f} % better")
    return found or ["nothing in the recordings tells"]


def _by_task(
    scores: Scores,
) -> tuple[dict[str, float], dict[str, float], dict[str, bool], dict[str, float], list[str]]:
    contender, yardstick = scores.contenders[scores.main], scores.yardstick
    excess = {
        task: float(np.mean([yardstick.recordings.excess(task, run.loss) for run in runs.values()]))
        for task, runs in contender.runs.items()
    }
    return (
        times_to_target(contender, yardstick.targets),
        loss_ratios(contender, yardstick.tuned_adamw, yardstick.recordings),
        unharmed(contender, yardstick.tuned_adamw, yardstick.recordings),
        excess,
        list(contender.runs),
    )


def _profile(by_name: Mapping[str, Contender], targets: Mapping[str, Target]) -> dict[str, NDArray[np.float64]]:
    """Performance ratios over the tasks on which every contender with enough runs was recorded."""
    times = {name: times_to_target(c, targets) for name, c in by_name.items() if name != "vbs"}
    times = {name: found for name, found in times.items() if found and len(found) >= FULL * len(targets)}
    shared = [task for task in targets if all(task in found for found in times.values())]
    if not times or not shared:
        return {}
    return performance_ratios({name: np.array([found[task] for task in shared]) for name, found in times.items()})


def _missing(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    most = max(row["num_tasks"] for row in rows.values())
    found = {name: "not recorded" for name in EXPECTED if name not in rows}
    for name, row in rows.items():
        if row["num_tasks"] < most:
            found[name] = f"recorded on {row['num_tasks']} of {most} tasks"
    return found


def _data(dataset: MetaDataset, recordings: Recordings, strict: Scores) -> dict[str, Any]:
    targets = strict.yardstick.targets
    vbs = strict.contenders["vbs"]
    facts = strict.yardstick.recordings.tasks.values()
    return {
        "num_trials": int(len(dataset.trials)),
        "num_tasks": len(recordings.tasks),
        "num_families": len({task.family for task in facts}),
        "num_sources": len({task.source for task in facts}),
        "num_folds": len(folds(recordings.tasks, "strict")),
        "num_targets": len(targets),
        "num_targets_on_3_seeds": sum(target.num_seeds >= 3 for target in targets.values()),
        "targets_at_border": sorted(task for task, target in targets.items() if target.at_border),
        "vbs_scored_on_other_seeds": _average(
            [float(recordings.base_seeds[task] not in runs) for task, runs in vbs.runs.items()]
        ),
        "r_max": R_MAX,
    }


def _finite(value: Any) -> Any:
    """The value with None in place of numbers that are not finite, which JSON has no word for."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _geometric(ratios: list[float]) -> float | None:
    return math.exp(float(np.mean([math.log(min(R_MAX, ratio)) for ratio in ratios]))) if ratios else None


def _average(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None
