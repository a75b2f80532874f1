"""Coordinate search whose choice among role groups is annealed first."""

from __future__ import annotations

from autoopt.search.annealing import annealed
from autoopt.search.coordinate import ask_in_turn, settled
from autoopt.search.objective import Objective, Plan


def coordinate_after_annealing(objective: Objective, seed: int = 0) -> Plan:
    """The plan that annealing finds among what coordinate search asks for, refined by coordinate search.

    Args:
        objective: What is minimised.
        seed: Of the annealer.

    Raises:
        AutoOptError: If OpenJij is not installed.
    """
    ask_in_turn(objective)
    return settled(objective, annealed(objective, seed))
