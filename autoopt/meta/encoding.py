"""How a candidate configuration of a role group becomes numbers beside the meta-features."""

from __future__ import annotations

import json
import math

import numpy as np
from numpy.typing import NDArray

OPTIMIZERS = ("sgd", "adamw", "nadam", "rmsprop", "adagrad", "adafactor", "lion", "muon", "soap")
"""Optimizers that a candidate is encoded by, one column each."""

COLUMNS: tuple[str, ...] = (
    *(f"to_{name}" for name in OPTIMIZERS),
    "log_rate_change",
    "weight_decay",
    "momentum_change",
)
"""Names of the columns of an encoded candidate."""


def encode_candidate(config: str, default: str) -> NDArray[np.float64]:
    """The columns of one candidate, shape `(len(COLUMNS),)`.

    `log_rate_change` is the log2 ratio of relative rates where the optimizer stays the default's, 0
    where it changes (rates of different families are not comparable).

    Args:
        config: Canonical JSON of the candidate's configuration.
        default: Canonical JSON of the default's configuration of the same role group.
    """
    new, old = json.loads(config), json.loads(default)
    same = new["optimizer"] == old["optimizer"]
    hyper, before = new["hyperparameters"], old["hyperparameters"]
    values = [float(not same and new["optimizer"] == name) for name in OPTIMIZERS]
    values.append(math.log2(new["lr"] / old["lr"]) if same and new["lr"] > 0 and old["lr"] > 0 else 0.0)
    values.append(float(hyper.get("weight_decay", 0.0)) - float(before.get("weight_decay", 0.0)))
    values.append(float(same and hyper.get("momentum", 0.0) != before.get("momentum", 0.0)))
    return np.array(values)
