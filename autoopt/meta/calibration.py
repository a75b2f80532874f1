"""The selector's own choices, made on held-out families: how wide its intervals are, and how it fares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from autoopt.meta.evaluation import ChoiceOutcomes, bootstrap_interval, evaluate_choices
from autoopt.meta.fitting import GroupTable, Settings

NOMINAL = 0.8
"""Coverage that predicted intervals are calibrated to."""

QUANTILE = 1.2816
"""Standard normal quantile of a central interval that covers 80 %."""


def calibrated(
    tables: Mapping[str, GroupTable], settings: Settings | None = None
) -> tuple[Settings, dict[str, dict[str, Any]]]:
    """Settings whose intervals cover 80 % of held-out outcomes, and how choices fare with them.

    The factor on standard deviations is taken over all role groups together, from predictions under
    the strict protocol. The caution is divided by it, so that the decision stays the same.

    Args:
        tables: Learning rows by role group.
        settings: Choices of the selector before calibration.

    Returns:
        The settings, and for each role group `num_tasks`, `oracle`, `constant`, `chosen`, the ends
        `low` and `high` of the 95 % bootstrap interval of `chosen`, `applied`, `harmed` and `closed_gap`.
    """
    settings = settings or Settings()
    outcomes = {group: evaluate_choices(table, settings) for group, table in tables.items()}
    outcomes = {group: found for group, found in outcomes.items() if len(found.tasks)}
    predictions = [found.predictions for found in outcomes.values()]
    if predictions:
        mean, std, actual = np.concatenate(predictions).T
        needed = float(np.quantile(np.abs(actual - mean) / np.maximum(std, 1e-9), NOMINAL)) / QUANTILE
        settings = replace(settings, spread=settings.spread * needed, caution=settings.caution / needed)
    return settings, {group: _summary(found) for group, found in outcomes.items()}


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
