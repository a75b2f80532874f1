"""Coordinate search: one role group at a time, the others held; and exact combinations of what it asks for."""

from __future__ import annotations

from itertools import product

from autoopt.meta.proposals import RATE_STEPS
from autoopt.search.objective import UNCHANGED, Objective, Plan

_STRIDES = (4, 2, 1)
"""Half octaves that a line search steps by, one after the other."""

_NUM_RATES = len(RATE_STEPS)


def coordinate_search(objective: Objective, seed: int = 0) -> Plan:
    """The best plan that changes of one role group at a time lead to.

    The role groups ask for predictions as in `ask_in_turn`, then choose in turn among what is known until
    none would choose anything else. Without interactions that is what `autoopt.select` does, on a
    finer grid.

    Args:
        objective: What is minimised.
        seed: Not used: nothing here is random.
    """
    ask_in_turn(objective)
    return settled(objective, objective.unchanged)


def exact_search(objective: Objective, seed: int = 0) -> Plan:
    """The best of all plans made of what coordinate search asks for.

    Interactions depend on the kind of each change alone, so that it is enough to combine the best
    configuration of each kind: at most 5 to the power of the number of role groups.

    Args:
        objective: What is minimised.
        seed: Not used: nothing here is random.
    """
    ask_in_turn(objective)
    return _best_combination(objective)


def optimum(objective: Objective) -> Plan:
    """The best plan of all, by asking for everything.

    Raises:
        ValueError: If the budget does not allow it.
    """
    for group, configs in enumerate(objective.configs):
        objective.effects(group, range(len(configs)))
    return _best_combination(objective)


def ask_in_turn(objective: Objective) -> None:
    """Asks for an equal share of the predictions in each role group.

    With at most half of its share a role group asks for its configurations at the middle rate, then it
    follows their rates, the best one's first, then it fills in the grid from coarse to fine.
    """
    for group in range(len(objective.groups)):
        share = objective.left // (len(objective.groups) - group)
        end = objective.left - share
        order = spread_order(objective, group)
        ask(objective, group, order[: objective.num_rows[group]], objective.left - share // 2)
        known = objective.known(group)
        for index in sorted(known, key=lambda index: known[index]):
            _follow_rate(objective, group, index, end)
        ask(objective, group, order, end)


def settled(objective: Objective, plan: Plan) -> Plan:
    """The plan after role groups chose in turn among what is known, until none chooses anything else."""
    while True:
        before = plan
        for group in range(len(plan)):
            options = [plan[:group] + (index,) + plan[group + 1 :] for index in objective.best_of_kinds(group).values()]
            best = min(options, key=objective.value)
            # Without a least gain, rounding could make two equal plans take turns for ever.
            if objective.value(best) < objective.value(plan) - 1e-12:
                plan = best
        if plan == before:
            return plan


def spread_order(objective: Objective, group: int) -> list[int]:
    """The configurations of a role group from coarse to fine: all rows at the middle rate, then at others."""
    steps = sorted(range(_NUM_RATES), key=lambda rate: (_fineness(rate - UNCHANGED), abs(rate - UNCHANGED), rate))
    return [row * _NUM_RATES + rate for rate in steps for row in range(objective.num_rows[group])]


def ask(objective: Objective, group: int, indices: list[int], end: int) -> None:
    """Asks for configurations of a role group in order, until `end` predictions are left."""
    known = objective.known(group)
    new = [index for index in indices if index not in known]
    objective.effects(group, new[: max(0, objective.left - end)])


def _best_combination(objective: Objective) -> Plan:
    choices = [list(objective.best_of_kinds(group).values()) for group in range(len(objective.groups))]
    return min(product(*choices), key=objective.value)


def _fineness(distance: int) -> int:
    """0 for the middle rate, then 1 for multiples of 8 half octaves, and so on down to single ones."""
    if distance == 0:
        return 0
    return next(level for level, stride in enumerate((8, 4, 2, 1), 1) if distance % stride == 0)


def _follow_rate(objective: Objective, group: int, index: int, end: int) -> None:
    """A pattern search along the rates of one configuration, with ever smaller steps."""
    for stride in _STRIDES:
        while True:
            row, rate = divmod(index, _NUM_RATES)
            around = [rate + step for step in (-stride, stride) if 0 <= rate + step < _NUM_RATES]
            ask(objective, group, [row * _NUM_RATES + other for other in around], end)
            known = objective.known(group)
            inside = [row * _NUM_RATES + other for other in (rate, *around)]
            best = min((other for other in inside if other in known), key=lambda other: known[other], default=index)
            if best == index:
                break
            index = best
