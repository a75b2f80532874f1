"""A small model with every role group but convolutions, its loss, and endless seeded batches."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import nn


class Classifier(nn.Module):
    """Tokens to one of five classes; the embedding's gradients are sparse, the tail drops out."""

    def __init__(self, sparse=True):
        super().__init__()
        self.embedding = nn.Embedding(40, 8, sparse=sparse)
        self.hidden = nn.Linear(8, 16)
        self.norm = nn.BatchNorm1d(16)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(16, 5)

    def forward(self, tokens):
        hidden = torch.relu(self.norm(self.hidden(self.embedding(tokens).mean(1))))
        return self.head(self.drop(hidden))


def classifier(seed=0, sparse=True):
    """A freshly initialised classifier, with torch's generator seeded for the run to come."""
    torch.manual_seed(seed)
    model = Classifier(sparse)
    torch.manual_seed(seed + 1)
    return model


def batches(count, seed=0):
    """Pairs of tokens `(16, 6)` and labels."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        tokens = torch.randint(40, (16, 6), generator=generator)
        yield tokens, tokens.sum(1) % 5


def loss_fn(model, batch):
    tokens, labels = batch
    return nn.functional.cross_entropy(model(tokens), labels)


def train(model, optimizer, data, before_step=lambda step: None):
    """One optimizer step a batch; `before_step` sees the gradients."""
    for step, batch in enumerate(data):
        optimizer.zero_grad()
        loss_fn(model, batch).backward()
        before_step(step)
        optimizer.step()


class Snapshot:
    """Everything of a model and of the random generators that a profile must leave alone."""

    def __init__(self, model):
        self.model = model
        self.tensors = {name: (t, t.detach().clone()) for name, t in self._named()}
        self.grads = {
            name: (p.grad, None if p.grad is None else p.grad.clone()) for name, p in model.named_parameters()
        }
        self.modes = [module.training for module in model.modules()]
        self.hooks = self._hooks()
        self.random = self._random()

    def _named(self):
        return [*self.model.named_parameters(), *self.model.named_buffers()]

    def _hooks(self):
        kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        return [len(getattr(module, kind)) for module in self.model.modules() for kind in kinds]

    def _random(self):
        numpy_state = np.random.get_state()
        return (random.getstate(), numpy_state[1].tolist(), numpy_state[2], torch.get_rng_state().tolist())

    def assert_unchanged(self):
        assert [name for name, _ in self._named()] == list(self.tensors)
        for name, tensor in self._named():
            same, value = self.tensors[name]
            assert tensor is same, f"{name} is another tensor"
            assert bits(tensor) == bits(value), f"{name} has other values"
        for name, param in self.model.named_parameters():
            same, value = self.grads[name]
            assert param.grad is same, f"the gradient of {name} is another tensor"
            if value is not None:
                assert bits(param.grad) == bits(value), f"the gradient of {name} has other values"
        assert [module.training for module in self.model.modules()] == self.modes
        assert self._hooks() == self.hooks
        assert self._random() == self.random


def bits(tensor):
    """The tensor's bytes, so that NaN equals NaN and 0.0 differs from -0.0."""
    tensor = tensor.detach()
    if tensor.is_sparse:
        tensor = tensor.coalesce()
        return bits(tensor.indices()) + bits(tensor.values())
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def parameters(model):
    """Bytes of all parameters and buffers, by name."""
    return {name: bits(tensor) for name, tensor in model.state_dict().items()}
