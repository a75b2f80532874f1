"""How a warm-up step treats gradients that hold NaN or Inf, without waiting for a device."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from autoopt.distributed.shards import is_sharded, local, sum_over_shards
from autoopt.statistics import warmup

COUNTER = f"{warmup.STATE_PREFIX}num_nonfinite"
"""State key of a device's own count, for devices that the host does not wait for."""


def all_finite(grads: Sequence[Tensor]) -> Tensor | None:
    """A 0-d bool tensor on the first gradient's device: whether every gradient is finite.

    None where there is no gradient with elements. Of sharded gradients all parts count, at the price of
    one small collective, or ranks would disagree on whether to skip a step.
    """
    values = [grad._values() if grad.is_sparse else local(grad) for grad in grads]
    # NaN and Inf propagate through a sum, which costs one pass and allocates nothing.
    sums = [_sum(value) for value in values if value.numel()]
    sharded = [grad for grad in grads if is_sharded(grad)]
    if not sums:
        if not sharded:
            return None
        sums = [local(sharded[0]).new_zeros((), dtype=torch.float32)]  # this rank's parts are all empty
    device = sums[0].device
    total = torch.stack([part.to(device) for part in sums]).sum()
    return torch.isfinite(sum_over_shards(total, sharded))


def _sum(value: Tensor) -> Tensor:
    if value.dtype == torch.float64:
        return (value.sum() * 0.0).float()  # NaN or 0: a finite sum may be too large for float32
    return value.sum(dtype=torch.float32)


def zero_where_not(finite: Tensor, grads: Sequence[Tensor]) -> None:
    """Set the gradients to zero, in place, where `finite` is False."""
    masks: dict[torch.device, Tensor] = {}
    for grad in grads:
        values = grad._values() if grad.is_sparse else local(grad)
        if values.device not in masks:
            masks[values.device] = torch.logical_not(finite.to(values.device, non_blocking=True))
        values.masked_fill_(masks[values.device], 0.0)


class NonfiniteSteps:
    """The count of skipped warm-up steps: in the groups, and on the device where it was decided there.

    Args:
        groups: The optimizer's parameter groups.
        state: The optimizer's state.
    """

    def __init__(
        self, groups: Sequence[MutableMapping[str, Any]], state: Mapping[Tensor, MutableMapping[str, Any]]
    ) -> None:
        self._groups = groups
        self._state = state

    def count(self) -> int:
        """The number of skipped steps; waits for the device where it keeps a count."""
        counters = [own[COUNTER] for own in self._state.values() if COUNTER in own]
        return int(self._groups[0]["num_nonfinite_steps"]) + sum(int(counter) for counter in counters)

    def skip(self) -> None:
        """Count a step that was not taken."""
        for group in self._groups:
            group["num_nonfinite_steps"] += 1
            group["step"] += 1

    def add(self, finite: Tensor) -> None:
        """Count a step that was taken with all rates and gradients at 0 if `finite` is 0.

        The count is kept in the state of a parameter, since that is what checkpoints hold.
        """
        for own in self._state.values():
            if COUNTER in own:
                own[COUNTER] += 1.0 - finite.to(own[COUNTER].device)
                return
        for own in self._state.values():
            if own:
                own[COUNTER] = 1.0 - finite
                return
