"""The generated code steps bit for bit as the optimizer that runs the plan, without autoopt."""

import ast
import builtins
import copy

import numpy as np
import pytest
import torch
from torch import nn

from autoopt.errors import PlanError
from autoopt.optimizers.auto_optimizer import AutoOptimizer
from autoopt.optimizers.catalog import CATALOG
from autoopt.optimizers.plan import OptimizerConfig, OptimizerPlan
from autoopt.optimizers.schedule import Schedule

NAMES = [info.name for info in CATALOG]


class Matrices(nn.Module):
    """Only tensors that every rule for matrices takes: plain, fused, wide and convolutional."""

    def __init__(self):
        super().__init__()
        self.fused = nn.Linear(6, 18, bias=False)
        self.conv = nn.Conv2d(2, 4, 3, bias=False)
        self.wide = nn.Linear(16, 5, bias=False)

    def forward(self, x):
        hidden = self.conv(x.reshape(-1, 2, 3, 3)).flatten(1)
        return self.wide(torch.cat([hidden.tanh().repeat(1, 4)], 1)).sum() + self.fused(x[:, :6]).tanh().sum()


def inputs(step):
    return torch.randn(7, 18, generator=torch.Generator().manual_seed(step))


def loss_of(model, step):
    if isinstance(model, nn.Embedding):
        rows = torch.randint(0, 9, (6,), generator=torch.Generator().manual_seed(step))
        return model(rows).pow(2).sum()
    return model(inputs(step)).pow(2).mean()


def mixed_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(18, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 8, bias=False), nn.Linear(8, 3))


def load(code):
    """The module's namespace, where importing autoopt fails."""

    def guarded(name, *args, **kwargs):
        if name.partition(".")[0] == "autoopt":
            raise ImportError(f"the generated code imports {name}")
        return builtins.__import__(name, *args, **kwargs)

    namespace = {"__builtins__": {**vars(builtins), "__import__": guarded}, "__name__": "generated"}
    exec(compile(code, "generated.py", "exec"), namespace)
    return namespace


def train(model, optimizer, steps, start=0):
    for step in range(start, start + steps):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()


def assert_same(model, other):
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def compare(model, plan, steps=10):
    twin = copy.deepcopy(model)
    start = copy.deepcopy(model)
    train(model, AutoOptimizer.from_plan(model, plan), steps)
    train(twin, load(plan.to_python())["make_optimizer"](twin), steps)
    assert_same(model, twin)
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), start.parameters(), strict=True))


@pytest.mark.parametrize(
    "schedule",
    [Schedule(), Schedule("linear", 3, 9, 0.1), Schedule("quadratic", 2, 9, 0.1), Schedule("cosine", 0, 9)],
    ids=str,
)
@pytest.mark.parametrize("name", NAMES)
def test_every_catalog_row_steps_bit_identically(name, schedule):
    torch.manual_seed(0)
    model = nn.Embedding(9, 4, sparse=True) if name == "sparseadam" else Matrices()
    compare(model, OptimizerPlan.uniform(model, name, schedule))


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch's own, of its Adagrad
@pytest.mark.parametrize("name", ["sgd", "adagrad", "sparseadam"])
def test_sparse_gradients_step_bit_identically(name):
    torch.manual_seed(0)
    model = nn.Embedding(9, 4, sparse=True)
    options = {"momentum": 0.0, "nesterov": False} if name == "sgd" else {}
    compare(model, OptimizerPlan.uniform(model, name, **options))


def mixed_plan():
    return OptimizerPlan(
        {
            "0.weight": OptimizerConfig("muon", {"splits": 2, "weight_decay": 0.1}),
            "0.bias": OptimizerConfig("adamw", {"lr": 0.02, "betas": [0.9, 0.99]}),
            "2.weight": OptimizerConfig("sgd", {"lr": 0.1}),
            "2.bias": OptimizerConfig("lion"),
            "3.weight": OptimizerConfig("soap"),
            "4.weight": OptimizerConfig("muon", {"splits": 1}),
            "4.bias": OptimizerConfig("adamw", {"lr": 0.02, "betas": [0.9, 0.99]}, relative_lr=3.0),
        },
        Schedule("cosine", 2, 10, 0.05),
    )


def test_a_mixed_plan_steps_bit_identically():
    compare(mixed_model(), mixed_plan())


def test_a_resumed_run_steps_bit_identically():
    plan = mixed_plan()
    namespace = load(plan.to_python())
    model = mixed_model()
    optimizer = namespace["make_optimizer"](model)
    train(model, optimizer, 4)
    twin = copy.deepcopy(model)
    resumed = namespace["make_optimizer"](twin)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, 4, start=4)
    train(twin, resumed, 4, start=4)
    assert_same(model, twin)


HOSTILE = ["'); import os; ('", 'a"""b', "line\nbreak", "back\\slash", "\ud800", "日本", "\u202eabc", "{x}", "%s"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_data(name):
    model = nn.ParameterDict({"placeholder": nn.Parameter(torch.ones(3))})
    model._parameters[name] = model._parameters.pop("placeholder")
    plan = OptimizerPlan.uniform(model, "adamw")
    code = plan.to_python()
    code.encode("utf-8")
    optimizer = load(code)["make_optimizer"](model)
    next(model.parameters()).grad = torch.ones(3)
    optimizer.step()
    assert next(model.parameters()).max() < 1


@pytest.mark.parametrize("change", [{"bias": False}, {"out_features": 4, "extra": True}])
def test_a_model_that_does_not_fit_is_refused(change):
    make = load(OptimizerPlan.uniform(nn.Linear(3, 4), "sgd").to_python())["make_optimizer"]
    model = nn.Linear(3, 4, bias=change.get("bias", True))
    if change.get("extra"):
        model.extra = nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match="bias" if "bias" in change else "extra"):
        make(model)


def test_frozen_parameters_are_left_out():
    model = nn.Linear(3, 4)
    model.bias.requires_grad_(False)
    optimizer = load(OptimizerPlan.uniform(model, "sgd").to_python())["make_optimizer"](model)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 1


def test_the_closure_loss_is_returned_and_gradients_reset():
    model = mixed_model()
    optimizer = load(OptimizerPlan.uniform(model, "adamw").to_python())["make_optimizer"](model)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        return loss

    before = loss_of(model, 0).item()
    assert optimizer.step(closure).item() == before
    optimizer.zero_grad()
    assert all(param.grad is None for param in model.parameters())


def test_the_carried_sources_define_no_name_twice_and_nothing_of_ours_is_left():
    torch.manual_seed(0)
    layers = {f"p{index}": OptimizerConfig(name) for index, name in enumerate(NAMES)}
    code = OptimizerPlan(layers).to_python()
    names = [node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    targets = [t.id for node in ast.parse(code).body if isinstance(node, ast.Assign) for t in node.targets]
    assert len({*names, *targets}) == len(names) + len(targets)
    assert "autoopt" not in code.replace("as planned by autoopt", "")


def test_a_plan_needs_only_what_it_uses():
    code = OptimizerPlan({"w": OptimizerConfig("adamw")}).to_python()
    assert "pytorch_optimizer" not in code
    assert "Muon" not in code


def test_numbers_of_numpy_are_written_as_plain_ones():
    config = OptimizerConfig("adamw", {"lr": np.float64(0.01), "betas": np.array([0.5, 0.25]).tolist()})
    code = OptimizerPlan({"w": config}).to_python()
    assert "lr=0.01," in code
    assert "betas=(0.5, 0.25)," in code


@pytest.mark.parametrize("value", [torch.tensor(1e-8), float("nan"), {"a": 1}])
def test_a_hyperparameter_that_is_no_literal_is_refused(value):
    with pytest.raises(PlanError, match="eps"):
        OptimizerConfig("adamw", {"eps": value})
