"""The rounds ask for controlled changes, once each, and for what was learned from earlier rounds."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from autoopt.architecture import describe
from autoopt.errors import MetaDatasetError
from autoopt.meta.dataset import MetaDataset
from autoopt.meta.fitting import SELECTED_FEATURES
from autoopt.meta.proposals import expected_improvement
from autoopt.meta.trial import Trial, TrialRequest, trial_id
from autoopt.optimizers.recipe import Recipe, calibrated_default
from autoopt.rounds import ADAMW_RATES, load_defaults, requests
from autoopt.tasks import Task, TaskInstance


def build(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    return TaskInstance(model, lambda model, batch: model(batch).square().mean(), lambda: iter(()), ())


TASK = Task("made-up", "mlp", "nothing", 8, 50, build)


def dataset(*runs):
    """Recorded runs as `(round, plan, seed, loss)`."""
    rows = [
        {
            "task": TASK.name,
            "family": TASK.family,
            "source": TASK.source,
            "round": name,
            "plan": plan,
            "seed": seed,
            "status": "completed",
            "mode": "plan",
            "best_val_loss": loss,
        }
        for name, plan, seed, loss in runs
    ]
    return SimpleNamespace(trials=pd.DataFrame(rows))


def test_a_coordinate_round_changes_one_role_group_at_a_time():
    default = json.loads(load_defaults()["3"].to_json())
    found = requests("coordinate-3", [TASK], [0, 1])
    base = {seed: trial_id(TASK.name, load_defaults()["3"].to_json(), seed) for seed in (0, 1)}
    changes = [request for request in found if request.group]
    assert {request.group for request in changes} == {"matrix", "head", "vector", "*"}
    for request in changes:
        recipe = json.loads(request.plan)
        different = {group for group in recipe["groups"] if recipe["groups"][group] != default["groups"][group]}
        assert different == ({request.group} if request.group != "*" else set())
        assert request.paired_with == base[request.seed]
    assert len({request.trial_id for request in found}) == len(found)


def test_a_change_that_an_earlier_round_recorded_is_not_asked_for_again():
    first, second = load_defaults()["2"], load_defaults()["3"]
    changed = {"lr_factor": 4.0}
    # The head is the same in both defaults, so its pair around the second one holds around the third.
    earlier = dataset(
        ("coordinate-2", first.to_json(), 0, 1.0),
        ("coordinate-2", first.with_change("head", changed).to_json(), 0, 1.1),
    )
    wanted = second.with_change("head", changed).to_json()
    anew = {(request.plan, request.seed) for request in requests("coordinate-3", [TASK], [0, 1])}
    rest = {(request.plan, request.seed) for request in requests("coordinate-3", [TASK], [0, 1], earlier)}
    assert anew - rest == {(wanted, 0)}


def test_what_the_round_itself_recorded_stays_asked_for():
    base = load_defaults()["3"]
    own = dataset(
        ("coordinate-3", base.to_json(), 0, 1.0),
        ("coordinate-3", base.with_change("head", {"lr_factor": 4.0}).to_json(), 0, 1.1),
    )
    assert requests("coordinate-3", [TASK], [0], own) == requests("coordinate-3", [TASK], [0])


def plain(lr):
    return Recipe.uniform("adamw", lr, width_free=False, weight_decay=0.01).to_json()


def test_the_target_round_repeats_the_two_best_rates_of_a_complete_sweep():
    losses = {lr: abs(index - 7.2) for index, lr in enumerate(ADAMW_RATES)}
    sweep = dataset(*(("adamw-sweep", plain(lr), 0, loss) for lr, loss in losses.items()))
    found = requests("adamw-target", [TASK], [1, 2], sweep)
    assert {(request.plan, request.seed) for request in found} == {
        (plain(lr), seed) for lr in (ADAMW_RATES[7], ADAMW_RATES[8]) for seed in (1, 2)
    }
    incomplete = dataset(*(("adamw-sweep", plain(lr), 0, losses[lr]) for lr in ADAMW_RATES[1:]))
    assert requests("adamw-target", [TASK], [1], incomplete) == []


def test_unknown_rounds_and_defaults_are_named():
    with pytest.raises(MetaDatasetError, match="there is no round 'nonsense'"):
        requests("nonsense", [TASK], [0])
    with pytest.raises(MetaDatasetError, match="needs default 99"):
        requests("coordinate-99", [TASK], [0])


def recorded(effects, num_tasks=12):
    """A data set of made-up tasks, in which `effects(signal)` has the outcome of each factor on the head's rate."""
    base = load_defaults()["3"]
    trials, features = [], []
    for number in range(num_tasks):
        name, signal = TASK.name if number == 0 else f"task-{number}", number / (num_tasks - 1)
        for factor, effect in ({1.0: 0.0} | effects(signal)).items():
            plan = base.with_change("head", {"lr_factor": factor}) if factor != 1.0 else base
            request = TrialRequest(name, plan.to_json(), round="coordinate-3")
            changes = {"family": f"family-{number % 4}", "source": f"source-{number % 4}", "status": "completed"}
            made = Trial.failed(request, "")
            trials.append(replace(made, best_val_loss=float(np.exp(effect)), error="", **changes).to_row())
        keys = {"task": name, "seed": 0, "group": "head", "family": "", "source": ""}
        features.append(keys | dict.fromkeys(SELECTED_FEATURES, 0.0) | {SELECTED_FEATURES[0]: signal})
    return MetaDataset(pd.DataFrame(trials), pd.DataFrame(features))


def test_proposals_look_where_gain_is_expected_and_are_combined_with_what_is_known():
    # The lower the head's rate, the better on the task asked for, where the signal is 0.
    effects = {0.25: lambda s: -0.2 + 0.4 * s, 4.0: lambda s: 0.2 - 0.4 * s}
    data = recorded(lambda signal: {factor: effect(signal) for factor, effect in effects.items()})
    found = requests("propose-3", [TASK], [0], data)
    base = load_defaults()["3"]
    rates = [Recipe.from_json(r.plan).groups["head"].lr for r in found if r.group == "head"]
    assert rates and min(rates) < base.groups["head"].lr / 2
    known = {base.with_change("head", {"lr_factor": f}).to_json() for f in effects}
    assert not known & {request.plan for request in found}
    assert requests("propose-3", [TASK], [0], data) == found


def test_expected_improvement_is_that_of_a_normal_effect():
    draws = np.random.default_rng(0).normal(-0.1, 0.2, 400_000)
    expected = np.maximum(0.0, -0.05 - draws).mean()
    assert expected_improvement(np.array([-0.1]), np.array([0.2]), -0.05)[0] == pytest.approx(expected, rel=0.01)
    certain = expected_improvement(np.array([-0.1, 0.1]), np.zeros(2), 0.0)
    assert certain == pytest.approx([0.1, 0.0])


def test_the_lean_round_changes_the_calibrated_default_in_one_role_group():
    found = requests("lean", [TASK, replace(TASK, name="for show", demo=True)], [0, 1])
    assert {request.task for request in found} == {TASK.name}
    default = calibrated_default().on(describe(TASK.build(0).model).layers).to_json()
    base = {seed: trial_id(TASK.name, default, seed) for seed in (0, 1)}
    changes = [request for request in found if request.group]
    assert {request.group for request in changes} == {"matrix", "head", "vector"}
    assert all(request.paired_with == base[request.seed] for request in changes)
    assert {request.trial_id for request in found} >= set(base.values())
    groups = json.loads(default)["groups"]
    for request in changes:
        ours = json.loads(request.plan)["groups"]
        assert {group for group in groups if ours[group] != groups[group]} == {request.group}


def sparse_build(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.EmbeddingBag(20, 4, sparse=True), nn.Linear(4, 1))
    return TaskInstance(model, lambda model, batch: model(batch).square().mean(), lambda: iter(()), ())


def test_clipping_is_a_change_where_gradients_are_dense():
    sparse = Task("made-up sparse", "embedding-bag", "nothing", 8, 50, sparse_build)
    found = [request for request in requests("coordinate-9", [TASK, sparse], [0]) if "clip_norm" in request.change]
    assert [(request.task, request.group) for request in found] == [(TASK.name, "*")]
    recipe = Recipe.from_json(found[0].plan)
    assert recipe.clip_norm == 1.0 and recipe.to_json() == found[0].plan
    assert recipe.resolve(describe(TASK.build(0).model).layers, 50).schedule.clip_norm == 1.0
