"""The decision: from a model's meta-features and a selector to a recommendation with its reasons."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch

from autoopt.architecture import Architecture, LayerInfo
from autoopt.features import FEATURES, Features
from autoopt.meta.artifact import CandidatePrediction, Predictor
from autoopt.optimizers.catalog import get
from autoopt.optimizers.plan import OptimizerConfig, OptimizerPlan
from autoopt.optimizers.recipe import Recipe, RoleConfig
from autoopt.optimizers.schedule import Schedule
from autoopt.report.content import Candidate, Evidence, LayerRecommendation, NearestTask
from autoopt.report.recommendation import Recommendation
from autoopt.statistics.warmup import WarmupStatistics

_DESCRIPTIONS = {feature.name: feature for feature in FEATURES}
_ONE_SIDED_90 = 1.2816
"""Standard normal quantile: mean +- this times the standard deviation covers 80 %."""
_NO_SELECTOR = "No selector is in use: the calibrated default."
_NO_FEATURES = "Nothing was measured: the calibrated default is kept."
_NOT_TRUSTED = "Choices for this role did not gain on held-out families: the calibrated default is kept."
_NOT_MEASURED = "It had no finite gradient in warm-up: the calibrated default is kept."


@dataclass(frozen=True)
class GroupChoice:
    """What was decided for one role group.

    Attributes:
        group: Role group.
        chosen: The candidate that is applied, or None where the default is kept.
        ranked: All candidates, the best pessimistic prediction first.
        far: Whether the role group is unlike everything recorded, or was not measured at all.
        reason: One sentence.
    """

    group: str
    chosen: CandidatePrediction | None
    ranked: tuple[CandidatePrediction, ...]
    far: bool
    reason: str


def choose(
    predictor: Predictor | None,
    features: Features | None,
    groups: Sequence[str],
    candidates: Sequence[str] | None = None,
    unmeasured: Collection[str] = (),
) -> dict[str, GroupChoice]:
    """The decision for every role group of a model.

    A candidate is applied only if its pessimistic prediction gains more than the selector's margin.
    Groups unlike everything recorded, and groups without a single finite gradient, keep the default.

    Args:
        predictor: The trained selector, or None to keep the default everywhere.
        features: One row a role group.
        groups: Role groups of the model.
        candidates: Catalog names that deviations may use, or None for all.
        unmeasured: Role groups of which warm-up measured no gradient.
    """
    rows = {} if features is None else {row.pop("group"): row for row in features.to_rows()}
    choices = {}
    for group in groups:
        if predictor is None or group not in rows:
            reason = _NO_SELECTOR if predictor is None else _NO_FEATURES
            choices[group] = GroupChoice(group, None, (), False, reason)
            continue
        ranked = tuple(
            candidate
            for candidate in predictor.rank(group, rows[group])
            if candidates is None or json.loads(candidate.config)["optimizer"] in candidates
        )
        far = predictor.is_far(group, rows[group])
        best = min(ranked, key=lambda candidate: candidate.pessimistic, default=None)
        if group in unmeasured:
            # Its features would be medians of other models: a guess, not evidence.
            choices[group] = GroupChoice(group, None, ranked, True, _NOT_MEASURED)
        elif far:
            reason = "Unlike everything recorded: the calibrated default is kept."
            choices[group] = GroupChoice(group, None, ranked, True, reason)
        elif best is not None and best.pessimistic < -predictor.margin:
            reason = f"Expected to lower the loss by {_percent(best.mean)}, even on the pessimistic side."
            choices[group] = GroupChoice(group, best, ranked, False, reason)
        elif not predictor.is_trusted(group):
            choices[group] = GroupChoice(group, None, ranked, False, _NOT_TRUSTED)
        else:
            reason = "No change is expected to gain for certain: the calibrated default is kept."
            choices[group] = GroupChoice(group, None, ranked, False, reason)
    return choices


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
) -> Recommendation:
    """The recommendation for a model: the calibrated default plus confident deviations."""
    groups = tuple(dict.fromkeys(layer.group for layer in architecture.layers))
    unmeasured = _unmeasured(architecture, statistics)
    choices = choose(predictor, features, groups, candidates, unmeasured)
    recipe = default
    for group, choice in choices.items():
        if choice.chosen is not None:
            recipe = _with_group(recipe, group, choice.chosen.config)
    rows = {} if features is None else {row["group"]: row for row in features.to_rows()}
    layers = []
    for layer in architecture.layers:
        layers.append(_layer(layer, default, recipe, choices[layer.group], predictor, rows.get(layer.group, {})))
    plan = OptimizerPlan({layer.name: layer.config for layer in layers}, schedule)
    abstained = tuple(group for group, choice in choices.items() if choice.far or predictor is None)
    notes = list(warnings)
    if statistics is not None and (count := int(statistics.task.get("num_nonfinite_steps", 0))):
        notes.append(f"{count} warm-up steps were skipped since a gradient held NaN or Inf.")
    silent = [group for group, choice in choices.items() if choice.far and group in unmeasured]
    if silent:
        notes.append(f"No finite gradient in warm-up, so the calibrated default was kept: {', '.join(silent)}.")
    far = [group for group, choice in choices.items() if choice.far and group not in unmeasured]
    if far:
        notes.append(f"Unlike everything recorded, so the calibrated default was kept: {', '.join(far)}.")
    nearest = _nearest(predictor, rows)
    coverage = None if predictor is None else predictor.info.get("interval_coverage", 0.8)
    return Recommendation(
        plan=plan,
        layers=tuple(layers),
        abstained=all(choice.chosen is None for choice in choices.values()),
        abstained_groups=abstained,
        nearest_tasks=nearest,
        warnings=tuple(notes),
        memory_bytes=_state_bytes(architecture, plan),
        adamw_memory_bytes=8 * architecture.num_parameters,
        profile=dict(profile),
        provenance=_provenance(predictor, seed),
        interval_coverage=coverage,
        statistics={} if statistics is None else {name: {**row} for name, row in statistics.layers.items()},
        candidates=_whole_plans(choices),
    )


def _unmeasured(architecture: Architecture, statistics: WarmupStatistics | None) -> set[str]:
    """Role groups of which no layer had a finite gradient, where gradients were looked at."""
    if statistics is None:
        return set()
    measured = {layer.group for layer in architecture.layers if "grad_rms" in statistics.layers.get(layer.name, {})}
    return {layer.group for layer in architecture.layers} - measured


def _with_group(recipe: Recipe, group: str, config: str) -> Recipe:
    value = json.loads(config)
    hyperparameters = {k: tuple(v) if isinstance(v, list) else v for k, v in value["hyperparameters"].items()}
    role = RoleConfig(value["optimizer"], value["lr"], hyperparameters)
    return Recipe(
        {**recipe.groups, group: role},
        recipe.warmup_share,
        recipe.shape,
        recipe.end_factor,
        recipe.width_free,
    )


def _layer(
    layer: LayerInfo,
    default: Recipe,
    recipe: Recipe,
    choice: GroupChoice,
    predictor: Predictor | None,
    values: Mapping[str, float],
) -> LayerRecommendation:
    config = recipe.groups[layer.group].resolve(layer)
    before = default.groups[layer.group].resolve(layer)
    chosen = choice.chosen
    runner_up = _runner_up(layer, choice, config, recipe)
    reason = choice.reason
    if chosen is not None and config == before:
        # The group's change does not reach this tensor (such as a rule without a sparse form).
        chosen, reason = None, "The change does not apply to this tensor: the calibrated default is kept."
    evidence = ()
    if predictor is not None and choice.ranked:
        shown = chosen or choice.ranked[0]
        evidence = _evidence(predictor, layer.group, values, shown.config)
    half = _ONE_SIDED_90 * chosen.std if chosen is not None else 0.0
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
        predicted_gain_interval=None if chosen is None else (chosen.mean - half, chosen.mean + half),
        confidence=None if chosen is None else _probability_of_gain(chosen),
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
        other = _with_group(recipe, layer.group, candidate.config).groups[layer.group].resolve(layer)
        if other != config:
            return other, candidate.mean
    return None


def _evidence(
    predictor: Predictor, group: str, values: Mapping[str, float], config: str, count: int = 4
) -> tuple[Evidence, ...]:
    parts = predictor.contributions(group, values, config)
    named = [(name, part) for name, part in parts.items() if name in _DESCRIPTIONS and part != 0.0]
    strongest = sorted(named, key=lambda item: -abs(item[1]))[:count]
    found = []
    for name, part in strongest:
        value = float(values.get(name, math.nan))
        feature = _DESCRIPTIONS[name]
        found.append(
            Evidence(
                feature=name,
                value=value,
                unit=feature.unit,
                percentile=predictor.percentile(group, name, value),
                contribution=part,
                description=feature.description,
            )
        )
    return tuple(found)


def _nearest(predictor: Predictor | None, rows: Mapping[str, Mapping[str, float]]) -> tuple[NearestTask, ...]:
    if predictor is None:
        return ()
    found: dict[str, NearestTask] = {}
    for group, values in rows.items():
        for name, distance, winner in predictor.nearest(group, values, 2):
            if name not in found or distance < (found[name].distance or math.inf):
                found[name] = NearestTask(name, distance, f"{group}: {winner}")
    return tuple(sorted(found.values(), key=lambda task: task.distance or 0.0)[:5])


def _whole_plans(choices: Mapping[str, GroupChoice]) -> tuple[Candidate, ...]:
    applied = [choice.chosen for choice in choices.values() if choice.chosen is not None]
    if not applied:
        return (Candidate("calibrated default", 0.0, None, chosen=True),)
    mean = sum(candidate.mean for candidate in applied)
    half = _ONE_SIDED_90 * math.sqrt(sum(candidate.std**2 for candidate in applied))
    return (
        Candidate("this recommendation", mean, (mean - half, mean + half), chosen=True),
        Candidate("calibrated default", 0.0),
    )


def _probability_of_gain(candidate: CandidatePrediction) -> float:
    if candidate.std <= 0:
        return 1.0 if candidate.mean < 0 else 0.0
    return 0.5 * math.erfc(candidate.mean / candidate.std / math.sqrt(2.0))


def _state_bytes(architecture: Architecture, plan: OptimizerPlan) -> int:
    elements = (get(plan.layers[layer.name].optimizer).state_numel(layer.shape) for layer in architecture.layers)
    return 4 * sum(elements)


def _provenance(predictor: Predictor | None, seed: int) -> dict[str, Any]:
    return {
        "autoopt": metadata.version("autoopt"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "artifact_sha256": None if predictor is None else predictor.sha256,
        "seed": seed,
    }


def _percent(log_change: float) -> str:
    return f"{100.0 * (1.0 - math.exp(log_change)):.1f} %"
