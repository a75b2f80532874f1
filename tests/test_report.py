"""Recommendations: their content, how layers are grouped, and the words that are said."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_example import ADAMW, MUON, SPARSE, Page, deviating, layer, recommendation, transformer

from autoopt.errors import AutoOptError
from autoopt.optimizers.catalog import CATALOG
from autoopt.optimizers.plan import OptimizerConfig, OptimizerPlan
from autoopt.report import (
    Evidence,
    Recommendation,
    ReportError,
    group_layers,
)
from autoopt.report.formatting import format_bytes, format_loss_change, format_number, visible


def test_json_gives_an_equal_recommendation_back_with_stable_keys():
    content = transformer()
    again = Recommendation.from_json(content.to_json())
    assert again == content
    assert again.to_json() == content.to_json()
    value = json.loads(content.to_json())
    assert value["schema_version"] == 1
    assert value["headline"] == content.headline
    assert list(value) == sorted(value)
    assert {"name", "config", "predicted_gain", "runner_up", "evidence"} <= set(value["layers"][0])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=6, unique=True),
    st.sampled_from([info.name for info in CATALOG]),
    st.none() | st.floats(-3, 3),
    st.none() | st.floats(),
    st.dictionaries(st.text(max_size=5), st.none() | st.booleans() | st.integers() | st.floats() | st.text()),
)
def test_any_recommendation_survives_json_and_renders(names, optimizer, gain, value, free):
    config = OptimizerConfig(optimizer, {"lr": 0.01})
    ends = None if gain is None else (gain - 1, gain + 1)
    evidence = (Evidence("f", value, percentile=50),)
    content = recommendation(
        [
            layer(
                n,
                config,
                "matrix",
                deviates=True,
                predicted_gain=gain,
                predicted_gain_interval=ends,
                evidence=evidence,
            )
            for n in names
        ],  # fmt: skip
        provenance=free,
        profile={"seconds": value},
        statistics={names[0]: {"s": value}},
    )
    text = content.to_json()
    json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert Recommendation.from_json(text) == content
    shown = Page(content._repr_html_()).text
    for group in content.groups:
        assert visible(group.label) in shown
    assert content.to_text(80).strip()
    assert content.to_markdown().startswith("# ")


def test_what_is_not_finite_is_stored_as_unknown():
    content = recommendation(
        [layer("w", deviates=True, predicted_gain=float("nan"), predicted_gain_interval=(-math.inf, 0.0))],
        step_time_ratio=math.inf,
        profile={"seconds": math.nan, "nested": (1, math.inf)},
    )
    assert content.layers[0].predicted_gain is None
    assert content.layers[0].predicted_gain_interval is None
    assert content.step_time_ratio is None
    assert content.profile == {"seconds": None, "nested": [1, None]}


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "not JSON"),
        ("[]", "not a recommendation"),
        ('{"layers": []}', "not a recommendation"),
        ('{"schema_version": 99, "layers": []}', "schema version 99"),
        ('{"schema_version": 1, "layers": []}', "damaged"),
    ],
)
def test_a_file_that_is_no_recommendation_says_what_is_wrong(text, message):
    with pytest.raises(ReportError, match=message):
        Recommendation.from_json(text)


@pytest.mark.parametrize("path", ["plan", "layers.0.config", "layers.0.evidence.0.feature", "events.0.step"])
def test_every_missing_piece_is_an_error_and_no_traceback_of_ours(path):
    value = json.loads(transformer(1).to_json())
    *parents, last = path.split(".")
    inner = value
    for key in parents:
        inner = inner[int(key) if key.isdigit() else key]
    del inner[last]
    with pytest.raises(AutoOptError):
        Recommendation.from_dict(value)


def test_layers_that_contradict_the_plan_are_refused():
    item = layer("w")
    plan = OptimizerPlan({"w": ADAMW})
    with pytest.raises(ReportError, match="'w': its configuration is not the plan's"):
        Recommendation(plan, (replace(item, config=MUON),))
    with pytest.raises(ReportError, match="'w' is missing from the recommended layers"):
        Recommendation(plan, ())
    with pytest.raises(ReportError, match="'v' is missing from the plan"):
        Recommendation(plan, (item, layer("v")))
    with pytest.raises(ReportError, match="'w' is recommended twice"):
        Recommendation(plan, (item, item))
    with pytest.raises(ReportError, match="'v', which is no layer"):
        Recommendation(plan, (item,), statistics={"v": {}})


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"confidence": 1.2}, "'w': confidence"),
        ({"predicted_gain_interval": (1.0, -1.0)}, "'w': an interval"),
    ],
)
def test_a_number_out_of_its_range_names_the_layer(fields, message):
    with pytest.raises(ReportError, match=message):
        layer("w", **fields)


def test_a_percentile_out_of_its_range_names_the_feature():
    with pytest.raises(ReportError, match="'snr'"):
        Evidence("snr", 1.0, percentile=120)


def test_layers_that_repeat_are_one_group_and_exceptions_stand_apart():
    names = [f"blocks.{i}.attn.qkv.weight" for i in range(12)]
    layers = [layer(name, ADAMW if i == 3 else MUON, "qkv") for i, name in enumerate(names)]
    assert [group.label for group in group_layers(layers)] == [
        "blocks.0-2,4-11.attn.qkv.weight",
        "blocks.3.attn.qkv.weight",
    ]


def test_a_grid_of_indices_is_split_into_exact_products():
    names = [f"stages.{i}.blocks.{j}.w" for i, count in enumerate((3, 4, 4)) for j in range(count)]
    groups = group_layers([layer(name) for name in names])
    assert [group.label for group in groups] == ["stages.0.blocks.0-2.w", "stages.1-2.blocks.0-3.w"]


@pytest.mark.parametrize("other", [{"config": MUON}, {"role": "norm"}, {"deviates": True}])
def test_layers_that_differ_in_what_matters_are_not_grouped(other):
    assert len(group_layers([layer("a.0.w"), layer("a.1.w", **other)])) == 2


_COMPONENTS = st.sampled_from(["a", "b", "w", "0", "1", "2", "3", "10", "007", "-1", "0-3", "", "\u0663"])
_NAMES = st.lists(_COMPONENTS, min_size=1, max_size=4).map(".".join)
_CHOICES = st.tuples(st.sampled_from([MUON, ADAMW]), st.sampled_from(["matrix", "norm"]), st.booleans())


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(_NAMES, _CHOICES, max_size=25))
def test_expanding_the_groups_gives_back_every_layer_exactly_once(choices):
    layers = [layer(name, config, role, deviates=deviates) for name, (config, role, deviates) in choices.items()]
    groups = group_layers(layers)
    expanded = [name for group in groups for name in group.pattern.expand()]
    assert sorted(expanded) == sorted(choices)
    for group in groups:
        assert sorted(group.pattern.expand()) == sorted(member.name for member in group.members)
        assert {(m.config, m.role, m.deviates) == (group.config, group.role, group.deviates)
                for m in group.members} == {True}  # fmt: skip
    firsts = [layers.index(group.members[0]) for group in groups]
    assert firsts == sorted(firsts)


def test_a_group_reports_the_range_of_its_members():
    layers = [deviating("a.0.w", gain=-0.1), deviating("a.1.w", gain=-0.3)]
    (group,) = group_layers(layers)
    assert group.predicted_gain == pytest.approx(-0.2)
    assert group.predicted_gain_interval == pytest.approx((-0.35, -0.06))
    assert group.runner_up == (ADAMW, pytest.approx(-0.28))
    assert group.num_parameters == 64
    assert [items[0].feature for items in group.evidence()] == ["row_sparsity", "snr"]


def test_the_headline_counts_what_is_where():
    layers = [deviating(f"blocks.{i}.w") for i in range(48)]
    layers += [layer(f"e{i}", SPARSE, "embedding", sparse=True) for i in range(2)]
    layers += [layer(f"n{i}", role="norm") for i in range(59)] + [layer("head", role="head")]
    content = recommendation(layers, expected={"time_to_target": 0.6, "low": 0.4, "high": 0.9})
    assert content.headline == (
        "Muon on 48 hidden matrices, SparseAdam on 2 sparse embedding tables, AdamW on the remaining 60 "
        "tensors; expected to reach tuned AdamW's loss in 0.6 of the steps (0.4 to 0.9)"
    )
    assert "48 of 110 tensors deviate" in content.summary()


def test_an_abstention_is_said_first_and_everywhere():
    content = recommendation([layer("a"), layer("b")], abstained=True)
    assert content.headline == "calibrated default kept: AdamW on all 2 tensors"
    for text in (content.to_text(), content.to_markdown(), content._repr_html_(), content.summary()):
        assert "calibrated default kept" in text
        assert "reason enough to leave the calibrated default" in text


def test_an_abstention_that_deviates_is_refused():
    with pytest.raises(ReportError, match="'w' deviates from the calibrated default although"):
        recommendation([layer("w", deviates=True)], abstained=True)


def test_a_headline_names_no_more_optimizers_than_one_can_say():
    names = ["adamw", "muon", "sgd", "lion", "rmsprop", "soap"]
    layers = [
        layer(f"{name}{i}", OptimizerConfig(name, {"lr": 0.01}), "matrix")
        for count, name in enumerate(names, start=1)
        for i in range(count)
    ]
    assert recommendation(layers).headline == (
        "SOAP on 6 hidden matrices, RMSprop on 5 hidden matrices, Lion on 4 hidden matrices, "
        "3 other optimizers on the remaining 6 tensors"
    )
    assert recommendation(layers[:1]).headline == "AdamW on the only tensor"


def test_intervals_say_their_coverage_and_its_absence():
    assert "80 % intervals" in recommendation([deviating("w")], interval_coverage=0.8).to_text()
    assert "unstated coverage" in recommendation([deviating("w")]).to_text()
    assert "intervals" not in recommendation([layer("w")]).to_text()


def test_groups_that_were_left_alone_are_named():
    assert "too thin to judge convolutions" in transformer().summary()


def test_numbers_are_for_people():
    values = (0.02, 0.064, 1e-3, 3e-4, 1.234e-7, 999.6, 12345.0, 0.0, -2.5e-5, None, math.nan)
    assert [format_number(value) for value in values] == [
        "0.02", "0.064", "0.001", "3e-4", "1.23e-7", "1000", "1.23e4", "0", "-2.5e-5", "-", "-",
    ]  # fmt: skip
    assert format_bytes(700_000_000) == "668 MiB"
    assert format_loss_change(math.log(0.5)) == "-50 %"
    assert "%" in format_loss_change(1e6)
