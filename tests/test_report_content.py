"""What a decision puts into its report: expectation, evidence, closest changes, thresholds, plans weighed."""

from dataclasses import dataclass, replace

import pytest
import torch
from report_example import Page, deviating, layer, recommendation
from synthetic_selector import synthetic_predictor

import autoopt
from autoopt.choice import favoured
from autoopt.meta.artifact import Predictor
from autoopt.optimizers.plan import OptimizerConfig
from autoopt.report import trade_offs, wording
from autoopt.report.changed import changes
from autoopt.report.content import TradeOff
from autoopt.report.kept import kept_groups


def recommend(predictor, **options):
    """The recommendation for a small model, profiled aside."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 8), torch.nn.Linear(8, 3))
    batches = [(torch.randn(4, 6), torch.randint(3, (4,))) for _ in range(5)]
    return autoopt.recommend(
        model,
        batches=batches,
        loss_fn=lambda m, b: torch.nn.functional.cross_entropy(m(b[0]), b[1]),
        total_steps=100,
        warmup_steps=5,
        selector=predictor,
        **options,
    )


@dataclass(frozen=True, eq=False)
class Switching(Predictor):
    """A selector that expects a gain on hidden matrices for fan-ins below 20 alone."""

    def rank(self, group, values):
        ranked = super().rank(group, values)
        if group == "matrix" and values["log_fan_in"] < 3.0:
            return ranked
        return [replace(candidate, mean=0.1, pessimistic=0.1) for candidate in ranked]

    def favourite(self, group, values, usable):
        best = favoured(self, [item for item in self.rank(group, values) if usable(item.config)])
        return None if best is None else best.config


def switching():
    """The synthetic selector, whose choice on matrices depends on the fan-in."""
    plain = synthetic_predictor()
    return Switching(plain.default, plain.features, plain.groups, plain.margin)


def test_the_headline_tells_the_time_to_target_where_it_was_evaluated():
    evaluation = {"time_to_target": 0.61, "time_to_target_ci": [0.42, 0.93]}
    content = recommend(replace(synthetic_predictor(), info={"evaluation": evaluation}))
    assert content.expected == {"time_to_target": 0.61, "low": 0.42, "high": 0.93, "basis": "held-out tasks"}
    assert content.headline.endswith(
        "; expected to reach tuned AdamW's loss in 0.61 of the steps (0.42 to 0.93, as on held-out tasks)"
    )
    timed = evaluation | {"step_seconds_ratio": 1.34}
    content = recommend(replace(synthetic_predictor(), info={"evaluation": timed}))
    assert "Training step: 1.34 times AdamW's, as on held-out tasks" in content.to_text()
    slower = {"time_to_target": 1.2, "time_to_target_ci": None}
    assert recommend(replace(synthetic_predictor(), info={"evaluation": slower})).headline.endswith(
        "in 1.2 times the steps (as on held-out tasks)"
    )
    assert "expected" not in recommend(synthetic_predictor()).headline


def test_a_threshold_of_the_choice_is_told_with_the_report():
    content = recommend(switching())
    (sentence,) = content.counterfactuals
    assert sentence.startswith("With 'inputs that one output sums over' above 20.1 (here 7.07)")
    assert sentence.endswith("the calibrated default would be kept for hidden matrices.")
    for text in (content.to_text(), content.to_markdown().replace("&#", ""), Page(content.to_html()).text):
        assert "inputs that one output sums over" in text
    assert recommend(synthetic_predictor()).counterfactuals == ()
    assert recommend("default").counterfactuals == ()


def test_where_the_default_is_kept_the_closest_change_and_its_evidence_are_told():
    content = recommend(switching())
    kept = {group.layers[0].group: group for group in kept_groups(content)}
    assert set(kept) == {"vector", "head"}
    assert kept["vector"].label == "vectors (3 tensors)"
    assert "x reference, " in kept["head"].closest or kept["head"].closest.endswith("loss +11 %")
    assert {layer.group for layer in content.layers if layer.deviates} == {"matrix"}
    for text in (content.to_text(), content.to_markdown(), Page(content.to_html()).text):
        assert "Why the default is kept" in text
        assert "loss +11 %" in text.replace("&#43;", "+")


def test_every_reason_of_a_kept_role_group_is_told_once():
    same = [layer(f"a.{i}", role="matrix") for i in range(3)]
    other = replace(layer("b", role="matrix"), reason="Another reason.")
    kept = kept_groups(recommendation([*same, other, replace(layer("c"), reason="")]))
    assert [(group.label, group.reason) for group in kept] == [
        ("hidden matrices (3 tensors)", "A reason."),
        ("hidden matrices (1 tensor)", "Another reason."),
    ]
    assert kept_groups(recommendation(same, profile={"mode": "checkpoint", "step": 1, "phase": "selected"})) == ()


def test_the_plans_weighed_have_intervals_and_the_chosen_one_is_marked():
    content = recommend(switching())
    first, default, *others = content.candidates
    assert first.name == "this recommendation" and first.chosen and not default.chosen
    assert first.predicted_gain == pytest.approx(-0.3, abs=0.01)
    assert len(others) == 3
    for plan in others:
        low, high = plan.predicted_gain_interval
        assert low < plan.predicted_gain < high and plan.name.startswith("default, but ")
    (alone,) = recommend("default").candidates
    assert alone.chosen and alone.predicted_gain == 0.0


def test_a_model_without_batches_says_that_nothing_was_measured():
    content = autoopt.recommend(torch.nn.Linear(4, 2))
    assert content.abstained and "no batches were given" in content.warnings[-1]
    assert {group.reason for group in kept_groups(content)} == {"Nothing was measured: the calibrated default is kept."}
    with pytest.raises(autoopt.ProfileError, match="batches was given without loss_fn"):
        autoopt.recommend(torch.nn.Linear(4, 2), batches=[])


def test_layers_changed_alike_share_one_entry_and_rates_are_told_against_the_reference():
    content = recommend(synthetic_predictor())
    found = {change.groups[0].group: change for change in changes(content.groups)}
    assert {name: len(change.labels) for name, change in found.items()} == {"matrix": 1, "vector": 1, "head": 1}
    assert found["vector"].labels == ("0,2-3.bias",)
    wide = recommendation(
        [
            deviating("a", OptimizerConfig("muon", {"lr": 0.02, "momentum": 0.8}, 1.0)),
            deviating("b", OptimizerConfig("muon", {"lr": 0.04, "momentum": 0.8}, 1.0)),
            *(deviating(name, OptimizerConfig("muon", {"lr": 0.02}, 1.0)) for name in "cdef"),
            deviating("g", OptimizerConfig("muon", {"lr": 0.02}, 1.0), gain=-0.2),
            layer("h"),
        ]
    )
    first, second, third = changes(wide.groups)
    assert first.text == "a, b: Muon at 1 x reference" and first.settings == "momentum 0.8"
    assert second.text == "c, d, e and 1 more: Muon at 0.02"
    assert third.labels == ("g",) and third.gain == "loss -18 %"
    page = Page(wide.to_html())
    links = {attrs["href"] for tag, attrs in page.tags if tag == "a" and attrs.get("href", "").startswith("#why-")}
    assert links == {"#why-1", "#why-2", "#why-3"}
    assert "c, d, e and 1 more: Muon at 0.02, loss -9.5 %" in page.text


def test_what_the_run_did_not_tell_the_selector_is_named_with_the_way_to_help_it():
    plain = synthetic_predictor()
    wanting = replace(plain, features=("log_fan_in", "log_total_steps", "hoyer_sparsity", "loss_drop"))
    model = torch.nn.Linear(6, 3)
    optimizer = autoopt.select(model, warmup_steps=2, selector=wanting)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(4, 6)).square().mean().backward()
        optimizer.step()
    content = optimizer.recommendation
    assert set(content.profile["not_measured"]) == {"total_steps", "loss_drop"}
    text = content.to_text(400)
    assert "not measured: total_steps (total_steps was not given)" in text
    assert "not measured: loss_drop (no loss was observed: call optimizer.observe(loss) before each step)" in text
    assert "not_measured" not in recommend(wanting).profile


def test_the_profile_tells_ranks_and_passes_before_the_first_step():
    profile = {"mode": "online", "warmup_steps": 20, "seconds": 1.5, "num_ranks": 4}
    content = recommendation([layer("w")], profile=profile | {"start_passes": 12, "start_seconds": 0.25})
    assert wording.profiling(content) == (
        "Statistics from 20 steps of the run itself, 1.5 s, over 4 ranks; 12 passes before the first step took 0.25 s."
    )


def test_the_trade_off_table_has_a_column_for_times_only_where_they_were_measured():
    lean, default = TradeOff("SGD", 0.1, 100), TradeOff("calibrated default", 0.0, 900, chosen=True)
    headings, rows = trade_offs.table([lean, default])
    assert headings == ("Plan", "Loss", "State bytes")
    assert rows == [("SGD", "+11 %", "100"), ("calibrated default (chosen)", "+0.0 %", "900")]
    headings, rows = trade_offs.table([replace(lean, step_time_ratio=0.5), default])
    assert headings == ("Plan", "Loss", "Step time", "State bytes")
    assert [row[2] for row in rows] == ["0.5", "-"]
