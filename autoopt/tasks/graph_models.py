"""Graph models: knowledge-graph embeddings, and graph convolutions for nodes and for links."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

SCORES = ("transe", "distmult", "complex")


class KnowledgeEmbedding(nn.Module):
    """Entities and relations as vectors whose triples are scored by one of three formulas.

    `"transe"`: -|h + r - t|_1 (Bordes et al. 2013); `"distmult"`: sum h r t (Yang et al.
    2014, arXiv 1412.6575); `"complex"`: Re(sum h r conj(t)) with each vector's halves as real and
    imaginary parts (Trouillon et al. 2016, arXiv 1606.06357).

    Maps heads and relations `(batch,)` and tails `(batch, num_tails)` to scores of the tails' shape.
    """

    def __init__(self, score: str, num_entities: int, num_relations: int, width: int, *, sparse: bool) -> None:
        """Build the tables, with vectors of norm about 1 (2 for products, which else start flat)."""
        super().__init__()
        self.score = score
        self.entity = nn.Embedding(num_entities, width, sparse=sparse)
        self.relation = nn.Embedding(num_relations, width, sparse=sparse)
        for table in (self.entity, self.relation):
            nn.init.normal_(table.weight, std=(1.0 if score == "transe" else 2.0) * width**-0.5)

    def forward(self, heads: Tensor, relations: Tensor, tails: Tensor) -> Tensor:
        """The scores, of shape `(batch, num_tails)`."""
        head, relation, tail = self.entity(heads), self.relation(relations), self.entity(tails)
        if self.score == "transe":
            return -((head + relation).unsqueeze(1) - tail).abs().sum(-1)
        if self.score == "distmult":
            return torch.einsum("bw,bcw->bc", head * relation, tail)
        (head_re, head_im), (rel_re, rel_im) = head.chunk(2, -1), relation.chunk(2, -1)
        real, imaginary = head_re * rel_re - head_im * rel_im, head_re * rel_im + head_im * rel_re
        return torch.einsum("bw,bcw->bc", torch.cat((real, imaginary), dim=-1), tail)


class GraphConvolution(nn.Module):
    """One layer of Kipf and Welling 2016 (arXiv 1609.02907): D^-1/2 (A + I) D^-1/2 X W + b.

    Edges are kept as index vectors, since sparse tensors do not survive copying a module everywhere.
    """

    heads: Tensor
    tails: Tensor
    weights: Tensor

    def __init__(self, fan_in: int, fan_out: int, edges: np.ndarray, num_nodes: int) -> None:
        """Build the layer; `edges` is `(2, num_edges)` without self-loops."""
        super().__init__()
        loops = np.tile(np.arange(num_nodes), (2, 1))
        heads, tails = np.concatenate((edges, loops), axis=1)
        degree = np.bincount(tails, minlength=num_nodes).astype(np.float32)
        weights = 1.0 / np.sqrt(degree[heads] * degree[tails])
        for name, array in (("heads", heads), ("tails", tails), ("weights", weights)):
            self.register_buffer(name, torch.from_numpy(array), persistent=False)
        self.linear = nn.Linear(fan_in, fan_out)

    def forward(self, x: Tensor) -> Tensor:
        """The features of all nodes after the layer, `(num_nodes, fan_out)`."""
        x = self.linear(x)
        messages = x.index_select(0, self.heads) * self.weights.unsqueeze(1)
        return torch.zeros_like(x).index_add(0, self.tails, messages)


class NodeClassifier(nn.Module):
    """Two graph convolutions with a residual between them, then a linear layer, for given nodes.

    Maps node numbers `(batch,)` to logits `(batch, num_outputs)`.
    """

    features: Tensor

    def __init__(self, features: np.ndarray, edges: np.ndarray, num_outputs: int, width: int) -> None:
        """Build the model; `features` is `(num_nodes, num_features)`."""
        super().__init__()
        self.register_buffer("features", torch.from_numpy(features), persistent=False)
        num_nodes, num_features = features.shape
        self.first = GraphConvolution(num_features, width, edges, num_nodes)
        self.second = GraphConvolution(width, width, edges, num_nodes)
        self.head = nn.Linear(width, num_outputs)

    def forward(self, nodes: Tensor) -> Tensor:
        """The logits of the nodes."""
        x = functional.relu(self.first(self.features))
        x = x + functional.relu(self.second(x))
        return self.head(x.index_select(0, nodes))


class LinkPredictor(nn.Module):
    """Entity vectors smoothed by graph convolutions, links scored as in DistMult.

    Maps heads and relations `(batch,)` to logits of every tail, `(batch, num_entities)`.
    """

    def __init__(self, edges: np.ndarray, num_entities: int, num_relations: int, width: int) -> None:
        """Build the model; `edges` is `(2, num_edges)`."""
        super().__init__()
        self.entity = nn.Embedding(num_entities, width)
        self.relation = nn.Embedding(num_relations, width)
        self.first = GraphConvolution(width, width, edges, num_entities)
        self.second = GraphConvolution(width, width, edges, num_entities)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, width)

    def forward(self, heads: Tensor, relations: Tensor) -> Tensor:
        """The logits of every entity as the tail."""
        x = self.entity.weight
        x = x + self.second(functional.relu(self.first(x)))
        x = self.norm(x)
        query = x.index_select(0, heads) * self.relation(relations)
        return self.head(query) @ x.T * x.shape[1] ** -0.5
