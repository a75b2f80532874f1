"""The `lean` round: what it costs to give a role group an optimizer that needs less memory or less time.

One change of one role group at a time around the calibrated default, paired by seed, as in the coordinate
rounds. None of these is expected to gain: they are what `max_state_bytes` and the objectives `"memory"`
and `"time"` choose from, so what they lose has to be known.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from autoopt.meta.trial import TrialRequest, trial_id
from autoopt.optimizers.recipe import Recipe
from autoopt.task_layers import layers_of_task, on_task
from autoopt.tasks.base import Task


def _adafactor(*rates: float) -> tuple[dict[str, Any], ...]:
    return tuple({"optimizer": "adafactor", "lr": lr} for lr in rates)


def _plain_sgd(*rates: float) -> tuple[dict[str, Any], ...]:
    return tuple({"optimizer": "sgd", "lr": lr, "momentum": 0.0} for lr in rates)


LEAN_CHANGES: dict[str, tuple[dict[str, Any], ...]] = {
    "embedding": (*_adafactor(0.03, 0.1), *_plain_sgd(3.0, 10.0), {"optimizer": "lion", "lr": 0.01}),
    "matrix": (
        *_adafactor(0.03, 0.1),
        *_plain_sgd(0.3, 1.0),
        {"optimizer": "lion", "lr": 0.002},
        {"optimizer": "sgd", "lr": 0.1},
    ),
    "conv": (*_adafactor(0.03, 0.1), *_plain_sgd(0.3, 1.0), {"optimizer": "lion", "lr": 0.002}),
    "head": (*_adafactor(0.03, 0.1), *_plain_sgd(0.3, 1.0), {"optimizer": "lion", "lr": 0.004}),
    "vector": (*_plain_sgd(0.3, 1.0), {"optimizer": "lion", "lr": 0.002}),
}
"""Role group -> changes. Adafactor keeps one buffer of a vector, as Lion does, and is left out there."""


def lean_requests(tasks: Sequence[Task], seeds: Iterable[int], default: Recipe) -> list[TrialRequest]:
    """The default and every lean change of it, on every task and seed.

    Args:
        tasks: Tasks; those marked `demo` or `evaluation_only` are left out.
        seeds: Seeds.
        default: What is changed.
    """
    found: list[TrialRequest] = []
    for task in tasks:
        if task.demo or task.evaluation_only:
            continue
        layers = layers_of_task(task)
        own = on_task(default, task)
        base = own.to_json()
        groups = dict.fromkeys(layer.group for layer in layers)
        sparse = {layer.group for layer in layers if layer.sparse}
        for seed in seeds:
            found.append(TrialRequest(task.name, base, "default", "lean", seed=seed))
            for group in groups:
                for values in LEAN_CHANGES[group]:
                    if group in sparse and values["optimizer"] != "sgd":
                        continue  # it would fall back to SparseAdam
                    recipe = own.with_change(group, values).to_json()
                    change = json.dumps(values, sort_keys=True, separators=(",", ":"))
                    name = f"default: {group} {' '.join(f'{key}={value}' for key, value in values.items())}"
                    pair = trial_id(task.name, base, seed)
                    found.append(TrialRequest(task.name, recipe, name, "lean", group, change, pair, seed))
    return found
