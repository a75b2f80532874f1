"""Recipes, models and a selection that the tests of the optimizer share."""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from torch import nn

from autoopt.architecture import LayerInfo, describe
from autoopt.optimizers.auto_optimizer import AutoOptimizer
from autoopt.optimizers.catalog import ALL_GROUPS
from autoopt.optimizers.plan import OptimizerPlan
from autoopt.optimizers.recipe import Recipe, RoleConfig, calibrated_default


def mixed(matrix, conv, vector):
    """A recipe for parameters without a model: by shape they are matrices, convolutions or vectors."""
    groups = {group: RoleConfig("adamw", 1e-3) for group in ALL_GROUPS}
    return Recipe(groups | {"matrix": matrix, "conv": conv, "vector": vector})


RECIPES = {
    "adamw": Recipe.uniform("adamw", 1e-3, width_free=False),
    "sgd": Recipe.uniform("sgd", 1e-2, width_free=False),
    "default": calibrated_default(),
    "soap-lion-nadam": mixed(RoleConfig("soap", 3e-3), RoleConfig("lion", 1e-3), RoleConfig("nadam", 1e-3)),
    "adafactor-rmsprop-adagrad": mixed(
        RoleConfig("adafactor", 1e-2), RoleConfig("rmsprop", 1e-3, {"momentum": 0.5}), RoleConfig("adagrad", 1e-2)
    ),
}
"""An all-AdamW, an all-SGD and three mixed recipes."""


class Net(nn.Module):
    """A matrix, a convolution, a wide matrix, vectors and a scalar; differentiable in all of them."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 3, padding=1)
        self.norm = nn.LayerNorm(20)
        self.hidden = nn.Linear(20, 6)
        self.head = nn.Linear(6, 3)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        hidden = self.norm(self.conv(x).flatten(1))
        return self.head(torch.tanh(self.hidden(hidden))) * self.scale


def net(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return Net().to(dtype)


def loss_of(model, step=0):
    """The loss on the batch of a step, the same for equal arguments."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(16, 3, 5, generator=generator)
    y = torch.randint(0, 3, (16,), generator=generator)
    dtype = next(model.parameters()).dtype
    return nn.functional.cross_entropy(model(x.to(dtype)).float(), y)


def train(model, optimizer, steps, start=0):
    """Train with one batch a step; the loss of each step."""
    losses = []
    for step in range(start, start + steps):
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def snapshot(model):
    return [param.detach().clone() for param in model.parameters()]


def assert_same(model, other):
    ours = model if isinstance(model, list) else list(model.parameters())
    theirs = other if isinstance(other, list) else list(other.parameters())
    for index, (left, right) in enumerate(zip(ours, theirs, strict=True)):
        assert torch.equal(left, right), f"parameter {index} differs"


def tensors_of(value):
    """Every tensor in nested state, as pairs of path and tensor."""
    if isinstance(value, torch.Tensor):
        yield (), value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from (((key, *path), tensor) for path, tensor in tensors_of(part))
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from (((index, *path), tensor) for path, tensor in tensors_of(part))


def assert_same_state(left, right):
    """Equal tensors, types and devices throughout two state_dicts, and equal everything else."""
    ours, theirs = dict(tensors_of(left)), dict(tensors_of(right))
    assert ours.keys() == theirs.keys()
    for path, tensor in ours.items():
        assert tensor.dtype == theirs[path].dtype, path
        assert torch.equal(tensor, theirs[path]), path
    plain = lambda value: {  # noqa: E731
        i: {k: v for k, v in s.items() if not isinstance(v, torch.Tensor)} for i, s in value["state"].items()
    }
    assert plain(left) == plain(right)
    groups = [[{k: v for k, v in g.items() if k != "lr"} for g in value["param_groups"]] for value in (left, right)]
    assert groups[0] == groups[1]


@dataclass
class Switch:
    """A selection that puts a given plan in force after its warm-up, and keeps what it was shown."""

    warmup_steps: int
    described: dict[str, LayerInfo]
    chosen: OptimizerPlan
    seed: int = 0
    clock: None = None
    shown: list = field(default_factory=list)

    def layers(self):
        return self.described

    def scales(self):
        return json.dumps({name: layer.rms for name, layer in self.described.items()})

    def take_scales(self, text):
        assert set(json.loads(text)) == set(self.described)

    def decide(self, optimizer):
        self.shown.append((optimizer.num_nonfinite_steps, optimizer.observed_losses()))
        return SimpleNamespace(plan=self.chosen, shown=self.shown[-1])


def switching(model, before, after, warmup_steps=3, total_steps=None, **options):
    """An optimizer that trains with one recipe and then switches to another, as `select` makes it."""
    layers = describe(model).layers
    chosen = after.resolve(layers, total_steps)
    selection = Switch(warmup_steps, {layer.name: layer for layer in layers}, chosen)
    plan = before.resolve(layers, total_steps)
    return AutoOptimizer(model.named_parameters(), plan=plan, selection=selection, **options)


def twin(model):
    return copy.deepcopy(model)
