"""The hidden step by which torch.distributed.checkpoint creates state.

`get_optimizer_state_dict` on an optimizer without state gives every parameter a gradient of zeros,
sets the rate to 0 and calls `step()` (pytorch#164929). That is no training step: it must create state
as if nothing had happened yet.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from autoopt.distributed.shards import whole


def is_state_initialisation(optimizer: Optimizer) -> bool:
    """Whether the step at hand is the hidden one.

    Called on an optimizer's first step only. Gradients are looked at only where the rate is exactly 0
    everywhere, so that an ordinary first step waits for no device.
    """
    if any(optimizer.state.values()):
        return False
    for group in optimizer.param_groups:
        lr = group["lr"]
        if isinstance(lr, Tensor) and lr.device.type != "cpu":
            return False  # the hidden step's rate is a number or a CPU tensor
        if float(lr) != 0.0:
            return False
    grads = [param.grad for group in optimizer.param_groups for param in group["params"]]
    return all(grad is None or not bool((grad._values() if grad.is_sparse else whole(grad)).any()) for grad in grads)


def zero_gradient(param: Tensor, sparse: bool) -> Tensor:
    """A gradient of zeros for a parameter, dense or without any row."""
    if not sparse:
        return torch.zeros_like(param)
    rows = torch.empty(1, 0, dtype=torch.long, device=param.device)
    values = param.new_empty(0, *param.shape[1:])
    return torch.sparse_coo_tensor(rows, values, param.shape, check_invariants=False)


def reset_counters(state: Mapping[Tensor, MutableMapping[str, Any]]) -> None:
    """Make all state look as if no step was taken."""
    for own in state.values():
        for key, start in (("step", 0), ("mu_product", 1)):
            if isinstance(own.get(key), Tensor):
                own[key].fill_(start)
            elif key in own:
                own[key] = start
