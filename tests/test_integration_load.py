"""Large models: planning on the meta device is quick and small, deciding is linear, the report readable."""

import importlib.util
from pathlib import Path

import pytest
from synthetic_selector import synthetic_predictor

import autoopt
from autoopt.meta import artifact

DEEP = 1000
SLOW_MACHINE = 2.5  # seconds allowed here for a second on an idle machine


@pytest.fixture(scope="module")
def bench():
    path = Path(__file__).parent.parent / "scripts" / "bench_load.py"
    spec = importlib.util.spec_from_file_location("bench_load", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def decided(bench):
    """The recommendation for a thousand layers, and the CPU seconds of its decision."""
    return bench.decide_for(DEEP, synthetic_predictor())


@pytest.fixture(scope="module")
def trained_path(tmp_path_factory):
    """The shipped selector, as it is written today."""
    path = tmp_path_factory.mktemp("selector") / "selector.npz"
    artifact.save(artifact.load(), path)
    return path


def test_a_billion_parameters_are_planned_in_two_seconds_and_200_megabytes(bench, artifact_path):
    autoopt.select(bench.nn.Linear(2, 2), total_steps=100, selector=artifact_path)  # what is imported once
    billions, peak_bytes, seconds = bench.plan_on_meta()
    assert billions > 1
    assert peak_bytes < 200e6
    assert seconds < 2


def test_planning_on_the_meta_device_gives_what_the_model_itself_would_get(bench):
    with bench.torch.device("meta"):
        abstract = bench.Transformer(num_layers=1, width=64, num_tokens=50)
    real = bench.Transformer(num_layers=1, width=64, num_tokens=50)
    plans = [autoopt.select(model, total_steps=1000, selector="default").plan for model in (abstract, real)]
    table = "embedding.weight"
    assert {name: config for name, config in plans[0].layers.items() if name != table} == {
        name: config for name, config in plans[1].layers.items() if name != table
    }
    # How large the elements of the table are cannot be read there: its rate is that of the usual scale.
    assert plans[0].layers[table].relative_lr == plans[1].layers[table].relative_lr
    assert plans[1].layers[table].lr <= plans[0].layers[table].lr


def test_a_selector_is_loaded_and_applied_to_a_transformer_in_a_tenth_of_a_second(bench, trained_path):
    _, loading = bench.cpu_seconds(lambda: artifact.load(trained_path))
    recommendation, _ = bench.decide_for_transformer(12, trained_path)
    assert len(recommendation.layers) > 140
    assert loading + recommendation.profile["decision_seconds"] < 0.1 * SLOW_MACHINE


def test_a_selector_is_applied_to_a_thousand_layers_in_a_second(bench, trained_path):
    recommendation, _ = bench.decide_for(DEEP, trained_path)
    assert recommendation.profile["decision_seconds"] < SLOW_MACHINE


def test_two_thousand_tensors_are_measured_and_decided_for_in_a_millisecond_and_a_half_each(decided):
    recommendation, seconds = decided
    assert len(recommendation.layers) == 2 * DEEP and not recommendation.abstained
    assert seconds < 0.0015 * 2 * DEEP * SLOW_MACHINE


def test_the_cost_of_a_decision_grows_with_the_number_of_layers_and_no_faster(bench, decided):
    _, seconds = bench.decide_for(DEEP // 4, synthetic_predictor())
    assert decided[1] < 4 * 2.5 * seconds


def test_layers_that_repeat_are_told_once(decided):
    recommendation, _ = decided
    text = recommendation.to_text(100)
    assert f"layers.0-{DEEP - 3}" in text and f"layers.{DEEP - 4}" not in text
    assert text.count("\n") < 100 and max(map(len, text.splitlines())) <= 100
    assert recommendation.to_markdown().count("\n") < 120
    assert len(recommendation.to_html()) < 2e6


def test_alike_layers_get_alike_words(decided):
    layers = {layer.name: layer for layer in decided[0].layers}
    for kind in ("weight", "bias"):
        first, last = (layers[f"layers.{index}.{kind}"] for index in (0, DEEP - 3))
        assert first.name != last.name and first.config == last.config
        assert (first.reason, first.evidence, first.runner_up) == (last.reason, last.evidence, last.runner_up)
    assert (layers["first.weight"].shape, layers["layers.0.weight"].shape) == ((32, 8), (32, 32))
