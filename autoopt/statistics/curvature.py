"""Curvature along the updates that each optimizer family would make, hence its best rate for a step.

Needs batches and a loss: gradients are taken at the parameters and a little way along a direction,
on the same batches with the same random numbers, and their difference is the Hessian's action. All
parameters and buffers are put back bit by bit; nothing is written to `.grad`. In 16-bit parameters
such small shifts are mostly rounding: measure a float32 copy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from autoopt.architecture import LayerInfo
from autoopt.errors import ProfileError
from autoopt.statistics.direction import FAMILIES, update_direction
from autoopt.statistics.probe import SMALLEST_RMS, LossFn, Probe, buffers_restored, inner


@dataclass(frozen=True)
class DirectionalCurvature:
    """The loss along `w - rate * u` for an update `u`, to second order.

    Attributes:
        slope: `<g, u>`, the first decrease of the loss a unit of rate.
        curvature: `<u, H u>`.
    """

    slope: float
    curvature: float

    @property
    def rate(self) -> float:
        """`slope / curvature`, the rate that lowers the loss most; NaN unless both are positive."""
        if self.slope > 0 and self.curvature > 0:
            return self.slope / self.curvature
        return math.nan


@dataclass(frozen=True)
class CurvatureStatistics:
    """What `measure_curvature` found.

    Attributes:
        directions: Role group -> family -> curvature along that family's update of the whole group.
        traces: Parameter name -> Hutchinson's estimate of the trace of its block of the Hessian.
        num_passes: Forward and backward passes that it took.
    """

    directions: dict[str, dict[str, DirectionalCurvature]]
    traces: dict[str, float] = field(default_factory=dict)
    num_passes: int = 0

    def layer_values(self, layers: Sequence[LayerInfo]) -> dict[str, dict[str, float]]:
        """Parameter name -> statistics, to be merged by `WarmupStatistics.with_layer_values`.

        `measured_rate_<family>` is the group's best relative rate for one step, `curvature_mean` the
        mean diagonal element of the layer's block of the Hessian. Undefined ones are left out.
        """
        values = {}
        for layer in layers:
            found = self.directions.get(layer.group, {})
            row = {f"measured_rate_{family}": value.rate for family, value in found.items()}
            if layer.name in self.traces:
                row["curvature_mean"] = self.traces[layer.name] / layer.numel
            values[layer.name] = {key: value for key, value in row.items() if math.isfinite(value)}
        return values


def measure_curvature(
    model: nn.Module,
    loss_fn: LossFn,
    batches: Sequence[Any],
    layers: Sequence[LayerInfo],
    *,
    families: Sequence[str] = FAMILIES,
    num_probe_batches: int = 2,
    num_trace_vectors: int = 2,
    seed: int = 0,
) -> CurvatureStatistics:
    """The best rate for one step of every family on every role group, and the layers' traces.

    The updates `u` come from the mean gradient and mean squared gradient over all but the last
    batches, slopes and curvatures from those last `num_probe_batches`, which they do not know: the
    slope of a noisy update is not flattered by its own noise. With `m` batches for updates, `p` probe
    batches, `c` pairs of group and family and `v` trace vectors this takes `m + p (1 + c + v)` passes:
    at most 52 with ten batches and the defaults. What it does not tell: rates for a whole run (noise adds up,
    curvature changes), and rates when all groups move together.

    Args:
        model: The model, in the mode to measure in; left exactly as it was.
        loss_fn: `loss_fn(model, batch)`, a scalar tensor.
        batches: At least `num_probe_batches + 1` batches.
        layers: Description of the parameters to measure (`Architecture.layers`).
        families: Names from `FAMILIES`.
        num_probe_batches: Batches that slopes and curvatures are measured on.
        num_trace_vectors: Random vectors of the trace estimate (Hutchinson 1989), 0 for none.
        seed: Seed of the random vectors and of dropout.

    Raises:
        ProfileError: If there are too few batches, no layers, or the loss is unusable.
    """
    if num_probe_batches < 1 or len(batches) < num_probe_batches + 1:
        raise ProfileError(
            f"curvature needs at least num_probe_batches + 1 = {num_probe_batches + 1} batches, got "
            f"{len(batches)}; pass more batches or fewer num_probe_batches"
        )
    named = dict(model.named_parameters())
    unknown = [layer.name for layer in layers if layer.name not in named]
    if unknown or not layers:
        what = f"the model has no parameter named {unknown[0]!r}" if unknown else "there are no layers to measure"
        raise ProfileError(f"{what}; pass describe(model).layers of this very model")
    params = [named[layer.name] for layer in layers]
    past = Probe(model, loss_fn, batches[:-num_probe_batches], params, seed)
    probe = Probe(model, loss_fn, batches[-num_probe_batches:], params, seed + len(batches))
    with buffers_restored(model):
        means, squares = _moments(past)
        base = probe.gradient()
        if not all(bool(torch.isfinite(g).all()) for g in (*means, *base)):
            raise ProfileError("the gradients are not finite; check the data and the model's initialisation")
        directions: dict[str, dict[str, DirectionalCurvature]] = {}
        for group in dict.fromkeys(layer.group for layer in layers):
            for family in families:
                update = [
                    update_direction(family, layer, m, s) if layer.group == group else None
                    for layer, m, s in zip(layers, means, squares, strict=True)
                ]
                # A step that leaves some of the group where it is would not be the group's rate.
                if any(u is None for u, la in zip(update, layers, strict=True) if la.group == group):
                    continue
                action = probe.hessian_action(update, base)
                curvature = DirectionalCurvature(inner(update, base), inner(update, action))
                directions.setdefault(group, {})[family] = curvature
        traces = hutchinson_traces(probe, base, layers, num_trace_vectors, seed)
    return CurvatureStatistics(directions, traces, past.num_passes + probe.num_passes)


def hutchinson_traces(
    probe: Probe, base: Sequence[Tensor], layers: Sequence[LayerInfo], num_vectors: int, seed: int
) -> dict[str, float]:
    """Parameter name -> estimated trace of its diagonal block of the Hessian.

    With independent signs `z` scaled layer by layer (`s_l`, the layer's root mean square, so that
    each moves in proportion), `E <z_l, (H z)_l> / s_l^2 = tr H_ll` (Hutchinson 1989): all layers from
    one product. With few vectors the error is as large as the off-diagonal elements make it; small
    layers beside stiff ones are measured poorly. Empty where `num_vectors` is 0.
    """
    generator = torch.Generator().manual_seed(seed)
    totals = dict.fromkeys((layer.name for layer in layers), 0.0)
    scales = [
        max(SMALLEST_RMS, float(p.detach().float().square().mean().sqrt())) if p.numel() else 1.0 for p in probe.params
    ]
    for _ in range(num_vectors):
        # Drawn on the CPU, so that every device sees the same vectors.
        signs = [
            (torch.randint(2, p.shape, generator=generator) * 2 - 1).to(p.device, torch.float32) * s
            for p, s in zip(probe.params, scales, strict=True)
        ]
        action = probe.hessian_action(signs, base)
        for layer, z, h, s in zip(layers, signs, action, scales, strict=True):
            totals[layer.name] += inner([z], [h]) / (s * s * num_vectors)
    return totals if num_vectors else {}


def sharpness(probe: Probe, num_iterations: int = 10, seed: int = 0) -> float:
    """The Hessian's eigenvalue of largest magnitude, by power iteration with finite differences.

    Twice its inverse bounds the stable rate of gradient descent (Kalra & Barkeshli 2024, arXiv
    2406.09405). Takes `(1 + num_iterations)` gradients. From below in magnitude where it has not
    converged.
    """
    generator = torch.Generator().manual_seed(seed)
    vector = [torch.randn(p.shape, generator=generator).to(p.device) for p in probe.params]
    value = math.nan
    with buffers_restored(probe.model):
        base = probe.gradient()
        for _ in range(num_iterations):
            length = math.sqrt(inner(vector, vector))
            if length == 0 or not math.isfinite(length):
                break
            unit = [v / length for v in vector]
            vector = probe.hessian_action(unit, base)
            value = inner(unit, vector)
    return value


def _moments(probe: Probe) -> tuple[list[Tensor], list[Tensor]]:
    means = [torch.zeros_like(p, dtype=torch.float32) for p in probe.params]
    squares = [torch.zeros_like(m) for m in means]
    weight = 1 / len(probe.batches)
    for grads in probe.each():
        for mean, square, grad in zip(means, squares, grads, strict=True):
            mean.add_(grad.float(), alpha=weight)
            square.add_(grad.float().square(), alpha=weight)
    return means, squares
