"""What changes of the calibrated default did on average, as `scripts/measure_effects.py` measured it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np


@dataclass(frozen=True)
class Effect:
    """The mean effect of one configuration of a role group over the recorded tasks.

    Attributes:
        config: Canonical JSON of the configuration.
        mean: Mean change of the log loss.
        error: Standard error of that mean.
        spread: Standard deviation between architecture families.
        num_tasks: Tasks it was recorded on.
    """

    config: str
    mean: float
    error: float
    spread: float
    num_tasks: int


@dataclass(frozen=True)
class Effects:
    """All that was measured.

    Attributes:
        groups: Role group -> the configurations recorded on it, one for each kind of optimizer.
        steps: `(log loss, log steps)`: what a difference of the final loss is worth in steps.
    """

    groups: dict[str, tuple[Effect, ...]]
    steps: tuple[tuple[float, float], ...]

    def log_steps(self, log_loss: float | np.ndarray) -> np.ndarray:
        """The log ratio of steps to one loss, for runs that end this much apart.

        Linear between what was measured, through 0, odd, and beyond the last knot as steep as it is on
        average up to there.

        Example:
            >>> effects = Effects({}, ((0.1, 0.4), (0.2, 0.6)))
            >>> effects.log_steps(np.array([-0.2, 0.0, 0.05, 0.4])).round(6).tolist()
            [-0.6, 0.0, 0.2, 1.2]
        """
        x, y = (np.array([0.0, *column]) for column in zip(*self.steps, strict=True))
        size = np.abs(np.asarray(log_loss, dtype=np.float64))
        found = np.where(size <= x[-1], np.interp(size, x, y), size * y[-1] / x[-1])
        return np.sign(log_loss) * found


@cache
def load_effects() -> Effects:
    """The effects that ship with the package."""
    value = json.loads(resources.files("autoopt.budget").joinpath("effects.json").read_text("utf-8"))
    groups = {
        group: tuple(
            Effect(
                json.dumps(row["config"], sort_keys=True, separators=(",", ":")),
                row["mean"],
                row["error"],
                row["spread"],
                row["num_tasks"],
            )
            for row in rows
        )
        for group, rows in value["groups"].items()
    }
    return Effects(groups, tuple((knot["log_loss"], knot["log_steps"]) for knot in value["steps"]))
