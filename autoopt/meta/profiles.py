"""Performance profiles: on which share of the tasks a contender is within a factor of the fastest."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

R_MAX = 4.0
"""Largest factor that counts; a run that misses the target is worse than this (AlgoPerf's r_max)."""


def performance_ratios(times: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    """Each contender's time over the fastest contender's, task by task; infinite for a miss.

    Args:
        times: Contender -> time to target on every task, `(num_tasks,)`, infinite for a miss.
    """
    if not times:
        return {}
    fastest = np.min(np.stack(list(times.values())), axis=0)
    ratios = {}
    for name, values in times.items():
        missed = ~np.isfinite(values)
        ratios[name] = np.where(missed, np.inf, values / np.where(np.isfinite(fastest), fastest, 1.0))
    return ratios


def performance_profile(ratios: NDArray[np.float64], taus: NDArray[np.float64]) -> NDArray[np.float64]:
    """The share of tasks with a ratio of at most tau, for each tau.

    Dolan and More 2002 (arXiv cs/0102001), as AlgoPerf uses it (Dahl et al. 2023, arXiv 2306.07179).
    """
    return np.mean(ratios[None, :] <= taus[:, None], axis=1) if len(ratios) else np.zeros(len(taus))


def profile_integral(ratios: NDArray[np.float64], r_max: float = R_MAX) -> float:
    """AlgoPerf's benchmark score: the mean of the performance profile over tau in [1, r_max].

    The profile is a step function, so `1 / (r_max - 1)` times its integral is the mean over tasks of
    `(r_max - ratio) / (r_max - 1)`, where a ratio above `r_max` gives 0.

    >>> profile_integral(np.array([1.0, 2.5, np.inf]))
    0.5
    """
    if not len(ratios):
        return float("nan")
    return float(np.mean(np.clip((r_max - ratios) / (r_max - 1.0), 0.0, 1.0)))
