"""The choice under a budget, and the trade-off curve that it was made on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from autoopt.architecture import LayerInfo
from autoopt.budget.allocation import Combinations, combinations, split
from autoopt.budget.curve import Curve, StepTimes, expected_outcome, whole_groups
from autoopt.budget.effects import Effects, load_effects
from autoopt.budget.goal import Goal
from autoopt.budget.options import GroupOptions, Option, group_options
from autoopt.choice import GroupChoice
from autoopt.meta.artifact import Predictor
from autoopt.optimizers.plan import OptimizerPlan
from autoopt.optimizers.recipe import Recipe
from autoopt.report.content import TradeOff
from autoopt.report.formatting import format_loss_change

MEMORY_TOLERANCE = 0.02
"""Log loss that `objective="memory"` gives away at most: what recordings count as a difference at all."""

TIME_MARGIN = 0.02
"""Log time that a change must save on its pessimistic side: timings are no better than that."""

SPLIT_GAIN = 0.002
"""Log loss from which on a role group is split between optimizers to stay under a limit."""


@dataclass(frozen=True, eq=False)
class Verdict:
    """What is chosen for every parameter.

    Attributes:
        choices: Parameter name -> the choice of its role group, as far as it holds for this parameter.
        curve: The points of the trade-off curve, the leanest first.
        outcome: Expected change of the log loss and its standard deviation.
    """

    choices: dict[str, GroupChoice]
    curve: tuple[TradeOff, ...]
    outcome: tuple[float, float]


def least_state_bytes(layers: Sequence[LayerInfo], default: Recipe, candidates: Sequence[str] | None) -> int:
    """The fewest bytes of optimizer state that any plan within the candidates takes."""
    kept = {layer.group: GroupChoice(layer.group, None, (), False, "") for layer in layers}
    groups = group_options(layers, default, kept, None, load_effects(), candidates)
    return sum(min(column) for group in groups for column in group.bytes_by_layer)


def decide(
    goal: Goal,
    layers: Sequence[LayerInfo],
    default: Recipe,
    choices: Mapping[str, GroupChoice],
    predictor: Predictor | None = None,
    candidates: Sequence[str] | None = None,
    times: StepTimes | None = None,
    effects: Effects | None = None,
) -> Verdict:
    """The choice that serves a goal best.

    - `"loss"`: the lowest expected loss under the limit. Without a limit it is the selector's choice.
    - `"memory"`: the fewest bytes whose expected loss is at most `MEMORY_TOLERANCE` above the lowest.
    - `"time"`: the least predicted time, which is steps (from the pessimistic loss) times the time of
      a step, where that saves `TIME_MARGIN` over the choice for the loss; that choice otherwise.

    Options that lose nothing for certain count as no gain, so that a budget never becomes a reason to
    deviate further than it asks. Effects of changes on several role groups add up, and a change of part of
    a group has its share of the effect: both are assumptions.

    Args:
        goal: What is asked for.
        layers: The model's parameters.
        default: The calibrated default.
        choices: The selector's word on every role group, by group.
        predictor: The selector, or None.
        candidates: Catalog names that may be used, or None for all.
        times: What was measured of the time of a step; `"time"` needs it.
        effects: Mean effects over the recorded tasks; those that ship where None.

    Raises:
        ValueError: If no plan fits the limit; the message says what the smallest one takes.
    """
    effects = effects or load_effects()
    groups = group_options(layers, default, choices, predictor, effects, candidates)
    table = _table(groups, times)
    fits = table.bytes <= (np.inf if goal.max_state_bytes is None else goal.max_state_bytes)
    if not fits.any():
        least = least_state_bytes(layers, default, candidates)
        raise ValueError(over_limit(goal, least))
    index = _chosen(goal, table, fits, groups, choices, effects)
    picks = _divided(goal, groups, float(table.loss[index])) or whole_groups(groups, table.picks[index])
    points = Curve(groups, times, effects).points(table, picks)
    return Verdict(_choices(goal, groups, picks, choices), points, expected_outcome(groups, picks))


def plan_within(
    limit: int, layers: Sequence[LayerInfo], default: Recipe, candidates: Sequence[str] | None
) -> OptimizerPlan:
    """The calibrated default, or the plan with the lowest mean loss over the recorded tasks under a limit.

    Args:
        limit: Bytes of optimizer state.
        layers: The model's parameters.
        default: The calibrated default.
        candidates: Catalog names that may be used, or None for all.

    Raises:
        ValueError: If no plan fits.
    """
    kept = {layer.group: GroupChoice(layer.group, None, (), False, "") for layer in layers}
    choices = decide(Goal(max_state_bytes=limit), layers, default, kept, candidates=candidates).choices
    configs = {}
    for layer in layers:
        chosen = choices[layer.name].chosen
        recipe = default if chosen is None else default.with_config(layer.group, chosen.config)
        configs[layer.name] = recipe.config_of(layer)
    return OptimizerPlan(configs)


def over_limit(goal: Goal, least: int) -> str:
    """What to tell a user whose limit nothing fits."""
    return (
        f"max_state_bytes={goal.max_state_bytes:,} is below the {least:,} bytes that the leanest plan for this model "
        "takes; raise the limit to that, or allow more optimizers in candidates= ('sgd' needs none)"
    )


def _table(groups: Sequence[GroupOptions], times: StepTimes | None) -> Combinations:
    seconds = None
    if times is not None:
        seconds = [[times.update_seconds(g.layers, row) for row in g.resolved] for g in groups]
    return combinations(
        [[option.loss for option in group.options] for group in groups],
        [[option.cautious for option in group.options] for group in groups],
        [[group.state_bytes(index) for index in range(len(group.options))] for group in groups],
        seconds,
        0.0 if times is None else times.base_seconds,
    )


def _chosen(
    goal: Goal,
    table: Combinations,
    fits: np.ndarray,
    groups: Sequence[GroupOptions],
    choices: Mapping[str, GroupChoice],
    effects: Effects,
) -> int:
    # Where the selector's choice fits, a leaner plan that loses nothing for certain is no reason to deviate.
    plain = table.index_of([int(choices[group.group].chosen is not None) for group in groups])
    lowest = plain if fits[plain] else table.best(table.loss, fits)
    if goal.objective == "memory":
        tolerable = fits & (table.loss <= table.loss[lowest] + MEMORY_TOLERANCE)
        return table.best(table.bytes.astype(np.float64), tolerable)
    if goal.objective == "time" and np.isfinite(table.seconds).all():
        value = effects.log_steps(table.cautious) + np.log(table.seconds)
        fastest = table.best(value, fits)
        if value[fastest] < value[lowest] - TIME_MARGIN:
            return fastest
    return lowest


def _divided(goal: Goal, groups: Sequence[GroupOptions], loss: float) -> list[list[int]] | None:
    """Options tensor by tensor, where that meets the limit at a clearly lower loss than whole groups do."""
    if goal.objective != "loss" or goal.max_state_bytes is None or loss <= 0:
        return None
    losses = [[share * option.loss for option in g.options] for g in groups for share in g.shares]
    sizes = [column for group in groups for column in group.bytes_by_layer]
    flat = split(losses, sizes, goal.max_state_bytes)
    assert flat is not None  # whole groups fit, and they are among the splits
    total = sum(row[pick] for row, pick in zip(losses, flat, strict=True))
    if total > loss - SPLIT_GAIN:
        return None
    picks = iter(flat)
    return [[next(picks) for _ in group.layers] for group in groups]


def _choices(
    goal: Goal, groups: Sequence[GroupOptions], picks: Sequence[Sequence[int]], choices: Mapping[str, GroupChoice]
) -> dict[str, GroupChoice]:
    found: dict[str, GroupChoice] = {}
    for group, row in zip(groups, picks, strict=True):
        before = choices[group.group]
        known: dict[int, GroupChoice] = {}
        for layer, pick in zip(group.layers, row, strict=True):
            if pick not in known:
                known[pick] = _choice(goal, group, pick, before)
            found[layer.name] = known[pick]
    return found


def _choice(goal: Goal, group: GroupOptions, pick: int, before: GroupChoice) -> GroupChoice:
    option = group.options[pick]
    if option.prediction is before.chosen:
        return before
    if option.prediction is None:
        return replace(before, chosen=None, reason=f"The selector's change does not pay here: {_AIMS[goal.objective]}.")
    return replace(before, chosen=option.prediction, reason=f"{_why(goal, option)} {_source(option)}")


_AIMS = {"loss": "the limit of memory", "time": "the predicted time", "memory": "least memory"}


def _why(goal: Goal, option: Option) -> str:
    if goal.objective == "time":
        return "The run is expected to take less time with it, on this device."
    if goal.objective == "memory":
        return f"It takes less memory, and little is lost (at most {format_loss_change(MEMORY_TOLERANCE)} altogether)."
    return f"It keeps the optimizer state under max_state_bytes={goal.max_state_bytes:,}."


def _source(option: Option) -> str:
    assert option.prediction is not None
    change = format_loss_change(option.prediction.mean)
    if option.num_tasks is None:
        return f"Predicted change of the loss for this model: {change}."
    return f"Change of the loss on {option.num_tasks} recorded tasks, on average: {change}."
