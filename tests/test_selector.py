"""The meta-learner: paired outcomes, the forest as arrays, the estimator's contract, the artifact."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.utils.estimator_checks import parametrize_with_checks

from autoopt.errors import ArtifactError
from autoopt.meta import artifact
from autoopt.meta.coordinate import moved_default, moves
from autoopt.meta.encoding import COLUMNS, encode_candidate
from autoopt.meta.evaluation import bootstrap_interval, evaluate_choices, strict_folds
from autoopt.meta.fitting import GroupTable, Settings, fit_group, proposable, task_weights
from autoopt.meta.forest import Forest
from autoopt.meta.pairs import CLIP, canonical, log_ratio, paired_outcomes
from autoopt.meta.selector import OptimizerSelector


def recipe(**groups):
    """The canonical JSON of a two-group recipe; a group is (optimizer, rate)."""
    value = {
        "groups": {
            name: {"optimizer": optimizer, "lr": lr, "hyperparameters": {}} for name, (optimizer, lr) in groups.items()
        },
        "shape": "linear",
        "width_free": True,
    }
    return canonical(value)


DEFAULT = recipe(head=("adamw", 0.01), matrix=("muon", 0.02))


def trials(rows):
    """A trial table of (task, family, source, seed, plan, loss)."""
    columns = ["task", "family", "source", "seed", "plan", "best_val_loss"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.assign(mode="plan", status="completed")


@pytest.fixture
def table():
    """Rows in which the first feature decides whether candidate B gains or loses."""
    generator = np.random.default_rng(0)
    rows = []
    for task in range(60):
        signal = generator.uniform(-1, 1)
        for config, effect in (("A", 0.1), ("B", 0.3 * np.sign(signal))):
            noise = 0.01 * generator.standard_normal()
            rows.append((signal, generator.uniform(), float(config == "B"), effect + noise, task, config))
    x = np.array([row[:3] for row in rows])
    y = np.array([row[3] for row in rows])
    tasks = np.array([f"task{row[4]}" for row in rows])
    families = np.array([f"family{row[4] % 6}" for row in rows])
    sources = np.array([f"source{row[4] % 6}" for row in rows])
    return GroupTable(x, y, tasks, families, sources, np.array([row[5] for row in rows]))


class TestPairs:
    def test_only_runs_that_differ_in_one_group_are_pairs(self):
        one = recipe(head=("adamw", 0.04), matrix=("muon", 0.02))
        both = recipe(head=("adamw", 0.04), matrix=("muon", 0.04))
        rows = [("t", "f", "s", 0, plan, loss) for plan, loss in ((DEFAULT, 1.0), (one, 0.9), (both, 0.5))]
        found = paired_outcomes(trials(rows), DEFAULT)
        # Against the default only `one` is a pair; against `one`, whose matrices are the default's, `both` is.
        assert found["group"].tolist() == ["head", "matrix"]
        assert found["outcome"].tolist() == pytest.approx([math.log(0.9), max(-CLIP, math.log(0.5 / 0.9))])
        assert json.loads(found["config"].iloc[0])["lr"] == 0.04

    def test_a_pair_around_another_default_counts_where_the_group_agrees(self):
        other = recipe(head=("adamw", 0.01), matrix=("sgd", 0.1))
        changed = recipe(head=("adamw", 0.04), matrix=("sgd", 0.1))
        found = paired_outcomes(trials([("t", "f", "s", 0, other, 2.0), ("t", "f", "s", 0, changed, 1.9)]), DEFAULT)
        assert found["group"].tolist() == ["head"]
        assert found["outcome"].iloc[0] == pytest.approx(math.log(1.9 / 2.0))

    def test_seeds_are_never_mixed(self):
        one = recipe(head=("adamw", 0.04), matrix=("muon", 0.02))
        rows = [("t", "f", "s", 0, DEFAULT, 1.0), ("t", "f", "s", 1, one, 0.5)]
        assert paired_outcomes(trials(rows), DEFAULT).empty

    @pytest.mark.parametrize(
        ("loss", "reference", "expected"),
        [(math.inf, 1.0, CLIP), (1.0, math.inf, -CLIP), (10.0, 1.0, CLIP), (1.0, 1.0, 0.0), (-2.0, -1.0, -0.25)],
    )
    def test_log_ratio_is_bounded(self, loss, reference, expected):
        assert log_ratio(loss, reference, scale=4.0) == expected


class TestForest:
    def test_equals_scikit_learn(self):
        generator = np.random.default_rng(1)
        x, y = generator.normal(size=(300, 5)), generator.normal(size=300)
        model = ExtraTreesRegressor(20, min_samples_leaf=3, random_state=0).fit(x, y)
        forest = Forest.from_sklearn(model)
        new = generator.normal(size=(200, 5))
        assert np.abs(forest.predict(new)[0] - model.predict(new)).max() < 1e-6

    def test_contributions_add_up_to_the_prediction(self):
        generator = np.random.default_rng(2)
        x = generator.normal(size=(200, 4))
        model = ExtraTreesRegressor(10, min_samples_leaf=3, random_state=0).fit(x, x[:, 0])
        forest = Forest.from_sklearn(model)
        new = generator.normal(size=(7, 4))
        parts = forest.contributions(new)
        base = forest.value[forest.roots].mean()
        assert np.allclose(parts.sum(axis=1) + base, forest.predict(new)[0])
        assert np.abs(parts[:, 0]).sum() > np.abs(parts[:, 1:]).sum()

    def test_spread_is_larger_where_nothing_is_known(self):
        generator = np.random.default_rng(3)
        x = generator.uniform(-1, 1, size=(400, 1))
        noise = np.where(x[:, 0] > 0, 1.0, 0.01) * generator.standard_normal(400)
        model = ExtraTreesRegressor(30, min_samples_leaf=5, random_state=0).fit(x, noise)
        _, spread = Forest.from_sklearn(model).predict(np.array([[-0.5], [0.5]]))
        assert spread[1] > 5 * spread[0]


class TestOptimizerSelector:
    @parametrize_with_checks([OptimizerSelector(num_trees=5)])
    def test_estimator_contract(self, estimator, check):
        check(estimator)

    def test_missing_values_are_allowed(self, table):
        x = table.x.copy()
        x[::3, 1] = np.nan
        assert np.isfinite(OptimizerSelector(num_trees=5).fit(x, table.y).predict(x)).all()

    def test_shrinkage_and_spread_scale_predictions(self, table):
        plain = OptimizerSelector(num_trees=5).fit(table.x, table.y).predict_with_spread(table.x)
        scaled = OptimizerSelector(num_trees=5, shrinkage=0.5, spread=2.0).fit(table.x, table.y)
        mean, std = scaled.predict_with_spread(table.x)
        assert np.allclose(mean, 0.5 * plain[0])
        assert np.allclose(std, 2.0 * plain[1])


class TestEvaluation:
    def test_folds_share_neither_family_nor_source(self):
        families = np.array(["a", "a", "b", "c"])
        sources = np.array(["x", "y", "x", "z"])
        folds = list(strict_folds(families, sources))
        assert len(folds) == 4
        for train, test in folds:
            assert not set(families[train]) & set(families[test])
            assert not set(sources[train]) & set(sources[test])
        train, _ = folds[0]  # (a, x): b shares the source, the other a the family
        assert train.tolist() == [False, False, False, True]

    def test_a_learnable_effect_is_closed_and_noise_abstained_from(self, table):
        settings = Settings(num_trees=30, max_features=1.0, min_leaf_share=0.04, caution=0.5, margin=0.01)
        outcomes = evaluate_choices(table, settings)
        assert outcomes.closed_gap() > 0.8
        assert outcomes.harmed() < 0.1
        shuffled = np.random.default_rng(0).permutation(len(table.y))
        noise = GroupTable(
            table.x, 0.02 * np.sin(1e3 * shuffled), table.tasks, table.families, table.sources, table.configs
        )
        assert evaluate_choices(noise, settings).applied.mean() < 0.1

    def test_bootstrap_interval_covers_the_mean(self):
        values = np.random.default_rng(0).normal(1.0, 1.0, 400)
        low, high = bootstrap_interval(values)
        assert low < 1.0 < high
        assert 0.15 < high - low < 0.25

    def test_tasks_weigh_the_same(self):
        weights = task_weights(np.array(["a", "a", "a", "b"]))
        assert weights[:3].sum() == pytest.approx(weights[3])


class TestCoordinateSearch:
    def test_the_default_moves_where_the_mean_surely_gains(self):
        better = recipe(head=("adamw", 0.04), matrix=("muon", 0.02))
        noisy = recipe(head=("adamw", 0.01), matrix=("sgd", 0.1))
        rows = []
        for task in range(20):
            place = (f"t{task}", f"f{task}", f"s{task}", 0)
            rows += [(*place, DEFAULT, 1.0), (*place, better, 0.9), (*place, noisy, 0.7 if task % 2 else 1.4)]
        found = moves(trials(rows), DEFAULT)
        text, made = moved_default(DEFAULT, found)
        assert [move.group for move in made] == ["head"]
        assert text == better


class TestEncoding:
    def test_rates_are_compared_within_one_optimizer_only(self):
        old = canonical({"optimizer": "muon", "lr": 0.02, "hyperparameters": {}})
        double = canonical({"optimizer": "muon", "lr": 0.04, "hyperparameters": {}})
        other = canonical({"optimizer": "sgd", "lr": 0.5, "hyperparameters": {}})
        rate = COLUMNS.index("log_rate_change")
        assert encode_candidate(double, old)[rate] == pytest.approx(1.0)
        assert encode_candidate(other, old)[rate] == 0.0
        assert encode_candidate(other, old)[COLUMNS.index("to_sgd")] == 1.0


class TestArtifact:
    @pytest.fixture
    def predictor(self, table):
        candidates = {
            "A": canonical({"optimizer": "sgd", "lr": 0.1, "hyperparameters": {}}),
            "B": canonical({"optimizer": "adamw", "lr": 0.04, "hyperparameters": {}}),
        }
        codes = np.stack(
            [encode_candidate(candidates[c], canonical(json.loads(DEFAULT)["groups"]["head"])) for c in table.configs]
        )
        x = np.hstack([table.x[:, :2], codes])
        full = GroupTable(
            x, table.y, table.tasks, table.families, table.sources, np.array([candidates[c] for c in table.configs])
        )
        model = fit_group(full, Settings(num_trees=10))
        group = artifact.GroupModel(
            forest=model.forest_,
            medians=model.medians_,
            candidates=proposable(full),
            shrinkage=1.0,
            spread=1.0,
            reference=full.x[::2, :2],
            tasks=tuple(map(str, full.tasks[::2])),
            winners=("won",) * 60,
            reach=1.0,
        )
        return artifact.Predictor(DEFAULT, ("one", "two"), {"head": group}, 0.3, 0.005, {"num_tasks": 60})

    def test_round_trip_ranks_alike_and_is_reproducible(self, predictor, tmp_path):
        digest = artifact.save(predictor, tmp_path / "a.npz")
        assert artifact.save(predictor, tmp_path / "b.npz") == digest
        assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
        loaded = artifact.load(tmp_path / "a.npz")
        for values in ({"one": 0.9, "two": 0.1}, {"one": -0.9}):
            assert loaded.rank("head", values) == predictor.rank("head", values)
        assert loaded.rank("head", {"one": -0.9})[0].mean < -0.2
        assert loaded.sha256 == digest

    def test_explanations(self, predictor):
        best = predictor.rank("head", {"one": -0.9, "two": 0.5})[0]
        parts = predictor.contributions("head", {"one": -0.9, "two": 0.5}, best.config)
        assert parts["one"] < -0.05
        assert abs(parts["one"]) > abs(parts["two"])
        assert predictor.percentile("head", "one", 2.0) == 100.0
        assert len(predictor.nearest("head", {"one": 0.0, "two": 0.0})) == 3
        assert predictor.is_far("head", {"one": 80.0, "two": -80.0})
        assert predictor.rank("vector", {}) == []

    @pytest.mark.parametrize("damage", ["truncated", "flipped", "newer", "missing", "text"])
    def test_damage_is_named(self, predictor, tmp_path, damage, monkeypatch):
        path = tmp_path / "selector.npz"
        if damage == "newer":
            monkeypatch.setattr(artifact, "ARTIFACT_SCHEMA_VERSION", 7)
        artifact.save(predictor, path)
        monkeypatch.undo()
        content = path.read_bytes()
        if damage == "truncated":
            path.write_bytes(content[: len(content) // 2])
        elif damage == "flipped":
            middle = len(content) // 2
            path.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])
        elif damage == "missing":
            path.unlink()
        elif damage == "text":
            path.write_text("not an artifact")
        words = {"newer": "newer schema", "missing": "there is no selector", "truncated": "truncated or corrupted"}
        with pytest.raises(ArtifactError, match=words.get(damage, "corrupted")) as caught:
            artifact.load(path)
        assert "selector='default'" in str(caught.value)
