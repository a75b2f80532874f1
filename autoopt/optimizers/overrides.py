"""Hyper-parameters of a parameter group that a scheduler or the user sets over the plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from autoopt.optimizers.catalog import OptimizerInfo

NOMINAL_BETAS = (0.9, 0.999)
"""The value of `group["betas"]` that means "as planned"; a scheduler that moves it overrides the plan."""


@dataclass(frozen=True)
class Overrides:
    """What replaces the planned values of a whole group.

    Attributes:
        betas: Momentum and second-moment decay, or None for the planned ones.
        weight_decay: Weight decay, or None for the planned one.
    """

    betas: tuple[float, float] | None
    weight_decay: float | None

    def values_for(self, info: OptimizerInfo, planned: dict[str, Any]) -> dict[str, Any]:
        """The hyper-parameters of one optimizer that are replaced.

        A rule planned without momentum keeps none: cycling it would give it state it never had.
        """
        values: dict[str, Any] = {}
        key = info.momentum_key
        if self.betas is not None and key is not None:
            beta1, beta2 = self.betas
            if key == "betas":
                values["betas"] = (beta1, planned["betas"][1] if beta2 == NOMINAL_BETAS[1] else beta2)
            elif planned[key] > 0:
                values[key] = beta1
        if self.weight_decay is not None and "weight_decay" in planned:
            values["weight_decay"] = self.weight_decay
        return values


def overrides_of(group: dict[str, Any]) -> Overrides | None:
    """The overrides of a parameter group, None where everything is as planned."""
    betas = group["betas"]
    moved = betas[0] != NOMINAL_BETAS[0] or betas[1] != NOMINAL_BETAS[1]
    if not moved and group["weight_decay"] is None:
        return None
    return Overrides((betas[0], betas[1]) if moved else None, group["weight_decay"])
