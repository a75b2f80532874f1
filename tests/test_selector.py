"""The meta-learner: paired outcomes, the process as arrays, the estimator's contract, the artifact."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import multivariate_normal
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Kernel
from sklearn.utils.estimator_checks import parametrize_with_checks

from autoopt.choice import favoured
from autoopt.errors import ArtifactError
from autoopt.meta import artifact
from autoopt.meta.calibration import SPREADS, calibrated
from autoopt.meta.coordinate import moved_default, moves, progress
from autoopt.meta.encoding import COLUMNS, encode_candidate
from autoopt.meta.evaluation import bootstrap_interval, evaluate_choices, predict_held_out, strict_folds
from autoopt.meta.evidence import Evidence, Hyperparameters
from autoopt.meta.fitting import GroupTable, Settings, fit_group, proposable
from autoopt.meta.forms import CandidateForms
from autoopt.meta.pairs import CLIP, canonical, log_ratio, paired_outcomes
from autoopt.meta.process import pinned_similarity
from autoopt.meta.selector import OptimizerSelector, _whole_tasks


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
            rows.append((signal, task / 60, float(config == "B"), effect + noise, task, config))
    codes = np.zeros((len(rows), len(COLUMNS)))
    codes[:, 0] = [row[2] for row in rows]
    codes[:, 1] = 1.0 - codes[:, 0]
    x = np.hstack([np.array([row[:2] for row in rows]), codes])
    y = np.array([row[3] for row in rows])
    tasks = np.array([f"task{row[4]}" for row in rows])
    families = np.array([f"family{row[4] % 6}" for row in rows])
    sources = np.array([f"source{row[4] % 6}" for row in rows])
    return GroupTable(x, y, tasks, families, sources, np.array([row[5] for row in rows]), np.ones(len(y)))


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

    def test_what_an_earlier_default_was_paired_with_is_linked_by_two_pairs(self):
        # The head's rate moved from 0.01 to 0.02 with the matrices'; 0.04 was only recorded before.
        new = recipe(head=("adamw", 0.02), matrix=("muon", 0.04))
        back = recipe(head=("adamw", 0.01), matrix=("muon", 0.04))
        old = recipe(head=("adamw", 0.01), matrix=("muon", 0.02))
        larger = recipe(head=("adamw", 0.04), matrix=("muon", 0.02))
        rows = [("t", "f", "s", 0, plan, loss) for plan, loss in ((new, 1.0), (back, 1.1), (old, 2.0), (larger, 1.8))]
        direct = paired_outcomes(trials(rows), new)
        assert direct[direct["group"] == "head"]["outcome"].tolist() == [pytest.approx(math.log(1.1))]
        linked = paired_outcomes(trials(rows), new, linked=True)
        head = linked[linked["group"] == "head"].set_index("config")
        found = head.loc[canonical(json.loads(larger)["groups"]["head"])]
        assert found["linked"] and found["outcome"] == pytest.approx(math.log(1.1) + math.log(1.8 / 2.0))
        # Without the run that goes back there is no link.
        apart = paired_outcomes(trials([row for row in rows if row[4] != back]), new, linked=True)
        assert not (apart["group"] == "head").any()

    def test_a_direct_pair_is_never_replaced_by_a_linked_one(self):
        new = recipe(head=("adamw", 0.02), matrix=("muon", 0.04))
        runs = {
            new: 1.0,
            recipe(head=("adamw", 0.01), matrix=("muon", 0.04)): 1.1,
            recipe(head=("adamw", 0.04), matrix=("muon", 0.04)): 0.9,
            recipe(head=("adamw", 0.01), matrix=("muon", 0.02)): 2.0,
            recipe(head=("adamw", 0.04), matrix=("muon", 0.02)): 4.0,
        }
        rows = [("t", "f", "s", 0, plan, loss) for plan, loss in runs.items()]
        found = paired_outcomes(trials(rows), new, linked=True)
        rates = [json.loads(config).get("lr") for config in found["config"]]
        assert rates.count(0.04) == 1 and not found["linked"].any()

    @pytest.mark.parametrize(
        ("group", "option"),
        [
            ("embedding", "scale_free"),
            ("conv", "norm_free"),
            ("conv", "horizon_free"),
            ("matrix", "horizon_free"),
            ("head", "horizon_free"),
        ],
    )
    def test_pairs_count_where_rates_mean_the_same(self, group, option):
        groups = {group: ("adamw", 0.01), "vector": ("adamw", 0.01)}
        changed = groups | {group: ("adamw", 0.02)}
        free = [canonical(json.loads(recipe(**own)) | {option: True}) for own in (groups, changed)]
        plain = [recipe(**own) for own in (groups, changed)]
        rows = [("t", "f", "s", 0, plan, loss) for plan, loss in zip(plain, (1.0, 0.5), strict=True)]
        found = paired_outcomes(trials(rows), free[0])
        assert found.empty
        rows += [("t", "f", "s", 0, plan, loss) for plan, loss in zip(free, (1.0, 0.9), strict=True)]
        found = paired_outcomes(trials(rows), free[0])
        assert found[found["group"] == group]["outcome"].tolist() == [pytest.approx(math.log(0.9))]

    def test_pairs_of_other_groups_count_whatever_rates_are_relative_to(self):
        groups = {"matrix": ("muon", 0.01), "vector": ("adamw", 0.01)}
        plain = [recipe(**groups), recipe(**groups | {"vector": ("adamw", 0.02)})]
        rows = [("t", "f", "s", 0, plan, loss) for plan, loss in zip(plain, (1.0, 0.9), strict=True)]
        found = paired_outcomes(trials(rows), canonical(json.loads(plain[0]) | {"horizon_free": True}))
        assert found["group"].tolist() == ["vector"]

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


class EffectKernel(Kernel):
    """The covariance that `Process` states, written out for scikit-learn's Gaussian process."""

    def __init__(self, process):
        self.process = process

    def value(self, a, b):
        p, n = self.process, self.process.num_features
        product = (a[:n] * b[:n] * p.relevance**2).sum()
        local = np.exp(-0.5 * (((a[:n] - b[:n]) * p.relevance) ** 2).sum())
        c, d = a[n:] / p.lengths, b[n:] / p.lengths
        pinned = np.exp(-0.5 * ((c - d) ** 2).sum()) - np.exp(-0.5 * (c**2).sum()) * np.exp(-0.5 * (d**2).sum())
        same = p.task_noise**2 * float((a[:n] == b[:n]).all())
        return pinned * (p.common**2 + p.linear**2 * product + p.local**2 * local) + same

    def __call__(self, X, Y=None, eval_gradient=False):
        return np.array([[self.value(a, b) for b in (X if Y is None else Y)] for a in X])

    def diag(self, X):
        return np.array([self.value(a, a) for a in X])

    def is_stationary(self):
        return False


class TestProcess:
    @pytest.fixture
    def fitted(self):
        generator = np.random.default_rng(1)
        tasks = generator.normal(size=(40, 4))
        tasks[::7, 2] = np.nan
        x = np.hstack([np.repeat(tasks, 3, axis=0), np.tile([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]], (40, 1))])
        y = 0.1 * np.tanh(x[:, 0]) * x[:, 4] + 0.01 * generator.standard_normal(120)
        model = OptimizerSelector(num_candidate_columns=2, noise=0.03, lengths=(1.0, 2.0)).fit(x, y)
        return model, x, y

    def test_equals_scikit_learn(self, fitted):
        model, x, y = fitted
        process = model.process_
        plain = replace(process, relevance=np.ones(4), lengths=np.ones(2))
        rows = np.hstack(plain.standardised(x))
        reference = GaussianProcessRegressor(EffectKernel(process), alpha=process.noise**2, optimizer=None)
        reference.fit(rows, y)
        # Tasks that were never seen, so that scikit-learn adds no task's noise to their effects.
        new = x[:30].copy()
        new[:, 0] += 0.1
        mean = reference.predict(np.hstack(plain.standardised(new)))
        _, covariance = reference.predict(np.hstack(plain.standardised(new)), return_cov=True)
        ours = process.predict(new)
        assert np.abs(ours[0] - mean).max() < 1e-6
        std = np.sqrt(np.diagonal(covariance) - process.task_noise**2)
        assert np.abs(ours[1] - std).max() < 1e-6

    def test_without_a_local_part_the_features_give_the_same(self, fitted):
        model, x, y = fitted
        process = replace(model.process_, local=0.0, linear=0.05)
        process = replace(process, weights=process.dual_of(y))
        new = x[:30].copy()
        new[:, 0] += 0.1
        new[:, 4] *= 1.3  # candidates that were not recorded
        z, c = process.standardised(new)
        sizes, similarities = process._size(z, process._training[0]), pinned_similarity(c, process._training[1])
        cross = sizes * similarities
        assert (1 + process.num_features) * 3 < len(x)
        plain = (np.linalg.solve(process._factor, cross.T) ** 2).sum(axis=0)
        assert np.abs(process._reduction(z, c, *process._to_distinct(z, c)) - plain).max() < 1e-9
        assert process._feature_factor.shape == (15, 15)

    @pytest.mark.parametrize("local", [0.05, 0.0])
    def test_the_forms_of_candidates_give_the_same(self, fitted, local):
        model, x, y = fitted
        process = replace(model.process_, local=local, linear=0.05)
        process = replace(process, weights=process.dual_of(y))
        candidates = np.array([[1.0, 0.0], [0.0, 2.0], [0.7, 0.3]])  # the last was not recorded
        forms = CandidateForms.of(process, candidates)
        assert forms.means.shape == (3, 40 if local else 5)
        for features in (x[0, :4], x[40, :4] + 0.3, np.full(4, np.nan), np.full(4, 50.0)):
            mean, std = process.predict(np.hstack([np.tile(features, (3, 1)), candidates]))
            found = forms.predict(process, features)
            assert np.abs(found[0] - mean).max() < 1e-10 and np.abs(found[1] - std).max() < 1e-8
            assert forms.mean(process, features[None], 1) == pytest.approx(mean[1])

    def test_parts_far_below_the_others_are_left_out(self):
        given = Hyperparameters(0.06, 0.1, 0.0009, 0.03, 0.05, np.ones(2), np.ones(3))
        assert given.pruned().local == 0.0 and given.pruned().common == 0.06
        assert replace(given, local=0.002).pruned().local == 0.002

    def test_the_default_has_no_effect(self, fitted):
        model, x, _ = fitted
        default = x[:5].copy()
        default[:, 4:] = 0.0
        mean, std = model.process_.predict(default)
        assert np.abs(mean).max() < 1e-12 and np.abs(std).max() < 1e-6

    def test_contributions_credit_the_feature_that_matters(self, fitted):
        model, x, _ = fitted
        forms = CandidateForms.of(model.process_, x[x[:, 4] == 1][:1, 4:])
        parts = np.stack([forms.contributions(model.process_, row[:4], 0) for row in x[x[:, 4] == 1]])
        assert np.abs(parts[:, 0]).mean() > 5 * np.abs(parts[:, 1]).mean()

    def test_spread_grows_and_the_mean_falls_back_where_nothing_is_known(self, fitted):
        model, x, _ = fitted
        near = model.process_.predict(x)
        strange = x.copy()
        strange[:, 4:] = -9.0  # a candidate unlike any
        mean, std = model.process_.predict(strange)
        assert np.abs(mean).max() < 1e-4
        assert (std > 1.5 * near[1]).all()


class TestEvidence:
    @pytest.fixture
    def evidence(self):
        generator = np.random.default_rng(2)
        z, c = np.repeat(generator.normal(size=(15, 3)), 4, axis=0), np.tile(generator.normal(size=(4, 2)), (15, 1))
        start = Hyperparameters(0.06, 0.1, 0.05, 0.03, 0.05, np.array([1.0, 2.0]), np.full(3, 0.3))
        y, weight = 0.1 * generator.normal(size=60), generator.uniform(0.5, 2.0, size=60)
        return Evidence(z, c, y, weight, start), generator

    def test_the_gradient_is_that_of_finite_differences(self, evidence):
        function, generator = evidence
        point = function.start.to_vector() + 0.2 * generator.normal(size=10)
        _, gradient = function.negative(point)
        for direction, slope in zip(1e-5 * np.eye(10), gradient, strict=True):
            rise = function.negative(point + direction)[0] - function.negative(point - direction)[0]
            assert slope == pytest.approx(rise / 2e-5, rel=1e-5, abs=1e-6)

    def test_the_value_is_the_normal_log_density_and_the_prior(self, evidence):
        function, generator = evidence
        point = function.start.to_vector() + 0.1
        given = function.start.from_vector(point)
        z, c = function.tasks[function.task_of], function.candidates[function.candidate_of]
        process = OptimizerSelector._process(
            np.hstack([z, c]), np.zeros(60), np.zeros(3), np.ones(3), function.weight, given, given.relevance
        )
        covariance = process._factor @ process._factor.T
        density = multivariate_normal(np.zeros(60), covariance).logpdf(function.y)
        prior = 0.5 * ((0.1 / function.start.prior_spreads) ** 2).sum()
        value, _ = function.negative(point)
        assert value == pytest.approx(-density - 30 * math.log(2 * math.pi) + prior)

    def test_relevance_is_found_where_it_is(self):
        generator = np.random.default_rng(3)
        tasks = generator.normal(size=(80, 3))
        x = np.hstack([np.repeat(tasks, 2, axis=0), np.tile([[1.0], [-1.0]], (80, 1))])
        y = 0.2 * x[:, 1] * x[:, 3] + 0.01 * generator.standard_normal(160)
        found = OptimizerSelector(num_candidate_columns=1).fit(x, y).hyperparameters_
        assert found.relevance[1] > 4 * max(found.relevance[0], found.relevance[2])
        kept = OptimizerSelector(num_candidate_columns=1, max_iter=0).fit(x, y).hyperparameters_
        assert (kept.relevance == 0.3).all() and kept.noise == 0.05


class TestOptimizerSelector:
    @parametrize_with_checks([OptimizerSelector()])
    def test_estimator_contract(self, estimator, check):
        check(estimator)

    def test_missing_values_are_allowed(self, table):
        x = table.x.copy()
        x[::3, 1] = np.nan
        assert np.isfinite(OptimizerSelector().fit(x, table.y).predict(x)).all()

    def test_the_mean_of_two_outcomes_counts_as_two_rows(self, table):
        x, y = table.x[:40], table.y[:40]
        kept = OptimizerSelector(len(COLUMNS), max_iter=0)
        means = kept.fit(x, y, counts=np.full(40, 2)).predict_with_spread(table.x)
        both = kept.fit(np.tile(x, (2, 1)), np.tile(y, 2)).predict_with_spread(table.x)
        assert np.allclose(means[0], both[0], atol=1e-6)
        assert np.allclose(means[1], both[1], atol=1e-6)

    def test_the_search_looks_at_whole_tasks_and_all_rows_are_learned_from(self, table):
        rows = _whole_tasks(table.x[:, :2], 31, seed=0)
        assert 29 <= len(rows) <= 31
        assert all((table.tasks == task).sum() == 2 for task in table.tasks[rows])
        assert len(set(table.tasks[rows])) == len(rows) / 2
        model = OptimizerSelector(len(COLUMNS), evidence_rows=30).fit(table.x, table.y)
        assert len(model.process_.x) == len(table.y)
        assert np.corrcoef(model.predict(table.x), table.y)[0, 1] > 0.9

    @pytest.mark.parametrize("counts", [[1.0], [0.0] * 120])
    def test_counts_are_checked(self, table, counts):
        with pytest.raises(ValueError, match="counts must hold a positive number for each of the 120 rows"):
            OptimizerSelector().fit(table.x, table.y, counts=counts)


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
        settings = Settings(caution=0.5, margin=0.01)
        outcomes = evaluate_choices(table, settings)
        assert outcomes.closed_gap() > 0.8
        assert outcomes.harmed() < 0.1
        shuffled = np.random.default_rng(0).permutation(len(table.y))
        noise = replace(table, y=0.02 * np.sin(1e3 * shuffled))
        assert evaluate_choices(noise, settings).applied.mean() < 0.1

    def test_bootstrap_interval_covers_the_mean(self):
        values = np.random.default_rng(0).normal(1.0, 1.0, 400)
        low, high = bootstrap_interval(values)
        assert low < 1.0 < high
        assert 0.15 < high - low < 0.25


def over_families(table, count):
    """The same rows, as if they were of so many families."""
    numbers = [int(task.removeprefix("task")) % count for task in table.tasks]
    families, sources = ([f"{kind}{number}" for number in numbers] for kind in ("family", "source"))
    return replace(table, families=np.array(families), sources=np.array(sources))


class TestCalibration:
    def test_a_group_of_few_families_keeps_the_default(self, table):
        few, enough = (calibrated({"head": over_families(table, count)})[1]["head"] for count in (11, 12))
        assert few == artifact.NEVER and enough < 3

    def test_only_what_was_paired_with_the_default_is_proposed(self, table):
        counts = np.where(table.configs == "A", 0.5, 1.0)
        assert proposable(table) == ("A", "B")
        assert proposable(replace(table, counts=counts)) == ("B",)

    def test_intervals_cover_their_nominal_share(self, table):
        table = over_families(table, 12)
        settings, cautions, summary = calibrated({"head": table}, Settings())
        errors = predict_held_out(table, settings).errors(settings.spread)
        covered = (np.abs(errors) <= 1.2816).mean()
        assert abs(covered - 0.8) < 0.02 or (covered > 0.8 and settings.spread == SPREADS[0])
        assert cautions["head"] < 3
        assert summary["head"]["num_tasks"] == 60
        assert summary["head"]["oracle"] <= summary["head"]["chosen"] < -0.1

    def test_a_group_that_gains_nothing_on_held_out_families_keeps_the_default(self, table):
        generator = np.random.default_rng(5)
        table = over_families(table, 12)
        noise = replace(table, y=generator.normal(0.02, 0.1, len(table.y)))
        _, cautions, summary = calibrated({"head": noise})
        assert cautions["head"] == artifact.NEVER
        assert summary["head"]["chosen"] == 0.0


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

    def test_progress_compares_defaults_where_both_were_trained(self):
        other = recipe(head=("adamw", 0.04), matrix=("muon", 0.02))
        rows = []
        for task, (family, ratio) in enumerate([("a", 0.9), ("a", 1.0), ("b", 1.1)]):
            for seed, noise in ((0, 1.0), (1, 1.02)):
                place = (f"t{task}", family, "s", seed)
                rows += [(*place, DEFAULT, noise), (*place, other, ratio * noise)]
        rows.append(("only-old", "c", "s", 0, DEFAULT, 5.0))
        found = progress(trials(rows), other, DEFAULT)
        expected = [math.log(0.9), 0.0, math.log(1.1)]
        assert found.num_tasks == 3
        assert found.mean == pytest.approx(np.mean(expected))
        assert found.by_family == {"a": (pytest.approx(np.mean(expected[:2])), 2), "b": (pytest.approx(expected[2]), 1)}
        assert found.low <= found.mean <= found.high
        assert found.seed_noise == pytest.approx(math.log(1.02) / math.sqrt(2))


class TestEncoding:
    def test_rates_are_compared_within_one_optimizer(self):
        old = canonical({"optimizer": "muon", "lr": 0.02, "hyperparameters": {}})
        double = canonical({"optimizer": "muon", "lr": 0.04, "hyperparameters": {}})
        other = canonical({"optimizer": "sgd", "lr": 0.5, "hyperparameters": {}})
        rate = COLUMNS.index("log_rate_change")
        assert encode_candidate(double, old)[rate] == pytest.approx(1.0)
        # 0.5 is five times the rate from which SGD's count.
        assert encode_candidate(other, old)[rate] == pytest.approx(math.log2(5.0))
        assert encode_candidate(other, old)[COLUMNS.index("to_sgd")] == 1.0

    def test_the_default_is_the_origin_and_averaging_times_count_in_octaves(self):
        old = canonical({"optimizer": "muon", "lr": 0.02, "hyperparameters": {"momentum": 0.8}})
        assert not encode_candidate(old, old).any()
        slower = canonical({"optimizer": "muon", "lr": 0.02, "hyperparameters": {}})
        assert encode_candidate(slower, old)[COLUMNS.index("log_momentum_change")] == pytest.approx(2.0)
        adamw = canonical({"optimizer": "adamw", "lr": 0.01, "hyperparameters": {"betas": [0.9, 0.99]}})
        longer = canonical({"optimizer": "adamw", "lr": 0.01, "hyperparameters": {"betas": [0.9, 0.9975]}})
        assert encode_candidate(longer, adamw)[COLUMNS.index("log_memory_change")] == pytest.approx(2.0)


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
        full = replace(table, x=x, configs=np.array([candidates[c] for c in table.configs]))
        model = fit_group(full, Settings())
        group = artifact.GroupModel(
            process=model.process_,
            candidates=proposable(full),
            spread=1.0,
            caution=0.3,
            reference=full.x[::2, :2],
            tasks=tuple(map(str, full.tasks[::2])),
            winners=("won",) * 60,
            reach=1.0,
        )
        return artifact.Predictor(DEFAULT, ("one", "two"), {"head": group}, 0.005, {"num_tasks": 60})

    def test_round_trip_ranks_alike_and_is_reproducible(self, predictor, tmp_path):
        digest = artifact.save(predictor, tmp_path / "a.npz")
        assert artifact.save(predictor, tmp_path / "b.npz") == digest
        assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
        loaded = artifact.load(tmp_path / "a.npz")
        for values in ({"one": 0.9, "two": 0.1}, {"one": -0.9}):
            assert loaded.rank("head", values) == predictor.rank("head", values)
        assert loaded.rank("head", {"one": -0.9})[0].mean < -0.2
        assert loaded.sha256 == digest

    def test_forms_are_stored_as_far_as_they_fit_and_worked_out_elsewhere(self, predictor, tmp_path, monkeypatch):
        monkeypatch.setattr(artifact, "FORMS_BYTES", 1000)
        artifact.save(predictor, tmp_path / "without.npz")
        monkeypatch.undo()
        artifact.save(predictor, tmp_path / "with.npz")
        bare, full = (artifact.load(tmp_path / name) for name in ("without.npz", "with.npz"))
        assert bare.groups["head"].stored_forms is None and full.groups["head"].stored_forms is not None
        assert full.rank("head", {"one": 0.9}) == bare.rank("head", {"one": 0.9})

    @pytest.mark.parametrize("caution", [0.0, 0.3, 3.0, artifact.NEVER])
    def test_the_favourite_is_that_of_the_ranking(self, predictor, caution):
        model = replace(predictor, groups={"head": replace(predictor.groups["head"], caution=caution)})
        chosen = set()
        for one in np.linspace(-1, 1, 21):
            values = {"one": float(one), "two": 0.5}
            best = favoured(model, model.rank("head", values))
            found = model.favourite("head", values, lambda config: True)
            assert found == (None if best is None else best.config)
            chosen.add(found)
        assert (len(chosen) > 1) == (caution < 100)
        assert model.favourite("head", {"one": -0.9}, lambda config: False) is None
        assert model.favourite("vector", {}, lambda config: True) is None

    def test_explanations(self, predictor):
        best = predictor.rank("head", {"one": -0.9, "two": 0.5})[0]
        parts = predictor.contributions("head", {"one": -0.9, "two": 0.5}, best.config)
        assert parts["one"] < -0.05
        assert abs(parts["one"]) > abs(parts["two"])
        assert predictor.percentile("head", "one", 2.0) == 100.0
        assert len(predictor.nearest("head", {"one": 0.0, "two": 0.0})) == 3
        assert predictor.is_far("head", {"one": 80.0, "two": -80.0})
        assert predictor.rank("vector", {}) == []

    def test_an_untrusted_group_still_ranks_by_gain_but_proposes_nothing(self, predictor):
        group = replace(predictor.groups["head"], caution=artifact.NEVER)
        cautious = replace(predictor, groups={"head": group})
        ranked = cautious.rank("head", {"one": -0.9, "two": 0.5})
        assert ranked[0].mean < -0.2 and ranked[0].pessimistic > 1e3
        assert predictor.is_trusted("head") and not cautious.is_trusted("head")

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


def test_the_shipped_selector_is_small_and_predicts_what_its_process_does():
    assert artifact.shipped_path().stat().st_size <= 3e6
    shipped = artifact.load()
    for name, model in shipped.groups.items():
        codes = np.stack([encode_candidate(config, shipped._defaults[name]) for config in model.candidates])
        for features in (model.reference[0], np.nanmean(model.reference, axis=0)):
            mean, std = model.process.predict(np.hstack([np.tile(features, (len(codes), 1)), codes]))
            found = shipped.forms(name).predict(model.process, features)
            assert np.abs(found[0] - mean).max() < 1e-6 and np.abs(found[1] - std).max() < 1e-6
