"""`select` and `recommend` under a budget: what is allocated, what is timed, and what the reports say."""

import copy
import json
import pickle

import pytest
import torch
from optimizer_cases import Switch
from small_models import Snapshot, batches, classifier, loss_fn, parameters, train
from synthetic_selector import synthetic_predictor
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import autoopt
from autoopt.architecture import describe, describe_parameters
from autoopt.budget.step_time import StepClock, Tensors, UpdateTimer
from autoopt.optimizers.auto_optimizer import AutoOptimizer
from autoopt.optimizers.kernels import Options
from autoopt.optimizers.plan import OptimizerConfig, OptimizerPlan
from autoopt.optimizers.recipe import calibrated_default
from autoopt.optimizers.schedule import Schedule
from autoopt.report import Recommendation
from autoopt.statistics.warmup import STATE_PREFIX

WARMUP, TOTAL = 6, 30
PREDICTOR = synthetic_predictor(gain=0.1)  # keeps the default


def select(model, **options):
    return autoopt.select(model, **{"total_steps": TOTAL, "warmup_steps": WARMUP, "selector": PREDICTOR} | options)


def rule_bytes(optimizer):
    """Bytes of the rules' own state, without the statistics of warm-up."""
    return sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for key, value in state.items()
        if isinstance(value, torch.Tensor) and not key.startswith(STATE_PREFIX)
    )


def default_bytes(model):
    layers = describe(model).layers
    optimizer = AutoOptimizer.from_plan(model, calibrated_default().resolve(layers).with_schedule(Schedule()))
    train(model, optimizer, batches(1))
    return rule_bytes(optimizer)


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
@pytest.mark.parametrize("limit", [0, 700, 2_000, 4_000])
def test_the_limit_holds_in_every_step(limit, sparse):
    model = classifier(sparse=sparse)
    optimizer = select(model, max_state_bytes=limit)
    for step in range(WARMUP + 3):
        train(model, optimizer, batches(1, seed=step))
        assert rule_bytes(optimizer) <= limit, step
    assert optimizer.phase == "selected"
    assert optimizer.recommendation.memory_bytes == rule_bytes(optimizer)
    assert optimizer.recommendation.max_state_bytes == limit


def test_a_limit_that_does_not_bind_changes_no_bit():
    plain, limited = classifier(), classifier()
    enough = default_bytes(classifier())
    for model, options in ((plain, {}), (limited, {"max_state_bytes": enough})):
        torch.manual_seed(3)
        train(model, select(model, **options), batches(WARMUP + 6))
    assert parameters(plain) == parameters(limited)


def test_a_limit_just_below_what_the_default_takes_binds():
    model = classifier()
    enough = default_bytes(classifier())
    optimizer = select(model, max_state_bytes=enough - 1)
    train(model, optimizer, batches(WARMUP))
    recommendation = optimizer.recommendation
    assert not recommendation.abstained and recommendation.memory_bytes < enough
    reasons = {layer.reason for layer in recommendation.layers if layer.deviates}
    assert reasons and all(f"max_state_bytes={enough - 1:,}" in reason for reason in reasons)


@pytest.mark.parametrize("options", [{"max_state_bytes": 900}, {"objective": "memory"}, {"objective": "time"}], ids=str)
def test_profiled_aside_the_model_is_left_alone(options):
    model = classifier()
    before = Snapshot(model)
    found = autoopt.recommend(
        model, batches=list(batches(WARMUP)), loss_fn=loss_fn, warmup_steps=WARMUP, total_steps=TOTAL,
        profile_steps=WARMUP, selector=PREDICTOR, **options,
    )  # fmt: skip
    before.assert_unchanged()
    assert found.objective == options.get("objective", "loss")
    assert all(point.step_time_ratio is not None for point in found.trade_offs)
    optimizer = AutoOptimizer.from_recommendation(model.named_parameters(), found)
    optimizer.average_buffers_of(model)
    train(model, optimizer, batches(1))
    assert rule_bytes(optimizer) == found.memory_bytes <= options.get("max_state_bytes", 10**9)


def test_without_batches_a_limit_is_met_by_what_was_recorded():
    found = autoopt.recommend(classifier(), total_steps=TOTAL, selector=PREDICTOR, max_state_bytes=1_000)
    assert found.memory_bytes <= 1_000 and not found.abstained


def test_without_times_the_choice_is_made_for_the_loss_and_says_so():
    found = autoopt.recommend(classifier(), total_steps=TOTAL, selector=PREDICTOR, objective="time")
    assert found.abstained
    assert any("objective='time' needs" in warning for warning in found.warnings)


def test_half_precision_frozen_and_tied_parameters():
    torch.manual_seed(0)
    model = nn.ModuleDict({"embedding": nn.Embedding(30, 8), "hidden": nn.Linear(8, 8), "head": nn.Linear(8, 30)})
    model["head"].weight = model["embedding"].weight
    model["hidden"].bias.requires_grad_(False)
    model.to(torch.bfloat16)
    for limit in (0, 300, 700):
        trained = copy.deepcopy(model)
        optimizer = select(trained, max_state_bytes=limit)
        for step in range(WARMUP + 1):
            tokens = torch.randint(30, (16,), generator=torch.Generator().manual_seed(step))
            hidden = trained["hidden"](trained["embedding"](tokens))
            nn.functional.cross_entropy(trained["head"](hidden).float(), tokens).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert rule_bytes(optimizer) == optimizer.recommendation.memory_bytes <= limit


def test_thawed_parameters_join_under_the_limit():
    model = classifier(sparse=False)
    model.hidden.requires_grad_(False)
    optimizer = select(model, max_state_bytes=1_500)
    train(model, optimizer, batches(2))
    model.hidden.requires_grad_(True)
    named = [("hidden.weight", model.hidden.weight), ("hidden.bias", model.hidden.bias)]
    optimizer.add_param_group({"params": named})
    train(model, optimizer, batches(WARMUP - 1))
    assert rule_bytes(optimizer) == optimizer.recommendation.memory_bytes <= 1_500


def test_a_copy_in_warmup_decides_for_itself():
    model = classifier()
    optimizer = select(model, objective="time")
    train(model, optimizer, batches(2))
    other_model, other = copy.deepcopy((model, optimizer))
    train(other_model, other, batches(WARMUP))
    train(model, optimizer, batches(WARMUP))
    assert optimizer.phase == other.phase == "selected"
    assert pickle.loads(pickle.dumps(StepClock())).gap_seconds() is None


# ---- time ----------------------------------------------------------------------------------------


def test_the_clock_times_what_lies_between_two_updates():
    clock, device = StepClock(), torch.device("cpu")
    clock._marks = [(10.0 * i, 10.0 * i + 1.0) for i in range(6)]
    assert clock.gap_seconds() == 9.0
    fresh = StepClock()
    for _ in range(3):
        fresh.begin(device)
        fresh.end(device)
    assert fresh.gap_seconds() is None  # one gap after the skipped ones is no median


def test_timing_leaves_the_random_generators_alone():
    layers = describe(classifier()).layers
    tensors = {layer.name: Tensors(torch.device("cpu"), torch.float32) for layer in layers}
    timer = UpdateTimer(tensors, Options(None, None, False, False))
    state = torch.get_rng_state()
    config = OptimizerConfig("adamw")
    assert timer.seconds(layers, [config] * len(layers)) > 0
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["adamw", "muon", "soap", "adafactor", "lion", "sgd"])
def test_large_tensors_are_timed_in_small(name):
    shape = (768, 3 * 768) if name != "adamw" else (4096, 768)
    layers = describe_parameters([("w", torch.empty(shape, device="meta", requires_grad=True))]).layers
    tensors = {"w": Tensors(torch.device("cpu"), torch.bfloat16 if name == "lion" else torch.float32)}
    timer = UpdateTimer(tensors, Options(None, None, False, False))
    values = {"splits": 3, "transposed": True} if name == "muon" else {}
    assert timer.seconds(layers, [OptimizerConfig(name, values)]) > 0
    again = timer.spent_seconds
    timer.seconds(layers, [OptimizerConfig(name, values | {"lr": 0.1})])  # the rate takes no time
    assert timer.spent_seconds == again


def test_the_warm_up_of_a_timed_run_never_waits():
    with FakeTensorMode(allow_non_fake_inputs=False):
        params = {"w": torch.nn.Parameter(torch.zeros(6, 4, device="cuda"))}
        layers = {layer.name: layer for layer in describe_parameters(params.items()).layers}
        plan = OptimizerPlan({"w": OptimizerConfig("adamw")})
        selection = Switch(30, layers, plan, clock=StepClock())
        optimizer = AutoOptimizer(list(params.items()), plan=plan, selection=selection)
        for _ in range(5):
            params["w"].grad = torch.zeros(6, 4, device="cuda")
            optimizer.step()
        assert len(selection.clock._marks) == 5


def test_an_untimed_run_has_no_clock():
    assert select(classifier())._selection.clock is None


# ---- reports -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def limited():
    return autoopt.recommend(classifier(), total_steps=TOTAL, selector=PREDICTOR, max_state_bytes=1_000)


def test_every_format_shows_the_curve_with_the_chosen_point(limited):
    chosen = next(point for point in limited.trade_offs if point.chosen)
    for text in (limited.to_text(120), limited.to_markdown(), limited.to_html()):
        assert "Loss, time and memory" in text
        assert f"{chosen.state_bytes:,}" in text and "1,000 bytes" in text
        assert text.count("(chosen)") >= 1
    page = limited.to_html()
    assert page.count("<circle") >= len(limited.trade_offs)
    assert "Trade-off of loss and memory" in page
    value = json.loads(limited.to_json())
    assert [point["chosen"] for point in value["trade_offs"]].count(True) == 1
    assert Recommendation.from_json(limited.to_json()) == limited


def test_recommendations_of_earlier_versions_still_load(limited):
    value = json.loads(limited.to_json())
    for name in ("trade_offs", "objective", "max_state_bytes"):
        del value[name]
    old = Recommendation.from_dict(value)
    assert old.trade_offs == () and old.objective == "loss"
    assert "Loss, time and memory" not in old.to_text() + old.to_html() + old.to_markdown()


def test_what_was_evaluated_is_not_promised_under_a_budget(limited):
    assert limited.expected is None and limited.step_time_ratio is None
