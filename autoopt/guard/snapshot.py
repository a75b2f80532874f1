"""A way back: copies of parameters, optimizer state and plan, in memory that is used again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from autoopt.distributed.shards import is_sharded, like, local
from autoopt.guard.detection import Detector
from autoopt.statistics.warmup import STATE_PREFIX

SMALL_BYTES = 2**30
"""Up to this size in all, `NUM_SMALL` snapshots are kept, on the device. Beyond it `NUM_LARGE` are kept, twice
as far apart, in the host's memory, pinned."""
NUM_SMALL, NUM_LARGE = 3, 2
HOST_SHARE = 0.25
"""Where they would take more than this share of the machine's memory, of which each rank that `torchrun` started
there has its part, none are kept."""


@dataclass
class Snapshot:
    """A moment of a run.

    Attributes:
        step: 0-based step that was about to be taken.
        plans: The groups' plans.
        params: Copies of this rank's part of every parameter, in the groups' order.
        state: Copies of every parameter's state, what warm-up collects left out.
        detector: The guard's view of the past at that step.
    """

    step: int
    plans: list[str]
    params: list[Tensor]
    state: list[dict[str, Any]]
    detector: Detector

    @property
    def num_bytes(self) -> int:
        """Bytes of all copies."""
        return sum(tensor.nbytes for tensor in _tensors(self.params, self.state))


def number_kept(optimizer: Optimizer) -> int:
    """How many snapshots of a run there is room for: `NUM_SMALL`, `NUM_LARGE`, or 0."""
    params, state = _present(optimizer)
    # Before the first step there is no state yet: two moments are what most rules keep.
    one = max(sum(source.nbytes for source in _tensors(params, state)), 3 * sum(param.nbytes for param in params))
    if NUM_SMALL * one <= SMALL_BYTES:
        return NUM_SMALL
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**34
    memory /= max(1, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    return NUM_LARGE if NUM_LARGE * one <= HOST_SHARE * memory else 0


def take(
    optimizer: Optimizer, step: int, detector: Detector, old: Snapshot | None = None, on_host: bool = False
) -> Snapshot:
    """The present moment of a run; never waits for the device.

    Args:
        optimizer: The optimizer.
        step: 0-based step that is about to be taken.
        detector: Copied.
        old: A snapshot that is not needed any more, whose memory is used again where it fits.
        on_host: Whether to copy to the host's memory.
    """
    params, state = _present(optimizer)
    sources = list(_tensors(params, state))
    targets = [] if old is None else list(_tensors(old.params, old.state))
    fits = len(targets) == len(sources) and all(
        a.shape == b.shape and a.dtype == b.dtype for a, b in zip(sources, targets, strict=True)
    )
    copies = targets if fits else [_room(source, on_host) for source in sources]
    if copies:
        torch._foreach_copy_(copies, sources, non_blocking=True)  # pyright: ignore[reportPrivateImportUsage]
    found = iter(copies)
    kept_params = [next(found) for _ in params]
    kept_state = [{k: next(found) if isinstance(v, Tensor) else v for k, v in own.items()} for own in state]
    plans = [group["plan"] for group in optimizer.param_groups]
    return Snapshot(step, plans, kept_params, kept_state, detector.copy())


def restore(optimizer: Optimizer, snapshot: Snapshot) -> None:
    """Nothing; puts parameters, state and plans back, and leaves the snapshot as it is.

    Args:
        optimizer: The optimizer, over the same parameters.
        snapshot: A moment of its run.
    """
    params = [param for group in optimizer.param_groups for param in group["params"]]
    with torch.no_grad():
        for param, value in zip(params, snapshot.params, strict=True):
            local(param).copy_(value)
    for param, own in zip(params, snapshot.state, strict=True):
        present = optimizer.state.pop(param, {})
        back = {key: _returned(value, present.get(key), param) for key, value in own.items()}
        if back:
            optimizer.state[param] = back
    for group, plan in zip(optimizer.param_groups, snapshot.plans, strict=True):
        group["plan"] = plan


def _present(optimizer: Optimizer) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """This rank's part of all parameters, and of all state beside what warm-up collects."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    state = []
    for param in params:
        own = optimizer.state.get(param, {})
        kept = {key: value for key, value in own.items() if not key.startswith(STATE_PREFIX)}
        state.append({key: local(v).detach() if isinstance(v, Tensor) else v for key, v in kept.items()})
    return [local(param.detach()) for param in params], state


def _tensors(params: Sequence[Tensor], state: Sequence[dict[str, Any]]) -> list[Tensor]:
    return [*params, *(value for own in state for value in own.values() if isinstance(value, Tensor))]


def _room(source: Tensor, on_host: bool) -> Tensor:
    if not on_host or source.device.type == "cpu" or source.dim() == 0:
        return torch.empty_like(source)
    return torch.empty_like(source, device="cpu", pin_memory=source.device.type == "cuda")


def _returned(value: Any, present: Any, param: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return value
    home = param.device if value.dim() else value.device
    device = present.device if isinstance(present, Tensor) else home
    copied = value.to(device, copy=True)
    of_elements = is_sharded(param) and value.dim() > 0 and value.shape == local(param).shape
    return like(copied, param) if of_elements else copied
