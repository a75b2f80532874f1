"""The predicted bytes of optimizer state are those that are allocated, for every rule, shape and dtype."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optimizer_cases import net, switching, train

from autoopt.architecture import describe, describe_parameters
from autoopt.optimizers.auto_optimizer import AutoOptimizer
from autoopt.optimizers.catalog import CATALOG
from autoopt.optimizers.plan import OptimizerConfig, OptimizerPlan
from autoopt.optimizers.recipe import Recipe, RoleConfig, calibrated_default
from autoopt.optimizers.state_bytes import adamw_state_bytes, averaging_bytes, predicted_state_bytes
from autoopt.training import state_bytes

pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")

ROWS = {info.name: info for info in CATALOG}
DENSE = [info.name for info in CATALOG if info.gradients != "sparse"]
SPARSE = [info.name for info in CATALOG if info.gradients != "dense"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SHAPES = [(), (0,), (1,), (5,), (6, 4), (4, 12), (1, 7), (0, 3), (4, 3, 3, 3), (2, 3, 5)]
VARIANTS = [
    ("sgd", {"momentum": 0.0}),
    ("rmsprop", {"momentum": 0.5}),
    ("soap", {"max_precondition_dim": 5}),
    ("muon", {"stacked": True}),
]


def stepped(params, configs, sparse=False, steps=2, **options):
    """An optimizer after some steps in which every parameter had a gradient, and the layers it steps."""
    layers = describe_parameters(params.items()).layers
    plan = OptimizerPlan(dict(configs))
    optimizer = AutoOptimizer(list(params.items()), plan=plan, **options)
    for _ in range(steps):
        for param in params.values():
            param.grad = torch.ones_like(param)
            if sparse:
                rows, values = torch.tensor([[1, 3]]), torch.ones(2, *param.shape[1:], dtype=param.dtype)
                param.grad = torch.sparse_coo_tensor(rows, values, param.shape, check_invariants=False)
        optimizer.step()
    return optimizer, layers, plan


def parameters(shapes, dtype):
    return {f"p{i}": torch.nn.Parameter(torch.full(shape, 0.5, dtype=dtype)) for i, shape in enumerate(shapes)}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "values"), [(name, {}) for name in DENSE] + VARIANTS)
def test_every_rule_on_every_shape(name, values, dtype):
    shapes = [shape for shape in SHAPES if len(shape) >= ROWS[name].min_ndim]
    params = parameters(shapes, dtype)
    optimizer, layers, plan = stepped(params, dict.fromkeys(params, OptimizerConfig(name, values)))
    assert predicted_state_bytes(layers, plan) == state_bytes(optimizer)


@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": False, "foreach": False}], ids=str)
@pytest.mark.parametrize("name", DENSE)
def test_every_implementation_of_a_rule(name, options):
    params = parameters([shape for shape in SHAPES if len(shape) >= ROWS[name].min_ndim], torch.float32)
    optimizer, layers, plan = stepped(params, dict.fromkeys(params, OptimizerConfig(name)), **options)
    assert predicted_state_bytes(layers, plan) == state_bytes(optimizer)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SPARSE)
def test_every_rule_on_sparse_gradients(name, dtype):
    params = parameters([(6, 4), (9, 1)], dtype)
    config = OptimizerConfig(name, {"momentum": 0.0} if name == "sgd" else {})
    optimizer, layers, plan = stepped(params, dict.fromkeys(params, config), sparse=True)
    assert predicted_state_bytes(layers, plan) == state_bytes(optimizer)
    sparse = [replace(layer, sparse=True) for layer in layers]
    assert adamw_state_bytes(sparse) == 2 * sum(p.numel() * p.element_size() for p in params.values())


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_plan(data):
    names = data.draw(st.lists(st.sampled_from(DENSE), min_size=1, max_size=5))
    params, configs = {}, {}
    for index, name in enumerate(names):
        ndim = data.draw(st.integers(max(ROWS[name].min_ndim, 0), 4))
        shape = tuple(data.draw(st.integers(1, 5)) for _ in range(ndim))
        dtype = data.draw(st.sampled_from(DTYPES))
        key = f"p{index}"
        params[key] = torch.nn.Parameter(torch.ones(shape, dtype=dtype))
        values = {"momentum": data.draw(st.sampled_from([0.0, 0.9]))} if name in ("sgd", "rmsprop") else {}
        configs[key] = OptimizerConfig(name, values)
    optimizer, layers, plan = stepped(params, configs)
    assert predicted_state_bytes(layers, plan) == state_bytes(optimizer)


PLANS = {
    "default": calibrated_default(),
    "adamw": Recipe.uniform("adamw", 1e-3),
    "nadam": Recipe.uniform("nadam", 1e-3),
    "sgd": Recipe.uniform("sgd", 1e-2),
    "plain sgd": Recipe.uniform("sgd", 1e-2, momentum=0.0),
    "adafactor": Recipe.uniform("adafactor", 1e-2),
    "lion": Recipe.uniform("lion", 1e-3),
    "rmsprop": Recipe.uniform("rmsprop", 1e-3, momentum=0.9),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("after", PLANS)
@pytest.mark.parametrize("before", ["default", "sgd", "adafactor"])
def test_a_switch_leaves_nothing_else_behind(before, after, dtype):
    model = net(dtype=dtype)
    optimizer = switching(model, PLANS[before], PLANS[after], warmup_steps=3)
    train(model, optimizer, 5)
    assert optimizer.phase == "selected"
    layers = describe(model).layers
    averages = 0 if optimizer.plan.schedule.averaging is None else averaging_bytes(layers)
    assert predicted_state_bytes(layers, optimizer.plan) + averages == state_bytes(optimizer)


def test_adamw_is_counted_with_its_counters():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer, 1)
    assert adamw_state_bytes(describe(model).layers) == state_bytes(optimizer)


def test_a_role_configuration_that_falls_back_is_counted_as_what_it_becomes():
    layer = describe(net()).layers[0]
    config = RoleConfig("muon", 0.02).resolve(replace(layer, shape=(8,)))
    assert config.optimizer == "adamw"
