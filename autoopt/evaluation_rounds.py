"""The recording rounds that the evaluation needs beside those that the selector learns from.

- `baselines`: AdamW 1e-3, and every baseline of `autoopt.baselines` at its published default.
- `baselines-tuned`: their further settings, so that each can be calibrated like AdamW.
- `strict-selection`: what the selector of each task's fold chose for it, from step 0.
- `select`, `aside`: the same through `select()`, profiling online or aside.
- `best-known`: the best recorded plans of each task, for seeds that they were not chosen on.
- `larger`: AdamW's sweep and the defaults on the evaluation-only tasks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from autoopt.baselines import BASELINES, baseline_text
from autoopt.errors import MetaDatasetError
from autoopt.meta.runs import effective_plan
from autoopt.meta.selections import Selection, load_selections, selection_text
from autoopt.meta.trial import TrialRequest
from autoopt.optimizers.recipe import Recipe, calibrated_default
from autoopt.task_layers import on_task
from autoopt.tasks.base import Task

EVALUATION_ROUNDS = (
    *("baselines", "baselines-tuned", "strict-selection", "select", "aside"),
    *("best-known", "larger"),
)
NUM_BEST = 3
"""Plans of each task that `best-known` records on further seeds."""


def evaluation_requests(
    round_name: str,
    tasks: Iterable[Task],
    seeds: Sequence[int],
    dataset: Any,
    folder: str | Path,
    sweep: Sequence[tuple[str, Recipe]],
) -> list[TrialRequest]:
    """The runs that one of `EVALUATION_ROUNDS` asks for.

    Args:
        round_name: The round.
        tasks: Tasks; those of the demo are left out.
        seeds: Seeds.
        dataset: The `MetaDataset` recorded so far.
        folder: Where `selections.json` lies.
        sweep: Names and recipes of AdamW's sweep.

    Raises:
        MetaDatasetError: If the selections that a round needs were not made yet.
    """
    tasks = [task for task in tasks if not task.demo]
    if round_name == "larger":
        plain = [*sweep, ("adamw 0.001", plain_adamw(1e-3))]
        larger = [task for task in tasks if task.evaluation_only]
        return [
            _plan(task, recipe, name, round_name, seed)
            for task in larger
            for seed in seeds
            for name, recipe in (*plain, ("default", on_task(calibrated_default(), task)))
        ]
    if round_name in ("baselines", "baselines-tuned"):
        return [request for task in tasks for seed in seeds for request in _baselines(round_name, task, seed)]
    if round_name == "best-known":
        return [request for task in tasks for request in _best_known(round_name, task, seeds, dataset)]
    chosen = _selections(folder, round_name)
    found: list[TrialRequest] = []
    for task in tasks:
        for selection in chosen.get(task.name, ()):
            for seed in seeds:
                found += _selected(round_name, task, selection, seed)
    return list(dict.fromkeys(found))


def plain_adamw(lr: float) -> Recipe:
    """AdamW at one plain rate for all parameters, with PyTorch's own momenta and weight decay."""
    return Recipe.uniform("adamw", lr, width_free=False, weight_decay=0.01)


def _plan(task: Task, recipe: Recipe, name: str, round_name: str, seed: int) -> TrialRequest:
    return TrialRequest(task.name, recipe.to_json(), name, round_name, seed=seed)


def _baselines(round_name: str, task: Task, seed: int) -> list[TrialRequest]:
    first = round_name == "baselines"
    found = [_plan(task, plain_adamw(1e-3), "adamw 0.001", round_name, seed)] if first else []
    for row in BASELINES:
        for setting in row.settings[:1] if first else row.settings[1:]:
            name = " ".join([row.name, *(f"{key}={value:g}" for key, value in setting.items())])
            text = baseline_text(row.name, setting)
            found.append(TrialRequest(task.name, text, name, round_name, seed=seed, mode="baseline"))
    return found


def _best_known(round_name: str, task: Task, seeds: Sequence[int], dataset: Any) -> list[TrialRequest]:
    trials = dataset.trials
    runs = trials[(trials["task"] == task.name) & (trials["mode"] == "plan") & (trials["status"] == "completed")]
    if runs.empty:
        return []
    features = dataset.features
    groups = frozenset(features.loc[features["task"] == task.name, "group"])
    counts = runs["seed"].value_counts()
    base = min(counts.index, key=lambda seed: (-counts[seed], seed))
    best: dict[str, tuple[str, str]] = {}
    for plan, name in (
        runs[runs["seed"] == base].sort_values("best_val_loss", kind="stable")[["plan", "plan_name"]].values
    ):
        best.setdefault(effective_plan(plan, groups), (plan, name))
    chosen = list(best.values())[:NUM_BEST]
    default = on_task(calibrated_default(), task).to_json(), "default"
    return [
        TrialRequest(task.name, plan, name, round_name, seed=seed)
        for seed in seeds
        for plan, name in dict.fromkeys([*chosen, default])
    ]


def _selections(folder: str | Path, round_name: str) -> dict[str, tuple[Selection, ...]]:
    """Task -> its choices under all protocols, each once."""
    selections = load_selections(folder)
    if selections is None:
        raise MetaDatasetError(
            f"round {round_name!r} records what the folds' selectors chose, and {folder} has no selections yet; "
            "make them with scripts/evaluate.py --propose"
        )
    found: dict[str, dict[tuple[str, str], Selection]] = {}
    for by_task in selections.by_protocol.values():
        for task, selection in by_task.items():
            found.setdefault(task, {}).setdefault((selection.default, selection.plan), selection)
    return {task: tuple(choices.values()) for task, choices in found.items()}


def _selected(round_name: str, task: Task, selection: Selection, seed: int) -> list[TrialRequest]:
    name = "selected " + (", ".join(selection.changed) or "default")
    default = _plan(task, on_task(Recipe.from_json(selection.default), task), "default", round_name, seed)
    if round_name == "strict-selection":
        chosen = _plan(task, on_task(Recipe.from_json(selection.plan), task), name, round_name, seed)
        return [default] if selection.plan == selection.default else [default, chosen]
    if round_name == "select" and selection.plan == selection.default:
        # With nothing changed, the run is that of the default from step 0, bit by bit.
        return [default]
    text = selection_text(selection.default, selection.plan)
    return [TrialRequest(task.name, text, name, round_name, seed=seed, mode=round_name)]
