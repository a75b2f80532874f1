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
from autoopt.statistics.direction import FAMILIES, takes, update_direction
from autoopt.statistics.probe import SMALLEST_RMS, LossFn, Probe, buffers_restored, inner


class NonfiniteGradientError(ProfileError):
    """Gradients hold NaN or Inf, so that nothing can be measured on them."""


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
        signals: Parameter name -> signal-to-noise ratio of its gradient at fixed parameters: what
            `signal_and_noise` estimates, over the batches that updates are made of.
        sharpness: The largest eigenvalue of the Hessian on the first probe batch, NaN where it was not
            asked for.
        num_passes: Forward and backward passes that it took.
    """

    directions: dict[str, dict[str, DirectionalCurvature]]
    traces: dict[str, float] = field(default_factory=dict)
    signals: dict[str, float] = field(default_factory=dict)
    sharpness: float = math.nan
    num_passes: int = 0

    def layer_values(self, layers: Sequence[LayerInfo]) -> dict[str, dict[str, float]]:
        """Parameter name -> statistics, to be merged by `WarmupStatistics.with_layer_values`.

        `measured_rate_<family>` is the group's best relative rate for one step, `curvature_mean` the
        mean diagonal element of the layer's block of the Hessian, `start_signal_to_noise` the layer's
        in `signals`, and `sharpness` that of the model. Undefined ones are left out.
        """
        values = {}
        for layer in layers:
            found = self.directions.get(layer.group, {})
            row = {f"measured_rate_{family}": value.rate for family, value in found.items()}
            if layer.name in self.traces:
                row["curvature_mean"] = self.traces[layer.name] / layer.numel
            row["start_signal_to_noise"] = self.signals.get(layer.name, math.nan)
            row["sharpness"] = self.sharpness
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
    num_sharpness_steps: int = 0,
    seed: int = 0,
) -> CurvatureStatistics:
    """The best rate for one step of every family on every role group, and the layers' traces.

    The updates `u` come from the mean gradient and mean squared gradient over all but the last
    batches, slopes and curvatures from those last `num_probe_batches`, which they do not know: the
    slope of a noisy update is not flattered by its own noise. With `m` batches for updates, `p` probe
    batches, `c` pairs of group and family, `v` trace vectors and `s` power iterations this takes
    `m + p (1 + c + v) + s` passes (one more where `s > 0` and `p > 1`). What it does not tell: rates for a
    whole run (noise adds up, curvature changes), and rates when all groups move together.

    Args:
        model: The model, in the mode to measure in; left exactly as it was.
        loss_fn: `loss_fn(model, batch)`, a scalar tensor.
        batches: At least `num_probe_batches + 1` batches.
        layers: Description of the parameters to measure (`Architecture.layers`).
        families: Names from `FAMILIES`.
        num_probe_batches: Batches that slopes and curvatures are measured on.
        num_trace_vectors: Random vectors of the trace estimate (Hutchinson 1989), 0 for none.
        num_sharpness_steps: Power iterations, 0 for no sharpness.
        seed: Seed of the random vectors and of dropout.

    Raises:
        ProfileError: If there are too few batches, no layers, or the loss is unusable.
        NonfiniteGradientError: If gradients hold NaN or Inf.
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
            raise NonfiniteGradientError("the gradients are not finite; check the data and the model's initialisation")
        directions: dict[str, dict[str, DirectionalCurvature]] = {}
        for group, family in measurable(layers, families):
            update = [
                update_direction(family, layer, m, s) if layer.group == group else None
                for layer, m, s in zip(layers, means, squares, strict=True)
            ]
            action = probe.hessian_action(update, base)
            curvature = DirectionalCurvature(inner(update, base), inner(update, action))
            directions.setdefault(group, {})[family] = curvature
        traces = hutchinson_traces(probe, base, layers, num_trace_vectors, seed)
        # Of one batch: repeated products need no average over batches to find the largest eigenvalue.
        single = probe if num_probe_batches == 1 else Probe(model, loss_fn, probe.batches[:1], params, probe.seed)
        largest = sharpness(single, num_sharpness_steps, seed, base if single is probe else None)
    signals = _signals(layers, means, squares, len(past.batches))
    num_passes = past.num_passes + probe.num_passes + (single.num_passes if single is not probe else 0)
    return CurvatureStatistics(directions, traces, signals, largest, num_passes)


def measurable(layers: Sequence[LayerInfo], families: Sequence[str] = FAMILIES) -> list[tuple[str, str]]:
    """The pairs of role group and family whose update moves every layer of the group.

    A step that leaves some of a group where it is would not be the group's rate.
    """
    groups = dict.fromkeys(layer.group for layer in layers)
    return [
        (group, family)
        for group in groups
        for family in families
        if all(takes(family, layer) for layer in layers if layer.group == group)
    ]


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


def sharpness(probe: Probe, num_iterations: int = 10, seed: int = 0, base: Sequence[Tensor] | None = None) -> float:
    """The Hessian's eigenvalue of largest magnitude, by power iteration with finite differences.

    Twice its inverse bounds the stable rate of gradient descent (Kalra & Barkeshli 2024, arXiv
    2406.09405). Takes `num_iterations` gradients, and one more where `base`, the gradient at the
    parameters, is not given. From below in magnitude where it has not converged; NaN without iterations.
    """
    generator = torch.Generator().manual_seed(seed)
    vector = [torch.randn(p.shape, generator=generator).to(p.device) for p in probe.params]
    value = math.nan
    with buffers_restored(probe.model):
        base = base if base is not None or num_iterations < 1 else probe.gradient()
        for _ in range(num_iterations):
            assert base is not None
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


def _signals(
    layers: Sequence[LayerInfo], means: Sequence[Tensor], squares: Sequence[Tensor], num_batches: int
) -> dict[str, float]:
    found = {}
    for layer, mean, square in zip(layers, means, squares, strict=True):
        if num_batches < 2 or mean.numel() == 0:
            continue
        total = float(square.sum(dtype=torch.float64))
        signal = (num_batches * inner([mean], [mean]) - total) / (num_batches - 1)
        if total > signal:
            found[layer.name] = max(signal, 0.0) / (total - signal)
    return found
