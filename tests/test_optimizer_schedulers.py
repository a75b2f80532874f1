"""Every scheduler of torch scales every layer; a built-in schedule beside it multiplies, with one warning."""

import copy
import inspect
import warnings

import pytest
import torch
from optimizer_cases import RECIPES, assert_same, loss_of, net, snapshot, switching, train
from torch.optim import lr_scheduler as schedulers

from autoopt.optimizers.auto_optimizer import AutoOptimizer
from autoopt.optimizers.plan import OptimizerConfig, OptimizerPlan
from autoopt.optimizers.schedule import Schedule

SCHEDULERS = {
    "LambdaLR": lambda o: schedulers.LambdaLR(o, lambda t: 0.5**t),
    "MultiplicativeLR": lambda o: schedulers.MultiplicativeLR(o, lambda t: 0.7),
    "StepLR": lambda o: schedulers.StepLR(o, 2, 0.5),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [1, 3], 0.5),
    "ConstantLR": lambda o: schedulers.ConstantLR(o, 0.5, 2),
    "LinearLR": lambda o: schedulers.LinearLR(o, 0.25, 1.0, 3),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.6),
    "PolynomialLR": lambda o: schedulers.PolynomialLR(o, 5, 2.0),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, 5),
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 2),
    "CyclicLR": lambda o: schedulers.CyclicLR(o, 0.1, 1.0, 2, cycle_momentum=False),
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, 1.0, total_steps=6, cycle_momentum=False),
    "ReduceLROnPlateau": lambda o: schedulers.ReduceLROnPlateau(o, patience=0, factor=0.5, threshold=10.0),
    "SequentialLR": lambda o: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o, 0.5, 1.0, 2), schedulers.ExponentialLR(o, 0.5)], [2]
    ),
    "ChainedScheduler": lambda o: schedulers.ChainedScheduler(
        [schedulers.ExponentialLR(o, 0.8), schedulers.StepLR(o, 2, 0.5)]
    ),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, 0.25, anneal_epochs=3),
}


def test_every_scheduler_of_torch_is_here():
    known = {
        name
        for name, value in vars(schedulers).items()
        if inspect.isclass(value) and issubclass(value, schedulers.LRScheduler) and not name.startswith("_")
    }
    assert known - {"LRScheduler"} <= SCHEDULERS.keys()


def mixed_plan(schedule=None):
    configs = {
        "conv.weight": OptimizerConfig("muon"),
        "conv.bias": OptimizerConfig("lion", {"lr": 1e-3}),
        "norm.weight": OptimizerConfig("sgd", {"lr": 0.1}),
        "norm.bias": OptimizerConfig("nadam"),
        "hidden.weight": OptimizerConfig("soap"),
        "hidden.bias": OptimizerConfig("radam"),
        "head.weight": OptimizerConfig("adafactor"),
        "head.bias": OptimizerConfig("adagrad"),
        "scale": OptimizerConfig("rmsprop", {"momentum": 0.5}),
    }
    names = [name for name, _ in net().named_parameters()]
    return OptimizerPlan({name: configs[name] for name in names}, schedule or Schedule())


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_scales_every_layer(name):
    model, other = net(), net()
    optimizer = AutoOptimizer.from_plan(model, mixed_plan())
    scheduler = SCHEDULERS[name](optimizer)
    reference = AutoOptimizer.from_plan(other, mixed_plan())
    rates = []
    for step in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        reference.param_groups[0]["lr"] = rates[-1]
        for each, using in ((model, optimizer), (other, reference)):
            using.zero_grad()
            loss_of(each, step).backward()
            using.step()
        scheduler.step(1.0) if name == "ReduceLROnPlateau" else scheduler.step()
    assert len(set(rates)) > 1
    assert_same(model, other)


def test_a_rate_of_zero_stops_every_layer():
    model = net()
    optimizer = AutoOptimizer.from_plan(model, mixed_plan())
    train(model, optimizer, 2)
    scheduler = schedulers.LambdaLR(optimizer, lambda t: 0.0)
    before = snapshot(model)
    train(model, optimizer, 2)
    scheduler.step()
    assert_same(snapshot(model), before)


@pytest.mark.parametrize("name", ["LambdaLR", "StepLR", "OneCycleLR"])
def test_a_scheduler_runs_through_the_switch(name):
    model = net()
    optimizer = switching(model, RECIPES["adamw"], RECIPES["default"], warmup_steps=3)
    scheduler = SCHEDULERS[name](optimizer)
    expected = []
    twin = AutoOptimizer([torch.nn.Parameter(torch.ones(2))])
    twin_scheduler = SCHEDULERS[name](twin)
    for step in range(5):
        train(model, optimizer, 1, start=step)
        expected.append(twin.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"])
        twin.step()
        scheduler.step()
        twin_scheduler.step()
    assert optimizer.phase == "selected"
    assert all(expected)


# ---- momentum cycling -----------------------------------------------------------------------------


def cycle(optimizer):
    return schedulers.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=6, cycle_momentum=True, base_momentum=0.6, max_momentum=0.8
    )


@pytest.mark.parametrize(
    ("name", "key"),
    [("adamw", "betas"), ("nadam", "betas"), ("lion", "betas"), ("sgd", "momentum"), ("muon", "momentum")],
)
def test_one_cycle_cycles_the_momentum_of_every_rule(name, key):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 4, bias=False)
    other = copy.deepcopy(model)
    optimizer = AutoOptimizer.from_plan(model, OptimizerPlan.uniform(model, name, lr=0.01))
    scheduler = cycle(optimizer)
    plain = OptimizerPlan.uniform(other, name, lr=1.0).layers["weight"]
    library = plain.complete
    from autoopt.optimizers.catalog import get

    info = get(name)
    reference = info.load()([other.weight], **library)
    if info.fused:
        reference.param_groups[0].update(fused=True, foreach=False)
    elif info.foreach:
        reference.param_groups[0].update(foreach=False)
    momenta = []
    for step in range(6):
        first = optimizer.param_groups[0]["betas"][0]
        momenta.append(first)
        value = (first, library["betas"][1]) if key == "betas" else first
        reference.param_groups[0].update({key: value, "lr": optimizer.param_groups[0]["lr"] * 0.01})
        for each in (model, other):
            each.zero_grad()
            x = torch.randn(5, 4, generator=torch.Generator().manual_seed(step))
            each(x).pow(2).mean().backward()
        optimizer.step()
        reference.step()
        scheduler.step()
    assert min(momenta) < 0.7 < max(momenta)
    assert torch.equal(model.weight, other.weight)


def test_a_rule_without_momentum_gets_none_from_a_cycle():
    model = torch.nn.Linear(3, 3)
    optimizer = AutoOptimizer.from_plan(model, OptimizerPlan.uniform(model, "sgd", momentum=0.0))
    cycle(optimizer)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert not any(
        "momentum_buffer" in state and state["momentum_buffer"] is not None for state in optimizer.state.values()
    )


def test_betas_back_at_the_nominal_value_mean_the_planned_momentum():
    runs = []
    for betas in ((0.9, 0.999), (0.8, 0.999)):
        model = net()
        optimizer = AutoOptimizer.from_plan(model, mixed_plan())
        optimizer.param_groups[0]["betas"] = betas
        train(model, optimizer, 3)
        runs.append(snapshot(model))
    model = net()
    train(model, AutoOptimizer.from_plan(model, mixed_plan()), 3)
    assert_same(runs[0], snapshot(model))
    assert not torch.equal(runs[1][0], runs[0][0])


# ---- a built-in schedule and a scheduler ----------------------------------------------------------


def test_a_built_in_schedule_and_a_scheduler_multiply_with_one_warning():
    schedule = Schedule("linear", 2, 8)
    model, other = net(), net()
    optimizer = AutoOptimizer.from_plan(model, mixed_plan(schedule))
    scheduler = schedulers.ExponentialLR(optimizer, 0.5)
    reference = AutoOptimizer.from_plan(other, mixed_plan())
    caught = []
    for step in range(5):
        reference.param_groups[0]["lr"] = 0.5**step * schedule.factor(step)
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            train(model, optimizer, 1, start=step)
        caught += found
        train(other, reference, 1, start=step)
        scheduler.step()
    assert [str(each.message) for each in caught if "schedule of its own" in str(each.message)] == [
        str(caught[0].message)
    ]
    assert len(caught) == 1
    assert caught[0].filename == train.__code__.co_filename
    for left, right in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-7)


def test_a_scheduler_alone_warns_of_nothing():
    model = net()
    optimizer = AutoOptimizer.from_plan(model, mixed_plan())
    scheduler = schedulers.ExponentialLR(optimizer, 0.5)
    train(model, optimizer, 2)  # warnings are errors here
    scheduler.step()


def test_the_built_in_schedule_scales_every_layer():
    schedule = Schedule("cosine", 2, 6, 0.1)
    model, other = net(), net()
    train(model, AutoOptimizer.from_plan(model, mixed_plan(schedule)), 6)
    reference = AutoOptimizer.from_plan(other, mixed_plan())
    for step in range(6):
        reference.param_groups[0]["lr"] = schedule.factor(step)
        train(other, reference, 1, start=step)
    for left, right in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-7)
