"""Rates that follow from the length of the run and from what stands next to a layer."""

import json
from dataclasses import fields, replace
from types import SimpleNamespace

import pandas as pd
import pytest
from torch import nn

from autoopt import recommend, select
from autoopt.architecture import LayerInfo, describe
from autoopt.meta.coordinate import progress
from autoopt.meta.options import PART, PLAN_WIDE_OPTIONS, fullest, options_in, recorded_options, runs_of_plan
from autoopt.meta.pairs import paired_outcomes
from autoopt.meta.runs import Recordings
from autoopt.optimizers.alike import by_kind, kind_of
from autoopt.optimizers.catalog import CATALOG
from autoopt.optimizers.recipe import WIDE, Recipe, RoleConfig, calibrated_default
from autoopt.optimizers.recipe_of_plan import recipe_of
from autoopt.optimizers.reference import HORIZON_RANGE, NORM_FREE_FACTOR, decay_factor, reference_lr
from autoopt.optimizers.state_bytes import layer_state_bytes


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


# ---- the wide part of wide & deep models ---------------------------------------------------------


class WideDeep(nn.Module):
    """A linear model of sparse inputs beside a deep one."""

    def __init__(self, sparse=False):
        super().__init__()
        self.wide = nn.EmbeddingBag(40, 1, mode="sum", sparse=sparse)
        self.deep = nn.EmbeddingBag(40, 6, mode="sum", sparse=sparse)
        self.bias = nn.Embedding(40, 1)
        self.head = nn.Linear(6, 1)

    def forward(self, fields):
        return self.wide(fields) + self.head(self.deep(fields)) + self.bias(fields[:, 0])


TABLES = {layer.name: layer for layer in describe(WideDeep()).layers}


def with_wide(recipe, factor=0.25):
    embedding = recipe.groups["embedding"]
    wide = RoleConfig(embedding.optimizer, factor * embedding.lr, dict(embedding.hyperparameters))
    return replace(recipe, groups={**recipe.groups, WIDE: wide})


PLAIN = Recipe.uniform("adamw", 0.04)
PARTED = with_wide(PLAIN)


def test_only_bags_of_one_column_are_configured_by_themselves():
    rates = {name: config.lr for name, config in PARTED.resolve(TABLES.values()).layers.items()}
    assert rates["wide.weight"] == pytest.approx(0.01)
    assert {name for name, rate in rates.items() if rate == pytest.approx(0.01)} == {"wide.weight"}
    assert set(PLAIN.resolve(TABLES.values()).layers["wide.weight"].hyperparameters.values()) >= {0.04}
    assert Recipe.from_json(PARTED.to_json()) == PARTED
    sparse = {layer.name: layer for layer in describe(WideDeep(sparse=True)).layers}
    config = PARTED.config_of(sparse["wide.weight"])
    assert config.optimizer == "sparseadam" and config.lr == pytest.approx(0.01)


def test_the_calibrated_default_has_a_smaller_rate_there():
    default = calibrated_default()
    optimizer = select(WideDeep(), total_steps=400, selector="default")
    assert optimizer.plan.layers["wide.weight"].lr == pytest.approx(default.groups["embedding"].lr / 4, rel=0.05)
    assert optimizer.plan.layers["bias.weight"].lr == pytest.approx(default.groups["embedding"].lr, rel=0.2)


def test_a_recipe_leaves_the_part_out_where_there_is_none():
    assert PARTED.on(LAYERS.values()) == PLAIN
    assert PARTED.on(TABLES.values()) is PARTED


def test_a_change_of_the_embeddings_optimizer_takes_the_part_with_it_and_one_of_their_rate_does_not():
    slower = PARTED.with_change("embedding", {"lr_factor": 0.5})
    assert slower.groups[WIDE] == PARTED.groups[WIDE] and slower.groups["embedding"].lr == 0.02
    other = PARTED.with_change("embedding", {"optimizer": "adagrad", "lr": 0.1})
    assert WIDE not in other.groups and other.config_of(TABLES["wide.weight"]).optimizer == "adagrad"
    again = PARTED.with_config("embedding", '{"optimizer": "sgd", "lr": 0.3, "hyperparameters": {}}')
    assert WIDE not in again.groups


def test_a_recipe_with_the_part_is_read_back_from_its_plan():
    changed = PARTED.with_change("embedding", {"lr_factor": 3.0})
    other = PARTED.with_change("embedding", {"optimizer": "adagrad", "lr": 0.1})
    for recipe in (changed, other, PARTED):
        assert recipe_of(recipe.resolve(TABLES.values()), TABLES.values(), PARTED) == recipe


def test_candidates_that_rule_its_optimizer_out_leave_it_to_the_embeddings():
    optimizer = select(WideDeep(), total_steps=400, selector="default", candidates=["sgd"])
    assert optimizer.plan.layers["wide.weight"] == optimizer.plan.layers["bias.weight"]
    kept = select(WideDeep(), total_steps=400, selector="default", candidates=["adamw"])
    assert kept.plan.layers["wide.weight"].lr < kept.plan.layers["bias.weight"].lr


def trials_of(*rows):
    columns = ["task", "seed", "plan", "best_val_loss"]
    table = pd.DataFrame([(task, seed, plan.to_json(), loss) for task, seed, plan, loss in rows], columns=columns)
    table["family"], table["source"] = "f" + table["task"], "s" + table["task"]
    return table.assign(mode="plan", status="completed")


def test_a_task_without_the_part_has_its_runs_under_the_text_without_it():
    assert PART == WIDE
    trials = trials_of(("with", 0, PLAIN, 2.0), ("with", 0, PARTED, 1.0), ("without", 0, PLAIN, 3.0))
    found = runs_of_plan(trials, PARTED.to_json())
    assert found.set_index("task")["best_val_loss"].to_dict() == {"with": 1.0, "without": 3.0}
    assert len(runs_of_plan(trials, PLAIN.to_json())) == 2
    gained = progress(trials, PARTED.to_json(), PLAIN.to_json())
    assert gained.num_tasks == 2 and gained.by_family["fwithout"][0] == 0.0 > gained.by_family["fwith"][0]


def test_the_evaluation_finds_them_there():
    trials = trials_of(("with", 0, PLAIN, 2.0), ("with", 0, PARTED, 1.0), ("without", 0, PLAIN, 3.0))
    values = {"budget_steps": 10, "round": "r", "group": "", "plan_name": "p", "best_step": 1, "step_seconds": 1.0}
    values |= {"optimizer_seconds": 0.0, "selection_seconds": 0.0, "state_bytes": 0}
    trials = trials.assign(**values, val_steps=[[1]] * 3, val_losses=[[1.0]] * 3)
    features = pd.DataFrame({"task": ["with", "without"], "group": "embedding"})
    recordings = Recordings.of(SimpleNamespace(trials=trials, features=features))
    assert recordings.get("with", PARTED.to_json())[0].loss == 1.0
    assert recordings.get("with", PLAIN.to_json())[0].loss == 2.0
    assert recordings.get("without", PARTED.to_json())[0].loss == 3.0


def test_nothing_is_learned_for_the_part_by_itself_and_other_groups_are_paired_as_ever():
    larger = PARTED.with_change("head", {"lr_factor": 2.0})
    trials = trials_of(("t", 0, PARTED, 1.0), ("t", 0, larger, 0.9), ("t", 0, with_wide(PLAIN, 1.0), 1.2))
    assert paired_outcomes(trials, PARTED.to_json())["group"].tolist() == ["head"]


# ---- weight decay and the length of the run ------------------------------------------------------

DECAYED = Recipe.uniform("adamw", 0.04, weight_decay=0.1, decay_free=True)


def decays(recipe, total_steps):
    plan = recipe.resolve(LAYERS.values(), total_steps)
    return {name: config.complete["weight_decay"] for name, config in plan.layers.items()}


def test_the_weight_decay_of_embeddings_falls_with_the_length_of_the_run():
    for total_steps, factor in ((50, 4.0), (100, 4.0), (400, 1.0), (1600, 0.25), (400_000, 0.001)):
        assert decay_factor(LAYERS["table.weight"], total_steps) == factor
        found = decays(DECAYED, total_steps)
        assert found.pop("table.weight") == pytest.approx(0.1 * factor)
        assert set(found.values()) == {0.1}
    assert decays(DECAYED, None)["table.weight"] == 0.1


def test_decay_that_a_configuration_does_not_name_is_the_catalogs():
    unnamed = Recipe.uniform("adamw", 0.04, decay_free=True)
    assert (
        unnamed.resolve(LAYERS.values(), 1600).layers
        == Recipe.uniform("adamw", 0.04).resolve(LAYERS.values(), 1600).layers
    )


def test_the_text_leaves_it_out_where_it_changes_nothing():
    plain = Recipe.uniform("adamw", 0.04, weight_decay=0.1)
    assert "decay_free" not in plain.to_json() and Recipe.from_json(DECAYED.to_json()) == DECAYED
    assert DECAYED.on(LAYERS.values(), 400) == plain
    assert DECAYED.on(LAYERS.values(), 800) == DECAYED
    without_tables = [layer for layer in LAYERS.values() if layer.group != "embedding"]
    assert DECAYED.on(without_tables, 800) == plain
    clipped = replace(with_wide(DECAYED), clip_norm=1.0)
    assert options_in(json.loads(clipped.to_json())) == {PART, *PLAN_WIDE_OPTIONS}


@pytest.mark.parametrize("total_steps", [150, 1600])
def test_a_decayed_recipe_is_read_back_from_its_plan(total_steps):
    recipe = DECAYED.over(total_steps)
    for change in ({"lr_factor": 3.0}, {"weight_decay": 0.4}, {"optimizer": "lion", "lr": 0.01, "weight_decay": 0.2}):
        changed = recipe.with_change("embedding", change)
        assert recipe_of(changed.resolve(LAYERS.values(), total_steps), LAYERS.values(), recipe) == changed


def test_pairs_of_the_plan_wide_fields_are_found_on_tasks_that_lack_an_option():
    plain = Recipe.uniform("adamw", 0.04, weight_decay=0.1)
    linear, cosine = plain, plain.with_change("*", {"shape": "cosine"})
    trials = trials_of(("with", 0, DECAYED, 1.0), ("without", 0, linear, 1.0), ("without", 0, cosine, 0.9))
    assert recorded_options(trials) == {"with": frozenset({"decay_free"}), "without": frozenset()}
    found = paired_outcomes(trials, DECAYED.to_json())
    assert found[found["task"] == "without"]["group"].tolist() == ["*"]


def test_a_plan_is_one_whole_plan_whatever_its_text_leaves_out():
    other = PLAIN.with_change("*", {"shape": "cosine"})
    whole = with_wide(DECAYED)
    texts = [recipe.to_json() for recipe in (DECAYED.on((), 400), other, DECAYED, whole)]
    assert fullest(texts) == [other.to_json(), whole.to_json()]


class TestKinds:
    OTHER = {
        "name": "another", "role": "qkv", "shape": (16, 9), "fan_in": 3, "fan_out": 5, "depth": 7, "tied": ("x",),
        "sparse": True, "groups": 2, "splits": 2, "module": "EmbeddingBag", "transposed": True, "norm_adjacent": True,
        "residual": True, "itemsize": 2, "rms": 0.02,
    }  # fmt: skip

    @pytest.mark.parametrize("changed", OTHER)
    def test_layers_of_a_kind_get_the_same_in_every_recipe(self, changed):
        assert set(self.OTHER) == {field.name for field in fields(LayerInfo)}
        recipes = [calibrated_default().over(1000)]
        recipes += [Recipe.uniform(info.name, 0.01, norm_free=True, total_steps=1000) for info in CATALOG]
        alike = 0
        for layer in LAYERS.values():
            other = replace(layer, **{changed: self.OTHER[changed]})
            if kind_of(other) != kind_of(layer):
                continue
            alike += 1
            for recipe in recipes:
                config = recipe.config_of(layer)
                assert recipe.config_of(other) == config
                assert layer_state_bytes(other, config) == layer_state_bytes(layer, config)
        told_apart = changed not in ("name", "depth", "tied", "module", "residual")
        assert (alike < len(LAYERS)) == told_apart

    def test_wide_tables_are_of_their_own_kind(self):
        plain = replace(LAYERS["table.weight"], shape=(30, 1))
        assert kind_of(replace(plain, module="EmbeddingBag")) != kind_of(plain)

    def test_a_function_is_called_once_for_each_kind(self):
        layers = [replace(LAYERS["hidden.weight"], name=str(index), depth=index, rms=0.2) for index in range(5)]
        asked = []
        found = by_kind(lambda layer: asked.append(layer.name) or layer.shape, [*layers, LAYERS["head.weight"]])
        assert asked == ["0", "head.weight"] and found == [(16, 8)] * 5 + [(3, 16)]
