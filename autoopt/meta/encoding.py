"""How a candidate configuration of a role group becomes numbers beside the meta-features."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

ANCHOR_RATES: dict[str, float] = {
    "sgd": 0.1,
    "adamw": 8e-3,
    "nadam": 8e-3,
    "rmsprop": 4e-3,
    "adagrad": 0.1,
    "adafactor": 3e-2,
    "lion": 1e-3,
    "muon": 0.02,
    "soap": 1e-2,
}
"""Relative rate from which the rate of a candidate of another optimizer than the default's counts."""

OPTIMIZERS = tuple(ANCHOR_RATES)
"""Optimizers that a candidate is encoded by, one column each."""

LENGTHS: dict[str, float] = {
    **{f"to_{name}": 1.0 for name in OPTIMIZERS},
    "log_rate_change": 2.0,
    "weight_decay": 0.3,
    "log_momentum_change": 2.0,
    "log_memory_change": 3.0,
}
"""Column of an encoded candidate -> difference over which effects change, before anything is known."""

COLUMNS: tuple[str, ...] = tuple(LENGTHS)
"""Names of the columns of an encoded candidate."""


def encode_candidate(config: str, default: str) -> NDArray[np.float64]:
    """The columns of one candidate, shape `(len(COLUMNS),)`; all 0 for the default itself.

    - `to_<optimizer>`: 1 where the optimizer is this one and not the default's.
    - `log_rate_change`: log2 ratio of the relative rate to the default's, or to the optimizer's anchor
      rate where the optimizer changes, since rates of different families are not comparable.
    - `weight_decay`: difference of weight decays.
    - `log_momentum_change`, `log_memory_change`: log2 ratio of the averaging times `1 / (1 - beta)` of
      the first and of the second moment, 0 where the optimizer changes.

    Args:
        config: Canonical JSON of the candidate's configuration.
        default: Canonical JSON of the default's configuration of the same role group.
    """
    new: dict[str, Any] = json.loads(config)
    old: dict[str, Any] = json.loads(default)
    same = new["optimizer"] == old["optimizer"]
    hyper, before = new["hyperparameters"], old["hyperparameters"]
    values = [float(not same and new["optimizer"] == name) for name in OPTIMIZERS]
    anchor: Any = old["lr"] if same else ANCHOR_RATES.get(new["optimizer"], new["lr"])
    values.append(math.log2(new["lr"] / anchor) if new["lr"] > 0 and anchor > 0 else 0.0)
    values.append(float(hyper.get("weight_decay", 0.0)) - float(before.get("weight_decay", 0.0)))
    times, times_before = _averaging_times(hyper, new["optimizer"]), _averaging_times(before, old["optimizer"])
    values += [math.log2(a / b) if same else 0.0 for a, b in zip(times, times_before, strict=True)]
    return np.array(values)


def _averaging_times(hyperparameters: dict[str, Any], optimizer: str) -> tuple[float, float]:
    """Steps over which the first and the second moment average, 1 where there is no such moment."""
    first, second = hyperparameters.get("betas", (0.9, 0.999))
    if optimizer in ("muon", "sgd"):
        first, second = hyperparameters.get("momentum", 0.95 if optimizer == "muon" else 0.9), 0.0
    return 1.0 / (1.0 - first), 1.0 / (1.0 - second)
