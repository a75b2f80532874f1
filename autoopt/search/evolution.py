"""Evolutionary search over whole plans, by Nevergrad."""

from __future__ import annotations

import numpy as np

from autoopt.meta.proposals import RATE_STEPS
from autoopt.search.extra import imported
from autoopt.search.objective import UNCHANGED, Objective, Plan

EVALUATIONS_PER_PREDICTION = 3
"""Plans that are tried for each prediction of the budget: most are made of known configurations."""

ALGORITHM = "DiscreteLenglerOnePlusOne"
"""A (1+1) evolution strategy whose mutation rate decays (Einarsson et al. 2019, arXiv 1902.02588)."""


def evolve(objective: Objective, seed: int = 0) -> Plan:
    """The best plan that an evolution strategy finds from the default.

    A plan has two genes for each role group: the row of its grid, and the rate. The search ends when the
    next plan is not affordable, or after `EVALUATIONS_PER_PREDICTION` plans for each prediction.

    Args:
        objective: What is minimised.
        seed: Of mutations.

    Raises:
        AutoOptError: If Nevergrad is not installed.
    """
    nevergrad = imported("nevergrad")
    if not objective.groups:
        return objective.unchanged
    num_genes = 2 * len(objective.groups)
    sizes = np.array([(num_rows, len(RATE_STEPS)) for num_rows in objective.num_rows]).reshape(num_genes)
    unchanged = np.array(divmod(UNCHANGED, len(RATE_STEPS)) * len(objective.groups))
    space = nevergrad.p.Array(init=(unchanged + 0.5) / sizes, lower=0.0, upper=1.0)
    space.random_state = np.random.RandomState(seed)
    num_evaluations = max(1, EVALUATIONS_PER_PREDICTION * objective.budget)
    optimizer = nevergrad.optimizers.registry[ALGORITHM](parametrization=space, budget=num_evaluations)
    best, least = objective.unchanged, 0.0
    for _ in range(num_evaluations):
        asked = optimizer.ask()
        genes = np.minimum((asked.value * sizes).astype(int), sizes - 1).reshape(-1, 2)
        plan = tuple(int(row * len(RATE_STEPS) + rate) for row, rate in genes)
        if not objective.is_affordable(plan):
            break
        value = objective.value(plan)
        optimizer.tell(asked, value)
        if value < least:
            best, least = plan, value
    return best
