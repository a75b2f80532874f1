"""The decision: from a model's meta-features and a selector to a recommendation with its reasons."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from typing import Any

import torch

from autoopt.architecture import Architecture, LayerInfo
from autoopt.budget.curve import StepTimes
from autoopt.budget.goal import Goal
from autoopt.budget.verdict import decide
from autoopt.choice import GroupChoice, choose
from autoopt.exploration import Tried, explored
from autoopt.features import Features
from autoopt.meta.artifact import Predictor
from autoopt.optimizers.alike import kind_of
from autoopt.optimizers.plan import OptimizerConfig, OptimizerPlan
from autoopt.optimizers.recipe import Recipe
from autoopt.optimizers.schedule import Schedule
from autoopt.optimizers.state_bytes import adamw_state_bytes, averaging_bytes, predicted_state_bytes
from autoopt.reasons import (
    counterfactuals,
    evidence_of,
    expected,
    interval,
    nearest_tasks,
    not_measured,
    probability_of_gain,
    step_time_ratio,
    whole_plans,
)
from autoopt.report.content import LayerRecommendation
from autoopt.report.recommendation import Recommendation
from autoopt.statistics.warmup import WarmupStatistics

_NO_TIMES = (
    "The time of a step was not measured, so the choice was made for the loss: objective='time' needs warm-up steps, "
    "or batches and loss_fn."
)


def recommend_plan(
    architecture: Architecture,
    default: Recipe,
    schedule: Schedule,
    *,
    predictor: Predictor | None,
    features: Features | None,
    statistics: WarmupStatistics | None,
    candidates: Sequence[str] | None,
    warnings: Sequence[str],
    profile: Mapping[str, Any],
    seed: int,
    goal: Goal | None = None,
    times: StepTimes | None = None,
    buffer_bytes: int = 0,
    tried: Tried | None = None,
) -> Recommendation:
    """The recommendation for a model: the calibrated default plus confident deviations, within its budget.

    With `tried`, what own runs of the task have tried, it is one change that was not tried instead.

    Raises:
        ValueError: If no plan fits the goal's limit.
    """
    goal = goal or Goal()
    groups = tuple(dict.fromkeys(layer.group for layer in architecture.layers))
    unmeasured = unmeasured_groups(architecture, statistics)
    choices = choose(predictor, features, groups, candidates, unmeasured)
    if tried is not None:
        choices = explored(choices, tried)
    verdict = decide(goal, architecture.layers, default, choices, predictor, candidates, times)
    rows = {} if features is None else {row["group"]: row for row in features.to_rows()}
    layers, alike = [], {}
    for layer in architecture.layers:
        choice = verdict.choices[layer.name]
        kind = kind_of(layer), id(choice)
        if kind not in alike:
            values = rows.get(layer.group, {})
            alike[kind] = _layer(layer, default, choice, predictor, values)
        layers.append(replace(alike[kind], name=layer.name))
    plan = OptimizerPlan({layer.name: layer.config for layer in layers}, schedule)
    abstained = tuple(group for group, choice in choices.items() if choice.far or predictor is None)
    notes = list(warnings)
    if goal.objective == "time" and times is None:
        notes.append(_NO_TIMES)
    if statistics is not None and (count := int(statistics.task.get("num_nonfinite_steps", 0))):
        notes.append(f"{count} warm-up steps were skipped since a gradient held NaN or Inf.")
    silent = [group for group, choice in choices.items() if choice.far and group in unmeasured]
    if silent:
        notes.append(f"No finite gradient in warm-up, so the calibrated default was kept: {', '.join(silent)}.")
    far = [group for group, choice in choices.items() if choice.far and group not in unmeasured]
    if far:
        notes.append(f"Unlike everything recorded, so the calibrated default was kept: {', '.join(far)}.")
    averages = 0 if schedule.averaging is None else averaging_bytes(architecture.layers, buffer_bytes)
    missing = not_measured(predictor, rows)
    near = nearest_tasks(predictor, rows)
    coverage = None if predictor is None else predictor.info.get("interval_coverage", 0.8)
    return Recommendation(
        plan=plan,
        layers=tuple(layers),
        abstained=all(choice.chosen is None for choice in verdict.choices.values()),
        abstained_groups=abstained,
        nearest_tasks=near,
        warnings=tuple(notes),
        memory_bytes=predicted_state_bytes(architecture.layers, plan) + averages,
        adamw_memory_bytes=adamw_state_bytes(architecture.layers),
        profile={**profile, **({"not_measured": missing} if missing else {})},
        provenance=_provenance(predictor, seed),
        interval_coverage=coverage,
        statistics={} if statistics is None else {name: {**row} for name, row in statistics.layers.items()},
        candidates=whole_plans(choices, None if goal.is_plain else verdict.outcome),
        counterfactuals=counterfactuals(predictor, choices, rows, candidates) if goal.is_plain else (),
        expected=expected(predictor) if goal.is_plain else None,
        step_time_ratio=step_time_ratio(predictor) if goal.is_plain else None,
        objective=goal.objective,
        max_state_bytes=goal.max_state_bytes,
        horizon_factor=default.horizon_factor,
        trade_offs=tuple(replace(point, state_bytes=point.state_bytes + averages) for point in verdict.curve),
    )


def unmeasured_groups(architecture: Architecture, statistics: WarmupStatistics | None) -> set[str]:
    """Role groups of which no layer had a finite gradient, where gradients were looked at."""
    if statistics is None:
        return set()
    measured = {layer.group for layer in architecture.layers if "grad_rms" in statistics.layers.get(layer.name, {})}
    return {layer.group for layer in architecture.layers} - measured


def _layer(
    layer: LayerInfo,
    default: Recipe,
    choice: GroupChoice,
    predictor: Predictor | None,
    values: Mapping[str, float],
) -> LayerRecommendation:
    chosen = choice.chosen
    recipe = default if chosen is None else default.with_config(layer.group, chosen.config)
    config = recipe.config_of(layer)
    before = default.config_of(layer)
    runner_up = _runner_up(layer, choice, config, recipe)
    reason = choice.reason
    if chosen is not None and config == before:
        # The group's change does not reach this tensor (such as a rule without a sparse form).
        chosen, reason = None, "The change does not apply to this tensor: the calibrated default is kept."
    evidence = ()
    if predictor is not None and choice.ranked:
        shown = chosen or choice.ranked[0]
        if any(shown is item for item in choice.ranked):  # not what is known from averages alone
            evidence = evidence_of(predictor, layer.group, values, shown.config)
    return LayerRecommendation(
        name=layer.name,
        role=layer.role,
        group=layer.group,
        shape=layer.shape,
        num_parameters=layer.numel,
        config=config,
        reason=reason,
        deviates=config != before,
        predicted_gain=None if chosen is None else chosen.mean,
        predicted_gain_interval=None if chosen is None else interval(chosen.mean, chosen.std),
        confidence=None if chosen is None else probability_of_gain(chosen),
        runner_up=runner_up[0] if runner_up else None,
        runner_up_gain=runner_up[1] if runner_up else None,
        evidence=evidence,
        sparse=layer.sparse,
    )


def _runner_up(
    layer: LayerInfo, choice: GroupChoice, config: OptimizerConfig, recipe: Recipe
) -> tuple[OptimizerConfig, float] | None:
    for candidate in choice.ranked:
        if candidate is choice.chosen:
            continue
        other = recipe.with_config(layer.group, candidate.config).config_of(layer)
        if other != config:
            return other, candidate.mean
    return None


def _provenance(predictor: Predictor | None, seed: int) -> dict[str, Any]:
    return {
        "autoopt": metadata.version("autoopt"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "artifact_sha256": None if predictor is None else predictor.sha256,
        "seed": seed,
    }
