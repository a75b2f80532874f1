"""Laws of the rate: how the best rate of a role group goes with a quantity of the task, and what that is worth.

Coordinate rounds record the default's rate times 1/4, 1/2, 2 and 4. Between them a task's response is
interpolated, so that any factor on the rate has an outcome without a further run. A law has one freedom:
`factor = 2 ** (power * z)`, with `z` the standardised meta-feature. Its power is fitted on all other
architecture families and its outcome read on the one left out: one freedom cannot fit much that is not there,
where a learner with dozens finds nothing (see `docs/how-selection-works.md`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autoopt.meta.evaluation import bootstrap_interval
from autoopt.meta.pairs import paired_outcomes

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]

POWERS: Array = np.array([-1.2, -0.9, -0.7, -0.5, -0.35, -0.25, -0.15, 0.0, 0.15, 0.25, 0.35, 0.5, 0.7, 0.9, 1.2])
"""Powers that are tried: doublings of the rate a standard deviation of the quantity."""
WIDEST = 2.5
"""Standard deviations beyond which a quantity counts no more."""
LEAST_TASKS = 30
"""Tasks that a role group must have a response on."""


@dataclass(frozen=True)
class Law:
    """What one dependence of a role group's rate is worth.

    Attributes:
        group: Role group.
        feature: Meta-feature that the rate goes with.
        power: Doublings of the rate a standard deviation of the feature, fitted on all tasks.
        gain: Mean log ratio of losses with the law to those without, each architecture family under the
            power that is best on the others; negative is better.
        low: Lower end of the 95 % bootstrap interval over architecture families.
        high: Upper end.
        num_tasks: Tasks with a response.
    """

    group: str
    feature: str
    power: float
    gain: float
    low: float
    high: float
    num_tasks: int


@dataclass(frozen=True, eq=False)
class Response:
    """Log ratios to the default's loss on some tasks, with one role group's rate changed.

    Attributes:
        tasks: The tasks.
        families: Their architecture families.
        outcomes: Shape `(num_tasks, 4)`: at the rate times 1/4, 1/2, 2 and 4; NaN where one of the outer two
            is not recorded.
    """

    tasks: tuple[str, ...]
    families: NDArray[np.str_]
    outcomes: Array

    def at(self, log2_factors: Array) -> Array:
        """Interpolated log ratios at a factor on each task's rate.

        Between 1/2 and 2 it is the parabola through the recorded two and 0, beyond them linear up to 1/4
        and 4, where it ends; an outer outcome that is not recorded counts as twice the inner loss.

        Args:
            log2_factors: Binary logarithm of the factors, shape `(num_tasks,)`.
        """
        quarter, half, double, fourfold = self.outcomes.T
        quarter = np.where(np.isnan(quarter), half + np.maximum(half, 0.0), quarter)
        fourfold = np.where(np.isnan(fourfold), double + np.maximum(double, 0.0), fourfold)
        x = np.clip(log2_factors, -2.0, 2.0)
        inner = 0.5 * (half + double) * x**2 + 0.5 * (double - half) * x
        above, below = double + (fourfold - double) * (x - 1.0), half + (quarter - half) * (-1.0 - x)
        return np.where(x > 1.0, above, np.where(x < -1.0, below, inner))


def response(trials: pd.DataFrame, default: str, group: str) -> Response:
    """How the recorded tasks respond to a role group's rate around a default.

    Args:
        trials: `MetaDataset.trials`.
        default: Canonical JSON of the default.
        group: Role group.
    """
    import pandas as pd

    # pandas types what its methods return too loosely to be checked.
    pairs: Any = paired_outcomes(trials, default)
    own = json.loads(default)["groups"][group]
    columns = {}
    for factor in (0.25, 0.5, 2.0, 4.0):
        wanted = {**own, "lr": float(f"{own['lr'] * factor:.6g}")}
        rows = pairs[(pairs["group"] == group) & (pairs["config"].map(json.loads) == wanted)]
        columns[factor] = rows.groupby("task")["outcome"].mean()
    table: Any = pd.DataFrame(columns).dropna(subset=[0.5, 2.0]).sort_index()
    families = pairs.drop_duplicates("task").set_index("task")["family"]
    return Response(tuple(table.index), families.loc[table.index].to_numpy(dtype=str), table.to_numpy(dtype=float))


def laws(responses: Response, features: pd.DataFrame, group: str, names: Sequence[str]) -> tuple[Law, ...]:
    """What a dependence on each meta-feature is worth to a role group, the best first.

    Features that are missing on over a quarter of the tasks, or the same on all, are left out.

    Args:
        responses: Of the role group.
        features: `MetaDataset.features`.
        group: Role group.
        names: Meta-features to try; those that are not recorded are passed over.
    """
    rows: Any = features[features["group"] == group]
    rows = rows.drop_duplicates("task").set_index("task").reindex(list(responses.tasks))
    found = []
    for name in names:
        if len(responses.tasks) < LEAST_TASKS or name not in rows or rows[name].notna().mean() < 0.75:
            continue
        values = rows[name].astype(float).fillna(rows[name].median()).to_numpy()
        if values.std() > 0:
            z = np.clip((values - np.median(values)) / values.std(), -WIDEST, WIDEST)
            found.append(_law(responses, z, group, name))
    return tuple(sorted(found, key=lambda law: law.gain))


def _law(responses: Response, z: Array, group: str, name: str) -> Law:
    outcomes = np.array([responses.at(power * z) for power in POWERS])
    gains = np.zeros(len(z))
    for family in np.unique(responses.families):
        inside = responses.families == family
        best = outcomes[:, ~inside].mean(axis=1).argmin()
        gains[inside] = outcomes[best, inside]
    by_family = [gains[responses.families == family] for family in np.unique(responses.families)]
    # Families are drawn, each weighing by its number of tasks.
    weights = np.array([len(part) for part in by_family]) * len(by_family) / len(z)
    low, high = bootstrap_interval(np.array([part.mean() for part in by_family]) * weights)
    power = float(POWERS[outcomes.mean(axis=1).argmin()])
    return Law(group, name, power, float(gains.mean()), low, high, len(z))
