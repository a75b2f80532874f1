"""Proposals against random plans, on runs whose worth is known."""

import math

import pandas as pd
import pytest

from autoopt.meta.proposal_worth import compare


def run(task, plan, loss, name, mode="plan", seed=0):
    return {
        "task": task, "plan": plan, "plan_name": plan, "best_val_loss": loss, "round": name, "mode": mode, "seed": seed
    }  # fmt: skip


def test_only_new_plans_count_and_as_many_of_each():
    rows = [
        run("a", "base", 1.0, "coordinate-1"), run("a", "known", 0.8, "coordinate-1"),
        run("a", "p1", 0.7, "propose-1"), run("a", "base", 1.0, "propose-1"), run("a", "p2", 0.9, "propose-1"),
        run("a", "r1", 0.79, "random"), run("a", "r2", math.inf, "random"), run("a", "r3", 0.1, "random"),
        run("b", "base", 1.0, "coordinate-1"), run("b", "p1", 1.1, "propose-1"), run("b", "r1", 2.0, "random"),
        run("c", "base", 1.0, "coordinate-1"), run("c", "p1", 0.5, "propose-1"),
        run("a", "late", 0.01, "select", mode="select"), run("a", "p9", 0.01, "propose-1", seed=1),
    ]  # fmt: skip
    proposed, others = compare(pd.DataFrame(rows), "propose-1", "random")
    assert (proposed.num_tasks, proposed.num_plans, others.num_plans) == (2, 3, 3)
    assert (proposed.raised, others.raised) == (0.5, 0.5)
    assert proposed.gain == pytest.approx(math.log(0.7 / 0.8) / 2)
    assert others.gain == pytest.approx(math.log(0.79 / 0.8) / 2)
    assert proposed.interval[0] <= proposed.gain <= proposed.interval[1]


def test_without_common_tasks_there_is_nothing_to_tell():
    rows = [run("a", "base", 1.0, "coordinate-1"), run("a", "p1", 0.7, "propose-1")]
    proposed, _ = compare(pd.DataFrame(rows), "propose-1", "random")
    assert (proposed.num_tasks, proposed.raised, proposed.gain) == (0, 0.0, 0.0)
