"""Partial differential equations as training tasks: a residual, and noisy sensors.

The network's derivatives enter the training loss (Raissi et al. 2019, arXiv 1711.10561). Validation
needs none: it is the error at held-out noisy sensors, whose floor is the sensors' noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoopt.tasks.base import Batch

SENSOR_NOISE = 0.2
"""Deviation of the sensors' noise, where the solutions' deviation is near 0.7."""


def heat(points: Tensor) -> Tensor:
    """A solution of `u_t = 0.05 u_xx` at points `(rows, 2)` of x in [-1, 1] and t in [0, 1]."""
    x, t = points[:, :1], points[:, 1:]
    slow = torch.sin(math.pi * x) * torch.exp(-0.05 * math.pi**2 * t)
    return slow + 0.8 * torch.sin(3 * math.pi * x) * torch.exp(-0.05 * 9 * math.pi**2 * t)


def wave(points: Tensor) -> Tensor:
    """A solution of `u_tt = u_xx` at points `(rows, 2)` of x in [-1, 1] and t in [0, 1]."""
    x, t = points[:, :1], points[:, 1:]
    base = torch.sin(math.pi * x) * torch.cos(math.pi * t)
    return base + 0.5 * torch.sin(2 * math.pi * x) * torch.cos(2 * math.pi * t)


def helmholtz(points: Tensor) -> Tensor:
    """A solution of `u_xx + u_yy + 2 pi^2 u = 0` at points `(rows, 2)` of the unit square around 0."""
    return torch.sin(math.pi * points[:, :1]) * torch.cos(math.pi * points[:, 1:])


SOLUTIONS: dict[str, Callable[[Tensor], Tensor]] = {"heat": heat, "wave": wave, "helmholtz": helmholtz}
"""Equation -> the exact solution that its sensors measure."""


class Sensors:
    """Draws collocation points, sensor positions and noisy measurements of an equation's solution."""

    def __init__(self, equation: str) -> None:
        """Choose a key of `SOLUTIONS`."""
        self.equation = equation

    def __call__(self, generator: torch.Generator, num_rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draw `num_rows` collocation points, and half as many positions with measurements."""
        scale, offset = torch.tensor([2.0, 1.0]), torch.tensor([-1.0, 0.0])
        if self.equation == "helmholtz":
            scale, offset = torch.tensor([2.0, 2.0]), torch.tensor([-1.0, -1.0])
        inside = torch.rand((num_rows, 2), generator=generator) * scale + offset
        where = torch.rand((max(1, num_rows // 2), 2), generator=generator) * scale + offset
        noise = SENSOR_NOISE * torch.randn((len(where), 1), generator=generator)
        return inside, where, SOLUTIONS[self.equation](where) + noise


class ResidualLoss:
    """The mean squared residual of an equation, weighted, plus the squared error at the sensors."""

    def __init__(self, equation: str, weight: float = 0.02) -> None:
        """Choose a key of `SOLUTIONS`; the weight brings residuals near the sensors' scale."""
        self.equation = equation
        self.weight = weight

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of a batch of `Sensors`."""
        inside, where, measured = batch
        points = inside.detach().requires_grad_(True)
        value = model(points)
        first = torch.autograd.grad(value.sum(), points, create_graph=True)[0]
        second = [
            torch.autograd.grad(first[:, axis].sum(), points, create_graph=True)[0][:, axis : axis + 1]
            for axis in ((0,) if self.equation == "heat" else (0, 1))
        ]
        if self.equation == "heat":
            residual = first[:, 1:] - 0.05 * second[0]
        elif self.equation == "wave":
            residual = second[1] - second[0]
        else:
            residual = (second[0] + second[1] + 2 * math.pi**2 * value) / 10
        return self.weight * residual.square().mean() + functional.mse_loss(model(where), measured)


def sensor_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The mean squared error at the sensors of a batch; needs no derivative of the network."""
    _, where, measured = batch
    return functional.mse_loss(model(where), measured)
