"""Mean effects of changes and what a loss is worth in steps, read off made-up trials."""

import json
import math

import pandas as pd
import pytest

from autoopt.meta.effects import mean_effects, steps_of_loss, structure
from autoopt.optimizers.recipe import calibrated_default

DEFAULT = calibrated_default()


def trials(*runs):
    """A table of runs `(task, family, recipe, loss)`, each with a curve that halves its excess in every step."""
    rows = [
        {
            "task": task,
            "family": family,
            "source": "made-up",
            "seed": 0,
            "mode": "plan",
            "status": "completed",
            "plan": recipe.to_json(),
            "best_val_loss": loss,
            "val_steps": list(range(10, 110, 10)),
            "val_losses": [loss * (1 + 0.5**k) for k in range(9)] + [loss],
        }
        for task, family, recipe, loss in runs
    ]
    return pd.DataFrame(rows)


def lion(lr):
    return DEFAULT.with_change("matrix", {"optimizer": "lion", "lr": lr})


def runs_of(lr, ratios):
    """The default at a loss of 1 and Lion at these ratios to it; families hold three, two and one task."""
    families = ["a", "a", "a", "b", "b", "c"]
    for index, (family, ratio) in enumerate(zip(families, ratios, strict=True)):
        yield f"t{index}", family, DEFAULT, 1.0
        yield f"t{index}", family, lion(lr), ratio


def test_every_family_counts_the_same_and_the_best_rate_is_kept():
    good, bad = math.exp(0.1), math.exp(0.3)
    table = trials(*runs_of(1e-3, [good] * 3 + [1.0] * 3), *runs_of(1e-2, [bad] * 6)).drop_duplicates(["task", "plan"])
    (found,) = mean_effects(table, DEFAULT.to_json())["matrix"]
    assert found.config["optimizer"] == "lion" and found.config["lr"] == 1e-3
    assert found.mean == pytest.approx(0.1 / 3)
    assert found.spread == pytest.approx(0.1 / math.sqrt(3))
    assert found.error == pytest.approx(0.1 / 3)
    assert (found.num_tasks, found.num_families) == (6, 3)


def test_kinds_of_optimizers_known_around_an_earlier_default_alone_have_its_effect():
    table = trials(*runs_of(1e-3, [1.1] * 6))
    now = DEFAULT.with_change("*", {"horizon_free": not DEFAULT.horizon_free})
    assert mean_effects(table, now.to_json()).get("matrix", []) == []
    (found,) = mean_effects(table, now.to_json(), earlier=[DEFAULT.to_json()])["matrix"]
    assert found.config["optimizer"] == "lion" and found.mean == pytest.approx(math.log(1.1))
    own = mean_effects(table, DEFAULT.to_json(), earlier=[DEFAULT.to_json()])["matrix"]
    assert own == [found]


def test_what_was_recorded_on_few_tasks_is_left_out():
    table = trials(*runs_of(1e-3, [1.1] * 6))
    assert mean_effects(table, DEFAULT.to_json(), min_tasks=7)["matrix"] == []


def test_momentum_makes_another_kind_of_optimizer():
    plain = DEFAULT.with_change("matrix", {"optimizer": "sgd", "lr": 1.0, "momentum": 0.0})
    heavy = DEFAULT.with_change("matrix", {"optimizer": "sgd", "lr": 0.1})
    kinds = [structure(json.loads(recipe.to_json())["groups"]["matrix"]) for recipe in (plain, heavy)]
    assert kinds == [("sgd", False), ("sgd", True)]


def test_steps_are_where_the_better_curve_passes_the_worse_ones_loss():
    # Curve of the best run: 1 + 0.5 ** k at step 10 (k + 1), so it passes 1.125 at step 40 and ends at 100.
    table = trials(("t", "a", DEFAULT, 1.0), ("t", "a", lion(1e-3), 1.125))
    (knot,) = steps_of_loss(table, (0.02, 0.5))
    assert knot.log_loss == pytest.approx(math.log(1.125))
    assert knot.log_steps == pytest.approx(math.log(100 / 40))
    assert knot.num_pairs == 1


def test_a_larger_loss_is_never_worth_fewer_steps():
    table = trials(
        ("t", "a", DEFAULT, 1.0),
        ("t", "a", lion(1e-3), 1.03),
        ("t", "a", lion(1e-2), 1.125),
        ("t", "a", lion(0.1), 1.4),
    )
    steps = [knot.log_steps for knot in steps_of_loss(table)]
    assert steps == sorted(steps) and len(steps) == 3


def test_losses_that_are_not_positive_have_no_ratio():
    assert steps_of_loss(trials(("t", "a", DEFAULT, -1.0), ("t", "a", lion(1e-3), -0.9))) == []
