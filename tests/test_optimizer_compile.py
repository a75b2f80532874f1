"""torch.compile of `step()`: at most two graphs a phase, however the rate changes, and the same result."""

import pytest
import torch
from optimizer_cases import RECIPES, loss_of, mixed, net, switching
from torch._dynamo.testing import CompileCounter

from autoopt.architecture import describe
from autoopt.optimizers.auto_optimizer import AutoOptimizer
from autoopt.optimizers.recipe import RoleConfig

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own imports

STEPS = 50
CASES = {
    **RECIPES,
    "muon-nadam-radam": mixed(RoleConfig("muon", 0.02), RoleConfig("nadam", 1e-3), RoleConfig("radam", 1e-3)),
}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def run(model, optimizer, step, counter=None):
    """Losses, and how many graphs there are after each step, under a rate that is never twice the same."""
    losses, graphs = [], []
    for index in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(model, index)
        loss.backward()
        optimizer.param_groups[0]["lr"] = 0.97**index
        step()
        losses.append(loss.item())
        graphs.append(0 if counter is None else counter.frame_count)
    return losses, graphs


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"foreach": False, "fused": False}], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_a_plan_compiles_to_at_most_two_graphs(case, options):
    def build():
        model = net()
        plan = CASES[case].resolve(describe(model).layers, total_steps=STEPS)
        return model, AutoOptimizer.from_plan(model, plan, **options)

    model, optimizer = build()
    counter = CompileCounter()
    losses, graphs = run(model, optimizer, torch.compile(optimizer.step, backend=counter), counter)
    other, reference = build()
    expected, _ = run(other, reference, reference.step)
    assert graphs[-1] <= 2
    torch.testing.assert_close(losses, expected, rtol=1e-3, atol=1e-4)
    if case == "muon-nadam-radam":
        assert graphs[-1] >= 1
        assert counter.op_count > 50


def test_each_phase_compiles_to_at_most_two_graphs():
    model, other = net(), net()
    after = CASES["muon-nadam-radam"]
    optimizer = switching(model, RECIPES["default"], after, warmup_steps=20, total_steps=STEPS)
    reference = switching(other, RECIPES["default"], after, warmup_steps=20, total_steps=STEPS)
    counter = CompileCounter()
    losses, graphs = run(model, optimizer, torch.compile(optimizer.step, backend=counter), counter)
    expected, _ = run(other, reference, reference.step)
    assert optimizer.phase == "selected"
    assert graphs[19] <= 2
    assert graphs[-1] - graphs[19] <= 2
    torch.testing.assert_close(losses, expected, rtol=1e-3, atol=1e-4)


def test_a_compiled_function_may_step_a_scheduler_too():
    model = net()
    plan = CASES["muon-nadam-radam"].resolve(describe(model).layers)
    optimizer = AutoOptimizer.from_plan(model, plan)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    counter = CompileCounter()

    @torch.compile(backend=counter)
    def advance():
        optimizer.step()
        scheduler.step()

    for index in range(10):
        optimizer.zero_grad()
        loss_of(model, index).backward()
        advance()
    assert counter.frame_count <= 2
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.9**10)


def test_without_compilation_nothing_is_traced():
    model = net()
    optimizer = AutoOptimizer.from_plan(model, RECIPES["default"].resolve(describe(model).layers))
    loss_of(model).backward()
    before = torch._dynamo.utils.counters["frames"].copy()
    optimizer.step()
    assert torch._dynamo.utils.counters["frames"] == before
