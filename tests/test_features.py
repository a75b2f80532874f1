"""The table of meta-features, and what `extract` makes of layers, statistics and context."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from autoopt.architecture import ROLE_GROUPS, describe
from autoopt.errors import ProfileError
from autoopt.features import (
    ARCHITECTURE,
    CONTEXT,
    CONTEXT_KEYS,
    EXPOSURE,
    FEATURES,
    STATISTICS,
    aggregate_by_group,
    extract,
)
from autoopt.start_profile import measure_start
from autoopt.statistics import warmup
from autoopt.statistics.warmup import WarmupStatistics


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(300, 16)
        self.first = nn.Linear(16, 32)
        self.norm = nn.LayerNorm(32)
        self.second = nn.Linear(32, 32, bias=False)
        self.head = nn.Linear(32, 7)

    def forward(self, tokens):
        hidden = self.norm(torch.relu(self.first(self.embedding(tokens).mean(1))))
        return self.head(torch.relu(self.second(hidden)))


@pytest.fixture
def layers():
    return describe(Classifier()).layers


def row_of(features, name):
    return dict(zip(features.columns, features.values[features.rows.index(name)], strict=True))


def test_the_table_is_well_formed():
    names = [feature.name for feature in FEATURES]
    assert len(set(names)) == len(names)
    # Columns of a recorded table that are no features.
    assert not set(names) & {"task", "seed", "group", "family", "source"}
    for feature in FEATURES:
        assert feature.kind in (ARCHITECTURE, STATISTICS, CONTEXT, EXPOSURE)
        assert feature.unit and feature.description and feature.source
        assert feature.name.startswith("log_") == (feature.floor is not None), feature.name
    roles = {feature.name.removeprefix("role_") for feature in FEATURES if feature.name.startswith("role_")}
    assert roles == set(ROLE_GROUPS)


def test_every_statistic_of_the_table_is_measured_and_every_measured_one_is_used():
    torch.manual_seed(0)
    model = Classifier()
    found = describe(model).layers
    named = dict(model.named_parameters())
    params = [named[layer.name] for layer in found]
    states = [warmup.init_state(layer, p) for layer, p in zip(found, params, strict=True)]
    batches = [((300 * torch.rand(16, 5) ** 3).long(), torch.arange(16) % 3) for _ in range(12)]
    start = measure_start(
        model, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]), batches, describe(model), max_passes=100
    )
    optimizer = torch.optim.SGD(params, lr=0.1)
    for step in range(20):
        optimizer.zero_grad()
        tokens = (300 * torch.rand(16, 5) ** 3).long()
        nn.functional.cross_entropy(model(tokens), torch.randint(7, (16,))).backward()
        warmup.update(found, params, [p.grad for p in params], states, step=step)
        optimizer.step()
    statistics = warmup.summarize(found, params, states, task={"batch_size": 16})
    statistics = statistics.with_layer_values(start.layers)
    features = extract(found, statistics)
    columns = [f.name for f in FEATURES if f.kind == STATISTICS]
    unmeasured = [name for name in columns if np.isnan(features.column(name)).all()]
    assert unmeasured == []
    measured = {key for row in statistics.layers.values() for key in row}
    # Its sign carries what the cosine carries, its size what the Lipschitz estimate does.
    assert measured - {f.key for f in FEATURES} == {"secant_curvature"}
    assert not np.isinf(features.values).any()
    assert features.column("log_batch_size") == pytest.approx(math.log(16))
    # Embeddings have no normalised step on rows that never moved: still no infinite value anywhere.
    groups = aggregate_by_group(features)
    assert not np.isnan(groups.column("log_grad_rms")).any()


def test_architecture_features(layers):
    features = extract(layers)
    total = sum(layer.numel for layer in layers)
    row = row_of(features, "first.weight")
    assert row["log_fan_in"] == pytest.approx(math.log(16))
    assert row["log_fan_out"] == pytest.approx(math.log(32))
    assert row["log_aspect"] == pytest.approx(math.log(2))
    assert row["log_numel"] == pytest.approx(math.log(512))
    assert row["log_share"] == pytest.approx(math.log(512 / total))
    assert (row["role_matrix"], row["role_embedding"], row["role_head"]) == (1, 0, 0)
    assert row["log_group_tensors"] == pytest.approx(math.log(2))
    assert row["log_group_share"] == pytest.approx(math.log((512 + 1024) / total))
    assert row["log_num_parameters"] == pytest.approx(math.log(total))
    assert row["log_num_layers"] == pytest.approx(math.log(4))
    assert row["log_width"] == pytest.approx(math.log(describe(Classifier()).width))
    assert row["log_output_size"] == pytest.approx(math.log(7))
    assert row["log_vocabulary"] == pytest.approx(math.log(300))
    assert row["embedding_share"] == pytest.approx(4800 / total)
    assert row["conv_share"] == 0
    assert row_of(features, "embedding.weight")["relative_depth"] == 0
    assert row_of(features, "head.weight")["relative_depth"] == 1
    assert sum(row[f"role_{role}"] for role in ROLE_GROUPS) == 1


def test_what_is_not_known_is_nan_and_nothing_else_is(layers):
    features = extract(layers)
    for feature, column in zip(FEATURES, features.values.T, strict=True):
        assert np.isnan(column).all() == (feature.kind != ARCHITECTURE), feature.name
    only_linear = extract(describe(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))).layers)
    assert np.isnan(only_linear.column("log_vocabulary")).all()


def test_statistics_are_transformed_and_floored(layers):
    values = {
        "first.weight": {"signal_to_noise": 0.0, "grad_rms": 2.0, "step_cosine": -0.5, "secant_time": 0.0},
        "second.weight": {"signal_to_noise": 3.0, "grad_rms": 0.5},
        "no.such.layer": {"grad_rms": 9.0},
    }
    features = extract(layers, WarmupStatistics(values))
    first, second = row_of(features, "first.weight"), row_of(features, "second.weight")
    assert first["log_signal_to_noise"] == pytest.approx(math.log(1e-4))
    assert second["log_signal_to_noise"] == pytest.approx(math.log(3))
    assert first["step_cosine"] == -0.5 and math.isnan(second["step_cosine"])
    assert math.isnan(first["log_secant_time"])
    whole = math.sqrt((512 * 4 + 1024 * 0.25) / 1536)
    assert first["log_relative_grad_rms"] == pytest.approx(math.log(2 / whole))
    spread = math.log(4) / 2
    assert first["group_grad_spread"] == pytest.approx(spread)
    assert row_of(features, "head.weight")["model_grad_spread"] == pytest.approx(spread)
    assert math.isnan(row_of(features, "head.weight")["group_grad_spread"])


def test_context_wins_over_facts_of_the_run(layers):
    statistics = WarmupStatistics({}, {"batch_size": 8.0, "loss_start": 2.0, "num_nonfinite_steps": 1.0})
    features = extract(layers, statistics, {"batch_size": 64, "total_steps": 1000})
    assert features.column("log_batch_size") == pytest.approx(math.log(64))
    assert features.column("log_total_steps") == pytest.approx(math.log(1000))
    assert features.column("log_loss_start") == pytest.approx(math.log(2))
    assert set(CONTEXT_KEYS) >= {"batch_size", "total_steps", "loss_start", "loss_drop"}


def test_unusable_input_is_refused(layers):
    with pytest.raises(ProfileError, match="'batchsize'.*batch_size"):
        extract(layers, context={"batchsize": 8})
    with pytest.raises(ProfileError, match="no trainable parameter"):
        extract([])


def test_groups_are_means_weighted_by_elements_over_what_is_known(layers):
    values = {
        "first.weight": {"grad_rms": 2.0, "step_cosine": 0.5},
        "second.weight": {"grad_rms": 0.5},
    }
    features = extract(layers, WarmupStatistics(values))
    groups = aggregate_by_group(features)
    assert groups.rows == groups.groups == ("embedding", "matrix", "vector", "head")
    assert groups.columns == features.columns and groups.values.shape == (4, len(FEATURES))
    matrix = row_of(groups, "matrix")
    expected = (512 * math.log(2) + 1024 * math.log(0.5)) / 1536
    assert matrix["log_grad_rms"] == pytest.approx(expected)
    assert matrix["step_cosine"] == 0.5
    assert matrix["log_group_tensors"] == pytest.approx(math.log(2))
    assert math.isnan(row_of(groups, "head")["log_grad_rms"])
    vectors = [layer for layer in layers if layer.group == "vector"]
    biases = sum(layer.numel for layer in vectors if layer.role == "bias")
    assert row_of(groups, "vector")["role_bias"] == pytest.approx(biases / sum(la.numel for la in vectors))
    assert groups.weights.sum() == features.weights.sum()


def test_rows_for_recording(layers):
    rows = aggregate_by_group(extract(layers)).to_rows()
    assert [row["group"] for row in rows] == ["embedding", "matrix", "vector", "head"]
    assert all(list(row)[1:] == [feature.name for feature in FEATURES] for row in rows)
    assert all(type(row["log_fan_in"]) is float for row in rows)


def test_many_layers_stay_fast():
    import time

    layers = describe(nn.ModuleList(nn.Linear(4, 4) for _ in range(600))).layers
    values = {layer.name: {"grad_rms": 1.0} for layer in layers}
    start = time.process_time()
    aggregate_by_group(extract(layers, WarmupStatistics(values)))
    assert time.process_time() - start < 2


def test_importing_features_needs_no_torch():
    code = "import sys; sys.modules['torch'] = None; sys.modules['pandas'] = None; import autoopt.features"
    subprocess.run([sys.executable, "-c", code], check=True)
