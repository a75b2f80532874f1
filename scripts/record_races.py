"""Record short runs of the plans that a race compares, on tasks whose long runs are recorded.

    python scripts/record_races.py --minutes 15
    python scripts/record_races.py --output my_races.parquet --seed 1

A short run has its own compressed schedule. Tasks already in the file are passed over, so that an
interrupted recording goes on where it stopped; tasks kept for demonstration or evaluation are never run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from autoopt.errors import AutoOptError

MIN_CHANGES = 4
"""Changes whose long runs are recorded that a task needs to be raced."""

CHANGES: tuple[tuple[str, dict[str, Any]], ...] = (
    *(("matrix", {"lr_factor": factor}) for factor in (4.0, 2.0, 0.5, 0.25)),
    ("matrix", {"optimizer": "adamw", "lr": 0.008, "betas": (0.9, 0.99)}),
    *(("conv", {"lr_factor": factor}) for factor in (4.0, 2.0, 0.5)),
    ("conv", {"optimizer": "adamw", "lr": 0.008, "betas": (0.9, 0.99)}),
    *(("embedding", {"lr_factor": factor}) for factor in (4.0, 0.25, 0.0625)),
    *(("head", {"lr_factor": factor}) for factor in (4.0, 0.25)),
    ("head", {"optimizer": "muon", "lr": 0.08}),
    ("head", {"optimizer": "sgd", "lr": 0.1}),
    *(("vector", {"lr_factor": factor}) for factor in (4.0, 0.25)),
    ("vector", {"optimizer": "sgd", "lr": 0.1}),
)
"""Changes of the default whose effect differs much between tasks, as (role group, change)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code, after recording for so many minutes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", default="meta_data", help="recorded trials (default meta_data)")
    parser.add_argument("--output", help="file of short runs (default races.parquet in the folder)")
    parser.add_argument("--seed", type=int, default=0, help="seed of initialisation and batches (default 0)")
    parser.add_argument(
        "--groups", default="matrix,conv,embedding,head,vector", help="role groups whose changes run (default all)"
    )
    parser.add_argument("--default", default="3", metavar="K", help="default of defaults.json that changes are around")
    parser.add_argument("--minutes", type=float, default=15.0, help="when to begin no further task (default 15)")
    options = parser.parse_args(arguments)
    try:
        return _record(options)
    except AutoOptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _record(options: argparse.Namespace) -> int:
    import pandas as pd
    import torch

    from autoopt.meta.dataset import MetaDataset
    from autoopt.rounds import load_defaults

    torch.set_num_threads(1)
    path = Path(options.output or Path(options.folder) / "races.parquet")
    default = load_defaults(options.folder)[options.default]
    dataset = MetaDataset.load(options.folder)
    known = pd.read_parquet(path) if path.exists() else pd.DataFrame()
    done = set() if known.empty else set(known.loc[known["seed"] == options.seed, "task"])
    begun = time.monotonic()
    rows: list[dict[str, Any]] = []
    for name in _order(dataset, default.to_json(), options.seed):
        if name in done:
            continue
        if time.monotonic() - begun > 60.0 * options.minutes:
            break
        start = time.monotonic()
        found = record_task(name, options.seed, default, options.groups.split(","))
        rows += found
        print(f"{name}: {len(found)} runs in {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)
        known = pd.concat([known, pd.DataFrame(found)], ignore_index=True)
        _write(known, path)
    print(f"{path}: {len(known)} short runs of {known['task'].nunique() if len(known) else 0} tasks")
    return 0


def _write(table: Any, path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    table = table.astype({"train_loss": "float32", "held_back_loss": "float32", "steps": "int32", "seed": "int32"})
    table.to_parquet(temporary, compression="zstd", index=False)
    os.replace(temporary, path)


def _order(dataset: Any, default: str, seed: int) -> list[str]:
    """The tasks on which most changes are recorded: the cheapest of every family, the next ones, and so on."""
    from autoopt.meta.options import runs_of_plan
    from autoopt.meta.pairs import canonical, paired_outcomes
    from autoopt.optimizers.recipe import Recipe
    from autoopt.tasks import all_tasks

    open_tasks = {task.name for task in all_tasks() if not (task.demo or task.evaluation_only)}
    trials = dataset.trials
    runs = runs_of_plan(trials[trials["seed"] == seed], default)
    changed = (Recipe.from_json(default).with_change(*change) for change in CHANGES)
    texts = zip((group for group, _ in CHANGES), (json.loads(recipe.to_json()) for recipe in changed), strict=True)
    raced = {canonical(recipe["groups"][group]) for group, recipe in texts}
    pairs = paired_outcomes(trials[trials["seed"] == seed], default)
    counts = pairs[pairs["config"].isin(raced)].groupby("task").size()
    by_family: dict[str, list[tuple[float, str]]] = {}
    for row in runs.to_dict("records"):
        if row["task"] in open_tasks and counts.get(row["task"], 0) >= MIN_CHANGES:
            cost = row["step_seconds"] * row["budget_steps"]
            by_family.setdefault(row["family"], []).append((cost, row["task"]))
    columns = [sorted(tasks) for _, tasks in sorted(by_family.items())]
    return [item[1] for layer in itertools.zip_longest(*columns) for item in sorted(filter(None, layer))]


def record_task(name: str, seed: int, default: Any, groups: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of one task: every candidate and the default at every share, and the loss at the start.

    Args:
        name: Name of the task.
        seed: Seed of initialisation and batches.
        default: The `Recipe` that candidates change.
        groups: Role groups whose changes run.
    """
    from autoopt.architecture import describe
    from autoopt.meta.extrapolation import SHARES, num_steps
    from autoopt.short_runs import NUM_HELD_BACK, short_run, short_schedule
    from autoopt.training import build_instance, find_task

    task = find_task(name)
    instance = build_instance(task, seed)
    layers = describe(instance.model).layers
    lengths = sorted({num_steps(share, task.budget_steps) for share in SHARES})
    batches = list(itertools.islice(instance.batches(), lengths[-1] + NUM_HELD_BACK))
    held_back = batches[lengths[-1] :]
    rows = []
    for group, config, recipe in [("", "", default), *_candidates(layers, default, groups)]:
        for steps in lengths if group else [0, *lengths]:
            plan = recipe.over(task.budget_steps).resolve(layers).with_schedule(short_schedule(steps))
            run = short_run(instance.model, instance.loss_fn, plan, batches[:steps], held_back)
            rows.append(
                {
                    "task": name,
                    "family": task.family,
                    "source": task.source,
                    "seed": seed,
                    "budget_steps": task.budget_steps,
                    "group": group,
                    "config": config,
                    "steps": steps,
                    "train_loss": run.train_loss,
                    "held_back_loss": run.held_back_loss,
                }
            )
    return rows


def _candidates(layers: Any, default: Any, groups: Sequence[str]) -> Iterator[tuple[str, str, Any]]:
    """Role group, configuration and recipe of every change that a race may compare on a model."""
    from autoopt.meta.pairs import canonical

    present = {layer.group for layer in layers} & set(groups)
    for group, values in CHANGES:
        if group not in present:
            continue
        recipe = default.with_change(group, values)
        if recipe.resolve(layers).layers != default.resolve(layers).layers:
            yield group, canonical(json.loads(recipe.to_json())["groups"][group]), recipe


if __name__ == "__main__":
    sys.exit(main())
