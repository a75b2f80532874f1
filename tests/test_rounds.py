"""The rounds ask for controlled changes, once each, and for what was learned from earlier rounds."""

import json
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch import nn

from autoopt.errors import MetaDatasetError
from autoopt.meta.trial import trial_id
from autoopt.optimizers.recipe import Recipe
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
