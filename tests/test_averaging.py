"""The average of the weights: what it holds, that it disturbs nothing, and that checkpoints keep it."""

import copy
import io
import json

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from optimizer_cases import RECIPES, switching
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.optim.swa_utils import AveragedModel

import autoopt
from autoopt.optimizers import averaging
from autoopt.optimizers.auto_optimizer import AutoOptimizer
from autoopt.optimizers.codegen import plan_to_python
from autoopt.optimizers.plan import OptimizerPlan
from autoopt.optimizers.recipe import Recipe, calibrated_default
from autoopt.optimizers.schedule import Schedule
from autoopt.training import state_bytes

POWER = 6.0


def model_of(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).to(dtype)


def batch_of(step, dtype=torch.float32):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(16, 6, generator=generator).to(dtype)


def train(model, optimizer, steps, start=0):
    """What every parameter and statistic was after each step, in double precision."""
    seen = []
    for step in range(start, start + steps):
        optimizer.zero_grad()
        x = batch_of(step, next(model.parameters()).dtype)
        loss = model(x).float().square().mean()
        loss.backward()
        optimizer.step()
        seen.append({name: value.detach().double().clone() for name, value in model.state_dict().items()})
    return seen


def averaging_plan(model, name="adamw", power=POWER, **options):
    return OptimizerPlan.uniform(model, name, Schedule(averaging=power), lr=1e-2, **options)


def weights_of(count, power):
    """The share of every iterate in the average after `count` steps, from the recursion, one by one."""
    shares = np.zeros(count)
    for step in range(1, count + 1):
        weight = (power + 1) / (step + power)
        shares *= 1 - weight
        shares[step - 1] += weight
    return shares


@pytest.mark.parametrize("name", ["adamw", "sgd", "lion"])
@pytest.mark.parametrize("power", [0.0, 2.0, 6.0])
def test_the_average_is_the_weighted_mean_of_all_iterates(name, power):
    model = model_of()
    options = {"momentum": 0.0} if name == "sgd" else {}  # without momentum a parameter has no other state
    optimizer = AutoOptimizer.from_plan(model, averaging_plan(model, name, power, **options))
    seen = train(model, optimizer, 30)
    shares = weights_of(30, power)
    assert shares.sum() == pytest.approx(1.0)
    with optimizer.averaged():
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                expected = sum(share * before[key] for share, before in zip(shares, seen, strict=True))
                torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)


def test_later_weights_count_the_iterates_that_are_passed_by():
    power, last = 6.0, 2100
    shares = weights_of(last, power)
    kept, before = np.zeros(last), 0
    for step in range(1, last + 1):
        if step % averaging.stride_at(step) == 0:
            weight = averaging.weight_at(step, power)
            kept *= 1 - weight
            kept[step - 1] += weight
            # What the iterates since the one before would have weighed at this step, together.
            passed = weights_of(step, power)[before:step].sum()
            assert weight == pytest.approx(passed, rel=1e-9)
            before = step
    assert kept.sum() == pytest.approx(1.0)
    steps = np.arange(1, last + 1)
    assert kept @ steps == pytest.approx(shares @ steps, rel=2e-3)


def test_training_is_bit_identical_with_an_average_and_after_looking_at_it():
    plain, kept = model_of(), model_of()
    without = AutoOptimizer.from_plan(plain, OptimizerPlan.uniform(plain, "adamw", lr=1e-2))
    with_average = AutoOptimizer.from_plan(kept, averaging_plan(kept))
    for start in (0, 5):
        train(plain, without, 5, start)
        train(kept, with_average, 5, start)
        with with_average.averaged():
            assert not torch.equal(kept[0].weight, plain[0].weight)
        for a, b in zip(plain.state_dict().values(), kept.state_dict().values(), strict=True):
            assert torch.equal(a, b)


def test_an_error_within_the_context_still_brings_the_weights_back():
    model = model_of()
    optimizer = AutoOptimizer.from_plan(model, averaging_plan(model))
    train(model, optimizer, 4)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(KeyboardInterrupt), optimizer.averaged():
        raise KeyboardInterrupt
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    train(model, optimizer, 1, 4)


def test_steps_and_a_second_entry_are_refused_within_the_context():
    model = model_of()
    optimizer = AutoOptimizer.from_plan(model, averaging_plan(model))
    train(model, optimizer, 2)
    with optimizer.averaged():
        with pytest.raises(RuntimeError, match=r"within averaged\(\)"):
            optimizer.step()
        with pytest.raises(RuntimeError, match="average already"), optimizer.averaged():
            pass


def test_without_a_step_or_without_averaging_the_weights_stay():
    model = model_of()
    for plan in (averaging_plan(model), OptimizerPlan.uniform(model, "adamw")):
        optimizer = AutoOptimizer.from_plan(model, plan)
        before = copy.deepcopy(model.state_dict())
        with optimizer.averaged():
            assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_resumed_run_has_the_same_average(dtype):
    def held(model, optimizer):
        with optimizer.averaged():
            return {key: value.clone() for key, value in model.state_dict().items()}

    model = model_of(dtype)
    optimizer = AutoOptimizer.from_plan(model, averaging_plan(model))
    train(model, optimizer, 7)
    other = model_of(dtype)
    resumed = AutoOptimizer.from_plan(other, averaging_plan(other))
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    other.load_state_dict(weights)
    resumed.load_state_dict(state)
    assert resumed.state[other[0].weight]["averaged"].dtype == torch.float32
    for start in (7, 9):
        expected, found = held(model, optimizer), held(other, resumed)
        assert all(torch.equal(expected[key], value) for key, value in found.items())
        train(model, optimizer, 2, start)
        train(other, resumed, 2, start)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_distributed_checkpoints_find_the_average_before_the_first_step(tmp_path):
    model = model_of()
    optimizer = AutoOptimizer.from_plan(model, averaging_plan(model))
    train(model, optimizer, 6)
    saved = get_optimizer_state_dict(model, optimizer)
    dcp.save({"optimizer": saved}, checkpoint_id=tmp_path, no_dist=True)
    other = model_of()
    fresh = get_optimizer_state_dict(other, AutoOptimizer.from_plan(other, averaging_plan(other)))
    assert "averaged" in fresh["state"]["0.weight"]
    dcp.load({"optimizer": fresh}, checkpoint_id=tmp_path, no_dist=True)
    assert torch.equal(fresh["state"]["0.weight"]["averaged"], saved["state"]["0.weight"]["averaged"])


@pytest.mark.parametrize("after", ["default", "sgd", "soap-lion-nadam"])
def test_the_average_outlives_the_switch(after):
    if after not in RECIPES:
        RECIPES[after] = Recipe.uniform("sgd", 0.01, momentum=0.0)
    model = model_of()
    optimizer = switching(model, RECIPES["default"], RECIPES[after], 4, total_steps=20)
    for group in optimizer.param_groups:
        value = json.loads(group["plan"])
        value["schedule"]["averaging"] = POWER
        group["plan"] = json.dumps(value)
    decide = optimizer._selection.decide

    def decided(running):
        found = decide(running)
        schedule = Schedule(**{**found.plan.schedule.__dict__, "averaging": POWER})
        object.__setattr__(found, "plan", found.plan.with_schedule(schedule))
        return found

    optimizer._selection.decide = decided
    seen = train(model, optimizer, 8)
    assert optimizer.phase == "selected"
    shares = weights_of(8, POWER)
    with optimizer.averaged():
        expected = sum(share * before["0.weight"] for share, before in zip(shares, seen, strict=True))
        torch.testing.assert_close(model[0].weight.double(), expected, rtol=1e-5, atol=1e-6)


def test_sparse_tables_are_averaged_too():
    torch.manual_seed(0)
    table = nn.Embedding(40, 4, sparse=True)
    optimizer = AutoOptimizer.from_plan(table, averaging_plan(table, "sparseadam"))
    seen = []
    for step in range(9):
        optimizer.zero_grad()
        table(torch.arange(step, step + 5)).square().sum().backward()
        optimizer.step()
        seen.append(table.weight.detach().double().clone())
    with optimizer.averaged():
        expected = sum(w * x for w, x in zip(weights_of(9, POWER), seen, strict=True))
        torch.testing.assert_close(table.weight.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_step_with_an_average_waits_for_the_device(dtype):
    with FakeTensorMode(allow_non_fake_inputs=False):
        params = {name: nn.Parameter(torch.zeros(6, 4, dtype=dtype, device="cuda")) for name in ("a", "b")}
        optimizer = AutoOptimizer(params.items(), plan=averaging_plan_of(params))
        for _ in range(3):
            for param in params.values():
                param.grad = torch.zeros_like(param)
            optimizer.step()
        assert optimizer.state[params["a"]]["averaged"].device.type == "cuda"
        with optimizer.averaged():
            pass


def averaging_plan_of(params):
    return OptimizerPlan.uniform(params.items(), "adamw", Schedule(averaging=POWER), lr=1e-2)


def test_the_generated_code_gives_the_same_average():
    model, other = model_of(), model_of()
    plan = averaging_plan(model)
    optimizer = AutoOptimizer.from_plan(model, plan)
    namespace = {"__name__": "generated"}
    exec(compile(plan_to_python(plan), "generated.py", "exec"), namespace)
    theirs = namespace["make_optimizer"](other)
    averaged = AveragedModel(other, avg_fn=namespace["averaged_weights"], use_buffers=False)
    for step in range(12):
        train(model, optimizer, 1, step)
        theirs.zero_grad()
        other(batch_of(step)).square().mean().backward()
        theirs.step()
        averaged.update_parameters(other)
    with optimizer.averaged():
        for ours, param in zip(model.parameters(), averaged.module.parameters(), strict=True):
            torch.testing.assert_close(ours, param, rtol=1e-5, atol=1e-6)
    assert "averaged_weights" not in plan_to_python(OptimizerPlan.uniform(model, "adamw"))


def test_select_keeps_an_average_unless_told_not_to():
    assert calibrated_default().averaging is not None
    for given, expected in (("auto", calibrated_default().averaging), (3, 3), (None, None)):
        model = model_of()
        optimizer = autoopt.select(model, total_steps=60, warmup_steps=20, averaging=given)
        train(model, optimizer, 25)
        assert optimizer.phase == "selected"
        assert optimizer.plan.schedule.averaging == expected
        assert ("averaged" in optimizer.state[model[0].weight]) == (expected is not None)
        assert ("averaged.running_mean" in optimizer.state[model[1].weight]) == (expected is not None)


def test_the_report_tells_the_bytes_of_the_average():
    for dtype in (torch.float32, torch.bfloat16):
        model = model_of(dtype)
        optimizer = autoopt.select(model, total_steps=60, warmup_steps=20, averaging=4.0)
        train(model, optimizer, 22)
        assert optimizer.recommendation.memory_bytes == state_bytes(optimizer)
        assert [p.state_bytes for p in optimizer.recommendation.trade_offs if p.chosen] == [state_bytes(optimizer)]
        assert "optimizer.averaged()" in str(optimizer.recommendation)


def test_no_average_is_kept_where_memory_counts():
    for budget in ({"objective": "memory"}, {"max_state_bytes": 1000}):
        optimizer = autoopt.select(model_of(), total_steps=60, **budget)
        assert optimizer.plan.schedule.averaging is None
        with pytest.raises(ValueError, match="copy of the weights"):
            autoopt.select(model_of(), total_steps=60, averaging=6.0, **budget)


@pytest.mark.parametrize("value", ["always", True, -1.0, float("nan"), float("inf")])
def test_select_refuses_other_averaging(value):
    with pytest.raises(ValueError, match="averaging must be"):
        autoopt.select(model_of(), total_steps=60, averaging=value)


def test_an_average_alone_is_no_schedule_to_warn_of(recwarn):
    model = model_of()
    optimizer = autoopt.select(model, total_steps=60, schedule=None)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    for step in range(3):
        train(model, optimizer, 1, step)
        scheduler.step()
    assert not [warning for warning in recwarn if "scheduler is attached" in str(warning.message)]


def test_recipes_without_an_average_keep_the_text_they_were_recorded_under():
    recipe = Recipe.uniform("adamw", 1e-3)
    assert "averaging" not in recipe.to_json()
    averaged = recipe.with_change("*", {"averaging": 6.0})
    assert Recipe.from_json(averaged.to_json()) == averaged
    assert averaged.schedule(100).averaging == averaged.schedule(None).averaging == 6.0
