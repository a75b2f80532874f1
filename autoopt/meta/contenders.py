"""Who is compared: baselines, oracles and selections, each chosen on the training side of every fold."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoopt.meta.options import fullest
from autoopt.meta.protocols import folds
from autoopt.meta.runs import Recordings, Runs, plan_kind, uniform_configuration
from autoopt.meta.selections import Selection, selection_text
from autoopt.meta.targets import Target

COVERAGE = 0.9
"""A plan may be a constant choice for all tasks if it was recorded on this share of as many as any other."""

NUM_NEIGHBOURS = 5
"""Recorded tasks that the nearest-neighbour selector asks."""


@dataclass(frozen=True, eq=False)
class Contender:
    """Something that gives an optimizer for every task, and its runs.

    Attributes:
        name: Short name, the key of the results.
        title: What it is, for tables.
        runs: Task -> runs by seed, on the tasks where they are recorded.
        chosen: Task -> what was chosen for it, in words, where the choice depends on the fold.
        oracle: Whether it looked at the judged task's own outcomes.
    """

    name: str
    title: str
    runs: Mapping[str, Runs]
    chosen: Mapping[str, str] = field(default_factory=dict)
    oracle: bool = False


CALIBRATED: dict[str, tuple[str, tuple[str, ...]]] = {
    "calibrated_adamw": ("AdamW, one rate for all tasks", ("adamw",)),
    "calibrated_nadam": ("NAdam, one rate for all tasks", ("nadam",)),
    "calibrated_sgd": ("SGD with momentum, one rate for all tasks", ("sgd",)),
    "calibrated_lion": ("Lion, one rate for all tasks", ("lion",)),
    "calibrated_adagrad": ("Adagrad, one rate for all tasks", ("adagrad",)),
    "calibrated_rmsprop": ("RMSprop, one rate for all tasks", ("rmsprop",)),
    "calibrated_adafactor": ("Adafactor, one rate for all tasks", ("adafactor",)),
    "adamw_relative": ("AdamW, one rate relative to shapes", ("adamw-relative",)),
    "one_optimizer": (
        "One optimizer and rate for all layers and tasks",
        ("adamw", "adamw-relative", "nadam", "sgd", "lion", "adagrad", "rmsprop", "adafactor"),
    ),
    "muon_adamw": ("Hand rule: Muon + AdamW", ("muon+adamw",)),
    "soap_adamw": ("Hand rule: SOAP + AdamW", ("soap+adamw",)),
}
"""Baselines that are the best plan of some kinds on the training side -> title and kinds of plan."""

RUN_BASELINES: dict[str, str] = {
    "schedule-free": "Schedule-Free AdamW",
    "prodigy": "Prodigy",
    "sgd-sai": "SGD-SaI",
    "range-test": "LR range test + Adam",
}
"""Baselines with a training procedure of their own; with several settings, the best on the training side."""

MISSING_HINTS = "record them with scripts/build_meta_dataset.py (docs/evaluation.md lists the rounds)"


def excess_table(
    recordings: Recordings, plans: Iterable[str], mode: str = "plan"
) -> tuple[list[str], NDArray[np.float64]]:
    """The tasks, and the mean log excess of every plan on every task, NaN where it was not recorded.

    Args:
        recordings: The recordings.
        plans: Plan texts.
        mode: Mode of the runs.

    Returns:
        Task names, and an array `(num_plans, num_tasks)`. Only the base seed counts where a plan has
        it, so that plans are compared over the same batches.
    """
    tasks = [task for task in recordings.tasks if task in recordings.base_seeds]
    table = np.full((len(list(plans := list(plans))), len(tasks)), np.nan)
    for column, task in enumerate(tasks):
        base = recordings.base_seeds[task]
        for row, plan in enumerate(plans):
            runs = recordings.get(task, plan, mode)
            chosen = [runs[base]] if base in runs else list(runs.values())
            if chosen:
                table[row, column] = np.mean([recordings.excess(task, run.loss) for run in chosen])
    return tasks, table


def best_constants(recordings: Recordings, plans: Sequence[str], protocol: str, mode: str = "plan") -> dict[str, str]:
    """Task -> the plan that is best on average over the training side of its fold.

    Plans recorded on under 90 % as many tasks as the one with the most are left out, and the others
    are compared over the tasks that all of them cover.

    Args:
        recordings: The recordings.
        plans: Texts of the plans to choose from.
        protocol: One of `PROTOCOLS`.
        mode: Mode of the runs.
    """
    tasks, table = excess_table(recordings, plans, mode)
    known = ~np.isnan(table)
    kept = _covering(known)
    if not len(kept):
        return {}
    shared: NDArray[np.bool_] = np.all(known[kept], axis=0)
    columns = {task: column for column, task in enumerate(tasks)}
    chosen = {}
    for fold in folds(recordings.tasks, protocol):
        train = [columns[task] for task in fold.train if task in columns and shared[columns[task]]]
        if not train:
            continue
        best = plans[int(kept[np.argmin(table[kept][:, train].mean(axis=1))])]
        chosen |= {task: best for task in fold.test}
    return chosen


def contenders(
    recordings: Recordings,
    targets: Mapping[str, Target],
    protocol: str,
    *,
    selections: Mapping[str, Selection] | None = None,
    features: Any = None,
    default: str | None = None,
) -> list[Contender]:
    """All contenders that have any recorded run, in the order of the tables.

    Args:
        recordings: Recorded runs of the tasks that are judged and learned from.
        targets: Target of every task that has one.
        protocol: One of `PROTOCOLS`.
        selections: Task -> what the selector of its fold chose.
        features: `MetaDataset.features`, for the nearest-neighbour selector.
        default: Canonical JSON of the default that the package ships.
    """
    whole = fullest(recordings.whole_plans)
    found: list[Contender] = []
    if selections:
        found += _selected(recordings, selections)
    sbs = best_constants(recordings, whole, protocol)
    found.append(_constant(recordings, "sbs", "SBS: the best whole plan on the training side", sbs))
    if default is not None:
        shipped = dict.fromkeys(recordings.tasks, default)
        found.append(
            _constant(recordings, "shipped_default", "The shipped default (found with all tasks in view)", shipped)
        )
    found.append(_nearest(recordings, whole, protocol, features))
    found.append(_plain(recordings, "adamw_0.001", "AdamW 1e-3", ("adamw", 0.001)))
    for name, (title, kinds) in CALIBRATED.items():
        plans = [plan for plan in whole if plan_kind(plan) in kinds]
        found.append(_constant(recordings, name, title, best_constants(recordings, plans, protocol)))
    for name, title in RUN_BASELINES.items():
        texts = [text for text in recordings.baselines if json.loads(text).get("baseline") == name]
        chosen = best_constants(recordings, texts, protocol, "baseline")
        found.append(_constant(recordings, name.replace("-", "_"), title, chosen, "baseline"))
    found.append(_random(recordings))
    found.append(_tuned(recordings, targets))
    found.append(virtual_best(recordings))
    return [contender for contender in found if contender.runs]


def virtual_best(recordings: Recordings) -> Contender:
    """The best recorded plan of every task: chosen on some seeds, scored on others.

    Where the plan that is best on the base seed has further seeds, the choice among all plans with
    those seeds is made on all seeds but one and scored on that one, each of the further seeds in
    turn. Where it has none, the choice is scored on the seed that it was made on, which makes the
    oracle look better than it is.
    """
    found: dict[str, Runs] = {}
    words: dict[str, str] = {}
    for task, base in recordings.base_seeds.items():
        known = {plan: runs for plan, runs in recordings.plans(task).items() if base in runs}
        first = min(known, key=lambda plan: known[plan][base].loss)
        plans, best = list(known.values()), known[first]
        words[task] = recordings.names.get(first, "")
        if len(best) == 1:
            found[task] = best
            continue
        peers = [runs for runs in plans if set(runs) >= set(best)]
        found[task] = {}
        for seed in sorted(set(best) - {base}):
            others = [s for s in best if s != seed]
            chosen = min(
                peers, key=lambda runs: float(np.mean([recordings.excess(task, runs[s].loss) for s in others]))
            )
            found[task] = {**found[task], seed: chosen[seed]}
    return Contender("vbs", "VBS: the best recorded plan of the task", found, words, oracle=True)


def _constant(
    recordings: Recordings, name: str, title: str, chosen: Mapping[str, str], mode: str = "plan"
) -> Contender:
    names = recordings.whole_plans if mode == "plan" else recordings.baselines
    runs = {task: recordings.get(task, plan, mode) for task, plan in chosen.items()}
    words = {task: names.get(plan, "a recipe") for task, plan in chosen.items()}
    return Contender(name, title, {task: by_seed for task, by_seed in runs.items() if by_seed}, words)


def _selected(recordings: Recordings, selections: Mapping[str, Selection]) -> list[Contender]:
    titles = {
        "selector": "Selector, its plan from step 0",
        "selector_online": "Selector through select(), profiling online",
        "selector_aside": "Selector through select(), profiling aside",
    }
    found = []
    for name, title in titles.items():
        mode = {"selector_online": "select", "selector_aside": "aside"}.get(name, "plan")
        runs: dict[str, Runs] = {}
        for task, selection in selections.items():
            text = selection.plan if mode == "plan" else selection_text(selection.default, selection.plan)
            by_seed = recordings.get(task, text, mode)
            if not by_seed and mode == "select" and selection.plan == selection.default:
                # With nothing changed, the run is the default's, step by step.
                by_seed = recordings.get(task, selection.default)
            if by_seed:
                runs[task] = by_seed
        words = {task: ", ".join(selection.changed) or "the default" for task, selection in selections.items()}
        if mode == "plan" or any(
            (mode, selection_text(s.default, s.plan)) in recordings.runs.get(t, {}) for t, s in selections.items()
        ):
            found.append(Contender(name, title, runs, words))
    return found


def _plain(recordings: Recordings, name: str, title: str, wanted: tuple[str, float]) -> Contender:
    found: dict[str, Runs] = {}
    for plan in (plan for plan in recordings.whole_plans if (uniform_configuration(plan) or ())[:2] == wanted):
        found |= {task: runs for task in recordings.tasks if (runs := recordings.get(task, plan))}
    return Contender(name, title, found)


def _random(recordings: Recordings) -> Contender:
    found: dict[str, Runs] = {}
    for plan in (plan for plan, name in recordings.whole_plans.items() if name == "random 0"):
        found |= {task: runs for task in recordings.tasks if (runs := recordings.get(task, plan))}
    return Contender("random", "A random plan by role", found)


def _tuned(recordings: Recordings, targets: Mapping[str, Target]) -> Contender:
    runs = {task: recordings.plans(task)[target.plan] for task, target in targets.items() if task in recordings.tasks}
    words = {task: f"rate {target.lr:g}" for task, target in targets.items()}
    return Contender("tuned_adamw", "AdamW tuned for the task (pays 12 runs)", runs, words, oracle=True)


def _nearest(recordings: Recordings, plans: Sequence[str], protocol: str, features: Any) -> Contender:
    name, title = "nearest", f"Best whole plan of the {NUM_NEIGHBOURS} nearest recorded tasks"
    if features is None or features.empty or not plans:
        return Contender(name, title, {})
    tasks, table = excess_table(recordings, plans)
    columns = {task: column for column, task in enumerate(tasks)}
    names = [column for column in features.columns if column not in ("task", "seed", "group", "family", "source")]
    means = features.groupby("task", observed=True)[names].mean()
    means = means[[task in columns for task in means.index]]
    known = ~np.isnan(table)
    kept = _covering(known)
    chosen = {}
    for fold in folds(recordings.tasks, protocol):
        train = [task for task in fold.train if task in means.index and known[kept, columns[task]].all()]
        if len(train) < NUM_NEIGHBOURS or not len(kept):
            continue
        x = means.loc[train].to_numpy(dtype=np.float64)
        center, spread = _scale(np.nanmean, x, 0.0), _scale(np.nanstd, x, 1.0)
        spread = np.where(spread > 1e-9, spread, 1.0)
        x = np.clip(np.nan_to_num((x - center) / spread), -3.0, 3.0)
        for task in fold.test:
            if task not in means.index:
                continue
            own = np.clip(np.nan_to_num((means.loc[task].to_numpy(dtype=np.float64) - center) / spread), -3.0, 3.0)
            nearest = np.argsort(((x - own) ** 2).sum(axis=1), kind="stable")[:NUM_NEIGHBOURS]
            rows = [columns[train[i]] for i in nearest]
            chosen[task] = plans[int(kept[np.argmin(table[kept][:, rows].mean(axis=1))])]
    return _constant(recordings, name, title, chosen)


def _covering(known: NDArray[np.bool_]) -> NDArray[np.int_]:
    """The rows (plans) that cover nearly as many columns (tasks) as the one that covers the most."""
    counts = known.sum(axis=1)
    return np.flatnonzero((counts > 0) & (counts >= COVERAGE * counts.max(initial=0)))


def _scale(function: Callable[..., Any], x: NDArray[np.float64], fallback: float) -> NDArray[np.float64]:
    known = ~np.isnan(x).all(axis=0)
    found = np.full(x.shape[1], fallback)
    found[known] = function(x[:, known], axis=0)
    return found
