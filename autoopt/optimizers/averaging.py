"""Averages of the weights over the last part of a run, kept beside them for evaluation.

The average of the iterates so far, the later ones weighing more: with power `p`, iterate `s` of `t` weighs
in proportion to about `s^p`, so that the last `1 / (p + 1)` of the run makes up most of it, however long the
run gets. It has the loss that decayed rates would reach, long before they have decayed.

Source: polynomial-decay averaging, Shamir and Zhang 2013 (arXiv 1212.1824), section 4.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from autoopt.distributed.shards import local

KEY = "averaged"
"""State key of a parameter's average; those of its module's buffers begin with it."""

DENSE_STEPS = 256
"""Steps in which every iterate counts; later on every second, fourth, ... does, and the cost vanishes."""

State = Mapping[Tensor, MutableMapping[str, Any]]


class Tracked(NamedTuple):
    """A tensor whose average is kept, and where.

    Attributes:
        value: The tensor.
        owner: The parameter in whose state the average lies.
        key: Its key there.
        stateless: Whether the owner's rule keeps no state of its own, so that the average may be all there is.
            Other rules take a state with anything in it for one of their own that is complete.
    """

    value: Tensor
    owner: Tensor
    key: str = KEY
    stateless: bool = False


def stride_at(step: int) -> int:
    """Steps between the iterates that count, around a step counted from 1: at least 256 of them so far.

    >>> [stride_at(step) for step in (1, 511, 512, 1023, 1024, 100_000)]
    [1, 1, 2, 2, 4, 256]
    """
    return max(1, 1 << (max(1, step // DENSE_STEPS).bit_length() - 1))


def weight_at(step: int, power: float) -> float:
    """The weight of the iterate after `step` steps in the average, for all that came since the one before.

    For every iterate by itself that is `(p + 1) / (step + p)`; where some were passed by, the latest has
    the weight of them all.

    >>> [round(weight_at(step, 4.0), 3) for step in (1, 2, 10)]
    [1.0, 0.833, 0.357]
    """
    stride = stride_at(step)
    before = step - (stride if stride_at(step - 1) == stride else stride // 2)
    if before < 1:
        return 1.0
    log_kept = math.lgamma(step) - math.lgamma(before)
    log_kept += math.lgamma(before + power + 1.0) - math.lgamma(step + power + 1.0)
    return -math.expm1(log_kept)


def buffers_of(model: nn.Module) -> list[Tracked]:
    """The statistics that normalisation layers keep, each with a parameter of its module.

    They belong to the weights they were measured with: averaged weights need averaged statistics. Modules
    without a trainable parameter of their own are passed by.
    """
    found = []
    for module in model.modules():
        owner = next((param for param in module.parameters(recurse=False) if param.requires_grad), None)
        for name, value in module.named_buffers(recurse=False):
            if owner is not None and value.is_floating_point():
                found.append(Tracked(value, owner, f"{KEY}.{name}"))
    return found


def buffer_bytes_of(model: nn.Module) -> int:
    """Bytes of the averages of all statistics that `buffers_of` finds."""
    return sum(item.value.numel() * max(4, item.value.element_size()) for item in buffers_of(model))


@torch.no_grad()
def advance(tracked: Iterable[Tracked], state: State, step: int, power: float) -> None:
    """Take the present values into their averages.

    Args:
        tracked: What is averaged; owners that were never stepped are passed by.
        state: The optimizer's state, which holds the averages.
        step: Steps taken so far, one whose iterate counts (`stride_at`).
        power: Power of the weights.
    """
    averages, values = [], []
    for item in tracked:
        own = _state_of(item, state)
        if own is None:
            continue
        average = own.get(item.key)
        if average is None:
            own[item.key] = _start(item.value)
            continue
        value = local(item.value)
        averages.append(local(average))
        values.append(value if value.dtype == average.dtype else value.to(average.dtype))
    if averages:
        torch._foreach_lerp_(averages, values, weight_at(step, power))


def start(tracked: Iterable[Tracked], state: State) -> None:
    """Create the averages of all owners that have state, at the present values."""
    for item in tracked:
        own = _state_of(item, state)
        if own is not None and item.key not in own:
            own[item.key] = _start(item.value)


def _state_of(item: Tracked, state: State) -> MutableMapping[str, Any] | None:
    if item.stateless:
        return state[item.owner]
    return state.get(item.owner) or None


def _start(value: Tensor) -> Tensor:
    # Below single precision, a small step towards the present value would be rounded away.
    dtype = torch.float32 if value.dtype in (torch.float16, torch.bfloat16) else value.dtype
    return value.detach().to(dtype, copy=True)


@contextmanager
def in_place(tracked: Sequence[Tracked], state: State) -> Iterator[None]:
    """A context in which tensors hold their averages; afterwards they hold bit for bit what they held.

    Args:
        tracked: What is averaged; what has no average yet is left as it is.
        state: The optimizer's state.
    """
    held = [(item.value, state[item.owner][item.key]) for item in tracked if item.key in state.get(item.owner, {})]
    with torch.no_grad():
        values = [local(value) for value, _ in held]
        kept = [value.detach().clone() for value in values]
        _copy(values, [local(average) for _, average in held])
    try:
        yield
    finally:
        with torch.no_grad():
            _copy(values, kept)


def _copy(into: list[Tensor], values: list[Tensor]) -> None:
    if into:
        torch._foreach_copy_(into, values)


def averages_in(state: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a parameter's state that holds averages."""
    return {key: value for key, value in state.items() if key.startswith(KEY)}
