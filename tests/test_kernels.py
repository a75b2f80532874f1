"""Every rule of the catalog steps as its library does, alone and beside others in one optimizer."""

import copy

import pytest
import torch
from torch import nn

from autoopt.errors import PlanError
from autoopt.optimizers.auto_optimizer import AutoOptimizer
from autoopt.optimizers.catalog import CATALOG, get
from autoopt.optimizers.device_rules import device_rule
from autoopt.optimizers.kernels import Kernel, Options, choose_implementation
from autoopt.optimizers.plan import OptimizerConfig, OptimizerPlan

DENSE = [info for info in CATALOG if info.gradients != "sparse"]
each_dense = pytest.mark.parametrize("info", DENSE, ids=lambda info: info.name)
EVERYTHING_OPEN = Options(None, None, False, False)


def flags_of(info, device="cpu"):
    """The flags that a library optimizer needs to run the implementation that a kernel chooses."""
    chosen = choose_implementation(info, info.hyperparameters, device, False, EVERYTHING_OPEN)
    flags = {"fused": chosen.fused} if info.fused else {}
    return flags | ({"foreach": chosen.foreach} if info.foreach else {})


def gradients(params, step):
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(param.shape, generator=generator, dtype=param.dtype) for param in params]


def parameters(info, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [shape for shape in ((), (3,), (4, 6), (8, 3), (2, 3, 3)) if len(shape) >= info.min_ndim]
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


@each_dense
def test_a_rule_steps_bit_identically_to_its_library(info):
    ours, theirs = parameters(info), parameters(info)
    plan = OptimizerPlan({f"p{i}": OptimizerConfig(info.name) for i in range(len(ours))})
    optimizer = AutoOptimizer(ours, plan=plan)
    library = info.load()(theirs, **info.hyperparameters, **flags_of(info))
    for step in range(6):
        for params in (ours, theirs):
            for param, grad in zip(params, gradients(params, step), strict=True):
                param.grad = grad
        optimizer.step()
        library.step()
    for left, right in zip(ours, theirs, strict=True):
        assert torch.equal(left, right)


def test_rules_side_by_side_step_as_they_do_alone():
    groups = [parameters(info, seed) for seed, info in enumerate(DENSE)]
    alone = copy.deepcopy(groups)
    layers = {
        f"{info.name}.{i}": OptimizerConfig(info.name)
        for info, params in zip(DENSE, groups, strict=True)
        for i in range(len(params))
    }
    optimizer = AutoOptimizer([param for params in groups for param in params], plan=OptimizerPlan(layers))
    libraries = [
        info.load()(params, **info.hyperparameters, **flags_of(info)) for info, params in zip(DENSE, alone, strict=True)
    ]
    for step in range(5):
        for params in (*groups, *alone):
            for param, grad in zip(params, gradients(params, step), strict=True):
                param.grad = grad
        optimizer.step()
        for library in libraries:
            library.step()
    for info, ours, theirs in zip(DENSE, groups, alone, strict=True):
        for left, right in zip(ours, theirs, strict=True):
            assert torch.equal(left, right), info.name


def stepped(info, params):
    plan = OptimizerPlan({str(i): OptimizerConfig(info.name) for i in range(len(params))})
    optimizer = AutoOptimizer(params, plan=plan)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    return optimizer


@each_dense
def test_state_takes_as_much_room_as_the_catalog_says(info):
    params = [param for param in parameters(info) if param.ndim >= 1]
    optimizer = AutoOptimizer(
        params, plan=OptimizerPlan({str(i): OptimizerConfig(info.name) for i in range(len(params))})
    )
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    for param in params:
        tensors = [value for value in optimizer.state[param].values() if isinstance(value, torch.Tensor)]
        held = sum(value.numel() for value in tensors if value.dim() > 0)
        assert held == info.state_numel(tuple(param.shape), info.hyperparameters), param.shape


@each_dense
def test_state_has_the_keys_that_the_catalog_says(info):
    params = parameters(info)
    optimizer = AutoOptimizer(
        params, plan=OptimizerPlan({str(i): OptimizerConfig(info.name) for i in range(len(params))})
    )
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    for param in params:
        keys = set(optimizer.state[param])
        assert keys >= set(info.state_keys)
        assert all(key.startswith(info.state_keys + info.optional_state_keys) for key in keys)


@each_dense
def test_a_quadratic_falls(info):
    param = nn.Parameter(torch.full((4, 6), 2.0))
    plan = OptimizerPlan({"p": OptimizerConfig(info.name, {"lr": 0.05})})
    optimizer = AutoOptimizer([param], plan=plan)
    for _ in range(20):
        param.grad = param.detach().clone()
        optimizer.step()
    assert param.norm().item() < 0.97 * 2.0 * 24**0.5


@pytest.mark.parametrize("maximize", [False, True])
def test_adafactor_for_devices_steps_as_the_library_does(maximize):
    """Run on a CPU: the rule that never waits, which CUDA tensors take, against torch's own."""
    info = get("adafactor")
    values = {**info.hyperparameters, "weight_decay": 0.1}
    ours, theirs = parameters(info), parameters(info)
    library = info.load()(theirs, **values, maximize=maximize)
    rule, state = device_rule("adafactor", False, values), {param: {} for param in ours}
    for step in range(5):
        for params in (ours, theirs):
            for param, grad in zip(params, gradients(params, step), strict=True):
                param.grad = grad
        with torch.no_grad():
            rule(state, ours, values, torch.tensor(values["lr"]) if step % 2 else values["lr"], maximize)
        library.step()
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


def test_a_momentum_may_start_later_than_another():
    params = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))]
    optimizer = AutoOptimizer(params, plan=OptimizerPlan({"a": OptimizerConfig("sgd"), "b": OptimizerConfig("sgd")}))
    params[0].grad = torch.ones(3)
    optimizer.step()
    params[1].grad = torch.ones(3)
    optimizer.step()
    reference = torch.optim.SGD([late := nn.Parameter(torch.ones(3))], lr=0.05, momentum=0.9, nesterov=True)
    late.grad = torch.ones(3)
    reference.step()
    torch.testing.assert_close(params[1], late)


REFUSED = [
    ("adamw", {"betas": (0.9, 1.5)}),
    ("sgd", {"momentum": -1.0}),
    ("muon", {"momentum": 1.0}),
    ("lion", {"betas": (2, 0)}),
]


@pytest.mark.parametrize(("name", "values"), REFUSED)
def test_a_setting_that_the_library_refuses_is_refused_when_the_optimizer_is_made(name, values):
    plan = OptimizerPlan({"p": OptimizerConfig(name, values)})
    with pytest.raises(PlanError, match=name):
        AutoOptimizer([nn.Parameter(torch.ones(2, 2))], plan=plan)


def test_a_planned_rate_of_zero_is_allowed():
    model = nn.Embedding(4, 2, sparse=True)
    before = model.weight.detach().clone()
    optimizer = AutoOptimizer.from_plan(model, OptimizerPlan.uniform(model, "sparseadam", lr=0.0))
    model(torch.tensor([1])).sum().backward()
    optimizer.step()
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize(
    ("device", "options", "expected"),
    [
        ("cpu", EVERYTHING_OPEN, "fused"),
        ("cuda", EVERYTHING_OPEN, "fused"),
        ("mps", EVERYTHING_OPEN, "foreach"),
        ("cpu", Options(False, None, False, False), "loop"),
        ("cpu", Options(None, True, False, False), "foreach"),
        ("cuda", Options(False, False, False, False), "loop"),
    ],
)
def test_adamw_runs_the_fastest_implementation_within_the_options(device, options, expected):
    info = get("adamw")
    assert choose_implementation(info, info.hyperparameters, device, False, options).name == expected


def test_a_kernel_keeps_neither_parameters_nor_state():
    kernel = Kernel(OptimizerConfig("adamw"))
    param = nn.Parameter(torch.ones(2))
    param.grad = torch.ones(2)
    kernel.step({param: {}}, [param], 0.1, None, {}, EVERYTHING_OPEN, False)
    assert kernel._optimizer.param_groups[0]["params"] == []
    assert not kernel._optimizer.state
