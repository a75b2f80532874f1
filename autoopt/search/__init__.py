"""Search over whole plans: one configuration for each role group, by predicted effects and interactions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from autoopt.meta.artifact import Predictor
from autoopt.search.annealing import anneal
from autoopt.search.coordinate import coordinate_search, exact_search
from autoopt.search.evolution import evolve
from autoopt.search.hybrid import coordinate_after_annealing
from autoopt.search.interactions import Interaction
from autoopt.search.objective import Objective, Plan, objective_of

METHODS: dict[str, Callable[[Objective, int], Plan]] = {
    "coordinate": coordinate_search,
    "exact": exact_search,
    "evolution": evolve,
    "annealing": anneal,
    "hybrid": coordinate_after_annealing,
}
"""Name of a method -> the function from an objective and a seed to a plan."""


@dataclass(frozen=True)
class FoundPlan:
    """The outcome of a search.

    Attributes:
        changes: Role group -> canonical JSON of its configuration, for the groups that are changed.
        value: Predicted effect on the log loss, on the pessimistic side and with a margin for each change.
        num_predictions: Predictions that were made.
    """

    changes: dict[str, str]
    value: float
    num_predictions: int


def search(
    predictor: Predictor,
    values: Mapping[str, Mapping[str, float]],
    *,
    method: str = "exact",
    budget: int = 1000,
    interactions: Sequence[Interaction] = (),
    seed: int = 0,
) -> FoundPlan:
    """The plan of least predicted loss that a method finds.

    `autoopt.select` does not call this: it takes the best recorded configuration of each role group, which is
    the same thing where interactions are left out and rates are the recorded ones.

    Args:
        predictor: The trained selector.
        values: Role group -> meta-features.
        method: A key of `METHODS`. Those after `"exact"` need the extra: `pip install autoopt[search]`.
        budget: Predictions that may be made.
        interactions: Terms between role groups, as `autoopt.search.interactions.interactions` measures them.
        seed: Of methods that are random.

    Raises:
        ValueError: If there is no such method, or the budget is negative.
        AutoOptError: If the method's library is not installed.
    """
    if method not in METHODS:
        raise ValueError(f"there is no search method {method!r}: use one of {', '.join(METHODS)}")
    if budget < 0:
        raise ValueError(f"budget is a number of predictions, at least 0, not {budget}")
    objective = objective_of(predictor, values, interactions, budget)
    plan = METHODS[method](objective, seed)
    return FoundPlan(objective.described(plan), objective.value(plan), objective.num_predictions)
