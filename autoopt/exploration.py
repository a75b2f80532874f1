"""Which change of the default a run should try, so that own runs teach something."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from autoopt.choice import GroupChoice
from autoopt.meta.artifact import CandidatePrediction
from autoopt.meta.own_runs import OwnRun
from autoopt.meta.pairs import canonical, log_ratio
from autoopt.meta.proposals import expected_improvement

_DEFAULT_FIRST = "Explored: the calibrated default runs first, as what other runs of the task are compared with."
_NOTHING_LEFT = "Explored: every candidate was tried on this task; the calibrated default is kept."
_WAITS = "Explored: another role group is changed in this run, so that what it does can be told."


@dataclass(frozen=True)
class Tried:
    """What own runs of the same task have shown so far.

    Attributes:
        default: Whether a run trained with the default.
        outcomes: Role group -> configuration (canonical JSON) -> log ratio to the default's run, NaN where
            it is not known (yet).
    """

    default: bool
    outcomes: dict[str, dict[str, float]]


def tried_in(runs: Iterable[OwnRun], default: str) -> Tried:
    """What runs of one task tried: the default, and changes of one role group.

    Args:
        runs: Own runs that are comparable, those that are not over included: another process may be
            at it just now.
        default: Canonical JSON of the default recipe.
    """
    base = {group: canonical(config) for group, config in json.loads(default)["groups"].items()}
    known = [run for run in runs if run.recipe]
    references = [run for run in known if run.recipe == default]
    outcomes: dict[str, dict[str, float]] = {}
    for run in known:
        own = {group: canonical(config) for group, config in json.loads(run.recipe)["groups"].items()}
        changed = [group for group, config in own.items() if config != base.get(group, config)]
        if len(changed) != 1:
            continue
        compared = [other for other in references if other.is_evidence and other.measure == run.measure]
        ratio = log_ratio(run.outcome, compared[0].outcome) if run.is_evidence and compared else math.nan
        outcomes.setdefault(changed[0], {})[own[changed[0]]] = ratio
    return Tried(bool(references), outcomes)


def explored(choices: Mapping[str, GroupChoice], tried: Tried) -> dict[str, GroupChoice]:
    """The choices with one change at most: that of the largest expected improvement not tried yet.

    The first run of a task keeps the default: a change says nothing without it. Role groups that are
    unlike everything recorded, or not measured, are not changed.

    Args:
        choices: What `choose` decided.
        tried: What own runs of the task have tried.
    """
    best: tuple[float, str, CandidatePrediction] | None = None
    for group, choice in choices.items():
        known = tried.outcomes.get(group, {})
        left = [candidate for candidate in choice.ranked if candidate.config not in known]
        if choice.far or not left:
            continue
        mean = np.array([candidate.mean for candidate in left])
        std = np.array([candidate.std for candidate in left])
        reached = min([0.0, *(ratio for ratio in known.values() if not math.isnan(ratio))])
        gains = expected_improvement(mean, std, reached)
        index = int(np.argmax(gains))
        if best is None or gains[index] > best[0]:
            best = float(gains[index]), group, left[index]
    reason = _DEFAULT_FIRST if not tried.default else _NOTHING_LEFT if best is None else _WAITS
    found = {group: replace(choice, chosen=None, reason=reason) for group, choice in choices.items()}
    if tried.default and best is not None:
        _, group, candidate = best
        sentence = (
            f"Explored: the untried change of largest expected improvement ({_percent(candidate.mean)} expected)."
        )
        found[group] = replace(found[group], chosen=candidate, reason=sentence)
    return found


def _percent(log_change: float) -> str:
    return f"{100.0 * (math.exp(log_change) - 1.0):+.1f} % loss"
