"""Models over symbol ids that are no transformers: recurrent, convolutional, bags and skip-grams."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class RecurrentModel(nn.Module):
    """An LSTM or GRU over symbol ids, as a language model, a tagger or a classifier.

    Maps ids `(batch, length)` to logits: `(batch, length, num_outputs)`, or `(batch, num_outputs)`
    from the maximum over time where `pooled`.
    """

    def __init__(
        self,
        cell: str,
        num_symbols: int,
        num_outputs: int,
        width: int,
        num_layers: int = 1,
        *,
        bidirectional: bool = False,
        pooled: bool = False,
        tied: bool = False,
    ) -> None:
        """Build the model; `cell` is `"lstm"` or `"gru"`, `tied` needs one direction."""
        super().__init__()
        self.pooled = pooled
        self.embedding = nn.Embedding(num_symbols, width)
        network = nn.LSTM if cell == "lstm" else nn.GRU
        self.recurrent = network(width, width, num_layers=num_layers, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(width * (2 if bidirectional else 1), num_outputs, bias=not tied)
        if tied:
            # The logits of a tied head would start at a deviation of sqrt(width).
            nn.init.normal_(self.embedding.weight, std=width**-0.5)
            self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        """The logits for ids of shape `(batch, length)`."""
        states, _ = self.recurrent(self.embedding(ids))
        if self.pooled:
            states = states.masked_fill((ids == 0).unsqueeze(-1), -1.0).amax(1)
        return self.head(states)


class BagClassifier(nn.Module):
    """The mean of a bag's embeddings, then a linear layer or an MLP.

    Maps ids `(batch, length)`, padded with 0, to `(batch, num_outputs)`.
    """

    def __init__(
        self, num_symbols: int, num_outputs: int, width: int, *, hidden: int = 0, sparse: bool = False
    ) -> None:
        """Build the model; `hidden` is the width of the MLP's one hidden layer, 0 for none."""
        super().__init__()
        self.embedding = nn.EmbeddingBag(num_symbols, width, mode="mean", sparse=sparse, padding_idx=0)
        self.hidden = nn.Sequential(nn.Linear(width, hidden), nn.ReLU()) if hidden else nn.Identity()
        self.head = nn.Linear(hidden or width, num_outputs)

    def forward(self, ids: Tensor) -> Tensor:
        """The logits for ids of shape `(batch, length)`."""
        return self.head(self.hidden(self.embedding(ids)))


class SkipGram(nn.Module):
    """Word2vec's two tables, scored by dot products (Mikolov et al. 2013, arXiv 1310.4546).

    Maps centres `(batch,)` and contexts `(batch, num_contexts)` to scores of the contexts' shape.
    """

    def __init__(self, num_symbols: int, width: int, *, sparse: bool, zero_output: bool) -> None:
        """Build the tables; with `zero_output` as the original code starts them, else both small."""
        super().__init__()
        self.centre = nn.Embedding(num_symbols, width, sparse=sparse)
        self.context = nn.Embedding(num_symbols, width, sparse=sparse)
        nn.init.uniform_(self.centre.weight, -0.5 / width, 0.5 / width)
        if zero_output:
            nn.init.zeros_(self.context.weight)
        else:
            nn.init.normal_(self.context.weight, std=width**-0.5)

    def forward(self, centres: Tensor, contexts: Tensor) -> Tensor:
        """The scores, of shape `(batch, num_contexts)`."""
        return torch.einsum("bw,bcw->bc", self.centre(centres), self.context(contexts))


class TextCnn(nn.Module):
    """Convolutions of several lengths, maxima over time, a linear layer (Kim 2014, arXiv 1408.5882).

    Maps ids `(batch, length)`, padded with 0, to `(batch, num_outputs)`.
    """

    def __init__(
        self, num_symbols: int, num_outputs: int, width: int, kernel_sizes: tuple[int, ...] = (2, 3, 4)
    ) -> None:
        """Build the model with `width` channels of each kernel size."""
        super().__init__()
        self.embedding = nn.Embedding(num_symbols, width, padding_idx=0)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, width, size) for size in kernel_sizes)
        self.head = nn.Linear(width * len(kernel_sizes), num_outputs)

    def forward(self, ids: Tensor) -> Tensor:
        """The logits for ids of shape `(batch, length)`."""
        x = self.embedding(ids).transpose(1, 2)
        pooled = [functional.relu(convolution(x)).amax(2) for convolution in self.convolutions]
        return self.head(torch.cat(pooled, dim=1))
