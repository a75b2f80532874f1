"""The selector's own choices, made on held-out families: how wide its intervals are, how bold it may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from autoopt.meta.artifact import NEVER
from autoopt.meta.evaluation import ChoiceOutcomes, bootstrap_interval, evaluate_choices
from autoopt.meta.fitting import GroupTable, Settings

NOMINAL = 0.8
"""Coverage that predicted intervals are calibrated to."""

QUANTILE = 1.2816
"""Standard normal quantile of a central interval that covers 80 %."""


CAUTIONS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)
"""Cautions that are tried, in calibrated standard deviations."""

MIN_GAIN = 0.003
"""Mean held-out gain (log loss) that a role group's choices must show to be made at all."""

MAX_HARMED = 0.05
"""Largest share of held-out tasks that choices may make worse by more than 2 %."""


def calibrated(
    tables: Mapping[str, GroupTable], settings: Settings | None = None
) -> tuple[Settings, dict[str, float], dict[str, dict[str, Any]]]:
    """Interval widths and cautions that hold on held-out families, and how choices fare with them.

    The factor on standard deviations covers 80 % of held-out outcomes of all role groups together.
    Each role group then gets the caution with the best mean held-out outcome among those that harm
    at most 5 % of the tasks, or `NEVER` where none gains: a selector that does not know better than
    the default keeps it.

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
    found = {group: evaluate_choices(table, settings) for group, table in tables.items()}
    predictions = [outcomes.predictions for outcomes in found.values() if len(outcomes.predictions)]
    if predictions:
        mean, std, actual = np.concatenate(predictions).T
        needed = float(np.quantile(np.abs(actual - mean) / np.maximum(std, 1e-9), NOMINAL)) / QUANTILE
        settings = replace(settings, spread=settings.spread * needed)
    cautions, held_out = {}, {}
    for group, table in tables.items():
        cautions[group], outcomes = _boldest(table, settings)
        if len(outcomes.tasks):
            held_out[group] = _summary(outcomes) | {"caution": cautions[group]}
    return settings, cautions, held_out


def _boldest(table: GroupTable, settings: Settings) -> tuple[float, ChoiceOutcomes]:
    best = NEVER, evaluate_choices(table, replace(settings, caution=NEVER))
    for caution in CAUTIONS:
        outcomes = evaluate_choices(table, replace(settings, caution=caution))
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
