"""Rates that follow from the length of the run and from what stands next to a layer."""

import json

import pytest
from torch import nn

from autoopt import recommend, select
from autoopt.architecture import describe
from autoopt.optimizers.recipe import Recipe, calibrated_default
from autoopt.optimizers.recipe_of_plan import recipe_of
from autoopt.optimizers.reference import HORIZON_RANGE, NORM_FREE_FACTOR, reference_lr


class Everything(nn.Module):
    """A layer of every role group; the second convolution is normalised."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(30, 8)
        self.plain = nn.Conv1d(8, 8, 3)
        self.body = nn.Sequential(nn.Conv1d(8, 8, 3), nn.BatchNorm1d(8))
        self.hidden, self.head = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, tokens):
        x = self.body(self.plain(self.table(tokens).transpose(1, 2)).relu())
        return self.head(self.hidden(x.mean(2)).relu())


LAYERS = {layer.name: layer for layer in describe(Everything()).layers}
DENSE = ("plain.weight", "hidden.weight", "head.weight")
OTHERS = ("table.weight", "hidden.bias", "body.1.weight", "body.0.weight")


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "sgd", "lion"])
@pytest.mark.parametrize("name", DENSE)
def test_dense_rates_fall_with_the_root_of_the_steps(name, optimizer):
    rates = [reference_lr(optimizer, LAYERS[name], total_steps=steps) for steps in (200, 400, 800)]
    assert rates[0] / rates[1] == pytest.approx(2**0.5) == rates[1] / rates[2]
    assert rates[1] == reference_lr(optimizer, LAYERS[name])


@pytest.mark.parametrize("name", OTHERS)
def test_rates_of_tables_and_vectors_and_beside_a_norm_do_not(name):
    assert {reference_lr("adamw", LAYERS[name], total_steps=steps) for steps in (10, 400, 10**6, None)} == {1.0}


def test_no_rate_is_extrapolated_beyond_the_runs_it_was_measured_on():
    low, high = HORIZON_RANGE
    layer = LAYERS["hidden.weight"]
    assert reference_lr("muon", layer, total_steps=1) == reference_lr("muon", layer, total_steps=low)
    assert reference_lr("muon", layer, total_steps=10**7) == reference_lr("muon", layer, total_steps=high)
    assert reference_lr("muon", layer, total_steps=high) < reference_lr("muon", layer, total_steps=high - 100)


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "sgd"])
def test_only_convolutions_without_a_norm_get_twice_the_rate(optimizer):
    factors = {
        name: reference_lr(optimizer, layer, norm_free=True) / reference_lr(optimizer, layer)
        for name, layer in LAYERS.items()
    }
    assert [name for name, factor in factors.items() if factor == NORM_FREE_FACTOR] == ["plain.weight"]
    assert all(factor == 1.0 for name, factor in factors.items() if name != "plain.weight")


def test_a_recipe_without_the_options_has_the_rates_and_the_text_it_had():
    plain, all_of_them = (Recipe.uniform("adamw", 0.01, norm_free=free, horizon_free=free) for free in (False, True))
    assert not {"norm_free", "horizon_free", "total_steps"} & set(json.loads(plain.to_json()))
    assert plain.resolve(LAYERS.values(), 200).layers == plain.resolve(LAYERS.values(), 2000).layers
    assert Recipe.from_json(all_of_them.to_json()) == all_of_them
    assert all_of_them.over(200).to_json() == all_of_them.to_json()


@pytest.mark.parametrize("total_steps", [150, 900, 50_000])
def test_a_recipe_is_read_back_from_its_plan(total_steps):
    recipe = Recipe.uniform("adamw", 0.01, norm_free=True, horizon_free=True).over(total_steps)
    changed = recipe.with_change("matrix", {"lr_factor": 3.0})
    plan = changed.resolve(LAYERS.values(), total_steps)
    assert recipe_of(plan, LAYERS.values(), recipe) == changed
    assert plan.layers["hidden.weight"].relative_lr == pytest.approx(0.03)


def test_select_and_resolve_agree_on_the_rates_of_a_run():
    default = calibrated_default()
    assert default.horizon_free and default.norm_free
    for total_steps in (100, 1600):
        model = Everything()
        optimizer = select(model, total_steps=total_steps, selector="default")
        wanted = default.resolve(describe(model).layers, total_steps)
        assert optimizer.plan.layers == wanted.layers
    unknown = select(Everything(), selector="default").plan.layers["hidden.weight"]
    assert unknown.lr == default.over(400).config_of(LAYERS["hidden.weight"]).lr


def test_the_report_says_what_the_length_of_the_run_does():
    long, usual = (recommend(Everything(), total_steps=steps, selector="default") for steps in (1600, 400))
    assert long.horizon_factor == 0.5 and usual.horizon_factor == 1.0
    assert "rates of matrices, convolutions and heads beside no normalisation times 0.5" in long.to_markdown()
    assert "Length of the run" not in usual.to_markdown()
    assert type(long).from_json(long.to_json()).horizon_factor == 0.5
