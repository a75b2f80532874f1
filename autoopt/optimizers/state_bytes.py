"""Bytes of optimizer state that a plan takes, known to the byte before anything is allocated."""

from __future__ import annotations

import math
from collections.abc import Iterable

from autoopt.architecture import LayerInfo
from autoopt.optimizers.catalog import get
from autoopt.optimizers.plan import OptimizerConfig, OptimizerPlan

COUNTER_BYTES = 4
"""Bytes of a step counter: a float32 scalar, whatever the parameter's dtype."""


def layer_state_bytes(layer: LayerInfo, config: OptimizerConfig) -> int:
    """Bytes of all state tensors of one parameter, once it has been stepped.

    Moments and factors are kept in the parameter's dtype (`layer.itemsize`), counters in float32
    (float64 where that is torch's default dtype, which is not counted here). Python numbers in the
    state take no device memory and count as nothing.

    Args:
        layer: The parameter.
        config: Its optimizer; the sparse form must be named where gradients are sparse, as
            `RoleConfig.resolve` does.

    Example:
        >>> layer = LayerInfo("weight", "matrix", (6, 4), fan_in=4, fan_out=6, depth=0)
        >>> [layer_state_bytes(layer, OptimizerConfig(name)) for name in ("adamw", "muon", "adafactor")]
        [196, 96, 44]
    """
    info = get(config.optimizer)
    if math.prod(layer.shape) == 0:
        return COUNTER_BYTES * info.num_counters if info.takes_empty else 0
    elements = info.state_numel(layer.shape, config.complete)
    return layer.itemsize * elements + COUNTER_BYTES * info.num_counters


def predicted_state_bytes(layers: Iterable[LayerInfo], plan: OptimizerPlan) -> int:
    """Bytes of optimizer state after a step in which every parameter had a gradient.

    The sum of `numel * element_size` over all tensors in `optimizer.state`, exactly, but for averages of the
    weights, which `averaging_bytes` tells. The statistics of
    warm-up are not in it: they are freed at the decision. Of parameters that are sharded over ranks
    it is the bytes of the whole tensors.

    Args:
        layers: The parameters, all of them named in the plan.
        plan: The plan.

    Example:
        >>> layer = LayerInfo("weight", "matrix", (6, 4), fan_in=4, fan_out=6, depth=0)
        >>> predicted_state_bytes([layer], OptimizerPlan({"weight": OptimizerConfig("sgd", {"momentum": 0.0})}))
        0
    """
    return sum(layer_state_bytes(layer, plan.layers[layer.name]) for layer in layers)


def averaging_bytes(layers: Iterable[LayerInfo], buffer_bytes: int = 0) -> int:
    """Bytes of the weights' averages, which are kept in single precision at least.

    Args:
        layers: The parameters.
        buffer_bytes: Bytes of the statistics that normalisation layers keep, in single precision at least.
    """
    return buffer_bytes + sum(math.prod(layer.shape) * max(4, layer.itemsize) for layer in layers)


def adamw_state_bytes(layers: Iterable[LayerInfo]) -> int:
    """Bytes of state that AdamW takes on the same parameters, SparseAdam where gradients are sparse."""
    dense, sparse = OptimizerConfig("adamw"), OptimizerConfig("sparseadam")
    return sum(layer_state_bytes(layer, sparse if layer.sparse else dense) for layer in layers)
