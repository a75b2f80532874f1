"""Laws of the rate: interpolated responses, and what is found on families that were left out."""

import math

import numpy as np
import pandas as pd
import pytest
from script_modules import script

from autoopt.meta.rate_laws import Response, laws, response
from autoopt.optimizers.recipe import Recipe

DEFAULT = Recipe.uniform("adamw", 0.01)
FACTORS = (0.25, 0.5, 2.0, 4.0)


def recorded(optimum, num_tasks=60, num_families=12, seed=0):
    """Trials whose log loss is a parabola around `optimum(total_steps)` doublings, and features of the tasks."""
    generator = np.random.default_rng(seed)
    trials, features = [], []
    for index in range(num_tasks):
        steps = float(generator.normal())
        place = {"task": f"t{index}", "family": f"f{index % num_families}", "source": f"s{index % 7}", "seed": 0}
        best = optimum(steps)
        for factor in (1.0, *FACTORS):
            recipe = DEFAULT if factor == 1.0 else DEFAULT.with_change("matrix", {"lr_factor": factor})
            loss = math.exp(0.05 * (math.log2(factor) - best) ** 2 + 0.01 * generator.normal())
            run = {"plan": recipe.to_json(), "mode": "plan", "status": "completed", "best_val_loss": loss}
            trials.append(place | run)
        noise = {f"noise_{k}": generator.normal() for k in range(3)}
        features.append(place | {"group": "matrix", "log_total_steps": steps, **noise})
    return pd.DataFrame(trials), pd.DataFrame(features)


NAMES = ("log_total_steps", "noise_0", "noise_1", "noise_2")


def test_a_law_that_is_there_is_found_with_its_power():
    trials, features = recorded(lambda steps: -0.8 * steps)
    found = laws(response(trials, DEFAULT.to_json(), "matrix"), features, "matrix", NAMES)
    best = found[0]
    assert best.feature == "log_total_steps" and best.power == pytest.approx(-0.8, abs=0.15)
    assert best.high < 0.0 and best.num_tasks == 60
    # A parabola of 0.05 around optima of variance 0.64 loses 0.032 on average without the law.
    assert best.gain == pytest.approx(-0.032, abs=0.012)
    assert all(abs(law.gain) < 0.01 for law in found[1:])


def test_where_there_is_none_nothing_is_found():
    trials, features = recorded(lambda steps: 0.0)
    found = laws(response(trials, DEFAULT.to_json(), "matrix"), features, "matrix", NAMES)
    assert len(found) == 4 and all(law.gain > -0.002 for law in found)


def test_the_response_goes_through_what_was_recorded():
    outcomes = np.array([[0.4, 0.1, -0.05, 0.2], [np.nan, -0.1, 0.1, np.nan]])
    own = Response(("a", "b"), np.array(["f", "g"]), outcomes)
    for position, factor in enumerate((-2.0, -1.0, 1.0, 2.0)):
        assert own.at(np.full(2, factor))[0] == pytest.approx(outcomes[0, position])
    assert own.at(np.zeros(2)) == pytest.approx([0.0, 0.0])
    assert own.at(np.full(2, -2.0))[1] == pytest.approx(-0.1)  # a gain is not taken to go on
    assert own.at(np.full(2, 2.0))[1] == pytest.approx(0.2)
    assert own.at(np.full(2, 9.0)) == pytest.approx(own.at(np.full(2, 2.0)))


def test_tasks_without_both_neighbours_have_no_response():
    trials, _ = recorded(lambda steps: 0.0, num_tasks=3)
    lost = DEFAULT.with_change("matrix", {"lr_factor": 2.0}).to_json()
    found = response(trials[~((trials["task"] == "t1") & (trials["plan"] == lost))], DEFAULT.to_json(), "matrix")
    assert found.tasks == ("t0", "t2")


def test_the_script_prints_laws_and_refuses_what_it_does_not_know(capsys):
    finder = script("find_rate_laws")
    assert finder.main(["--default", "5", "--groups", "matrix", "--where", "norm_adjacent=0", "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("matrix: ") and "log_total_steps" in lines[1] and len(lines) == 3
    for arguments, words in (
        (["--default", "99"], "there is no default 99"),
        (["--groups", "tables"], "there is no role group 'tables'"),
        (["--where", "colour=1"], "is not FEATURE=VALUE"),
    ):
        assert finder.main(arguments) == 1
        assert words in capsys.readouterr().err
