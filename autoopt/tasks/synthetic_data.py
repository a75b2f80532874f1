"""Endless synthetic data: every `draw(generator, num_rows)` gives a fresh batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from autoopt.tasks.models_mlp import mlp
from autoopt.tasks.models_synthetic import spectrum

NUM_SYMBOLS = 12
"""Symbols of the memory tasks; in copying, symbol 0 is the blank and 1 the signal to answer."""
LABEL_NOISE = 0.1
"""Share of the memory tasks' labels that are random, so that the loss has a floor above zero."""


def checkerboard(generator: torch.Generator, num_rows: int) -> tuple[Tensor]:
    """Points uniform on the eight dark squares of a 4x4 board of side 8; the entropy is ln 32 nats."""
    points = torch.rand((num_rows, 2), generator=generator) * 4
    row = torch.randint(0, 2, (num_rows,), generator=generator) * 2 + points[:, 0].long() % 2
    y = row + points[:, 1] % 1
    return (2 * torch.stack([points[:, 0], y], dim=1) - 4,)


def pinwheel(generator: torch.Generator, num_rows: int) -> tuple[Tensor]:
    """Points on five curved blades, with a spread that keeps the entropy well above zero."""
    radius = 2.5 + 1.0 * torch.randn(num_rows, generator=generator)
    across = 0.35 * torch.randn(num_rows, generator=generator)
    blade = torch.randint(0, 5, (num_rows,), generator=generator)
    angle = blade * (2 * math.pi / 5) + 0.4 * radius
    cos, sin = torch.cos(angle), torch.sin(angle)
    return (torch.stack([radius * cos - across * sin, radius * sin + across * cos], dim=1),)


def rings(generator: torch.Generator, num_rows: int) -> tuple[Tensor]:
    """Points on two noisy rings of radius 1.5 and 4."""
    radius = 1.5 + 2.5 * torch.randint(0, 2, (num_rows,), generator=generator)
    radius = radius + 0.25 * torch.randn(num_rows, generator=generator)
    angle = 2 * math.pi * torch.rand(num_rows, generator=generator)
    return (torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1),)


@dataclass(frozen=True)
class NoisyMinima:
    """Minima of a noisy quadratic; the covariance of the gradient is `noise` times the Hessian."""

    size: int
    condition: float
    noise: float = 0.2

    def __call__(self, generator: torch.Generator, num_rows: int) -> tuple[Tensor]:
        """Draw the minima `(num_rows, size)`."""
        deviation = (self.noise / spectrum(self.size, self.condition)).sqrt()
        return (torch.randn((num_rows, self.size), generator=generator) * deviation,)


@dataclass(frozen=True)
class LinearTeacher:
    """Noisy outputs of a fixed random matrix for inputs with a known covariance spectrum."""

    size: int
    condition: float
    noise: float = 0.3

    def __call__(self, generator: torch.Generator, num_rows: int) -> tuple[Tensor, Tensor]:
        """Draw inputs and targets, both `(num_rows, size)`; targets have variance about 1."""
        fixed = torch.Generator().manual_seed(17)
        eigenvalues = spectrum(self.size, self.condition)
        matrix = torch.randn((self.size, self.size), generator=fixed) / eigenvalues.sum().sqrt()
        inputs = torch.randn((num_rows, self.size), generator=generator) * eigenvalues.sqrt()
        noise = self.noise * torch.randn((num_rows, self.size), generator=generator)
        return inputs, inputs @ matrix.T + noise


@dataclass(frozen=True)
class MlpTeacher:
    """Noisy outputs of a fixed random perceptron for Gaussian inputs."""

    size: int
    width: int
    noise: float = 0.3

    def __call__(self, generator: torch.Generator, num_rows: int) -> tuple[Tensor, Tensor]:
        """Draw inputs `(num_rows, size)` and targets `(num_rows, 1)` of variance about 1."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(17)
            teacher = mlp(self.size, 1, self.width, 1, "tanh")
            for layer in teacher:
                if isinstance(layer, torch.nn.Linear):
                    torch.nn.init.normal_(layer.weight, std=2.5 / layer.in_features**0.5)
            inputs = torch.randn((num_rows, self.size), generator=generator)
            targets = teacher(inputs) / 2
        return inputs, targets + self.noise * torch.randn(targets.shape, generator=generator)


@dataclass(frozen=True)
class CopyMemory:
    """Symbols to be repeated after a pause (Hochreiter and Schmidhuber 1997)."""

    length: int
    pause: int

    def __call__(self, generator: torch.Generator, num_rows: int) -> tuple[Tensor, Tensor]:
        """Draw ids `(num_rows, 2 length + pause)` and labels `(num_rows, length)` of the last ones."""
        symbols = torch.randint(2, NUM_SYMBOLS, (num_rows, self.length), generator=generator)
        blank = torch.zeros((num_rows, self.pause), dtype=torch.long)
        signal = torch.ones((num_rows, self.length), dtype=torch.long)
        labels = _noisy(generator, symbols)
        return torch.cat([symbols, blank, signal], dim=1), labels


@dataclass(frozen=True)
class AssociativeRecall:
    """Pairs of symbols, and a key whose value is asked for (Graves et al. 2014, arXiv 1410.5401)."""

    num_pairs: int

    def __call__(self, generator: torch.Generator, num_rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw distinct keys and values `(num_rows, num_pairs)`, a query and its label `(num_rows,)`."""
        order = torch.rand((num_rows, NUM_SYMBOLS), generator=generator).argsort(1)
        keys = order[:, : self.num_pairs]
        values = torch.randint(0, NUM_SYMBOLS, (num_rows, self.num_pairs), generator=generator)
        asked = torch.randint(0, self.num_pairs, (num_rows, 1), generator=generator)
        labels = _noisy(generator, values.gather(1, asked).squeeze(1))
        return keys, values, keys.gather(1, asked).squeeze(1), labels


def _noisy(generator: torch.Generator, labels: Tensor) -> Tensor:
    """The labels with `LABEL_NOISE` of them replaced by random symbols."""
    replaced = torch.rand(labels.shape, generator=generator) < LABEL_NOISE
    return torch.where(replaced, torch.randint(2, NUM_SYMBOLS, labels.shape, generator=generator), labels)


def copy_loss(model: torch.nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The mean negative log-likelihood in nats of the repeated symbols."""
    ids, labels = batch
    logits = model(ids)[:, -labels.shape[1] :]
    return functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
