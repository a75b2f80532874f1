"""Statistics of rows and of the run's exposure to its data, against brute force."""

import math
from itertools import combinations

import numpy as np
import pytest
from torch import nn

from autoopt.architecture import describe
from autoopt.features import aggregate_by_group, extract
from autoopt.statistics import rows, secant
from autoopt.statistics.warmup import WarmupStatistics


def test_row_novelty_is_the_chance_of_a_new_row():
    rng = np.random.default_rng(0)
    chances = np.arange(1, 2001) ** -1.2
    chances /= chances.sum()
    drawn = rng.choice(2000, 3000, p=chances)
    counts = np.bincount(drawn, minlength=2000).astype(float)
    unseen = chances[counts == 0].sum()
    assert rows.row_novelty(counts) == np.mean([counts[row] == 1 for row in drawn])
    assert rows.row_novelty(counts) == pytest.approx(unseen, rel=0.1)
    assert math.isnan(rows.row_novelty(np.zeros(5)))


def test_row_agreement_matches_brute_force():
    blocks = np.random.default_rng(1).normal(size=(5, 7, 3)) + 0.5
    blocks[1, :4] = blocks[3, 2:] = 0
    inner = bound = 0.0
    for left, right in combinations(blocks, 2):
        for a, b in zip(left, right, strict=True):
            inner += sum(float(x) * float(y) for x, y in zip(a, b, strict=True))
            bound += math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    assert rows.row_agreement(blocks) == pytest.approx(inner / bound)


def test_row_agreement_tells_shared_from_single_examples_where_most_rows_are_untouched():
    rng = np.random.default_rng(2)
    touched = rng.random((8, 400, 1)) < 0.2
    shared = rng.normal(size=(400, 4))
    assert rows.row_agreement(touched * shared) == pytest.approx(1)
    assert abs(rows.row_agreement(touched * rng.normal(size=(8, 400, 4)))) < 0.1
    once = np.zeros((8, 8, 4))
    once[np.arange(8), np.arange(8)] = rng.normal(size=(8, 4))
    assert math.isnan(rows.row_agreement(once))
    assert math.isnan(rows.row_agreement(np.zeros((3, 2, 2))))


def generalisation(params, grads):
    before = np.arange(0, len(params) - 1, 2)
    return secant.secant_statistics(grads, params, before, 1.0, 1.0)["step_generalisation"]


def test_step_generalisation_matches_brute_force():
    rng = np.random.default_rng(3)
    params, grads = rng.normal(size=(6, 9)), rng.normal(size=(6, 9))
    params[1::2] = params[::2] - 0.1 * grads[::2]
    own = following = 0.0
    for t in (0, 2, 4):
        for i in range(9):
            step = float(params[t + 1, i] - params[t, i])
            own += step * float(grads[t, i])
            following += step * float(grads[t + 1, i])
    assert generalisation(params, grads) == pytest.approx(following / own)


def test_step_generalisation_is_1_for_signal_0_for_noise_and_negative_for_overshooting():
    rng = np.random.default_rng(4)
    params, noise = rng.normal(size=(8, 20_000)), rng.normal(size=(8, 20_000))
    params[1::2] = params[::2] - 0.1 * noise[::2]
    assert generalisation(params, noise) == pytest.approx(0, abs=0.05)
    signal = np.repeat(noise[:1], 8, axis=0)
    params[1::2] = params[::2] - 0.1 * signal[::2]
    assert generalisation(params, signal) == pytest.approx(1)
    params[1::2] = params[::2] - 1.5 * params[::2]  # on the quadratic whose gradient is the parameter
    assert generalisation(params, params) == pytest.approx(-0.5)
    params[1::2] = params[::2] + 0.1 * signal[::2]
    assert math.isnan(generalisation(params, signal))


@pytest.fixture
def features():
    model = nn.Sequential(nn.Embedding(50, 4), nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2))
    statistics = WarmupStatistics({"0.weight": {"rows_touched": 20.0}, "1.weight": {}})

    def build(**context):
        return aggregate_by_group(extract(describe(model).layers, statistics, context))

    build.numel = sum(p.numel() for p in model.parameters())
    return build


def test_exposure_counts_examples_visits_and_epochs(features):
    found = features(batch_size=8, total_steps=500, num_examples=1000)
    assert np.exp(found.column("log_examples_seen")) == pytest.approx(4000)
    assert np.exp(found.column("log_examples_per_parameter")) == pytest.approx(4000 / features.numel)
    assert np.exp(found.column("log_parameters_per_example")) == pytest.approx(features.numel / 1000)
    assert np.exp(found.column("log_epochs")) == pytest.approx(4)
    shares = np.exp(found.column("log_group_examples_per_parameter"))
    sizes = {"embedding": 200, "matrix": 24 + 36, "head": 12, "vector": 6 + 6 + 2}
    assert dict(zip(found.rows, shares, strict=True)) == pytest.approx({k: 4000 / v for k, v in sizes.items()})
    visits = dict(zip(found.rows, np.exp(found.column("log_row_visits")), strict=True))
    assert visits.pop("embedding") == pytest.approx(500 * 20 / 50)
    assert all(map(math.isnan, visits.values()))


def test_exposure_guesses_nothing(features):
    names = ("log_examples_seen", "log_epochs", "log_row_visits", "log_parameters_per_example")
    empty = features(batch_size=8)
    assert all(np.isnan(empty.column(name)).all() for name in names)
    told = features(batch_size=8, total_steps=100)
    assert np.isnan(told.column("log_epochs")).all() and not np.isnan(told.column("log_examples_seen")).any()


def test_recorded_features_know_the_size_of_the_training_data():
    from autoopt.extraction import extract_features
    from autoopt.meta.trial import FeatureRequest
    from autoopt.training import find_task

    name = "digits-mlp-w32-b16-s400"
    task = find_task(name)
    instance = task.build(0)
    found = {row["group"]: row for row in extract_features(FeatureRequest(name, 0))}
    assert math.exp(found["matrix"]["log_epochs"]) == pytest.approx(16 * 400 / instance.num_examples)
