"""What a search minimises: the predicted effect of a whole plan, and how many predictions it took."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from autoopt.meta.artifact import Predictor
from autoopt.meta.encoding import encode_candidate
from autoopt.meta.pairs import canonical
from autoopt.meta.proposals import RATE_STEPS, rate_grid
from autoopt.search.interactions import KINDS, Interaction, kind_of

Array = NDArray[np.float64]
Plan = tuple[int, ...]
"""The index of one configuration for each role group."""

NUM_KINDS = len(KINDS) + 1
"""Kinds of change, and 0 for none."""

UNCHANGED = RATE_STEPS.index(1.0)
"""The index of the default in every grid: the first row, at its own rate."""


class Objective:
    """The predicted effect of whole plans of one model, in log loss; lower is better.

    A plan is worth the sum of its role groups' effects and of the interactions of each two of them. The
    effect of a configuration is asked of the selector once, and each asking counts; the default's own is
    0 and free, and interactions are a table.

    Args:
        grids: Role group -> rows of configurations (canonical JSON), one row for each that differs in more
            than its rate, all rows with the rates `RATE_STEPS`; entry `UNCHANGED` of the first row is the default.
        predict: Returns the effects of some configurations of a role group, `(num_configs,)`, given the
            group and their indices in its grid, counted row by row.
        interactions: Terms between role groups.
        budget: Predictions that may be made.
    """

    def __init__(
        self,
        grids: Mapping[str, Sequence[Sequence[str]]],
        predict: Callable[[str, Sequence[int]], Array],
        interactions: Sequence[Interaction] = (),
        budget: int = 1000,
    ) -> None:
        self.groups = tuple(grids)
        self.configs = tuple(tuple(config for row in rows for config in row) for rows in grids.values())
        self.num_rows = tuple(len(rows) for rows in grids.values())
        self.kinds = tuple(_kinds(configs) for configs in self.configs)
        self.terms = _terms(self.groups, interactions)
        self.budget = budget
        self.num_predictions = 0
        self._predict = predict
        self._known: tuple[dict[int, float], ...] = tuple({UNCHANGED: 0.0} for _ in self.groups)

    @property
    def left(self) -> int:
        """Predictions that are left."""
        return self.budget - self.num_predictions

    @property
    def unchanged(self) -> Plan:
        """The default plan."""
        return (UNCHANGED,) * len(self.groups)

    def known(self, group: int) -> dict[int, float]:
        """Index of a configuration -> its effect, for those of the role group that were asked for."""
        return dict(self._known[group])

    def effects(self, group: int, indices: Sequence[int]) -> Array:
        """The effects of configurations of the role group number `group`, `(len(indices),)`.

        Raises:
            ValueError: If more of them are new than predictions are left.
        """
        known = self._known[group]
        new = [index for index in dict.fromkeys(indices) if index not in known]
        if len(new) > self.left:
            raise ValueError(
                f"{len(new)} predictions for role group {self.groups[group]!r} with {self.left} of {self.budget} "
                "left: ask for fewer, or raise `budget`"
            )
        if new:
            self.num_predictions += len(new)
            known.update(zip(new, map(float, self._predict(self.groups[group], new)), strict=True))
        return np.array([known[index] for index in indices])

    def is_affordable(self, plan: Plan) -> bool:
        """Whether what is not known of a plan may still be asked for."""
        return sum(index not in known for index, known in zip(plan, self._known, strict=True)) <= self.left

    def value(self, plan: Plan) -> float:
        """The predicted effect of a plan, in log loss."""
        effects = sum(float(self.effects(group, [index])[0]) for group, index in enumerate(plan))
        pairs = combinations(range(len(plan)), 2)
        kinds = [self.kinds[group][index] for group, index in enumerate(plan)]
        return effects + float(sum(self.terms[a, b, kinds[a], kinds[b]] for a, b in pairs))

    def best_of_kinds(self, group: int) -> dict[int, int]:
        """Kind of change -> the known configuration with the best effect, no change included.

        Interactions depend on kinds alone, so no other known configuration is part of a best plan.
        """
        best: dict[int, int] = {}
        known = self._known[group]
        for index in sorted(known):
            kind = int(self.kinds[group][index])
            if kind not in best or known[index] < known[best[kind]]:
                best[kind] = index
        return best

    def described(self, plan: Plan) -> dict[str, str]:
        """Role group -> canonical JSON of the configuration, for the groups that a plan changes."""
        chosen = zip(self.groups, self.configs, plan, strict=True)
        return {group: configs[index] for group, configs, index in chosen if index != UNCHANGED}


def objective_of(
    predictor: Predictor,
    values: Mapping[str, Mapping[str, float]],
    interactions: Sequence[Interaction] = (),
    budget: int = 1000,
    caution: float | None = None,
) -> Objective:
    """The objective of one model, over all recorded configurations at half octaves of their rates.

    An effect is the pessimistic prediction plus the selector's margin, so that without interactions a
    change pays exactly where `autoopt.select` would make it. Role groups that the selector does not
    trust itself with, and those unlike everything recorded, keep the default and are left out.

    Args:
        predictor: The trained selector.
        values: Role group -> meta-features.
        interactions: Terms between role groups, as `interactions` measures them.
        budget: Predictions that may be made.
        caution: Standard deviations that every role group looks to the bad side, trusted or not; each group's
            own where None.
    """
    defaults = json.loads(predictor.default)["groups"]
    grids: dict[str, list[list[str]]] = {}
    for group, row in values.items():
        trusted = predictor.is_trusted(group) or (caution is not None and group in predictor.groups)
        if trusted and not predictor.is_far(group, row):
            grids[group] = rate_grid(predictor.groups[group], canonical(defaults[group]))
    columns = {group: predictor.columns(values[group]) for group in grids}
    configs = {group: [config for row in rows for config in row] for group, rows in grids.items()}

    def predict(group: str, indices: Sequence[int]) -> Array:
        model, base = predictor.groups[group], canonical(defaults[group])
        codes = [encode_candidate(configs[group][index], base) for index in indices]
        mean, std = model.process.predict(np.stack([np.concatenate([columns[group], code]) for code in codes]))
        weight = model.caution if caution is None else caution
        return mean + weight * model.spread * std + predictor.margin

    return Objective(grids, predict, interactions, budget)


def _kinds(configs: Sequence[str]) -> NDArray[np.intp]:
    names = [kind_of(config, configs[UNCHANGED]) for config in configs]
    return np.array([0 if name is None else 1 + KINDS.index(name) for name in names], dtype=np.intp)


def _terms(groups: Sequence[str], interactions: Sequence[Interaction]) -> Array:
    """The interactions as `(num_groups, num_groups, NUM_KINDS, NUM_KINDS)`; those of other groups are left out."""
    terms = np.zeros((len(groups), len(groups), NUM_KINDS, NUM_KINDS))
    number = {group: index for index, group in enumerate(groups)}
    for row in interactions:
        if row.first[0] in number and row.second[0] in number:
            a, b = (number[side[0]] for side in (row.first, row.second))
            i, j = (1 + KINDS.index(side[1]) for side in (row.first, row.second))
            terms[a, b, i, j] = terms[b, a, j, i] = row.shrunk
    return terms
