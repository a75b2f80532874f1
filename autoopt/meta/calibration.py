"""The selector's own choices, made on held-out families: how wide its intervals are, how bold it may be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from autoopt.meta.artifact import NEVER
from autoopt.meta.evaluation import ChoiceOutcomes, HeldOut, bootstrap_interval, choose_held_out, predict_held_out
from autoopt.meta.fitting import GroupTable, Settings

NOMINAL = 0.8
"""Coverage that predicted intervals are calibrated to."""

QUANTILE = 1.2816
"""Standard normal quantile of a central interval that covers 80 %."""


SPREADS = (0.25, 8.0)
"""Smallest and largest factor on standard deviations that is tried."""

CAUTIONS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)
"""Cautions that are tried, in calibrated standard deviations."""

MIN_GAIN = 0.003
"""Mean held-out gain (log loss) that a role group's choices must show to be made at all."""

MIN_FAMILIES = 12
"""Architecture families that a role group needs: what gains on fewer may do so by chance on the next."""

MAX_HARMED = 0.05
"""Largest share of held-out tasks that choices may make worse by more than 2 %."""


def calibrated(
    tables: Mapping[str, GroupTable], settings: Settings | None = None
) -> tuple[Settings, dict[str, float], dict[str, dict[str, Any]]]:
    """Interval widths and cautions that hold on held-out families, and how choices fare with them.

    The factor on standard deviations is the smallest with which 80 % of the held-out outcomes of all role
    groups together are covered, the noise of outcomes included.
    Each role group then gets the caution with the best mean held-out outcome among those that harm
    at most 5 % of the tasks, or `NEVER` where none gains, or where fewer than twelve families were recorded: a
    selector that does not know better than the default keeps it.

    The caution is chosen and reported on the same folds, so the reported gain is on the bright side;
    a role group that reports `NEVER` is not.

    Args:
        tables: Learning rows by role group.
        settings: Choices of the selector before calibration.

    Returns:
        The settings; the caution of each role group; and for each role group `num_tasks`, `oracle`,
        `constant`, `chosen`, the ends `low` and `high` of the 95 % bootstrap interval of `chosen`,
        `applied`, `harmed`, `closed_gap` and `caution`.
    """
    settings = settings or Settings()
    return calibrated_by({group: predict_held_out(table, settings) for group, table in tables.items()}, settings)


def calibrated_by(
    found: Mapping[str, HeldOut], settings: Settings
) -> tuple[Settings, dict[str, float], dict[str, dict[str, Any]]]:
    """What `calibrated` returns, from predictions that were made before.

    Args:
        found: Held-out predictions by role group.
        settings: Choices of the selector before calibration.
    """
    settings = replace(settings, spread=_covering_spread(list(found.values())))
    cautions, held_out = {}, {}
    for group, predictions in found.items():
        cautions[group], outcomes = _boldest(predictions, settings)
        if len(outcomes.tasks):
            held_out[group] = _summary(outcomes) | {"caution": cautions[group]}
    return settings, cautions, held_out


def _covering_spread(found: Sequence[HeldOut]) -> float:
    """The factor on the standard deviations of effects with which intervals cover what they should."""

    def coverage(spread: float) -> float:
        errors = np.concatenate([predictions.errors(spread) for predictions in found])
        return float((np.abs(errors) <= QUANTILE).mean()) if len(errors) else NOMINAL

    if coverage(SPREADS[0]) >= NOMINAL:
        return SPREADS[0]
    low, high = SPREADS
    for _ in range(30):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if coverage(middle) >= NOMINAL else (middle, high)
    return high


def _boldest(predictions: HeldOut, settings: Settings) -> tuple[float, ChoiceOutcomes]:
    best = NEVER, choose_held_out(predictions, replace(settings, caution=NEVER))
    if len(set(predictions.families.tolist())) < MIN_FAMILIES:
        return best
    for caution in CAUTIONS:
        outcomes = choose_held_out(predictions, replace(settings, caution=caution))
        if not len(outcomes.tasks) or outcomes.harmed() > MAX_HARMED:
            continue
        gain = -outcomes.chosen.mean()
        if gain >= MIN_GAIN and gain > -best[1].chosen.mean():
            best = caution, outcomes
    return best


def _summary(found: ChoiceOutcomes) -> dict[str, Any]:
    low, high = bootstrap_interval(found.chosen)
    return {
        "num_tasks": len(found.tasks),
        "oracle": float(found.oracle.mean()),
        "constant": float(found.constant.mean()),
        "chosen": float(found.chosen.mean()),
        "low": low,
        "high": high,
        "applied": float(found.applied.mean()),
        "harmed": found.harmed(),
        "closed_gap": found.closed_gap(),
    }
