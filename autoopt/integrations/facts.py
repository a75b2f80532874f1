"""A recommendation as a few flat values, in which trackers filter and sort runs."""

from __future__ import annotations

from autoopt.optimizers.catalog import get
from autoopt.report.recommendation import Recommendation


def facts(recommendation: Recommendation) -> dict[str, str | int | float | bool]:
    """Name -> value, in the order to be shown; names start with `autoopt/`.

    Tensors are counted by optimizer, so that `autoopt/tensors/muon` finds the runs in which Muon is used.
    """
    counts: dict[str, int] = {}
    for layer in recommendation.layers:
        counts[layer.config.optimizer] = counts.get(layer.config.optimizer, 0) + 1
    values: dict[str, str | int | float | bool] = {
        "headline": recommendation.headline,
        "abstained": recommendation.abstained,
        "deviating_tensors": sum(layer.deviates for layer in recommendation.layers),
        "state_bytes": recommendation.memory_bytes,
        "adamw_state_bytes": recommendation.adamw_memory_bytes,
    }
    values |= {f"tensors/{get(name).name}": count for name, count in sorted(counts.items())}
    for name in ("warmup_steps", "num_nonfinite_steps"):
        if name in recommendation.profile:
            values[name] = recommendation.profile[name]
    return {f"autoopt/{name}": value for name, value in values.items()}
