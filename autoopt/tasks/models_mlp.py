"""Fully connected models: plain, normalised, residual, and with embedded categories."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU}
NORMS: dict[str, type[nn.Module]] = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


def mlp(
    num_inputs: int, num_outputs: int, width: int, depth: int, activation: str = "relu", norm: str = ""
) -> nn.Sequential:
    """A perceptron of `depth` hidden layers, mapping `(batch, ...)` to `(batch, num_outputs)`.

    Args:
        num_inputs: Elements of an input, which is flattened.
        num_outputs: Size of the output.
        width: Width of the hidden layers.
        depth: Number of hidden layers.
        activation: A key of `ACTIVATIONS`.
        norm: A key of `NORMS`, before each activation, or `""` for none.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    size = num_inputs
    for _ in range(depth):
        layers.append(nn.Linear(size, width))
        if norm:
            layers.append(NORMS[norm](width))
        layers.append(ACTIVATIONS[activation]())
        size = width
    return nn.Sequential(*layers, nn.Linear(size, num_outputs))


class ResMlp(nn.Module):
    """A pre-norm residual perceptron, mapping `(batch, ...)` to `(batch, num_outputs)`.

    After the tabular ResNet of Gorishniy et al. 2021 (arXiv 2106.11959), with layer norms.
    """

    def __init__(self, num_inputs: int, num_outputs: int, width: int, depth: int) -> None:
        """Build `depth` blocks of two matrices each."""
        super().__init__()
        self.stem = nn.Linear(num_inputs, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """The outputs for inputs of shape `(batch, ...)`."""
        x = self.stem(x.flatten(1))
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.norm(x))


class EmbeddingMlp(nn.Module):
    """A perceptron over numeric columns and learned embeddings of categorical ones.

    After Guo and Berkhahn 2016 (arXiv 1604.06737).
    """

    def __init__(
        self, num_numeric: int, cardinalities: Sequence[int], num_outputs: int, width: int, depth: int
    ) -> None:
        """Build one embedding a categorical column, wider for columns with more categories."""
        super().__init__()
        sizes = [min(width // 2, 2 + round(count**0.5)) for count in cardinalities]
        self.embeddings = nn.ModuleList(map(nn.Embedding, cardinalities, sizes))
        self.body = mlp(num_numeric + sum(sizes), num_outputs, width, depth)

    def forward(self, numeric: Tensor, categories: Tensor) -> Tensor:
        """The outputs for numeric `(batch, num_numeric)` and integer `(batch, num_columns)` inputs."""
        embedded = [table(categories[:, index]) for index, table in enumerate(self.embeddings)]
        return self.body(torch.cat([numeric, *embedded], dim=1))
