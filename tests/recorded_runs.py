"""Made-up meta-datasets for the tests of the evaluation: every loss is given by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd

from autoopt.meta import parquet
from autoopt.meta.dataset import MetaDataset
from autoopt.meta.trial import Trial, TrialStatus, trial_id

RATES = tuple(10.0**k for k in range(-6, 6))
GROUPS = ("head", "matrix")


def recipe(width_free=True, **groups):
    """Canonical JSON of a recipe; a group is (optimizer, rate) with or without hyper-parameters."""
    value = {
        "groups": {
            name: {"optimizer": rest[0], "lr": rest[1], "hyperparameters": rest[2] if len(rest) > 2 else {}}
            for name, rest in groups.items()
        },
        "width_free": width_free,
        "shape": "linear",
    }
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def uniform(optimizer, lr, hyperparameters=None, width_free=False):
    config = (optimizer, lr, hyperparameters or {})
    return recipe(width_free, head=config, matrix=config)


def adamw(lr):
    return uniform("adamw", lr, {"weight_decay": 0.01})


def trial(task, plan, losses, *, seed=0, family=None, source=None, **changes):
    """A run with a validation every ten steps; its best loss is the lowest of `losses`, inf: diverged."""
    diverged = not all(math.isfinite(loss) for loss in losses)
    best = math.inf if diverged else min(losses)
    steps = [10 * (k + 1) for k in range(len(losses))]
    mode = changes.get("mode", "plan")
    values = {
        "trial_id": trial_id(task, plan, seed, mode),
        "task": task,
        "family": family or f"family-{task}",
        "source": source or f"source-{task}",
        "batch_size": 8,
        "budget_steps": steps[-1],
        "width": 16,
        "num_parameters": 100,
        "plan": plan,
        "plan_name": plan[:20],
        "round": "portfolio",
        "group": "",
        "change": "",
        "paired_with": "",
        "seed": seed,
        "status": TrialStatus.DIVERGED if diverged else TrialStatus.COMPLETED,
        "best_val_loss": best,
        "final_val_loss": losses[-1],
        "best_step": -1 if diverged else steps[losses.index(best)],
        "diverged_step": steps[-1] if diverged else -1,
        "val_steps": steps,
        "val_losses": losses,
        "step_seconds": 0.5,
        "state_bytes": 800,
    }
    return Trial(**values | changes)


def sweep(task, best_lr=1e-3, best=1.0, seed=0, **place):
    """Plain AdamW over twelve rates: `best` at the best rate after 40 steps, twice as much elsewhere."""
    return [
        trial(
            task,
            adamw(lr),
            [8.0, 4.0, 2.0, best] if lr == best_lr else [8.0, 4.0, 3.0, 2.0 * best],
            seed=seed,
            plan_name=f"adamw {lr:g}",
            round="adamw-sweep",
            **place,
        )
        for lr in RATES
    ]


def features(tasks, groups=GROUPS, **values):
    """One row a task and group; a value is a function of the task's number, or a number."""
    return [
        {"task": task, "seed": 0, "group": group, "family": f"family-{task}", "source": f"source-{task}"}
        | {name: float(value(number)) if callable(value) else value for name, value in values.items()}
        for number, task in enumerate(tasks)
        for group in groups
    ]


def dataset(trials, rows=()):
    table = parquet.trial_table([one.to_row() for one in trials]).to_pandas()
    columns = [*parquet.FEATURE_KEYS, *(name for row in rows for name in row if name not in parquet.FEATURE_KEYS)]
    frame = pd.DataFrame(list(rows), columns=list(dict.fromkeys(columns)))
    return MetaDataset(table, frame.astype({"seed": np.int64}))
