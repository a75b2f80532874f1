"""Gradients at the parameters and a little beside them, on the same batches and random numbers."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoopt.errors import ProfileError

LossFn = Callable[[nn.Module, Any], Tensor]

RELATIVE_STEP = 1e-2
"""Length of a finite difference over the norm of what it moves: far above float32 rounding, and as
long as the steps of training, so that kinks (ReLU) are averaged over as training does."""

SMALLEST_RMS = 1e-2
"""Root mean square that parameters at 0 (biases) are taken to have for that purpose."""


class Probe:
    """Gradients of a mean loss over fixed batches, at the parameters or shifted from them.

    Args:
        model: The model, in the mode (train or eval) to measure in.
        loss_fn: `loss_fn(model, batch)`, a scalar tensor.
        batches: The batches that every gradient is the mean over.
        params: The parameters.
        seed: Seed of dropout and the like: the same batch meets the same random numbers (of torch,
            NumPy and Python) each time.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        batches: Sequence[Any],
        params: Sequence[Tensor],
        seed: int = 0,
    ) -> None:
        self.model, self.loss_fn, self.batches = model, loss_fn, batches
        self.params, self.seed = list(params), seed
        self.num_passes = 0

    def each(self) -> Iterator[list[Tensor]]:
        """The dense gradient at the parameters on one batch after the other.

        Raises:
            ProfileError: If the loss is no scalar tensor with a gradient.
        """
        devices = sorted({p.device.index or 0 for p in self.params if p.device.type == "cuda"})
        for i, batch in enumerate(self.batches):
            with _seeded(self.seed + i, devices), torch.enable_grad():
                loss = self.loss_fn(self.model, batch)
                if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
                    raise ProfileError("loss_fn must return a scalar tensor that depends on the model's parameters")
                grads = torch.autograd.grad(loss.reshape(()), self.params, allow_unused=True)
            self.num_passes += 1
            yield [_dense(g, p) for g, p in zip(grads, self.params, strict=True)]

    def gradient(self) -> list[Tensor]:
        """The mean of the gradients over the batches."""
        total: list[Tensor] = [torch.zeros_like(p, dtype=torch.float32) for p in self.params]
        for grads in self.each():
            torch._foreach_add_(total, [g.float() for g in grads], alpha=1 / len(self.batches))  # pyright: ignore[reportPrivateImportUsage]
        return total

    def hessian_action(self, direction: Sequence[Tensor | None], base: Sequence[Tensor]) -> list[Tensor]:
        """`H d` for a direction `d` (None: that parameter stays), by a one-sided difference.

        Formula: `(base - grad(w - e d)) / e`, with `base = grad(w)` and `e` such that the step is
        `RELATIVE_STEP` of the norm of the parameters it moves. The error is first order in `e` times
        the third derivative, which is wanted here: it is the mean curvature over the step.
        """
        moved = [(p, d) for p, d in zip(self.params, direction, strict=True) if d is not None]
        size = sum(p.numel() for p, _ in moved)
        square = sum(float(p.detach().float().square().sum(dtype=torch.float64)) for p, _ in moved)
        length = math.sqrt(inner([d for _, d in moved], [d for _, d in moved]))
        if length == 0:
            return [torch.zeros_like(b) for b in base]
        step = RELATIVE_STEP * max(math.sqrt(square), SMALLEST_RMS * math.sqrt(size)) / length
        with _parameters_restored(self.params):
            with torch.no_grad():
                for param, d in moved:
                    param.sub_(d.to(param.dtype), alpha=step)
            shifted = self.gradient()
        return [(b - s) / step for b, s in zip(base, shifted, strict=True)]


@contextmanager
def _seeded(seed: int, devices: Sequence[int]) -> Iterator[None]:
    """A context in which all generators start from a seed, and after which they are as before."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def inner(left: Sequence[Tensor | None], right: Sequence[Tensor]) -> float:
    """The inner product of two lists of tensors, summed in float64; None counts as zeros."""
    return float(
        sum(
            float((a * b).sum(dtype=torch.float64))
            for a, b in zip(left, right, strict=True)
            if a is not None and a.numel()
        )
    )


def _dense(grad: Tensor | None, param: Tensor) -> Tensor:
    if grad is None:
        return torch.zeros_like(param)
    # Directions are as large as the parameters whatever the gradients are: profiling aside may.
    return grad.to_dense() if grad.is_sparse else grad


@contextmanager
def _parameters_restored(params: Sequence[Tensor]) -> Iterator[None]:
    values = [p.detach().clone() for p in params]
    try:
        yield
    finally:
        with torch.no_grad():
            for param, value in zip(params, values, strict=True):
                param.copy_(value)


@contextmanager
def buffers_restored(model: nn.Module) -> Iterator[None]:
    """A context after which all buffers of the model hold what they held before, bit by bit."""
    known: list[tuple[nn.Module, Mapping[str, Tensor | None]]] = [
        (module, dict(module._buffers)) for module in model.modules()
    ]
    values = [(b, b.detach().clone()) for _, buffers in known for b in buffers.values() if b is not None]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, buffers in known:
                module._buffers.update(buffers)
            for buffer, value in values:
                buffer.copy_(value)
