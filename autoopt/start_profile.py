"""What batches and a loss allow to measure at the start, before any step: rates, curvature, activations."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from autoopt.architecture import Architecture, LayerInfo
from autoopt.statistics.activation import activation_statistics, inputs_read
from autoopt.statistics.curvature import NonfiniteGradientError, measurable, measure_curvature
from autoopt.statistics.direction import FAMILIES
from autoopt.statistics.probe import Probe, buffers_restored

DEFAULT_PASSES = 40
"""Forward and backward passes that measuring at the start may take: with the 20 steps of the shortest
warm-up it makes the 60 training steps that profiling aside costs by default."""


@dataclass(frozen=True)
class Effort:
    """How many passes go where; `autoopt.statistics.curvature.measure_curvature` says what each is for."""

    num_batches: int
    num_probe_batches: int
    num_trace_vectors: int
    num_sharpness_steps: int
    families: tuple[str, ...] = FAMILIES

    def num_passes(self, layers: Sequence[LayerInfo]) -> int:
        """The passes that this takes for a model, that of the activations included."""
        each = 1 + len(measurable(layers, self.families)) + self.num_trace_vectors
        base = self.num_sharpness_steps > 0 and self.num_probe_batches > 1
        updates = self.num_batches - self.num_probe_batches
        return 1 + updates + self.num_probe_batches * each + self.num_sharpness_steps + base


# A sign step's rate says much of what Adam's says, so it is the first to be left out.
_FEWER = tuple(family for family in FAMILIES if family != "lion")

EFFORTS = (
    Effort(12, 2, 2, 6),
    Effort(10, 2, 1, 4),
    Effort(10, 2, 1, 4, _FEWER),
    Effort(10, 1, 1, 5),
    Effort(7, 1, 1, 3, _FEWER),
    Effort(5, 1, 1, 0, _FEWER),
    Effort(3, 1, 0, 0, _FEWER),
)
"""From the most to the least that is worth measuring."""


@dataclass(frozen=True)
class StartProfile:
    """What was measured at the start.

    Attributes:
        layers: Parameter name -> statistic -> value.
        num_passes: Forward and backward passes that it took.
        seconds: Seconds that it took.
        problem: Why nothing, or not all, was measured; empty where all was.
    """

    layers: dict[str, dict[str, float]] = field(default_factory=dict)
    num_passes: int = 0
    seconds: float = 0.0
    problem: str = ""


def affordable(max_passes: int, num_batches: int, layers: Sequence[LayerInfo]) -> Effort | None:
    """The largest of `EFFORTS` within so many passes and batches, or None where none is."""
    fitting = (e for e in EFFORTS if e.num_batches <= num_batches and e.num_passes(layers) <= max_passes)
    return next(fitting, None)


def batches_wanted(max_passes: int, architecture: Architecture) -> int:
    """How many batches `measure_start` can make use of."""
    effort = affordable(max_passes, EFFORTS[0].num_batches, architecture.layers)
    return 0 if effort is None else effort.num_batches


def measure_start(
    model: nn.Module,
    loss_fn: Callable[[nn.Module, Any], Tensor],
    batches: Sequence[Any],
    architecture: Architecture,
    *,
    max_passes: int = DEFAULT_PASSES,
    seed: int = 0,
) -> StartProfile:
    """Curvature, rates, noise and activations at the model's present parameters, which stay as they are.

    Measured at the start, a rate for one step says more of the best rate for the run than measured
    after some steps: there it has lost much of what told tasks apart. Parameters, buffers,
    gradients and the generators of torch, NumPy and Python are as before, bit by bit, also where
    `loss_fn` raises; other attributes of the model are not.

    Args:
        model: The model, in the mode to measure in.
        loss_fn: `loss_fn(model, batch)`, a scalar tensor.
        batches: Batches; with fewer than `batches_wanted` less is measured.
        architecture: The model's description.
        max_passes: Forward and backward passes that may be made.
        seed: Seed of the random vectors and of dropout.

    Raises:
        ProfileError: If the loss is no scalar tensor with a gradient. Non-finite gradients are no error
            but a `problem`, as warm-up skips such steps.
    """
    begun = time.perf_counter()
    layers = architecture.layers
    named = dict(model.named_parameters())
    params = [named[layer.name] for layer in layers]
    if any(param.element_size() < 4 for param in params):
        # A finite difference of a hundredth of the parameters is of the order of their rounding.
        return StartProfile(problem="rates were not measured: 16-bit parameters round off the small steps this takes")
    effort = affordable(max_passes, len(batches), layers)
    if effort is None:
        return StartProfile(
            problem=f"rates were not measured: {len(batches)} batches and {max_passes} passes are too few for it"
        )
    batches = list(batches)[: effort.num_batches]
    probe = Probe(model, loss_fn, batches[:1], params, seed)
    try:
        with buffers_restored(model), inputs_read(model, layers) as inputs:
            grads = probe.gradient()
        values = activation_statistics(layers, inputs, dict(zip((la.name for la in layers), grads, strict=True)))
        curvature = measure_curvature(
            model,
            loss_fn,
            batches,
            layers,
            families=effort.families,
            num_probe_batches=effort.num_probe_batches,
            num_trace_vectors=effort.num_trace_vectors,
            num_sharpness_steps=effort.num_sharpness_steps,
            seed=seed,
        )
    except NonfiniteGradientError as error:
        return StartProfile({}, probe.num_passes, time.perf_counter() - begun, f"rates were not measured: {error}")
    for name, row in curvature.layer_values(layers).items():
        values.setdefault(name, {}).update(row)
    passes = probe.num_passes + curvature.num_passes
    return StartProfile(values, passes, time.perf_counter() - begun)
