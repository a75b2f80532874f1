"""Models and batches for the tests on several ranks; nothing in them draws random numbers as it runs."""

import hashlib

import torch
from small_models import bits
from torch import nn


class Plain(nn.Module):
    """Like `small_models.Classifier`, without batch norm and dropout: ranks that share a batch add up."""

    def __init__(self, sparse=True, width=16):
        super().__init__()
        self.embedding = nn.Embedding(40, 8, sparse=sparse)
        self.conv = nn.Conv1d(1, 3, 3, padding=1)
        self.hidden = nn.Linear(24, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, tokens):
        mean = self.embedding(tokens).mean(1)
        hidden = self.conv(mean.unsqueeze(1)).flatten(1)
        return self.head(torch.relu(self.norm(self.hidden(hidden)))) * self.scale


def plain_classifier(sparse=True, seed=0, width=16):
    torch.manual_seed(seed)
    return Plain(sparse, width)


def batch_of(index, size=16):
    """Tokens and labels of a step, the same for equal arguments."""
    generator = torch.Generator().manual_seed(index)
    tokens = torch.randint(40, (size, 6), generator=generator)
    return tokens, tokens.sum(1) % 5


def part_of(batch, rank, ranks=2):
    """The share of a batch that one rank has."""
    return tuple(tensor.chunk(ranks)[rank] for tensor in batch)


def digest(tensors):
    """A hash of all bits."""
    value = hashlib.sha256()
    for tensor in tensors:
        value.update(bits(tensor))
    return value.hexdigest()
