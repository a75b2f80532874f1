"""A transformer whose symbols are the columns of a table."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from autoopt.tasks.transformer import Block


class FeatureTransformer(nn.Module):
    """An FT-Transformer (Gorishniy et al. 2021, arXiv 2106.11959).

    Every numeric column is a learned direction scaled by its value plus a learned offset, every
    categorical one a row of an embedding shared by all columns; a class token reads the result.
    """

    def __init__(
        self, num_numeric: int, cardinalities: Sequence[int], num_outputs: int, width: int, depth: int
    ) -> None:
        """Build the model, with attention heads of width 16."""
        super().__init__()
        scale = width**-0.5
        self.directions = nn.Parameter(torch.empty(num_numeric, width).uniform_(-scale, scale))
        self.offsets = nn.Parameter(torch.empty(num_numeric, width).uniform_(-scale, scale))
        self.class_token = nn.Parameter(torch.empty(1, 1, width).uniform_(-scale, scale))
        starts = torch.tensor([0, *cardinalities]).cumsum(0)
        self.starts: Tensor
        self.register_buffer("starts", starts[:-1], persistent=False)
        self.categories = nn.Embedding(int(starts[-1]), width) if cardinalities else None
        if self.categories is not None:
            nn.init.uniform_(self.categories.weight, -scale, scale)
        self.blocks = nn.ModuleList(
            Block(width, max(1, width // 16), False, "split", True, False) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_outputs)

    def forward(self, numeric: Tensor, categories: Tensor) -> Tensor:
        """The outputs for numeric `(batch, num_numeric)` and integer `(batch, num_columns)` inputs."""
        tokens = [self.class_token.expand(len(numeric), -1, -1)]
        tokens.append(numeric.unsqueeze(-1) * self.directions + self.offsets)
        if self.categories is not None:
            tokens.append(self.categories(categories + self.starts))
        x = torch.cat(tokens, dim=1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))
