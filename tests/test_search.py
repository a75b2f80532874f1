"""Search over whole plans: budgets, optima, interactions read off made-up trials, and the optional methods."""

import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_selector import FEATURES, synthetic_predictor

from autoopt.errors import AutoOptError
from autoopt.meta.pairs import canonical
from autoopt.meta.proposals import RATE_STEPS
from autoopt.optimizers.recipe import calibrated_default
from autoopt.search import METHODS, search
from autoopt.search.annealing import qubo
from autoopt.search.coordinate import optimum
from autoopt.search.interactions import KINDS, Interaction, interactions, kind_of, squares
from autoopt.search.objective import UNCHANGED, Objective, objective_of

DEFAULT = calibrated_default()
VALUES = {group: dict.fromkeys(FEATURES, 0.5) for group in DEFAULT.groups}
ROOT = Path(__file__).parent.parent
OPTIMIZERS = ("adamw", "lion", "sgd")


def drawn(num_groups, terms=(), budget=10_000, seed=0):
    """An objective with random effects of every configuration, smooth along the rates; grids of 3 x 21."""
    generator = np.random.default_rng(seed)
    grids, effects = {}, {}
    for name in "abcde"[:num_groups]:
        grids[name] = [
            [canonical({"hyperparameters": {}, "lr": factor, "optimizer": optimizer}) for factor in RATE_STEPS]
            for optimizer in OPTIMIZERS
        ]
        best, depth = generator.integers(0, 21, 3), generator.uniform(0.0, 0.3, 3)
        bowls = 0.01 * (np.arange(21) - best[:, None]) ** 2 - depth[:, None]
        effects[name] = (bowls - bowls[0, UNCHANGED]).ravel()
    asked = []

    def predict(group, indices):
        asked.extend((group, index) for index in indices)
        return effects[group][list(indices)]

    return Objective(grids, predict, terms, budget), asked


def random_terms(num_groups, spread, seed=0):
    generator = np.random.default_rng(seed)
    return [
        Interaction((a, i), (b, j), 0.0, 0.0, float(spread * generator.standard_normal()), 9)
        for a, b in itertools.combinations("abcde"[:num_groups], 2)
        for i, j in itertools.product(KINDS, KINDS)
    ]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("budget", [0, 1, 7, 40, 150])
def test_no_method_asks_for_more_than_its_budget_or_twice_for_the_same(method, budget):
    objective, asked = drawn(3, random_terms(3, 0.1), budget)
    plan = METHODS[method](objective, 0)
    assert len(asked) == len(set(asked)) == objective.num_predictions <= budget
    assert objective.value(plan) <= 0.0
    if budget == 0:
        assert plan == objective.unchanged


@pytest.mark.parametrize("method", ["coordinate", "exact", "annealing", "hybrid"])
def test_the_optimum_is_found_when_everything_may_be_asked_for_and_effects_add_up(method):
    objective, _ = drawn(4)
    best = objective.value(optimum(drawn(4)[0]))
    assert objective.value(METHODS[method](objective, 0)) == pytest.approx(best)
    assert best < -0.1


def test_the_optimum_is_the_least_of_all_plans():
    objective, _ = drawn(2, random_terms(2, 0.3))
    plan = optimum(objective)
    everything = itertools.product(range(63), range(63))
    assert objective.value(plan) == pytest.approx(min(map(objective.value, everything)))


def test_coordinates_can_be_stuck_where_only_two_changes_together_gain():
    bowl = np.full(63, 1.0)
    bowl[UNCHANGED], bowl[UNCHANGED + 1] = 0.0, 0.1
    grids = {name: [list(row) for row in rows] for name, rows in _grids(2).items()}
    terms = [Interaction(("a", "higher rate"), ("b", "higher rate"), -0.5, 0.0, -0.5, 9)]

    def solved(method):
        objective = Objective(grids, lambda _, indices: bowl[list(indices)], terms)
        return objective.value(METHODS[method](objective, 0))

    assert solved("coordinate") == 0.0
    for method in ("exact", "annealing", "hybrid"):
        assert solved(method) == pytest.approx(-0.3)


def _grids(num_groups):
    objective, _ = drawn(num_groups)
    return {
        name: [configs[start : start + 21] for start in (0, 21, 42)]
        for name, configs in zip(objective.groups, objective.configs, strict=True)
    }


def test_evolution_comes_close_to_the_optimum_and_repeats_itself_with_its_seed():
    everything, _ = drawn(2)
    best = everything.value(optimum(everything))
    objectives = [drawn(2, budget=120)[0] for _ in range(2)]
    first, again = (objective.value(METHODS["evolution"](objective, 0)) for objective in objectives)
    assert first == again
    assert first < 0.7 * best < 0.0


def test_the_least_energy_of_the_quadratic_form_is_the_optimum():
    objective, _ = drawn(3, random_terms(3, 0.1, seed=3))
    plan = optimum(objective)
    energy = qubo(objective)
    variables = sorted({variable for pair in energy for variable in pair})
    assert 3 <= len(variables) <= 12
    least = math.inf
    for bits in itertools.product((0, 1), repeat=len(variables)):
        on = {variable for variable, bit in zip(variables, bits, strict=True) if bit}
        least = min(least, sum(value for (a, b), value in energy.items() if a in on and b in on))
    assert least == pytest.approx(objective.value(plan))


def test_asking_beyond_the_budget_is_refused_with_the_role_group_and_the_way_out():
    objective, _ = drawn(2, budget=3)
    with pytest.raises(ValueError, match="4 predictions for role group 'b' with 3 of 3 left: ask for fewer"):
        objective.effects(1, [0, 1, 2, 3])
    assert objective.num_predictions == 0


def test_a_selector_is_searched_where_select_would_change_and_finer():
    predictor = synthetic_predictor(gain=-0.3, far=("head",))
    found = search(predictor, VALUES, budget=500)
    assert set(found.changes) == set(DEFAULT.groups) - {"head"}
    for group, config in found.changes.items():
        # The favoured rate is four times the default's.
        assert json.loads(config)["lr"] == pytest.approx(4.0 * DEFAULT.groups[group].lr, rel=0.5)
    assert found.num_predictions <= 500
    assert found.value < -0.25 * len(found.changes)


def test_effects_are_what_the_decision_of_select_looks_at():
    predictor = synthetic_predictor(gain=-0.3)
    objective = objective_of(predictor, VALUES)
    hoped = objective_of(predictor, VALUES, caution=0.0)
    for group, name in enumerate(objective.groups):
        ranked = predictor.rank(name, VALUES[name])
        indices = [objective.configs[group].index(candidate.config) for candidate in ranked]
        pessimistic = [candidate.pessimistic + predictor.margin for candidate in ranked]
        assert objective.effects(group, indices) == pytest.approx(pessimistic)
        assert hoped.effects(group, indices) == pytest.approx([one.mean + predictor.margin for one in ranked])
        assert ranked[0].pessimistic > ranked[0].mean


def test_a_gain_within_the_margin_changes_nothing():
    found = search(synthetic_predictor(gain=-0.004, std=1e-4), VALUES)
    assert found.changes == {} and found.value == 0.0


@pytest.mark.parametrize("method", METHODS)
def test_a_model_unlike_everything_recorded_keeps_the_default(method):
    found = search(synthetic_predictor(far=tuple(DEFAULT.groups)), VALUES, method=method)
    assert (found.changes, found.value, found.num_predictions) == ({}, 0.0, 0)


def test_unknown_methods_and_negative_budgets_are_refused():
    with pytest.raises(ValueError, match="no search method 'genetic': use one of coordinate, exact"):
        search(synthetic_predictor(), VALUES, method="genetic")
    with pytest.raises(ValueError, match="at least 0, not -1"):
        search(synthetic_predictor(), VALUES, budget=-1)


@pytest.mark.parametrize(("method", "library"), [("evolution", "nevergrad"), ("annealing", "openjij")])
def test_a_missing_library_is_named_with_the_extra_that_brings_it(method, library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(AutoOptError, match=rf"needs {library}.*pip install autoopt\[search\]"):
        search(synthetic_predictor(), VALUES, method=method)


def config(group, **changes):
    return json.loads(DEFAULT.with_change(group, changes).to_json())["groups"][group]


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"lr_factor": 2.0}, "higher rate"),
        ({"lr_factor": 0.5}, "lower rate"),
        ({"optimizer": "sgd", "lr": 0.1}, "other optimizer"),
        ({"momentum": 0.5}, "other setting"),
        ({}, None),
    ],
)
def test_kinds_of_change(changes, kind):
    assert kind_of(canonical(config("matrix", **changes)), canonical(config("matrix"))) == kind


def trials(tasks):
    """A table of runs: task -> losses of the default, a higher matrix rate, a lower head rate, and both."""
    matrix = DEFAULT.with_change("matrix", {"lr_factor": 2.0})
    both = matrix.with_change("head", {"lr_factor": 0.5})
    plans = (DEFAULT, matrix, DEFAULT.with_change("head", {"lr_factor": 0.5}), both)
    rows = [
        {"task": task, "seed": 0, "mode": "plan", "status": "completed", "plan": plan.to_json(), "best_val_loss": loss}
        for task, losses in tasks.items()
        for plan, loss in zip(plans, losses, strict=True)
        if loss is not None
    ]
    return pd.DataFrame(rows)


SIDES = (("head", "lower rate"), ("matrix", "higher rate"))


def test_a_square_is_the_joint_change_less_the_single_ones():
    table = trials({"t": (1.0, math.exp(-0.1), math.exp(0.05), math.exp(-0.02))})
    (row,) = squares(table, [DEFAULT.to_json()]).to_dict("records")
    assert (row["first"], row["second"]) == SIDES
    assert row["interaction"] == pytest.approx(-0.02 - (-0.1 + 0.05))


def test_a_square_counts_once_whatever_defaults_lie_in_it():
    table = trials({"t": (1.0, 0.9, 1.1, 0.95)})
    plans = list(table["plan"])
    (first,) = squares(table, [plans[0], plans[1]]).to_dict("records")
    (turned,) = squares(table, [plans[1], plans[0]]).to_dict("records")
    assert first["second"] == ("matrix", "higher rate") and turned["second"] == ("matrix", "lower rate")
    assert turned["interaction"] == pytest.approx(-first["interaction"])


@pytest.mark.parametrize(
    "losses", [(1.0, 0.9, 1.1, None), (1.0, None, 1.1, 0.9), (1.0, 1.0, 1.1, 1.1), (math.inf, 0.9, 1.1, 0.95)]
)
def test_no_square_without_four_runs_that_say_something(losses):
    assert squares(trials({"t": losses}), [DEFAULT.to_json()]).empty


def test_interactions_are_means_over_tasks_shrunk_by_their_errors():
    strong = {f"t{i}": (1.0, 0.9, 0.9, 0.81 * math.exp(0.2 + 0.01 * (-1) ** i)) for i in range(8)}
    (found,) = interactions(trials(strong), [DEFAULT.to_json()])
    assert (found.first, found.second, found.num_tasks) == (*SIDES, 8)
    assert found.mean == pytest.approx(0.2)
    assert found.error == pytest.approx(0.01 * math.sqrt(8 / 7) / math.sqrt(8))
    assert found.shrunk == pytest.approx(0.2 * (0.2**2 - found.error**2) / 0.2**2)
    noise = {f"t{i}": (1.0, 0.9, 0.9, 0.81 * math.exp(0.1 * (-1) ** i)) for i in range(8)}
    (found,) = interactions(trials(noise), [DEFAULT.to_json()])
    assert found.shrunk == 0.0


def test_one_task_is_no_interaction():
    assert interactions(trials({"t": (1.0, 0.9, 1.1, 0.95)}), [DEFAULT.to_json()]) == []


def test_the_script_prints_recorded_interactions_and_a_row_for_each_method(monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import compare_search

    arguments = ["--folder", str(ROOT / "meta_data"), "--tasks", "1", "--budgets", "30", "5000"]
    assert compare_search.main([*arguments, "--methods", "coordinate", "annealing"]) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert ["embedding, other setting", "head, other setting"] in [row[:2] for row in cells]
    rows = [row for row in cells if row[2] in ("coordinate", "annealing") and len(row) == 7]
    assert [row[0] for row in rows] == ["recorded"] * 4 + ["drawn, 0.02"] * 4 + ["drawn, 0.1"] * 4
    assert all(float(row[3]) >= 0.0 for row in rows)


def test_the_script_says_what_is_missing(monkeypatch, capsys, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import compare_search

    assert compare_search.main(["--folder", str(tmp_path)]) == 1
    assert "error: " in capsys.readouterr().err
