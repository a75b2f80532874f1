"""The recipe behind a plan: the way back from the rates of tensors to one configuration a role group."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from autoopt.architecture import LayerInfo
from autoopt.optimizers.plan import OptimizerConfig, OptimizerPlan
from autoopt.optimizers.recipe import WIDE, Recipe, RoleConfig

_OF_THE_TENSOR = ("lr", "splits", "stacked", "transposed", "max_relative_update")
"""Hyper-parameters that a recipe leaves to the tensor that it is resolved on."""


def recipe_of(
    plan: OptimizerPlan,
    layers: Iterable[LayerInfo],
    default: Recipe,
    candidates: Mapping[str, Sequence[RoleConfig]] | None = None,
) -> Recipe | None:
    """The recipe that resolves to a plan, None where tensors of one role group differ beyond their shapes.

    Role groups that the model lacks are those of `default`.

    Args:
        plan: The plan.
        layers: Description of every parameter that it covers.
        default: Tried first for each role group; its `total_steps` are those of the plan's run.
        candidates: Role group -> configurations tried next; what they do not match is read off the plan.
    """
    by_group: dict[str, list[LayerInfo]] = {}
    layers = tuple(layers)
    for layer in layers:
        by_group.setdefault(default.key_of(layer), []).append(layer)
    groups = dict(default.groups)
    for group, members in by_group.items():
        usual = default.groups[group]
        known = [usual, *(candidates or {}).get(group, ()), *_read_off(plan, members, default, usual)]
        found = next((config for config in known if _resolves(default, group, config, plan, members)), None)
        if found is None:
            return None
        groups[group] = found
    another = groups["embedding"].optimizer != default.groups["embedding"].optimizer
    if groups.get(WIDE) == groups["embedding"] or (another and WIDE not in by_group):
        groups.pop(WIDE, None)  # as `Recipe.with_change` has it
    recipe = replace(default, groups=groups)
    schedule = plan.schedule
    if schedule == recipe.clipping_on(layers).schedule(schedule.total_steps):
        return recipe
    share = schedule.warmup_steps / schedule.total_steps if schedule.total_steps else 0.0
    fields = ("shape", "end_factor", "averaging", "clip_norm")
    return replace(recipe, warmup_share=round(share, 4), **{name: getattr(schedule, name) for name in fields})


def _read_off(
    plan: OptimizerPlan, members: Sequence[LayerInfo], default: Recipe, usual: RoleConfig
) -> list[RoleConfig]:
    found = []
    for layer in members:
        config = plan.layers[layer.name]
        kept = {key: value for key, value in config.hyperparameters.items() if key not in _OF_THE_TENSOR}
        if "weight_decay" in kept:
            kept["weight_decay"] /= default.decay_factor(layer)
        relative = config.lr / default.reference_lr(config.optimizer, layer)
        rate = float(f"{relative:.6g}")
        # The rule of a tensor with sparse gradients may stand in for the role group's own.
        found += [replace(usual, lr=rate), RoleConfig(config.optimizer, rate, kept)]
    return found


def _resolves(
    default: Recipe, group: str, config: RoleConfig, plan: OptimizerPlan, members: Sequence[LayerInfo]
) -> bool:
    recipe = replace(default, groups={**default.groups, group: config})
    return all(_alike(recipe.config_of(layer), plan.layers[layer.name]) for layer in members)


def _alike(one: OptimizerConfig, other: OptimizerConfig) -> bool:
    left, right = one.complete, other.complete
    return one.optimizer == other.optimizer and all(_equal(value, right[key]) for key, value in left.items())


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-5)
    return one == other
