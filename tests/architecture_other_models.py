"""Small models of tables, graphs and sequences with the module graphs of real ones, for the tests of the architecture.

Only what the description looks at is real: modules, their nesting and the order of registration; most have
no `forward`.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrizations


class DLRM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.EmbeddingBag(100, 8, sparse=True), nn.EmbeddingBag(30, 8, mode="sum")])
        self.bottom = nn.Sequential(nn.Linear(13, 32), nn.ReLU(), nn.Linear(32, 8))
        self.top = nn.Sequential(nn.Linear(11, 16), nn.ReLU(), nn.Linear(16, 1))


class MatrixFactorisation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.user = nn.Embedding(20, 4, sparse=True)
        self.item = nn.Embedding(30, 4, sparse=True)
        self.user_bias = nn.Embedding(20, 1, sparse=True)
        self.mean = nn.Parameter(torch.zeros(()))


class WideAndDeep(nn.Module):
    """Two parts of different input widths add up to one output."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(100, 1)
        self.embedding = nn.Embedding(40, 8)
        self.deep = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 1))


class TwoTower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.item_embedding = nn.EmbeddingBag(50, 16)
        self.user_tower = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 12))
        self.item_tower = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 12))


class GraphConvolution(nn.Module):
    """Kipf's layer: a bare (inputs, outputs) weight with a bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.weight = nn.Parameter(torch.zeros(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))


class GCN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gc1 = GraphConvolution(34, 16)
        self.gc2 = GraphConvolution(16, 4)


class RelationalConv(nn.Module):
    """One matrix a relation, stacked."""

    def __init__(self, relations: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(relations, inputs, outputs))
        self.root = nn.Linear(inputs, outputs, bias=False)
        self.bias = nn.Parameter(torch.zeros(outputs))


class GATLayer(nn.Module):
    """Graph attention: a projection and bare attention vectors of shape (1, heads, features)."""

    def __init__(self, inputs: int, heads: int, outputs: int) -> None:
        super().__init__()
        self.lin = nn.Linear(inputs, heads * outputs, bias=False)
        self.att_src = nn.Parameter(torch.zeros(1, heads, outputs))
        self.att_dst = nn.Parameter(torch.zeros(1, heads, outputs))
        self.bias = nn.Parameter(torch.zeros(heads * outputs))


class CharacterRNN(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: object) -> None:
        super().__init__()
        self.encoder = nn.Embedding(30, 8)
        self.rnn = kind(8, 16, num_layers=2, **options)  # type: ignore[arg-type]
        self.decoder = nn.Linear(16, 30)


class CellStack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList([nn.RNNCell(8, 16), nn.GRUCell(16, 16), nn.LSTMCell(16, 16)])
        self.readout = nn.Linear(16, 2)


class BilinearScorer(nn.Module):
    """Biaffine: two projections into one bilinear form."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(10, 6)
        self.right = nn.Linear(10, 7)
        self.score = nn.Bilinear(6, 7, 3)


def batchnorm_mlp_model() -> nn.Module:
    return nn.Sequential(
        nn.Linear(30, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, 2),
    )


class MultiTask(nn.Module):
    """A trunk and a dict of heads, one of them square."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
        self.heads = nn.ModuleDict({"age": nn.Linear(16, 1), "vector": nn.Linear(16, 16), "kind": nn.Linear(16, 7)})


class ActorCritic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
        self.log_std = nn.Parameter(torch.zeros(2))
        self.policy = nn.Linear(32, 2)
        self.value = nn.Linear(32, 1)


class VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 32), nn.ReLU())
        self.mean = nn.Linear(32, 4)
        self.log_variance = nn.Linear(32, 4)
        self.decoder = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 64))


class Siamese(nn.Module):
    """One tower registered at two places, inside a deeper module."""

    def __init__(self) -> None:
        super().__init__()
        tower = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 8))
        self.pair = nn.ModuleDict({"left": nn.ModuleDict({"net": tower}), "right": tower})
        self.out = nn.Linear(16, 1)


def reparametrised_model() -> nn.Module:
    return nn.Sequential(
        parametrizations.weight_norm(nn.Conv1d(3, 8, 3)),
        nn.Flatten(),
        parametrizations.orthogonal(nn.Linear(8, 8)),
        parametrizations.spectral_norm(nn.Linear(8, 8)),
        parametrizations.weight_norm(nn.Linear(8, 1)),
    )
