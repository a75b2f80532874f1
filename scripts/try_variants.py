"""Train variants of the calibrated default on recorded tasks and compare them with its recorded runs.

    python scripts/try_variants.py variants.py --output tried.jsonl [--only 'digits-*'] [--names a,b]
                                   [--share 0.5] [--seeds 0] [--jobs 2] [--budget-minutes 20]

`variants.py` says what is tried, tensor by tensor:

    from dataclasses import replace

    def slower(layer, config, total_steps):
        if layer.group != "head":
            return config
        return replace(config, hyperparameters={**config.hyperparameters, "lr": 0.5 * config.lr})

    VARIANTS = {"slower heads": slower}

It is for ideas, before one is built in and recorded: nothing goes into the meta-dataset, and the output is yours to
delete. A task that a variant leaves as it is counts as 0 and is not run. What is chosen among many variants on the
tasks it is judged on looks better than it is: check it on other seeds.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.util
import json
import math
import random
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed

from autoopt.architecture import describe
from autoopt.errors import AutoOptError, MetaDatasetError
from autoopt.meta.dataset import MetaDataset
from autoopt.meta.evaluation import bootstrap_interval
from autoopt.meta.options import runs_of_plan
from autoopt.meta.pairs import log_ratio
from autoopt.optimizers.auto_optimizer import AutoOptimizer
from autoopt.optimizers.plan import OptimizerPlan
from autoopt.optimizers.recipe import calibrated_default
from autoopt.tasks import all_tasks, get_task
from autoopt.training import build_instance, train

BATCH = 8
"""Runs a job, between two looks at the clock."""


def parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    result = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    result.add_argument("variants", help="Python file with VARIANTS, a dictionary of functions")
    result.add_argument("--output", required=True, help="JSON lines that runs are added to; what it holds is not run")
    result.add_argument("--folder", default="meta_data", help="recorded trials (default meta_data)")
    result.add_argument("--names", help="variants to run, separated by commas (default all)")
    result.add_argument("--only", default="*", metavar="PATTERN", help="only tasks whose name matches")
    result.add_argument("--share", type=float, default=1.0, help="share of the tasks, drawn at random (default 1)")
    result.add_argument("--seeds", default="0", help="seeds, separated by commas (default 0)")
    result.add_argument("--jobs", type=int, default=1)
    result.add_argument("--budget-minutes", type=float, default=math.inf, help="start no runs after this")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code, after running and printing."""
    options = parser().parse_args(arguments)
    try:
        _try(options)
    except AutoOptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _try(options: argparse.Namespace) -> None:
    variants = load_variants(options.variants)
    names = options.names.split(",") if options.names else list(variants)
    unknown = sorted(set(names) - set(variants))
    if unknown:
        raise MetaDatasetError(f"{options.variants} has no variant {unknown[0]!r}; it has {', '.join(variants)}")
    recorded = recorded_losses(options.folder)
    tasks = sorted(
        task.name
        for task in all_tasks()
        if not (task.demo or task.evaluation_only) and fnmatch.fnmatchcase(task.name, options.only)
    )
    tasks = random.Random(0).sample(tasks, round(options.share * len(tasks)))
    path = Path(options.output)
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(row["task"], row["seed"], row["variant"]) for row in rows}
    seeds = [int(seed) for seed in options.seeds.split(",")]
    wanted = [(task, seed, name) for task in tasks for seed in seeds for name in names]
    wanted = [key for key in wanted if key not in done and (key[0], key[1]) in recorded]
    random.Random(0).shuffle(wanted)  # so that a budget that ends first leaves all variants covered alike
    deadline = time.monotonic() + 60.0 * options.budget_minutes
    with path.open("a") as file:
        for position in range(0, len(wanted), BATCH * options.jobs):
            if time.monotonic() > deadline:
                print(f"the time budget is used up: {len(wanted) - position} runs are missing", file=sys.stderr)
                break
            part = wanted[position : position + BATCH * options.jobs]
            found = Parallel(n_jobs=options.jobs)(delayed(run)(options.variants, *key) for key in part)
            file.writelines(json.dumps(row) + "\n" for row in found)
            file.flush()
            rows += found
    print(table([row for row in rows if row["variant"] in names], recorded))


def load_variants(path: str) -> dict[str, Callable[..., Any]]:
    """The variants that a Python file defines.

    Raises:
        MetaDatasetError: If it cannot be read, or defines none.
    """
    spec = importlib.util.spec_from_file_location("variants", path)
    if spec is None or spec.loader is None or not Path(path).exists():
        raise MetaDatasetError(f"there is no Python file {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = getattr(module, "VARIANTS", None)
    if not isinstance(found, dict) or not found:
        raise MetaDatasetError(f"{path} defines no VARIANTS, a dictionary from names to functions")
    return found


def recorded_losses(folder: str) -> dict[tuple[str, int], tuple[str, float]]:
    """(Task, seed) -> architecture family and best validation loss of the calibrated default's recorded run."""
    runs = runs_of_plan(MetaDataset.load(folder).trials, calibrated_default().to_json())
    columns = (runs[name] for name in ("task", "seed", "family", "best_val_loss"))
    return {(task, int(seed)): (family, loss) for task, seed, family, loss in zip(*columns, strict=True)}


def run(path: str, task_name: str, seed: int, variant: str) -> dict[str, Any]:
    """A task trained with a variant; its loss is None where the variant changes nothing there."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    task, change = get_task(task_name), load_variants(path)[variant]
    instance = build_instance(task, seed)
    layers = {layer.name: layer for layer in describe(instance.model).layers}
    default = calibrated_default().resolve(layers.values(), task.budget_steps)
    changed = {name: change(layers[name], config, task.budget_steps) for name, config in default.layers.items()}
    row = {"task": task_name, "seed": seed, "variant": variant, "loss": None}
    if changed == default.layers:
        return row
    optimizer = AutoOptimizer.from_plan(instance.model, OptimizerPlan(changed, default.schedule))
    curve = train(instance, optimizer, task.budget_steps, validating=optimizer.averaged)
    return row | {"loss": curve.best_val_loss}


def table(rows: Sequence[dict[str, Any]], recorded: dict[tuple[str, int], tuple[str, float]]) -> str:
    """What each variant does to the loss, over tasks and by family, as text."""
    lines = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        outcomes: dict[str, list[float]] = {}
        families: dict[str, str] = {}
        for row in rows:
            if row["variant"] == variant:
                families[row["task"]], before = recorded[row["task"], row["seed"]]
                value = 0.0 if row["loss"] is None else log_ratio(row["loss"], before, max(abs(before), 1e-12))
                outcomes.setdefault(row["task"], []).append(value)
        means = {task: float(np.mean(values)) for task, values in outcomes.items()}
        low, high = bootstrap_interval(np.array(list(means.values())))
        mean = np.mean(list(means.values()))
        touched = sum(value != 0.0 for value in means.values())
        better = sum(value < 0.0 for value in means.values())
        counts = f"{len(means)} tasks, {touched} of them changed, {better} better"
        lines.append(f"{variant}: mean log loss {mean:+.4f} ({low:+.4f} to {high:+.4f}) on {counts}")
        by_family = {
            family: np.mean([means[task] for task in means if families[task] == family])
            for family in dict.fromkeys(families.values())
        }
        found = sorted(by_family.items(), key=lambda item: item[1])
        lines += [f"  {family:22} {mean:+.4f}" for family, mean in found if mean != 0.0]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
