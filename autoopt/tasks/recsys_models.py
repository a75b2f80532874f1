"""Recommender models: wide & deep, DeepFM, matrix factorisation, neural filtering and two towers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn


def _perceptron(inputs: int, hidden: Sequence[int]) -> nn.Sequential:
    """Linear layers with ReLUs between them, and a last one to a single output."""
    widths = (inputs, *hidden)
    layers: list[nn.Module] = []
    for fan_in, fan_out in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 1))


class FieldModel(nn.Module):
    """Base of models over categorical fields that share one table, each field its own rows."""

    offsets: Tensor

    def __init__(self, sizes: Sequence[int]) -> None:
        """Lay the fields out one after the other; `sizes` counts the categories of each."""
        super().__init__()
        starts = np.concatenate(([0], np.cumsum(sizes)[:-1]))
        self.register_buffer("offsets", torch.from_numpy(starts.astype(np.int64)))
        self.num_rows = int(sum(sizes))
        self.num_fields = len(sizes)


class WideDeep(FieldModel):
    """A linear model plus an MLP on embeddings (Cheng et al. 2016, arXiv 1606.07792).

    Maps categories `(batch, num_fields)` and numbers `(batch, num_numbers)` to `(batch,)`.
    """

    def __init__(
        self, sizes: Sequence[int], num_numbers: int, width: int, hidden: Sequence[int], *, sparse: bool
    ) -> None:
        """Build the model with embeddings of `width` and hidden layers as wide as `hidden` says."""
        super().__init__(sizes)
        self.wide = nn.EmbeddingBag(self.num_rows, 1, mode="sum", sparse=sparse)
        self.embedding = nn.Embedding(self.num_rows, width, sparse=sparse)
        nn.init.zeros_(self.wide.weight)
        self.deep = _perceptron(self.num_fields * width + num_numbers, hidden)

    def forward(self, categories: Tensor, numbers: Tensor) -> Tensor:
        """The score of each row."""
        rows = categories + self.offsets
        deep = self.deep(torch.cat((self.embedding(rows).flatten(1), numbers), dim=1))
        return (self.wide(rows) + deep).squeeze(1)


class DeepFm(FieldModel):
    """A factorisation machine and an MLP on the same embeddings (Guo et al. 2017, arXiv 1703.04247).

    Maps categories `(batch, num_fields)` and numbers `(batch, num_numbers)` to `(batch,)`.
    """

    def __init__(
        self, sizes: Sequence[int], num_numbers: int, width: int, hidden: Sequence[int], *, sparse: bool
    ) -> None:
        """Build the model with embeddings of `width` and hidden layers as wide as `hidden` says."""
        super().__init__(sizes)
        self.linear = nn.EmbeddingBag(self.num_rows, 1, mode="sum", sparse=sparse)
        self.embedding = nn.Embedding(self.num_rows, width, sparse=sparse)
        nn.init.zeros_(self.linear.weight)
        # Pairwise products of unit-variance embeddings would swamp the logit at the start.
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.deep = _perceptron(self.num_fields * width + num_numbers, hidden)

    def forward(self, categories: Tensor, numbers: Tensor) -> Tensor:
        """The score of each row."""
        rows = categories + self.offsets
        vectors = self.embedding(rows)
        pairs = 0.5 * (vectors.sum(1).square() - vectors.square().sum(1)).sum(1, keepdim=True)
        deep = self.deep(torch.cat((vectors.flatten(1), numbers), dim=1))
        return (self.linear(rows) + pairs + deep).squeeze(1)


class MatrixFactorisation(nn.Module):
    """Dot products of user and item vectors plus biases (Koren et al. 2009).

    Maps users `(batch,)` and items `(batch, num_items)` to scores of the items' shape.
    """

    def __init__(self, num_users: int, num_items: int, width: int, *, sparse: bool) -> None:
        """Build the tables; vectors start at a norm of about 1, biases at 0."""
        super().__init__()
        self.user = nn.Embedding(num_users, width, sparse=sparse)
        self.item = nn.Embedding(num_items, width, sparse=sparse)
        self.item_bias = nn.Embedding(num_items, 1, sparse=sparse)
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=width**-0.5)
        nn.init.zeros_(self.item_bias.weight)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """The scores, of shape `(batch, num_items)`."""
        products = torch.einsum("bw,bcw->bc", self.user(users), self.item(items))
        return products + self.item_bias(items).squeeze(-1)


class NeuralFiltering(nn.Module):
    """Matrix factorisation with an MLP on both vectors (He et al. 2017, arXiv 1708.05031).

    Maps categories `(batch, num_fields)`, of which the first two are the user and the item, to
    scores `(batch,)`; `numbers` is taken for the other models' sake and not used.
    """

    def __init__(
        self, sizes: Sequence[int], num_numbers: int, width: int, hidden: Sequence[int], *, sparse: bool
    ) -> None:
        """Build the model with vectors of `width` and hidden layers as wide as `hidden` says."""
        super().__init__()
        num_users, num_items = sizes[0], sizes[1]
        self.user = nn.Embedding(num_users, width, sparse=sparse)
        self.item = nn.Embedding(num_items, width, sparse=sparse)
        self.user_bias = nn.Embedding(num_users, 1, sparse=sparse)
        self.item_bias = nn.Embedding(num_items, 1, sparse=sparse)
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.1)
        for table in (self.user_bias, self.item_bias):
            nn.init.zeros_(table.weight)
        self.deep = _perceptron(2 * width, hidden)

    def forward(self, categories: Tensor, numbers: Tensor) -> Tensor:
        """The score of each row."""
        users, items = categories[:, 0], categories[:, 1]
        user, item = self.user(users), self.item(items)
        biases = self.user_bias(users) + self.item_bias(items)
        score = (user * item).sum(1, keepdim=True) + biases + self.deep(torch.cat((user, item), dim=1))
        return score.squeeze(1)


class TwoTower(nn.Module):
    """Two encoders into one space, trained so that the matching pair has the highest product.

    Maps queries `(batch, query_length)` and items `(batch, item_length)`, both padded with 0, to the
    products of all pairs, `(batch, batch)`; the true pair is on the diagonal.
    """

    def __init__(self, num_queries: int, num_items: int, width: int, *, sparse: bool, hidden: bool = True) -> None:
        """Build the towers: a bag of embeddings each, and an MLP on top where `hidden`."""
        super().__init__()
        self.query = nn.EmbeddingBag(num_queries, width, mode="mean", sparse=sparse, padding_idx=0)
        self.item = nn.EmbeddingBag(num_items, width, mode="mean", sparse=sparse, padding_idx=0)
        self.query_mlp, self.item_mlp = (
            nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
            if hidden
            else nn.Identity()
            for _ in range(2)
        )

    def forward(self, queries: Tensor, items: Tensor) -> Tensor:
        """The products of all pairs in the batch."""
        return self.query_mlp(self.query(queries)) @ self.item_mlp(self.item(items)).T
