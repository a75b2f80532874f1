"""Models of the synthetic tasks: flows, deep linear maps, quadratics, memory models."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from autoopt.tasks.models_mlp import mlp
from autoopt.tasks.transformer import Block


class RealNvp(nn.Module):
    """A flow of affine coupling layers over points in the plane (Dinh et al. 2016, arXiv 1605.08803)."""

    def __init__(self, width: int, depth: int) -> None:
        """Build `depth` couplings that transform one coordinate given the other, in turn."""
        super().__init__()
        self.couplings = nn.ModuleList(mlp(1, 2, width, 2, "tanh") for _ in range(depth))

    def forward(self, points: Tensor) -> Tensor:
        """The log density of points `(batch, 2)`, in nats, `(batch,)`."""
        kept, moved = points[:, :1], points[:, 1:]
        log_determinant = torch.zeros(len(points), device=points.device)
        for coupling in self.couplings:
            raw_scale, shift = coupling(kept).chunk(2, dim=1)
            # A bounded log scale keeps a young flow from overflowing.
            log_scale = 2 * torch.tanh(raw_scale / 2)
            moved = moved * torch.exp(log_scale) + shift
            log_determinant = log_determinant + log_scale.squeeze(1)
            kept, moved = moved, kept
        squares = kept.square() + moved.square()
        return log_determinant - 0.5 * squares.squeeze(1) - math.log(2 * math.pi)


class Quadratic(nn.Module):
    """The noisy quadratic `0.5 mean_i h_i (theta_i - c_i)^2` with `h` from `spectrum`.

    The model of Zhang et al. 2019 (arXiv 1907.04164): the minimum `c` is drawn anew for every
    example with a variance inverse to `h_i`, so that the gradient's covariance is a multiple of the
    Hessian.
    """

    def __init__(self, size: int, condition: float) -> None:
        """Build the parameter vector, of unit variance."""
        super().__init__()
        self.curvature: Tensor
        self.register_buffer("curvature", spectrum(size, condition))
        self.theta = nn.Parameter(torch.randn(size))

    def forward(self, minima: Tensor) -> Tensor:
        """The loss of each example, for minima `(batch, size)`."""
        return 0.5 * (self.curvature * (self.theta - minima).square()).mean(1)


def spectrum(size: int, condition: float) -> Tensor:
    """`size` values falling log-linearly by a factor of `condition`, with a mean of 1."""
    values = torch.logspace(0, -math.log10(condition), size)
    return values / values.mean()


def deep_linear(size: int, width: int, depth: int) -> nn.Sequential:
    """A product of `depth` matrices without biases between inputs and outputs of `size`.

    Orthogonal initialisation, since the dynamics are known for it (Saxe et al. 2013, arXiv 1312.6120).
    """
    sizes = [size, *[width] * (depth - 1), size]
    layers = [nn.Linear(a, b, bias=False) for a, b in zip(sizes, sizes[1:], strict=False)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight, gain=0.8)
    return nn.Sequential(*layers)


class CopyRnn(nn.Module):
    """A recurrent network over symbol ids `(batch, length)` giving logits at every position."""

    def __init__(self, cell: str, num_symbols: int, width: int) -> None:
        """Build the model; `cell` is `"gru"` or `"lstm"`."""
        super().__init__()
        self.embedding = nn.Embedding(num_symbols, width)
        self.recurrent = {"gru": nn.GRU, "lstm": nn.LSTM}[cell](width, width, batch_first=True)
        self.head = nn.Linear(width, num_symbols)

    def forward(self, ids: Tensor) -> Tensor:
        """The logits `(batch, length, num_symbols)`."""
        return self.head(self.recurrent(self.embedding(ids))[0])


class RecallTransformer(nn.Module):
    """A transformer that answers which value came with a key, given pairs and then a key."""

    def __init__(self, num_symbols: int, width: int, depth: int) -> None:
        """Build the model; a pair is one position, the sum of a key's and a value's embedding."""
        super().__init__()
        self.keys = nn.Embedding(num_symbols, width)
        self.values = nn.Embedding(num_symbols, width)
        self.blocks = nn.ModuleList(
            Block(width, max(1, width // 16), False, "split", True, False) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_symbols)

    def forward(self, keys: Tensor, values: Tensor, query: Tensor) -> Tensor:
        """The logits `(batch, num_symbols)` for pairs `(batch, num_pairs)` and queries `(batch,)`."""
        pairs = self.keys(keys) + self.values(values)
        x = torch.cat([pairs, self.keys(query)[:, None]], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, -1]))
