"""The reasons of a decision: evidence, thresholds, what won on similar tasks, and what was weighed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from autoopt.choice import GroupChoice, is_allowed
from autoopt.counterfactuals import describe_change, key_of, original, thresholds
from autoopt.features import FEATURES
from autoopt.meta.artifact import CandidatePrediction, Predictor
from autoopt.report.content import Candidate, Evidence, NearestTask
from autoopt.report.wording import GROUP_NOUNS

_DESCRIPTIONS = {feature.name: feature for feature in FEATURES}
_ONE_SIDED_90 = 1.2816
"""Standard normal quantile: mean +- this times the standard deviation covers 80 %."""
_NO_LOSS = "no loss was observed: call optimizer.observe(loss) before each step"
_WHY_UNKNOWN = {
    "loss_start": _NO_LOSS,
    "loss_drop": _NO_LOSS,
    "total_steps": "total_steps was not given",
    "batch_size": "the model's inputs hold no tensor with a batch dimension",
}
_SCANNED = 6
"""Statistics, the strongest first, of which a role group's thresholds are looked for."""


def counterfactuals(
    predictor: Predictor | None,
    choices: Mapping[str, GroupChoice],
    rows: Mapping[str, Mapping[str, float]],
    candidates: Sequence[str] | None,
) -> tuple[str, ...]:
    """At which values of which statistics the choices would flip; only where one was possible at all."""
    if predictor is None:
        return ()
    sentences = []
    for group, choice in choices.items():
        if choice.far or not choice.ranked or not predictor.is_trusted(group):
            continue

        def chosen(values: Mapping[str, float], group: str = group) -> str | None:
            return predictor.favourite(group, values, lambda config: is_allowed(config, candidates))

        shown = choice.chosen or choice.ranked[0]
        names = [name for name, _ in _strongest(predictor, group, rows[group], shown.config, _SCANNED)]
        sentences += [found.sentence for found in thresholds(predictor, group, rows[group], chosen, names)]
    return tuple(sentences)


def expected(predictor: Predictor | None) -> dict[str, Any] | None:
    """What selection did to the time to AdamW's tuned loss on held-out tasks, where that was evaluated."""
    evaluated = _evaluation(predictor)
    ratio = evaluated.get("time_to_target")
    if ratio is None:
        return None
    low, high = evaluated.get("time_to_target_ci") or (None, None)
    return {"time_to_target": ratio, "low": low, "high": high, "basis": "held-out tasks"}


def step_time_ratio(predictor: Predictor | None) -> float | None:
    """Seconds of a training step over AdamW's on held-out tasks, where that was evaluated."""
    return _evaluation(predictor).get("step_seconds_ratio")


def _evaluation(predictor: Predictor | None) -> dict[str, Any]:
    """What `scripts/evaluate.py` found for selection as it ships; empty where it was not run."""
    return {} if predictor is None else predictor.info.get("evaluation") or {}


def not_measured(predictor: Predictor | None, rows: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """What the selector looks at and the run did not tell, with the reason, so that the user can help it."""
    if predictor is None or not rows:
        return {}
    unknown = [name for name in predictor.features if all(math.isnan(row.get(name, math.nan)) for row in rows.values())]
    keys = [_DESCRIPTIONS[name].key for name in unknown if name in _DESCRIPTIONS]
    return {key: _WHY_UNKNOWN[key] for key in keys if key in _WHY_UNKNOWN}


def _strongest(
    predictor: Predictor, group: str, values: Mapping[str, float], config: str, count: int
) -> list[tuple[str, float]]:
    """The features that move a prediction most, with what they add to it."""
    parts = predictor.contributions(group, values, config)
    named = [(name, part) for name, part in parts.items() if name in _DESCRIPTIONS]
    return sorted(named, key=lambda item: -abs(item[1]))[:count]


def evidence_of(
    predictor: Predictor, group: str, values: Mapping[str, float], config: str, count: int = 4
) -> tuple[Evidence, ...]:
    """The statistics that move the prediction of one candidate most, the strongest first."""
    found = []
    for name, part in _strongest(predictor, group, values, config, count):
        if part == 0.0:
            continue
        value = float(values.get(name, math.nan))
        shown, unit = original(name, value)
        found.append(
            Evidence(
                feature=key_of(name),
                value=shown,
                unit=unit,
                percentile=predictor.percentile(group, name, value),
                contribution=part,
                description=_DESCRIPTIONS[name].description,
            )
        )
    return tuple(found)


def nearest_tasks(predictor: Predictor | None, rows: Mapping[str, Mapping[str, float]]) -> tuple[NearestTask, ...]:
    """The recorded tasks most like any of the role groups, with what won there, the nearest first."""
    if predictor is None:
        return ()
    found: dict[str, NearestTask] = {}
    for group, values in rows.items():
        for name, distance, winner in predictor.nearest(group, values, 2):
            if name not in found or distance < (found[name].distance or math.inf):
                found[name] = NearestTask(name, distance, f"{group}: {winner}")
    return tuple(sorted(found.values(), key=lambda task: task.distance or 0.0)[:5])


def whole_plans(
    choices: Mapping[str, GroupChoice], outcome: tuple[float, float] | None = None
) -> tuple[Candidate, ...]:
    """The recommended plan, the calibrated default, and for each role group the change that came closest.

    Args:
        choices: The selector's word on every role group.
        outcome: Mean and standard deviation expected of the recommended plan, where it is another one than
            the selector's choices make.
    """
    applied = [choice.chosen for choice in choices.values() if choice.chosen is not None]
    if outcome is None:
        outcome = sum(c.mean for c in applied), math.sqrt(sum(c.std**2 for c in applied))
    plans = [Candidate("calibrated default", 0.0, chosen=outcome == (0, 0))]
    if not plans[0].chosen:
        mean, std = outcome
        plans.insert(0, Candidate("this recommendation", mean, interval(mean, std), chosen=True))
    for group, choice in choices.items():
        other = next((item for item in choice.ranked if item is not choice.chosen), None)
        if other is not None and not choice.far:
            name = f"default, but {describe_change(other.config)} on {GROUP_NOUNS[group][1]}"
            plans.append(Candidate(name, other.mean, interval(other.mean, other.std)))
    return tuple(plans)


def interval(mean: float, std: float) -> tuple[float, float]:
    """The interval of a prediction that covers 80 %."""
    return mean - _ONE_SIDED_90 * std, mean + _ONE_SIDED_90 * std


def probability_of_gain(candidate: CandidatePrediction) -> float:
    """The predicted probability that a candidate ends lower than the default."""
    if candidate.std <= 0:
        return 1.0 if candidate.mean < 0 else 0.0
    return 0.5 * math.erfc(candidate.mean / candidate.std / math.sqrt(2.0))
