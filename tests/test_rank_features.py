"""The ranking of features: what carries a signal to unseen families, and what says the best rate."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from autoopt.meta import feature_ranking
from autoopt.meta.encoding import COLUMNS, encode_candidate
from autoopt.meta.feature_ranking import best_rates, family_folds, permutation_importance, rate_correlations, spearman
from autoopt.meta.fitting import GroupTable, Settings
from autoopt.meta.pairs import canonical

BASE = canonical({"optimizer": "adamw", "lr": 0.01, "hyperparameters": {}})
FEATURES = ("telling", "noise", "unknown")


def config(rate, optimizer="adamw", **hyperparameters):
    return canonical({"optimizer": optimizer, "lr": rate, "hyperparameters": hyperparameters})


def table(num_tasks=48, rates=(0.0025, 0.005, 0.02, 0.04), seed=0):
    """The best log rate is 0.01 times e to the telling feature."""
    generator = np.random.default_rng(seed)
    rows = []
    for task in range(num_tasks):
        telling, noise = generator.uniform(-1, 1), generator.normal()
        for rate in rates:
            distance = math.log(rate / 0.01)
            outcome = 0.1 * ((distance - telling) ** 2 - telling**2)
            left = [telling, noise, math.nan]
            rows.append((np.hstack([left, encode_candidate(config(rate), BASE)]), outcome, task, config(rate)))
    x, y, tasks, configs = zip(*rows, strict=True)
    names = np.array([f"task-{task:02d}" for task in tasks])
    families = np.array([f"family-{task % 6}" for task in tasks])
    return GroupTable(np.stack(x), np.array(y), names, families, names, np.array(configs), np.ones(len(y)))


def test_folds_hold_every_family_out_once():
    families = np.array(list("aaabbcdde"))
    folds = list(family_folds(families, 3))
    assert len(folds) == 3
    assert sum(test for _, test in folds).tolist() == [1] * len(families)
    for train, test in folds:
        assert not set(families[train]) & set(families[test]) and (train ^ test).all()


def test_a_telling_feature_is_missed_and_noise_is_not():
    rows = table()
    assert rows.x.shape[1] == len(FEATURES) + len(COLUMNS)
    settings = Settings(features=FEATURES)
    found = permutation_importance(rows, settings, most_folds=3, repeats=3)
    assert found["telling"] > 0.3
    assert abs(found["noise"]) < 0.05 and found["unknown"] == 0
    assert permutation_importance(rows, settings, most_folds=3, repeats=3) == found


def test_without_a_second_family_or_an_effect_nothing_is_worth_anything():
    rows = table(12)
    single = rows.where(rows.families == "family-0")
    assert set(permutation_importance(single, Settings(features=FEATURES)).values()) == {0.0}
    flat = GroupTable(**{**rows.__dict__, "y": 0 * rows.y})
    assert set(permutation_importance(flat, Settings(features=FEATURES)).values()) == {0.0}


def test_best_rates_compare_like_with_like():
    rows = table(12, rates=(0.005, 0.02))
    found = best_rates(rows, BASE)
    assert set(found) == {"adamw"} and len(found["adamw"]) == 12
    for task, rate in found["adamw"].items():
        here = rows.tasks == task
        outcomes = {0.01: 0.0} | {json.loads(c)["lr"]: y for c, y in zip(rows.configs[here], rows.y[here], strict=True)}
        assert rate == pytest.approx(math.log(min(outcomes, key=outcomes.get)))
    # Two rates are no curve, and other momenta are other optimizers.
    assert best_rates(rows.where(rows.configs == config(0.02)), BASE) == {}
    other = GroupTable(**{**rows.__dict__, "configs": np.array([config(0.02, betas=[0.8, 0.9])] * len(rows.y))})
    assert best_rates(other, BASE) == {}


def test_correlations_are_spearmans():
    rows = table()
    (found, *_), (noise, *_) = (rate_correlations({"head": rows}, {"head": BASE}, FEATURES)[n] for n in FEATURES[:2])
    names, first = np.unique(rows.tasks, return_index=True)
    rates = best_rates(rows, BASE)["adamw"]
    expected = stats.spearmanr(rows.x[first, 0], [rates[name] for name in names]).statistic
    assert (found.group, found.optimizer, found.num_tasks) == ("head", "adamw", 48)
    assert found.rho == pytest.approx(expected) and expected > 0.9 > 0.4 > abs(noise.rho)
    assert rate_correlations({"head": rows}, {"head": BASE}, FEATURES)["unknown"] == []


def test_spearman_handles_ties_and_missing_values():
    generator = np.random.default_rng(0)
    x, y = generator.integers(0, 5, 40).astype(float), generator.normal(size=40)
    x[:4] = np.nan
    rho, count = spearman(x, y)
    assert count == 36 and rho == pytest.approx(stats.spearmanr(x[4:], y[4:]).statistic)
    assert math.isnan(spearman(np.ones(9), np.arange(9.0))[0])


def test_the_script_prints_a_table_of_every_feature(monkeypatch, capsys, tmp_path):
    import importlib.util
    from pathlib import Path

    path = Path(__file__).parent.parent / "scripts" / "rank_features.py"
    spec = importlib.util.spec_from_file_location("rank_features", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    rows = table()
    names = ("log_fan_in", "log_numel", "log_groups")
    recorded = pd.DataFrame(dict(zip(names, rows.x[:, :3].T, strict=True)))
    dataset = type("Data", (), {"features": recorded})()
    monkeypatch.setattr(script.MetaDataset, "load", lambda folder: dataset)
    monkeypatch.setattr(script, "learning_tables", lambda data, default, features: {"head": _narrowed(rows, features)})
    monkeypatch.setattr(
        script,
        "calibrated_default",
        lambda: type("R", (), {"to_json": lambda self: f'{{"groups":{{"head":{BASE}}}}}'})(),
    )

    def _narrowed(rows, features):
        keep = [names.index(name) for name in features] + list(range(3, rows.x.shape[1]))
        return GroupTable(**{**rows.__dict__, "x": rows.x[:, keep]})

    assert script.main(["--features", "all", "--folds", "3", "--repeats", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| feature | known | head |")
    assert lines[2].startswith("| `log_fan_in` | 100 % | +") and "head adamw +0.9" in lines[2]
    assert "carries nothing" in next(line for line in lines if "log_numel" in line)
    assert "too few tasks" in next(line for line in lines if "log_groups" in line)
    assert lines[-1].startswith("Not recorded yet: `log_fan_out`")
    assert script.main(["--features", "selected", "--output", str(tmp_path / "table.md")]) == 0
    assert "`log_numel`" in (tmp_path / "table.md").read_text()


def test_the_least_number_of_tasks_is_what_the_docstring_says():
    assert best_rates(table(feature_ranking.MIN_TASKS - 1), BASE) == {}
