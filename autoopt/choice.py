"""The choice for each role group: a change of the calibrated default, or the default itself."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from autoopt.features import Features
from autoopt.meta.artifact import CandidatePrediction, Predictor

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
        ranked = tuple(candidate for candidate in predictor.rank(group, rows[group]) if allowed(candidate, candidates))
        far = predictor.is_far(group, rows[group])
        best = favoured(predictor, ranked)
        if group in unmeasured:
            # Its features would be medians of other models: a guess, not evidence.
            choices[group] = GroupChoice(group, None, ranked, True, _NOT_MEASURED)
        elif far:
            reason = "Unlike everything recorded: the calibrated default is kept."
            choices[group] = GroupChoice(group, None, ranked, True, reason)
        elif best is not None:
            reason = f"Expected to lower the loss by {_percent(best.mean)}, even on the pessimistic side."
            choices[group] = GroupChoice(group, best, ranked, False, reason)
        elif not predictor.is_trusted(group):
            choices[group] = GroupChoice(group, None, ranked, False, _NOT_TRUSTED)
        else:
            reason = "No change is expected to gain for certain: the calibrated default is kept."
            choices[group] = GroupChoice(group, None, ranked, False, reason)
    return choices


def allowed(candidate: CandidatePrediction, candidates: Sequence[str] | None) -> bool:
    """Whether a candidate's optimizer is among those that may be used."""
    return is_allowed(candidate.config, candidates)


def is_allowed(config: str, candidates: Sequence[str] | None) -> bool:
    """The same of a configuration's JSON."""
    return candidates is None or json.loads(config)["optimizer"] in candidates


def favoured(predictor: Predictor, ranked: Sequence[CandidatePrediction]) -> CandidatePrediction | None:
    """The candidate whose pessimistic prediction gains most, None where none gains more than the margin."""
    best = min(ranked, key=lambda candidate: candidate.pessimistic, default=None)
    return best if best is not None and best.pessimistic < -predictor.margin else None


def _percent(log_change: float) -> str:
    return f"{100.0 * (1.0 - math.exp(log_change)):.1f} %"
