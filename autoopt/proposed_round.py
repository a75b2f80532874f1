"""The recording round in which the selector says itself what it would learn from, or gain by, most."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from autoopt.meta.dataset import MetaDataset
from autoopt.meta.fitting import fit_predictor
from autoopt.meta.pairs import paired_outcomes
from autoopt.meta.proposals import Proposal, propose
from autoopt.meta.trial import TrialRequest, trial_id
from autoopt.optimizers.recipe import Recipe
from autoopt.task_layers import on_task
from autoopt.tasks.base import Task

NUM_SINGLE = 4
"""Single changes that are proposed for each task."""

WORTH_COMBINING = -0.01
"""Expected or recorded log ratio below which a change joins the combined plan of a task."""


def proposed_changes(
    round_name: str, tasks: Sequence[Task], seeds: Sequence[int], dataset: Any, default: Recipe
) -> list[TrialRequest]:
    """The changes with the largest expected improvement on each task, and the best of all groups at once.

    The combined plan takes, for each role group, the best configuration that is recorded or proposed:
    it shows whether effects of single changes add up.

    Args:
        round_name: Name of the round.
        tasks: Tasks; those marked `demo` or `evaluation_only`, or without recorded features, are left out.
        seeds: Seeds.
        dataset: The `MetaDataset` recorded so far.
        default: The default that is changed.

    Raises:
        MetaDatasetError: If nothing was recorded around the default.
    """
    base = default.to_json()
    trials = dataset.trials
    # Without the round's own runs, so that asking again gives the same runs.
    before = MetaDataset(trials[trials["round"] != round_name], dataset.features)
    predictor = fit_predictor(before, base)
    pairs = paired_outcomes(before.trials, base)
    means = pairs.groupby(["task", "group", "config"], observed=True)["outcome"].mean()
    features = before.features.set_index(["task", "group"])[list(predictor.features)].groupby(level=[0, 1]).mean()
    known: dict[str, dict[str, dict[str, float]]] = {}
    for (task, group, config), outcome in means.items():
        known.setdefault(task, {}).setdefault(group, {})[config] = float(outcome)
    values: dict[str, dict[str, dict[str, float]]] = {}
    for (task, group), row in features.iterrows():
        values.setdefault(task, {})[group] = row.to_dict()
    found: list[TrialRequest] = []
    for task in tasks:
        if task.demo or task.evaluation_only or task.name not in values:
            continue
        proposals = propose(predictor, values[task.name], known.get(task.name, {}), NUM_SINGLE)
        for seed in seeds:
            found += _requests(round_name, task, seed, default, proposals, known.get(task.name, {}))
    return found


def _requests(
    round_name: str,
    task: Task,
    seed: int,
    default: Recipe,
    proposals: Sequence[Proposal],
    known: dict[str, dict[str, float]],
) -> list[TrialRequest]:
    default = on_task(default, task)
    base_id = trial_id(task.name, default.to_json(), seed)
    found = [TrialRequest(task.name, default.to_json(), "default", round_name, seed=seed)]
    for proposal in proposals:
        recipe = default.with_config(proposal.group, proposal.config)
        name = f"proposed: {proposal.group}"
        found.append(
            TrialRequest(task.name, recipe.to_json(), name, round_name, proposal.group, proposal.config, base_id, seed)
        )
    best = _best_of_each_group(proposals, known)
    if len(best) > 1:
        recipe = default
        for group, config in best.items():
            recipe = recipe.with_config(group, config)
        changed = json.dumps({group: json.loads(config) for group, config in best.items()}, sort_keys=True)
        name, groups = f"proposed: {', '.join(best)}", "+".join(best)
        found.append(TrialRequest(task.name, recipe.to_json(), name, round_name, groups, changed, base_id, seed))
    return found


def _best_of_each_group(proposals: Sequence[Proposal], known: dict[str, dict[str, float]]) -> dict[str, str]:
    outcomes = [(outcome, group, config) for group, found in known.items() for config, outcome in found.items()]
    outcomes += [(proposal.mean, proposal.group, proposal.config) for proposal in proposals]
    best: dict[str, str] = {}
    for outcome, group, config in sorted(outcomes):
        if outcome < WORTH_COMBINING and group != "*":
            best.setdefault(group, config)
    return dict(sorted(best.items()))
