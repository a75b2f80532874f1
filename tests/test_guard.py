"""The guard: what it takes for a fault, how far it goes, and that it leaves a healthy run alone."""

import copy
import io
import math
import pickle

import pytest
import torch
from optimizer_cases import Net, net, snapshot
from synthetic_selector import synthetic_predictor
from torch import nn

import autoopt
from autoopt.fixed_choice import FixedChoice
from autoopt.guard import ladder as rungs
from autoopt.guard import snapshot as snapshots
from autoopt.guard.detection import NONFINITE, OK, SPIKE, Detector
from autoopt.guard.fallback import Fallbacks, halved, suspects
from autoopt.guard.ladder import PATIENCE, TOLERANCE, Ladder, Sight
from autoopt.guard.readout import Readout
from autoopt.guard.snapshot import restore, take
from autoopt.optimizers import averaging
from autoopt.optimizers.plan import OptimizerConfig, OptimizerPlan
from autoopt.optimizers.recipe import calibrated_default


def batch_of(step, wrong=False):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(32, 3, 5, generator=generator)
    labels = x.flatten(1)[:, :3].argmax(1)
    return x, labels[torch.randperm(32, generator=generator)] if wrong else labels


def select(model, steps=400, selector="default", **options):
    return autoopt.select(model, total_steps=steps, warmup_steps=20, selector=selector, **options)


def run(model, optimizer, steps, start=0, spoil=None, observe=True):
    """Train; `spoil(step, model)` acts between backward and step. The losses."""
    losses = []
    for step in range(start, start + steps):
        x, y = batch_of(step)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        if spoil is not None:
            spoil(step, model)
        if observe:
            optimizer.observe(loss)
        optimizer.step()
        losses.append(loss.item())
    return losses


def scaled(factor, *steps):
    def spoil(step, model):
        if step in steps:
            for param in model.parameters():
                param.grad.mul_(factor)

    return spoil


def actions(optimizer):
    return [event.action for event in optimizer.guard_events]


# ---- a healthy run ------------------------------------------------------------------------------


@pytest.mark.parametrize("interval", [0, 4])
def test_a_healthy_run_is_bit_identical_with_and_without_the_guard(interval, monkeypatch):
    states = []
    for guard in (False, True):
        model = net()
        optimizer = select(model, selector=synthetic_predictor(), guard=guard)
        if guard:
            optimizer.guard.interval = interval
        run(model, optimizer, 120)
        assert optimizer.guard_events == () and optimizer.phase == "selected"
        states.append((snapshot(model), [v for own in optimizer.state.values() for v in own.values()]))
    for kind in (0, 1):
        for ours, theirs in zip(states[0][kind], states[1][kind], strict=True):
            assert torch.equal(ours, theirs)


def test_it_is_on_for_select_and_off_for_a_plan():
    model = net()
    assert select(model).guard is not None and select(model, guard=False).guard is None
    optimizer = autoopt.AutoOptimizer.from_plan(model, OptimizerPlan.uniform(model, "adamw"))
    assert optimizer.guard is None and optimizer.guard_events == ()


# ---- single bad steps ---------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [math.nan, math.inf, 1e6])
def test_a_single_bad_batch_costs_one_skipped_step(factor):
    model = net()
    optimizer = select(model)
    run(model, optimizer, 60)
    before, state = snapshot(model), copy.deepcopy(optimizer.state_dict()["state"])
    run(model, optimizer, 1, 60, scaled(factor, 60))
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(model), strict=True))
    after = optimizer.state_dict()["state"]
    # The average of the weights goes on: the weights of this step are those of the step before.
    kept = [(after[i][k], v) for i, own in state.items() for k, v in own.items() if not k.startswith(averaging.KEY)]
    assert kept and all(torch.equal(a, b) for a, b in kept)
    assert optimizer.param_groups[0]["step"] == 61
    run(model, optimizer, 60, 61)
    assert actions(optimizer) == ["skip"]
    assert not all(torch.equal(a, b) for a, b in zip(before, snapshot(model), strict=True))


@pytest.mark.parametrize("factor", [math.nan, 1e6])
def test_a_late_readout_masks_the_same_step(factor):
    model = net()
    optimizer = select(model)
    optimizer.guard.interval = 4
    run(model, optimizer, 60)
    before = snapshot(model)
    run(model, optimizer, 1, 60, scaled(factor, 60))
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(model), strict=True))
    assert optimizer.guard_events == ()  # not known yet
    run(model, optimizer, 20, 61)
    assert actions(optimizer) == ["skip"] and optimizer.guard_events[0].step == 60
    assert all(torch.isfinite(param).all() for param in model.parameters())


def test_without_losses_gradients_are_judged_all_the_same():
    model = net()
    optimizer = select(model)
    run(model, optimizer, 80, spoil=scaled(math.nan, 60), observe=False)
    assert actions(optimizer) == ["skip"]
    assert "gradients that are not finite" in optimizer.guard_events[0].seen


def test_running_statistics_do_not_keep_what_a_skipped_batch_left():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = autoopt.select(model, total_steps=400, warmup_steps=20, selector="default")
    for step in range(60):
        x = torch.randn(32, 6)
        loss = nn.functional.cross_entropy(model(x * (math.nan if step == 50 else 1.0)), (x[:, 0] > 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.observe(loss)
        optimizer.step()
    assert actions(optimizer) == ["skip"]
    assert all(torch.isfinite(buffer).all() for buffer in model.buffers())


@pytest.mark.parametrize("interval", [0, 4])
def test_a_batch_whose_size_a_norm_hides_from_the_loss_leaves_no_trace(interval):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = autoopt.select(model, total_steps=400, warmup_steps=20, selector="default")
    optimizer.guard.interval = interval
    for step in range(60):
        x = torch.randn(32, 6)
        loss = nn.functional.cross_entropy(model(x * (1e4 if step == 50 else 1.0)), (x[:, 0] > 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.observe(loss)
        optimizer.step()
        if step == 50:
            assert loss < 2.0  # nothing to be seen here
    assert actions(optimizer) == ["skip"] and optimizer.guard_events[0].step == 50
    assert optimizer.guard_events[0].seen == "running statistics far above all recent ones"
    assert float(model[1].running_var.max()) < 10.0
    resumed = copy.deepcopy(model)
    other = autoopt.select(resumed, total_steps=400, warmup_steps=20, selector="default")
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert other.guard_events == optimizer.guard_events


def test_a_loss_scaler_has_skipped_its_own_overflow_before_the_guard_sees_it():
    model = net()
    optimizer = select(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for step in range(60):
        x, y = batch_of(step)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        if step == 40:
            next(iter(model.parameters())).grad.fill_(math.inf)
        optimizer.observe(loss)
        scaler.step(optimizer)
        scaler.update()
    assert optimizer.guard_events == () and optimizer.param_groups[0]["step"] == 59


# ---- a run that goes wrong ----------------------------------------------------------------------


def exploding(group="head", factor=1e6):
    default = calibrated_default()
    return FixedChoice.between(default.to_json(), default.with_change(group, {"lr_factor": factor}).to_json())


def test_a_rate_that_is_far_too_high_falls_to_the_default_and_trains_on():
    reference = net()
    last = run(reference, select(reference), 400)[-40:]
    model = net()
    bad = run(model, select(model, selector=exploding(), guard=False), 400)[-40:]
    model = net()
    optimizer = select(model, selector=exploding())
    good = run(model, optimizer, 400)[-40:]
    assert sum(bad) > 1.5 * sum(last)  # the fault is one
    assert sum(good) < 1.1 * sum(last)
    assert actions(optimizer)[-1] in ("default", "default everywhere")
    default = calibrated_default()
    assert optimizer.plan.layers["head.weight"].optimizer == default.groups["head"].optimizer
    assert optimizer.recommendation.plan.layers["head.weight"].lr > 100 * optimizer.plan.layers["head.weight"].lr


def test_a_layer_that_was_killed_comes_back():
    model = net()
    optimizer = select(model)
    run(model, optimizer, 200)

    def kill(step, model):
        if step == 200:
            with torch.no_grad():
                model.head.weight.fill_(30.0)
                model.head.weight[0].neg_()

    losses = run(model, optimizer, 200, 200, kill)
    assert actions(optimizer)[0] == "skip" and "roll back" in actions(optimizer)
    assert max(losses[1:4]) > 5 * losses[0] and sum(losses[-20:]) / 20 < losses[0]


def test_without_room_for_snapshots_a_broken_run_goes_on(monkeypatch):
    monkeypatch.setattr(snapshots, "SMALL_BYTES", 0)
    monkeypatch.setattr(snapshots, "HOST_SHARE", 0.0)
    model = net()
    optimizer = select(model)
    run(model, optimizer, 200)
    with torch.no_grad():
        model.head.weight.mul_(-100.0)
    broken = snapshot(model)
    losses = run(model, optimizer, 200, 200)
    assert actions(optimizer)[:2] == ["skip", "roll back"] and "no snapshot" in optimizer.guard_events[1].done
    assert optimizer.guard.snapshot_bytes == 0
    assert not all(torch.equal(a, b) for a, b in zip(broken, snapshot(model), strict=True))
    assert sum(losses[-20:]) / 20 < 0.5 * losses[0]


def test_changed_data_are_accepted_and_training_goes_on():
    model = net()
    optimizer = select(model, steps=800)
    run(model, optimizer, 200)
    before = snapshot(model)
    for step in range(200, 320):
        x, y = batch_of(step)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), (y + 1) % 3)
        loss.backward()
        optimizer.observe(loss)
        optimizer.step()
    assert "accept" in actions(optimizer) and "the data" in optimizer.guard_events[-1].message
    assert not all(torch.equal(a, b) for a, b in zip(before, snapshot(model), strict=True))


# ---- the ladder, pure ---------------------------------------------------------------------------


BAD = Sight(suspicious=True)


def test_patience_then_a_climb_then_silence_until_a_good_step():
    ladder = Ladder(window=100)
    seen = [ladder.see(step, BAD) for step in range(PATIENCE + 3)]
    assert seen == [rungs.SKIP] * (PATIENCE - 1) + [rungs.CLIMB] + [rungs.SKIP] * 3
    assert ladder.see(50, Sight()) == rungs.GO
    assert ladder.see(51, BAD) == rungs.SKIP


def test_an_overflow_under_a_finite_loss_is_waited_out_longer():
    ladder = Ladder(window=100)
    seen = [ladder.see(step, Sight(suspicious=True, overflow=True)) for step in range(TOLERANCE)]
    assert seen == [rungs.SKIP] * (TOLERANCE - 1) + [rungs.CLIMB]


def test_a_rise_climbs_at_once():
    assert Ladder(window=100).see(9, Sight(risen=True, high=True)) == rungs.CLIMB


@pytest.mark.parametrize(("num_high", "last"), [(0, rungs.SKIP), (2, rungs.SKIP), (3, rungs.DEEPER), (4, rungs.DEEPER)])
def test_probes_after_a_rollback_tell_whether_it_helped(num_high, last):
    ladder = Ladder(window=100)
    ladder.probe()
    seen = [ladder.see(step, Sight(high=step < num_high)) for step in range(PATIENCE)]
    assert seen == [rungs.SKIP] * (PATIENCE - 1) + [last]
    assert ladder.see(PATIENCE, Sight()) == rungs.GO


def test_climbs_in_a_window_go_up_and_later_ones_start_again():
    ladder = Ladder(window=100)
    assert ladder.climb(10) == rungs.ROLL_BACK
    ladder.rung, ladder.suspects = rungs.HALVE, ("head",)
    assert ladder.climb(50) == rungs.RUNNER_UP and ladder.suspects == ("head",)
    ladder.rung = rungs.LAST
    assert ladder.climb(60) is None
    assert ladder.climb(400) == rungs.ROLL_BACK and ladder.suspects == ()


def test_halved_rates_come_back_after_half_a_window():
    ladder = Ladder(window=100, rung=rungs.HALVE, last=10, halved=True)
    assert [ladder.see(step, Sight()) for step in (59, 60)] == [rungs.GO, rungs.RESTORE]


def test_a_ladder_round_trips():
    ladder = Ladder(100, 3, 7, 2, True, 1, 1, ("head", "matrix"), True)
    assert Ladder.from_dict(ladder.to_dict()) == ladder


# ---- its parts ----------------------------------------------------------------------------------


def fed(detector, losses, norm=1.0):
    return [detector.judge(torch.tensor([norm**2]), torch.tensor(float(loss))).tolist() for loss in losses]


def test_the_detector_knows_spikes_from_what_is_recent():
    detector = Detector(1)
    generator = torch.Generator().manual_seed(0)
    noise = (1.0 + 0.1 * torch.randn(200, generator=generator)).tolist()
    assert not any(any(channels) or risen for *channels, _, risen in fed(detector, noise))
    assert detector.judge(torch.tensor([29.0**2]), None).tolist() == [OK, OK, 0, 0]
    assert detector.judge(torch.tensor([1000.0**2]), None).tolist() == [SPIKE, OK, 0, 0]
    assert fed(detector, [4.0])[0][1] == SPIKE
    assert fed(detector, [math.nan])[0][1] == NONFINITE
    assert detector.judge(torch.tensor([math.nan]), None)[0] == NONFINITE
    assert fed(detector, [1.0])[0][:2] == [OK, OK]  # and learned nothing from them


def test_a_rise_is_half_of_what_was_gained_beyond_the_noise():
    generator = torch.Generator().manual_seed(0)
    falling = [2.0 * 0.97**step + 0.2 + 0.02 * float(torch.randn((), generator=generator)) for step in range(160)]
    detector = Detector(1)
    assert not any(row[-1] for row in fed(detector, falling))
    rising = [0.25 + 0.01 * step + 0.02 * float(torch.randn((), generator=generator)) for step in range(160)]
    first = next(step for step, row in enumerate(fed(detector, rising)) if row[-1])
    assert 1.0 < rising[first] < 1.5  # from 2.0 to 0.2 and half of the way back, and the mean of a block


def test_what_is_absent_is_no_fault():
    detector = Detector(2)
    for _ in range(100):
        assert not detector.judge(torch.tensor([0.0, 1.0]), None).any()


def test_a_detector_round_trips_and_goes_on_alike():
    detector = Detector(1)
    losses = [2.0 * 0.97**step + 0.2 for step in range(50)]
    fed(detector, losses[:37])
    other = Detector(1)
    other.load(detector.to_dict())
    assert fed(detector, [*losses[37:], 9.0, 3.0]) == fed(other, [*losses[37:], 9.0, 3.0])


def test_a_readout_is_at_once_or_one_interval_late():
    at_once = Readout(0)
    assert at_once.add(5, torch.tensor([1.0, 0.0])) == [(5, [1, 0])]
    late = Readout(3)
    found = [late.add(step, torch.tensor([float(step)])) for step in range(7)]
    assert found == [[], [], [], [], [], [(0, [0]), (1, [1]), (2, [2])], []]


def test_a_snapshot_puts_everything_back_and_can_be_used_twice():
    model = net()
    optimizer = select(model)
    run(model, optimizer, 40)
    kept = take(optimizer, 40, Detector(1))
    before, state = snapshot(model), copy.deepcopy(optimizer.state_dict()["state"])
    for _ in range(2):
        run(model, optimizer, 15, 40)
        restore(optimizer, kept)
        assert all(torch.equal(a, b) for a, b in zip(before, snapshot(model), strict=True))
        after = optimizer.state_dict()["state"]
        assert all(torch.equal(after[i][k], v) for i, own in state.items() for k, v in own.items())
    again = take(optimizer, 41, Detector(1), kept)
    assert all(a is b for a, b in zip(again.params, kept.params, strict=True))


def test_the_suspect_is_who_moves_fastest_against_its_own_past():
    params = [torch.zeros(10), torch.zeros(10)]
    optimizer = torch.optim.SGD([nn.Parameter(p) for p in params], lr=1.0)
    optimizer.param_groups[0]["plan"] = ""
    own = optimizer.param_groups[0]["params"]
    older = take(optimizer, 0, Detector(1))
    with torch.no_grad():
        own[0].add_(1.0), own[1].add_(1.0)
    newer = take(optimizer, 10, Detector(1))
    with torch.no_grad():
        own[0].add_(1.0), own[1].add_(20.0)
    groups = ["matrix", "head"]
    assert suspects(own, groups, 20, newer, older, ()) == ("head",)
    assert suspects(own, groups, 20, newer, older, ("matrix",)) == ("matrix",)
    assert suspects(own, groups, 20, newer, None, ("matrix",)) == ("matrix",)
    assert suspects(own, groups, 200, newer, older, ()) == ()


def test_the_plans_of_the_rungs():
    a, b, c = (OptimizerConfig("adamw", {"lr": lr}) for lr in (1e-2, 1e-3, 1e-4))
    plan = OptimizerPlan({"x": a, "y": a})
    fallbacks = Fallbacks({"x": "matrix", "y": "head"}, {"x": c, "y": c}, {"x": b})
    assert fallbacks.plan(rungs.ROLL_BACK, plan, ()) == plan
    assert fallbacks.plan(rungs.HALVE, plan, ("matrix",)).layers == {"x": halved(a), "y": a}
    assert fallbacks.plan(rungs.RUNNER_UP, plan, ("matrix",)).layers == {"x": b, "y": a}
    assert fallbacks.plan(rungs.DEFAULT, plan, ("matrix",)).layers == {"x": c, "y": a}
    assert fallbacks.plan(rungs.EVERYWHERE, plan, ("matrix",)).layers == {"x": c, "y": c}
    assert halved(a).lr == 5e-3
    assert fallbacks.deviating(plan) == ("matrix", "head")


# ---- persistence and report ---------------------------------------------------------------------


def broken():
    """An optimizer whose guard has acted, in the middle of a halved-rate episode or later, and its model."""
    model = net()
    optimizer = select(model, selector=exploding())
    run(model, optimizer, 60)
    assert "roll back" in actions(optimizer) or "default" in actions(optimizer)
    return model, optimizer


@pytest.mark.parametrize("how", ["state_dict", "pickle", "deepcopy"])
def test_a_resumed_run_goes_on_alike(how):
    model, optimizer = broken()
    events = optimizer.guard_events
    other = copy.deepcopy(model)
    if how == "state_dict":
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        resumed = select(other, selector=exploding())
        resumed.load_state_dict(torch.load(file, weights_only=True))
    else:
        pair = (model, optimizer)
        other, resumed = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
    assert resumed.guard_events == events and resumed.plan == optimizer.plan
    assert resumed.guard.ladder == optimizer.guard.ladder
    run(model, optimizer, 3, 60), run(other, resumed, 3, 60)
    assert all(torch.equal(a, b) for a, b in zip(snapshot(model), snapshot(other), strict=True))
    ours, theirs = optimizer.guard.to_json(), resumed.guard.to_json()
    assert ours == theirs


def test_a_fixed_plan_takes_a_checkpoint_whose_plan_its_guard_has_changed():
    model = net()
    plan = OptimizerPlan.uniform(model, "adamw", lr=1e-3)
    optimizer = autoopt.AutoOptimizer.from_plan(model, plan, guard=True)
    run(model, optimizer, 80)
    run(model, optimizer, 10, 80, scaled(math.nan, *range(80, 90)), observe=False)
    assert optimizer.plan.layers["head.weight"].lr == 5e-4
    again = autoopt.AutoOptimizer.from_plan(Net(), plan, guard=True)
    again.load_state_dict(optimizer.state_dict())
    assert again.plan == optimizer.plan != plan
    with pytest.raises(autoopt.CheckpointError, match="another setting"):
        autoopt.AutoOptimizer.from_plan(Net(), plan).load_state_dict(optimizer.state_dict())


def test_every_event_is_in_every_report():
    _, optimizer = broken()
    content = optimizer.report()
    messages = [event.message for event in optimizer.guard_events]
    assert messages and [event.message for event in content.events if event.kind == "guard"] == messages
    for text in (content.to_text(300), content.to_json()):
        assert all(message in text for message in messages)
    assert content.to_html().count("guard:") >= len(messages)
    assert content.profile["snapshot_bytes"] == optimizer.guard.snapshot_bytes > 0
    assert "snapshots to roll back to" in content.to_text(300)
