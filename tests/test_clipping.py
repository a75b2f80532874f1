"""A plan that clips: what it does is what a loop that clips before each step does, and nothing where there is none."""

import copy

import pytest
import torch
from distributed_worker import Launcher
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import clip_grad_norm_, get_total_norm

import autoopt
from autoopt.errors import PlanError
from autoopt.fixed_choice import FixedChoice
from autoopt.optimizers.auto_optimizer import AutoOptimizer
from autoopt.optimizers.clipping import clip_gradients
from autoopt.optimizers.plan import OptimizerConfig, OptimizerPlan
from autoopt.optimizers.recipe import Recipe, calibrated_default
from autoopt.optimizers.recipe_of_plan import recipe_of
from autoopt.optimizers.schedule import Schedule

NORM = 0.05
CLIPPING = Schedule("linear", 2, 12, clip_norm=NORM)


def model_of(sparse=False):
    torch.manual_seed(0)
    if sparse:
        return nn.Sequential(nn.EmbeddingBag(20, 6, sparse=True), nn.Linear(6, 3))
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def backward(model, step, sparse=False):
    generator = torch.Generator().manual_seed(step)
    x = torch.randint(20, (16, 4), generator=generator) if sparse else torch.randn(16, 6, generator=generator)
    model.zero_grad()
    (10 * model(x).square().mean()).backward()


def plan_of(model, schedule):
    recipe = Recipe.uniform("adamw", 0.05).with_change("matrix", {"optimizer": "muon", "lr": 0.1})
    layers = autoopt.describe(model).layers
    return recipe.resolve(layers).with_schedule(schedule)


def assert_same(model, other):
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_a_plan_clips_as_a_loop_does_bit_by_bit():
    model = model_of()
    twin, free = copy.deepcopy(model), copy.deepcopy(model)
    clipped = AutoOptimizer.from_plan(model, plan_of(model, CLIPPING))
    plain = [AutoOptimizer.from_plan(other, plan_of(other, Schedule("linear", 2, 12))) for other in (twin, free)]
    for step in range(8):
        for other in (model, twin, free):
            backward(other, step)
        assert clip_grad_norm_(twin.parameters(), NORM) > 2 * NORM
        clipped.step()
        for optimizer in plain:
            optimizer.step()
    assert_same(model, twin)
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), free.parameters(), strict=True))


def test_shorter_gradients_stay_as_they_are():
    model = model_of()
    backward(model, 0)
    before = [param.grad.clone() for param in model.parameters()]
    clip_gradients(model.parameters(), 2 * float(get_total_norm(before)))
    assert all(torch.equal(param.grad, grad) for param, grad in zip(model.parameters(), before, strict=True))


def test_sparse_gradients_neither_count_nor_are_scaled():
    model = model_of(sparse=True)
    backward(model, 0, sparse=True)
    table = model[0].weight.grad.to_dense()
    clip_gradients(model.parameters(), NORM)
    assert torch.equal(model[0].weight.grad.to_dense(), table)
    left = get_total_norm([param.grad for param in model[1].parameters()])
    assert float(left) == pytest.approx(NORM, rel=1e-4)


def test_generated_code_clips_bit_by_bit():
    model = model_of()
    twin = copy.deepcopy(model)
    plan = plan_of(model, CLIPPING)
    namespace: dict = {"__name__": "generated"}
    exec(plan.to_python(), namespace)
    ours, theirs = AutoOptimizer.from_plan(model, plan), namespace["make_optimizer"](twin)
    for step in range(6):
        for other, optimizer in ((model, ours), (twin, theirs)):
            backward(other, step)
            optimizer.step()
    assert_same(model, twin)


def test_a_plan_with_clipping_survives_json_and_checkpoints_and_one_without_is_written_as_before():
    model = model_of()
    plan = plan_of(model, CLIPPING)
    assert OptimizerPlan.from_json(plan.to_json()) == plan
    assert "clip_norm" not in plan_of(model, Schedule("linear", 2, 12)).to_json()
    optimizer = AutoOptimizer.from_plan(model, plan)
    backward(model, 0)
    optimizer.step()
    resumed = AutoOptimizer.from_plan(model, plan)
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.plan.schedule.clip_norm == NORM


@pytest.mark.parametrize("norm", [0.0, -1.0, float("inf"), float("nan")])
def test_a_norm_that_says_nothing_is_refused(norm):
    with pytest.raises(PlanError, match="clip_norm"):
        Schedule(clip_norm=norm)


def test_a_refused_step_has_clipped_nothing():
    model = model_of(sparse=True)
    plan = OptimizerPlan.uniform(model, "lion", CLIPPING)
    optimizer = AutoOptimizer.from_plan(model, plan)
    backward(model, 0, sparse=True)
    before = model[1].weight.grad.clone()
    with pytest.raises(PlanError):
        optimizer.step()
    assert torch.equal(model[1].weight.grad, before)


def test_a_recipe_clips_where_gradients_are_dense_and_is_read_back():
    recipe = Recipe(**{**vars(calibrated_default()), "clip_norm": NORM})
    dense, sparse = (autoopt.describe(model_of(sparse=kind)).layers for kind in (False, True))
    assert recipe.resolve(dense, 100).schedule.clip_norm == NORM
    assert recipe.resolve(sparse, 100).schedule.clip_norm is None
    assert recipe.on(sparse, 100).clip_norm is None and recipe.on(dense, 100).clip_norm == NORM
    found = recipe_of(recipe.resolve(dense, 100), dense, calibrated_default().over(100))
    assert found is not None and found.clip_norm == NORM


def test_a_default_that_clips_does_so_from_the_first_step_on_and_the_report_says_so():
    recipe = Recipe(**{**vars(calibrated_default()), "clip_norm": NORM}).to_json()
    model = model_of()
    optimizer = autoopt.select(model, total_steps=60, warmup_steps=5, selector=FixedChoice.between(recipe, recipe))
    for step in range(8):
        backward(model, step)
        optimizer.step()
        assert float(get_total_norm([param.grad for param in model.parameters()])) <= NORM * (1 + 1e-5)
    assert "norm of 0.05" in str(optimizer.recommendation)


@pytest.mark.parametrize(("given", "kept"), [("auto", NORM), (None, None), (2, 2.0)])
def test_select_clips_as_it_is_told(given, kept):
    recipe = Recipe(**{**vars(calibrated_default()), "clip_norm": NORM}).to_json()
    predictor = FixedChoice.between(recipe, recipe)
    for schedule in ("auto", None):
        optimizer = autoopt.select(model_of(), total_steps=60, selector=predictor, clip_norm=given, schedule=schedule)
        assert optimizer.plan.schedule.clip_norm == kept
    assert autoopt.select(model_of(True), total_steps=60, selector=predictor).plan.schedule.clip_norm is None


@pytest.mark.parametrize("given", [0, -1.0, True, "often", float("nan"), float("inf")])
def test_no_other_norm_is_taken(given):
    with pytest.raises(ValueError, match="clip_norm must be"):
        autoopt.select(model_of(), total_steps=60, clip_norm=given)


def test_the_guard_sees_gradients_as_they_came():
    model = model_of()
    plan = plan_of(model, Schedule(clip_norm=NORM))
    optimizer = AutoOptimizer.from_plan(model, plan, guard=True)
    for step in range(40):
        backward(model, step)
        if step == 30:
            for param in model.parameters():
                param.grad.mul_(1e5)
        optimizer.step()
    assert [event.step for event in optimizer.guard_events] == [30]


@pytest.mark.parametrize("name", ["adamw", "muon", "sgd"])
def test_on_cuda_nothing_waits(name):
    with FakeTensorMode(allow_non_fake_inputs=False):
        params = {f"p{i}": nn.Parameter(torch.zeros(4, 6, device="cuda")) for i in range(3)}
        plan = OptimizerPlan({key: OptimizerConfig(name) for key in params}, Schedule(clip_norm=NORM))
        optimizer = AutoOptimizer(list(params.items()), plan=plan)
        for _ in range(2):
            for param in params.values():
                param.grad = torch.zeros_like(param)
            optimizer.step()


def test_sharded_gradients_are_clipped_by_the_norm_of_the_whole_ones():
    with Launcher() as launcher:
        for answer in launcher.run("distributed_fsdp:clipped"):
            assert answer["sharded"] > 0 and answer["whole"] > 0
            assert answer["norm"] == pytest.approx(answer["expected"], rel=1e-5)
            assert answer["expected"] > 2 * NORM and answer["left"] == pytest.approx(NORM, rel=1e-4)
