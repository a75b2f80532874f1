"""Annealing refined by coordinate search."""

from __future__ import annotations

from autoopt.search.annealing import anneal
from autoopt.search.coordinate import coordinate_search
from autoopt.search.objective import Objective, Plan

ANNEALED_SHARE = 0.5
"""Part of the predictions that annealing takes."""


def anneal_then_coordinate(objective: Objective, seed: int = 0) -> Plan:
    """The plan of an annealing on half of the predictions, after coordinate search of the rates around it.

    Args:
        objective: What is minimised.
        seed: Of the annealer.

    Raises:
        AutoOptError: If OpenJij is not installed.
    """
    return coordinate_search(objective, seed, start=anneal(objective, seed, ANNEALED_SHARE))
