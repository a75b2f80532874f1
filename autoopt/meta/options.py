"""What a recipe's text leaves out on tasks where it changes nothing (`Recipe.on`), and how it is found again.

Then a new option costs recordings only where it does something. A task that was never recorded with an option
has nothing that it changes: there a recipe with the option is the one without it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import combinations
from typing import Any

PART = "wide"
"""An entry beside a recipe's role groups (`autoopt.optimizers.recipe.WIDE` says of what); nothing is chosen for it."""

PLAN_WIDE_OPTIONS = ("decay_free", "clip_norm")
"""Plan-wide fields of a recipe."""


def options_in(value: Mapping[str, Any]) -> frozenset[str]:
    """The options that a recipe has, given as its parsed JSON."""
    part = {PART} & set(value.get("groups", ()))
    return frozenset(part | {name for name in PLAN_WIDE_OPTIONS if value.get(name)})


def recorded_options(trials: Any) -> dict[str, frozenset[str]]:
    """Task -> the options that recipes recorded on it have.

    Args:
        trials: `MetaDataset.trials`.
    """
    plans = trials[trials["mode"] == "plan"].groupby("task", observed=True)["plan"].unique()
    return {task: frozenset().union(*(_options_of(plan) for plan in texts)) for task, texts in plans.items()}


def without(value: Mapping[str, Any], options: Iterable[str]) -> dict[str, Any]:
    """A recipe's parsed JSON without some options."""
    left_out = set(options)
    found = {name: item for name, item in value.items() if name not in left_out}
    groups = {name: item for name, item in value["groups"].items() if name not in left_out}
    return {**found, "groups": groups}


def fullest(plans: Iterable[str]) -> list[str]:
    """The plans, in order, without those that are another one of them on tasks that lack some of its options."""
    plans = list(plans)
    shorter = set()
    for plan in plans:
        options = sorted(_options_of(plan))
        for count in range(1, len(options) + 1):
            shorter |= {canonical(without(json.loads(plan), part)) for part in combinations(options, count)}
    return [plan for plan in plans if plan not in shorter]


def runs_of_plan(trials: Any, plan: str) -> Any:
    """The rows of a recipe's runs: on tasks that lack some of its options, those of its text without them.

    Args:
        trials: `MetaDataset.trials`.
        plan: Canonical JSON of the recipe.
    """
    value = json.loads(plan)
    own, known = options_in(value), recorded_options(trials)
    texts = {options: canonical(without(value, own - options)) for options in set(known.values())}
    wanted = trials["task"].map({task: texts[options] for task, options in known.items()})
    return trials[(trials["plan"] == wanted) & (trials["mode"] == "plan")]


def canonical(value: Mapping[str, Any]) -> str:
    """The canonical JSON of a recipe, or of a part of one."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


@lru_cache(maxsize=1 << 14)
def _options_of(plan: str) -> frozenset[str]:
    value = json.loads(plan)
    return options_in(value) if isinstance(value, dict) and "groups" in value else frozenset()
