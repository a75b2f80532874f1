"""Simulated quantum annealing of the choice among predicted configurations, by OpenJij."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from autoopt.search.coordinate import ask, spread_order
from autoopt.search.extra import imported
from autoopt.search.objective import Objective, Plan

NUM_READS = 10
NUM_SWEEPS = 1000
TROTTER_SLICES = 8

INVERSE_TEMPERATURE = 100.0
"""In units of one over the largest coefficient, so that gains of a few hundredths of it are told apart."""

Variable = tuple[int, int]
"""A role group, and the index of one of its configurations."""


def anneal(objective: Objective, seed: int = 0) -> Plan:
    """The plan that simulated quantum annealing finds among configurations spread evenly over the grid.

    Args:
        objective: What is minimised.
        seed: Of the annealer.

    Raises:
        AutoOptError: If OpenJij is not installed.
    """
    for group in range(len(objective.groups)):
        share = objective.left // (len(objective.groups) - group)
        ask(objective, group, spread_order(objective, group), objective.left - share)
    return annealed(objective, seed)


def annealed(objective: Objective, seed: int = 0) -> Plan:
    """The plan that simulated quantum annealing finds among what was asked for.

    A binary variable says that a role group takes one changed configuration; none set is the default.
    The energy is the objective, plus a penalty where two are set in one role group. Only the best
    configuration of each kind of change takes part: no other known one can be in the best plan.
    The transverse field Ising model is annealed by path-integral Monte Carlo (Kadowaki and Nishimori 1998,
    cond-mat/9804280; Martonak et al. 2002, cond-mat/0203338).

    Args:
        objective: What is minimised.
        seed: Of the annealer.

    Raises:
        AutoOptError: If OpenJij is not installed.
    """
    openjij = imported("openjij")
    energy = qubo(objective)
    if not energy:
        return objective.unchanged
    scale = max(map(abs, energy.values()))
    variables = sorted({variable for pair in energy for variable in pair})
    number = {variable: index for index, variable in enumerate(variables)}
    scaled = {(number[a], number[b]): value / scale for (a, b), value in energy.items()}
    sampler = openjij.SQASampler()
    found = sampler.sample_qubo(
        scaled,
        beta=INVERSE_TEMPERATURE,
        trotter=TROTTER_SLICES,
        num_sweeps=NUM_SWEEPS,
        num_reads=NUM_READS,
        seed=seed,
    )
    states = np.asarray(found.record.sample)[:, np.argsort(np.asarray(found.variables, dtype=int))]
    plans = {_decoded(objective, [v for v, bit in zip(variables, state, strict=True) if bit]) for state in states}
    return min(sorted(plans), key=objective.value)


def qubo(objective: Objective) -> dict[tuple[Variable, Variable], float]:
    """The energy as a quadratic form of binary variables: `(variable, variable)` -> coefficient.

    The penalty exceeds what any single variable can gain, so that the state of least energy sets at
    most one variable of each role group. Changes that lose whatever the others do have no variable.
    """
    energy: dict[tuple[Variable, Variable], float] = {}
    penalty = 0.0
    for group in range(len(objective.groups)):
        known = objective.known(group)
        for kind, index in objective.best_of_kinds(group).items():
            gain = -known[index] - float(objective.terms[group, :, kind].min(axis=-1).sum())
            if kind and gain > 0.0:
                energy[(group, index), (group, index)] = known[index]
                penalty = max(penalty, gain)
    for a, b in combinations([pair[0] for pair in energy], 2):
        if a[0] == b[0]:
            energy[a, b] = 1.1 * penalty
        else:
            kinds = (int(objective.kinds[a[0]][a[1]]), int(objective.kinds[b[0]][b[1]]))
            energy[a, b] = float(objective.terms[a[0], b[0], kinds[0], kinds[1]])
    return energy


def _decoded(objective: Objective, chosen: list[Variable]) -> Plan:
    """The plan of a state; of several configurations of one role group, the one with the best effect."""
    plan = list(objective.unchanged)
    for group, index in sorted(chosen, key=lambda v: -objective.known(v[0])[v[1]]):
        plan[group] = index
    return tuple(plan)
