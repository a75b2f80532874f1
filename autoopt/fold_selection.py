"""What the selectors of the evaluation's folds choose for the tasks that they have not seen."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from autoopt.choice import choose
from autoopt.errors import MetaDatasetError
from autoopt.features import Features
from autoopt.meta.artifact import Predictor
from autoopt.meta.contenders import best_constants
from autoopt.meta.dataset import MetaDataset
from autoopt.meta.fold_fitting import FoldFitter, restricted
from autoopt.meta.parquet import FEATURE_KEYS
from autoopt.meta.protocols import folds
from autoopt.meta.runs import Recordings
from autoopt.meta.selections import Selection, Selections


def propose(
    dataset: MetaDataset,
    defaults: Sequence[str],
    *,
    protocols: Iterable[str] = ("strict", "larger"),
    evaluation_only: Iterable[str] = (),
    jobs: int = 1,
    say: Callable[[str], None] = lambda text: None,
) -> Selections:
    """The choice of every task under each protocol, made by a selector fitted on its training side.

    In each fold the default is the one of `defaults` that is best on the training side, and the
    selector is fitted around it on the training side alone. It decides from the task's recorded
    meta-features, which are those that `select` measures in the run itself.

    Args:
        dataset: Recorded trials and meta-features.
        defaults: Canonical JSON of the recorded defaults.
        protocols: Which of `autoopt.meta.protocols.PROTOCOLS`.
        evaluation_only: Names of the tasks that nothing may be learned from.
        jobs: Fits at a time, each in its own process.
        say: Called with a line on what is done.

    Raises:
        MetaDatasetError: If none of the defaults was recorded.
    """
    recordings = Recordings.of(dataset, evaluation_only)
    known = [plan for plan in defaults if plan in recordings.whole_plans]
    if not known:
        raise MetaDatasetError("none of the defaults was recorded; record a coordinate round first")
    fitters: dict[str, FoldFitter] = {}
    learnable = [name for name, task in recordings.tasks.items() if not task.evaluation_only]

    def fitter(default: str) -> FoldFitter:
        if default not in fitters:
            say(f"held-out predictions around {recordings.whole_plans[default]}")
            fitters[default] = FoldFitter(restricted(dataset, learnable), default, jobs=jobs, say=say)
        return fitters[default]

    by_protocol: dict[str, dict[str, Selection]] = {}
    positions: dict[str, list[float]] = {}
    for protocol in protocols:
        best = best_constants(recordings, known, protocol)
        chosen = by_protocol.setdefault(protocol, {})
        splits = folds(recordings.tasks, protocol)
        for number, fold in enumerate(splits, 1):
            judged = [task for task in fold.test if task in best]
            if not judged:
                continue
            default = best[judged[0]]
            # Role groups that no judged model has need no fit: those of the others are made already.
            present = set(dataset.features.loc[dataset.features["task"].isin(judged), "group"])
            if not present:
                chosen |= {task: Selection(default, default) for task in judged}
                continue
            predictor = fitter(default).fit(fold.train, present)
            chosen |= {task: choose_for(predictor, dataset.features, task) for task in judged}
            if protocol == "strict":
                for group, values in fitter(default).positions(fold.train, fold.test).items():
                    positions.setdefault(group, []).extend(values)
            deviating = sum(bool(chosen[task].changed) for task in judged)
            say(f"{protocol} {number}/{len(splits)} {fold.name}: {deviating} of {len(judged)} tasks deviate")
    info = {"num_trials": int(len(dataset.trials)), "num_tasks": len(recordings.tasks)}
    return Selections(by_protocol, info, positions)


def choose_for(predictor: Predictor, features: Any, task: str) -> Selection:
    """What a selector chooses for a task from its recorded meta-features, of the first seed with any.

    Args:
        predictor: The selector.
        features: `MetaDataset.features`.
        task: Name of the task; without meta-features the default is kept.
    """
    rows = features[features["task"] == task]
    if rows.empty:
        return Selection(predictor.default, predictor.default)
    rows = rows[rows["seed"] == rows["seed"].min()]
    groups = tuple(rows["group"])
    columns = tuple(name for name in rows.columns if name not in FEATURE_KEYS)
    values = rows[list(columns)].to_numpy(dtype=np.float64)
    choices = choose(predictor, Features(columns, groups, groups, np.ones(len(groups)), values), groups)
    changed = {group: choice.chosen for group, choice in choices.items() if choice.chosen is not None}
    recipe: dict[str, Any] = json.loads(predictor.default)
    for group, candidate in changed.items():
        recipe["groups"][group] = json.loads(candidate.config)
    return Selection(
        json.dumps(recipe, sort_keys=True, separators=(",", ":")),
        predictor.default,
        tuple(changed),
        tuple(round(float(candidate.mean), 4) for candidate in changed.values()),
    )


def summary(selections: Selections) -> Mapping[str, str]:
    """Protocol -> in how many tasks anything was changed, in words."""
    return {
        protocol: f"{sum(bool(s.changed) for s in chosen.values())} of {len(chosen)} tasks deviate from the default"
        for protocol, chosen in selections.by_protocol.items()
    }
