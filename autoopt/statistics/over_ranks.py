"""What warm-up measured, taken together over the ranks that train one model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from autoopt.architecture import LayerInfo
from autoopt.distributed.ranks import Ranks
from autoopt.statistics import warmup
from autoopt.statistics.gradient import two_batch_noise_scale
from autoopt.statistics.warmup import WarmupStatistics

NOISE_RATIO = "two_batch_noise_ratio"


@torch.no_grad()
def mean_over_ranks(
    ranks: Ranks,
    layers: Sequence[LayerInfo],
    states: Sequence[Mapping[str, Any]],
    facts: Mapping[str, float | None],
    seed: int,
) -> tuple[list[dict[str, Tensor]], dict[str, float]]:
    """Accumulators and facts, each averaged over the ranks that have it.

    Where gradients are averaged before each step, as DDP does, accumulators are the same on all
    ranks and so is their mean, to the last bit: sums are taken in float64. Where each rank steps
    alone, it is the mean of what the ranks saw.

    Args:
        ranks: Who takes part; all must call this.
        layers: What the parameters are, the same on all ranks.
        states: Their accumulators.
        facts: Numbers to average, under the same keys on all ranks; None where a rank has none.
        seed: As given to `warmup.update`.

    Returns:
        New accumulators in place of `states`, float64 on the CPU, and the averaged facts that any
        rank had.
    """
    blank = torch.empty(0)
    shapes = [warmup.init_state(layer, blank, seed) for layer in layers]
    parts = [torch.tensor([float(value is not None), value or 0.0], dtype=torch.float64) for value in facts.values()]
    for zeros, state in zip(shapes, states, strict=True):
        for key, zero in zeros.items():
            found = state.get(key)
            parts.append(torch.full((1,), float(found is not None)))
            parts.append((zero if found is None else found.detach().cpu()).reshape(-1))
    if not parts:
        return [{} for _ in states], {}
    total = ranks.sum(torch.cat([part.double() for part in parts]), "the reduction of warm-up statistics")
    pieces = iter(total.split([part.numel() for part in parts]))
    means = {}
    for key in facts:
        present, value = next(pieces).tolist()
        if present > 0:
            means[key] = value / present
    reduced = []
    for zeros in shapes:
        own = {}
        for key, zero in zeros.items():
            present, value = next(pieces), next(pieces)
            if present > 0:
                own[key] = (value / present).reshape(zero.shape)
        reduced.append(own)
    return reduced, means


def with_noise_scale(
    statistics: WarmupStatistics, squares: Mapping[str, tuple[float, float]], num_ranks: int
) -> WarmupStatistics:
    """The statistics with the two-batch noise scale of every layer and of the whole model.

    `two_batch_noise_ratio` is the simple noise scale `tr Sigma / |G|^2` (McCandlish et al. 2018, arXiv
    1812.06162) in multiples of all examples of a step: well below 1 a step has more examples than it
    needs, well above 1 it is mostly noise. Unlike `noise_ratio`, which compares steps, it does not take
    the drift of the gradient for noise. It needs no batch size. For the model it is among the
    task's facts; `two_batch_noise_scale` there is the same in examples.

    Args:
        statistics: What warm-up measured.
        squares: Parameter name -> squared norms summed over steps, before and after averaging.
        num_ranks: How many gradients were averaged.
    """
    if num_ranks < 2:
        return statistics
    layers, missing = {}, {name: dict(row) for name, row in statistics.missing.items()}
    for name, (local, averaged) in squares.items():
        value = _noise_ratio(local, averaged, num_ranks)
        if math.isfinite(value):
            layers[name] = {NOISE_RATIO: value}
        else:
            missing.setdefault(name, {})[NOISE_RATIO] = "mostly noise: no signal shows in this many steps"
    totals = [sum(column) for column in zip(*squares.values(), strict=True)] or [0.0, 0.0]
    task = dict(statistics.task)
    whole = _noise_ratio(totals[0], totals[1], num_ranks)
    if math.isfinite(whole):
        task[NOISE_RATIO] = whole
        if "batch_size" in task:
            task["two_batch_noise_scale"] = whole * task["batch_size"]
    return replace(statistics.with_layer_values(layers), task=task, missing=missing)


def _noise_ratio(local: float, averaged: float, num_ranks: int) -> float:
    square, trace, scale = two_batch_noise_scale(local, averaged, 1.0, float(num_ranks))
    return max(trace, 0.0) / square / num_ranks if square > 0 and math.isfinite(scale) else math.nan
