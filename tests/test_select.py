"""`select` online: the user's own first steps are the profile, then one decision, then its plan."""

import copy
import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from small_models import Classifier, batches, bits, classifier, parameters, train
from synthetic_selector import FEATURES, synthetic_predictor
from torch import nn

import autoopt
from autoopt import AutoOptimizer, OptimizerPlan
from autoopt.architecture import describe
from autoopt.optimizers.recipe import calibrated_default

WARMUP, TOTAL = 6, 16


def select(model, predictor, **options):
    return autoopt.select(model, **{"total_steps": TOTAL, "warmup_steps": WARMUP, "selector": predictor} | options)


def default_plan(model, recipe=None):
    """The calibrated default on a model, with the schedule of a whole run."""
    return (recipe or calibrated_default()).resolve(describe(model).layers, TOTAL)


def selected(predictor, **options):
    """An optimizer that has just decided."""
    model = classifier()
    optimizer = select(model, predictor, **options)
    train(model, optimizer, batches(WARMUP))
    return model, optimizer


# ---- the course of a run -------------------------------------------------------------------------


def test_it_decides_once_after_the_warmup_steps(predictor):
    model = classifier()
    optimizer = select(model, predictor)
    seen = []
    train(model, optimizer, batches(TOTAL), lambda _: seen.append((optimizer.phase, optimizer.recommendation)))
    assert [phase for phase, _ in seen] == ["warmup"] * WARMUP + ["selected"] * (TOTAL - WARMUP)
    decisions = [recommendation for _, recommendation in seen]
    assert decisions[:WARMUP] == [None] * WARMUP
    assert all(decision is decisions[WARMUP] for decision in decisions[WARMUP:])
    assert optimizer.recommendation is decisions[WARMUP]
    assert optimizer.plan == optimizer.recommendation.plan


@pytest.mark.parametrize(("total_steps", "expected"), [(100, 20), (1200, 60), (50_000, 200), (None, 100)])
def test_the_default_length_of_the_warmup(predictor, total_steps, expected):
    model = nn.Linear(3, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = autoopt.select(model, total_steps=total_steps, selector=predictor)
    for step in range(expected):
        assert optimizer.phase == "warmup", step
        model(torch.ones(4, 3)).square().mean().backward()
        optimizer.step()
    assert optimizer.phase == "selected"


def test_the_plan_gives_every_parameter_one_configuration_and_the_run_its_schedule(predictor):
    model, optimizer = selected(predictor)
    names = [name for name, _ in model.named_parameters()]
    recommendation = optimizer.recommendation
    assert list(recommendation.plan.layers) == names
    assert [layer.name for layer in recommendation.layers] == names
    schedule = recommendation.plan.schedule
    default = calibrated_default().clipping_on(autoopt.describe(model).layers)  # a table here has sparse gradients
    assert schedule == default.schedule(TOTAL)
    assert schedule.factor(TOTAL - 1) > 0 and schedule.factor(TOTAL) == 0


def test_until_the_decision_it_trains_with_the_calibrated_default(predictor):
    ours, plain = classifier(), classifier()
    optimizer = select(ours, predictor)
    reference = AutoOptimizer.from_plan(plain, default_plan(plain))
    for step in range(WARMUP):
        torch.manual_seed(step)
        train(ours, optimizer, batches(1, step))
        torch.manual_seed(step)
        train(plain, reference, batches(1, step))
        assert parameters(ours) == parameters(plain), f"after step {step}"


@pytest.mark.parametrize("selector", ["default", synthetic_predictor(gain=0.1)], ids=["default", "no gain"])
def test_where_it_keeps_the_default_the_run_is_the_defaults_bit_by_bit(selector):
    ours, plain = classifier(), classifier()
    optimizer = select(ours, selector)
    reference = AutoOptimizer.from_plan(plain, default_plan(plain))
    torch.manual_seed(7)
    train(ours, optimizer, batches(TOTAL))
    torch.manual_seed(7)
    train(plain, reference, batches(TOTAL))
    assert optimizer.recommendation.abstained
    assert parameters(ours) == parameters(plain)


def test_a_copied_optimizer_decides_as_the_original_does(predictor):
    model = classifier()
    optimizer = select(model, predictor)
    train(model, optimizer, batches(3))
    both = copy.deepcopy({"model": model, "optimizer": optimizer})
    for one in ({"model": model, "optimizer": optimizer}, both):
        torch.manual_seed(5)
        train(one["model"], one["optimizer"], batches(WARMUP, seed=9))
    assert both["optimizer"].recommendation.plan == optimizer.recommendation.plan
    assert both["optimizer"].recommendation.statistics == optimizer.recommendation.statistics
    assert parameters(both["model"]) == parameters(model)


def test_the_probe_of_the_batch_size_leaves_with_the_first_training_batch(predictor):
    model = classifier()
    select(model, predictor)
    assert len(model._forward_pre_hooks) == 1
    model.eval()
    model(next(batches(1))[0])
    assert len(model._forward_pre_hooks) == 1, "an evaluation before training says nothing of its batches"
    model.train()
    model(next(batches(1))[0])
    assert not model._forward_pre_hooks


def test_seconds_are_counted_from_the_first_training_step(monkeypatch, predictor):
    clock = SimpleNamespace(time=lambda: 1000.0 + 50 * clock.waited, perf_counter=lambda: 0.0, waited=0)
    monkeypatch.setattr("autoopt.selection.time", clock)
    model = classifier()
    optimizer = select(model, predictor)
    clock.waited = 1  # data is loaded between select() and the first step
    train(model, optimizer, batches(WARMUP))
    assert optimizer.recommendation.profile["seconds"] == 0.0


# ---- the decision --------------------------------------------------------------------------------


def test_a_change_that_surely_gains_is_applied_with_its_reasons():
    change = {"matrix": {"optimizer": "adamw", "lr": 6e-3}, "head": {"lr_factor": 2.0}}
    model, optimizer = selected(synthetic_predictor(gain=-0.3, std=0.01, changes=change))
    recipe = calibrated_default().with_change("matrix", change["matrix"]).with_change("head", {"lr_factor": 2.0})
    for group in ("embedding", "vector"):
        recipe = recipe.with_change(group, {"lr_factor": 4.0})
    assert optimizer.plan == default_plan(classifier(), recipe)
    layer = next(layer for layer in optimizer.recommendation.layers if layer.name == "hidden.weight")
    assert layer.deviates and not optimizer.recommendation.abstained
    assert layer.config.optimizer == "adamw"
    assert layer.predicted_gain == pytest.approx(-0.3, abs=0.01)
    low, high = layer.predicted_gain_interval
    assert low < layer.predicted_gain < high < 0
    assert layer.predicted_gain - low == pytest.approx(high - layer.predicted_gain)
    assert layer.confidence > 0.99
    slower = default_plan(model, calibrated_default().with_change("matrix", {"lr_factor": 0.25}))
    assert layer.runner_up == slower.layers["hidden.weight"]
    assert layer.runner_up_gain == pytest.approx(0.2, abs=0.01)
    shown = {name.removeprefix("log_") for name in FEATURES}
    assert layer.evidence and {evidence.feature for evidence in layer.evidence} <= shown
    contributions = [abs(evidence.contribution) for evidence in layer.evidence]
    assert contributions == sorted(contributions, reverse=True) and min(contributions) > 0


def test_what_was_applied_is_what_trains(predictor):
    ours, plain = classifier(), classifier()
    optimizer = select(ours, predictor)
    train(ours, optimizer, batches(WARMUP))
    plain.load_state_dict(ours.state_dict())
    reference = AutoOptimizer.from_plan(plain, optimizer.plan)
    reference.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for model, stepper in ((ours, optimizer), (plain, reference)):
        torch.manual_seed(3)
        train(model, stepper, batches(5, seed=4))
    assert parameters(ours) == parameters(plain)


@pytest.mark.parametrize("std", [0.31, 3.0])
def test_a_change_that_may_lose_is_left_alone(std):
    model, optimizer = selected(synthetic_predictor(gain=-0.3 / 1.1, std=std))
    assert optimizer.recommendation.abstained
    assert optimizer.plan == default_plan(classifier())


def test_role_groups_unlike_everything_recorded_keep_the_default_and_are_named():
    model, optimizer = selected(synthetic_predictor(far=("head", "vector")))
    recommendation = optimizer.recommendation
    assert set(recommendation.abstained_groups) == {"head", "vector"}
    assert not recommendation.abstained
    before = default_plan(model).layers
    for layer in recommendation.layers:
        assert (layer.config == before[layer.name]) == (layer.group in ("head", "vector")), layer.name
    assert any("head, vector" in warning or "vector, head" in warning for warning in recommendation.warnings)


def test_keeping_the_default_on_request_shows_in_the_report():
    _, optimizer = selected("default")
    recommendation = optimizer.recommendation
    assert recommendation.abstained
    assert any("selector='default'" in warning for warning in recommendation.warnings)
    assert "selector='default'" in recommendation.to_text(100)


def test_candidates_bound_the_default_and_its_changes():
    change = {"matrix": {"optimizer": "soap", "lr": 1e-2}, "head": {"optimizer": "sgd", "lr": 0.1}}
    _, optimizer = selected(synthetic_predictor(changes=change), candidates=["adamw", "sgd"])
    used = {layer.group: layer.config.optimizer for layer in optimizer.recommendation.layers}
    # SparseAdam is AdamW's form for sparse gradients; SOAP is not allowed, so its change is dropped.
    assert set(used.values()) <= {"adamw", "sgd", "sparseadam"}
    assert used["head"] == "sgd" and used["matrix"] == "adamw"


def test_the_same_run_decides_the_same(predictor):
    first, second = (selected(predictor)[1].recommendation for _ in range(2))
    assert first.plan == second.plan
    assert first.statistics == second.statistics
    assert first.layers == second.layers


# ---- rates ---------------------------------------------------------------------------------------


def test_without_a_schedule_rates_are_left_to_the_users_scheduler(predictor):
    model = classifier()
    optimizer = select(model, predictor, schedule=None)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, TOTAL)
    for batch in batches(TOTAL):
        train(model, optimizer, [batch])
        scheduler.step()
    assert {optimizer.plan.schedule.factor(step) for step in range(2 * TOTAL)} == {1.0}
    assert optimizer.param_groups[0]["lr"] == 0.0
    before = {name: bits(param) for name, param in model.named_parameters()}
    train(model, optimizer, batches(1))
    assert {name: bits(param) for name, param in model.named_parameters()} == before


def test_an_unknown_horizon_is_said_in_the_report(predictor):
    _, optimizer = selected(predictor, total_steps=None)
    assert any("total_steps" in warning for warning in optimizer.recommendation.warnings)
    assert optimizer.plan.schedule.factor(10**6) == 1.0


# ---- gradients that are not finite ---------------------------------------------------------------


def poison(model, steps, value):
    """Before these steps, one gradient element is `value` and all other gradients are huge."""

    def spoil(step):
        if step in steps:
            for param in model.parameters():
                values = param.grad._values() if param.grad.is_sparse else param.grad
                values.fill_(1e20)
            name = ("embedding.weight", "head.weight")[step % 2]
            grad = dict(model.named_parameters())[name].grad
            (grad._values() if grad.is_sparse else grad)[0, 0] = value

    return spoil


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nonfinite_gradients_reach_no_parameter_and_no_statistic(predictor, value):
    model = classifier()
    optimizer = select(model, predictor)
    spoil, held = poison(model, (2, 3), value), {}

    def before_step(step):
        spoil(step)
        if step == 2:
            held.update({name: bits(param) for name, param in model.named_parameters()})
        if step == 4:
            assert {name: bits(param) for name, param in model.named_parameters()} == held

    train(model, optimizer, batches(WARMUP), before_step)
    recommendation = optimizer.recommendation
    assert optimizer.num_nonfinite_steps == recommendation.profile["num_nonfinite_steps"] == 2
    assert any("2 warm-up steps were skipped" in warning for warning in recommendation.warnings)
    clean = selected(predictor)[1].recommendation.statistics
    assert {n: set(row) for n, row in recommendation.statistics.items()} == {n: set(r) for n, r in clean.items()}
    for name, row in recommendation.statistics.items():
        assert all(value is not None and abs(value) < 1e9 for value in row.values()), name
    for param in model.parameters():
        assert torch.isfinite(param).all()
    for state in optimizer.state.values():
        assert all(torch.isfinite(v).all() for v in state.values() if isinstance(v, torch.Tensor))


def test_a_warmup_without_any_finite_gradient_keeps_the_default_and_says_so(predictor):
    model = classifier()
    before = {name: bits(param) for name, param in model.named_parameters()}
    optimizer = select(model, predictor)
    train(model, optimizer, batches(WARMUP), poison(model, range(WARMUP), math.nan))
    assert {name: bits(param) for name, param in model.named_parameters()} == before
    recommendation = optimizer.recommendation
    assert optimizer.phase == "selected" and recommendation.abstained
    assert recommendation.plan == default_plan(model)
    assert any(f"{WARMUP} warm-up steps" in warning for warning in recommendation.warnings)


def test_readable_plan_survives_json(predictor):
    plan = selected(predictor)[1].recommendation.plan
    assert OptimizerPlan.from_json(plan.to_json()) == plan


def test_dense_embeddings_are_selected_for_as_well(predictor):
    model = Classifier(sparse=False)
    optimizer = select(model, predictor)
    train(model, optimizer, batches(WARMUP))
    assert optimizer.plan.layers["embedding.weight"].optimizer == "adamw"
