"""Pictures of a report: distinct without colour, readable in both themes, true to their numbers."""

import re
from xml.etree import ElementTree

import pytest
from report_example import Page, layer, transformer

from autoopt.optimizers.catalog import CATALOG
from autoopt.optimizers.plan import OptimizerConfig, OptimizerPlan
from autoopt.report import (
    group_layers,
)
from autoopt.report.charts import IntervalRow, interval_chart, loss_curve
from autoopt.report.grouping import NamePattern
from autoopt.report.pictures import layer_strip, optimizer_legend, statistics_heatmap
from autoopt.report.svg import heat, marks


def test_every_optimizer_of_the_catalog_looks_different_without_colour():
    drawn = marks(info.name for info in CATALOG)
    assert len({mark.letter for mark in drawn.values()}) == len(CATALOG)
    assert len({(mark.colour, mark.pattern) for mark in drawn.values()}) == len(CATALOG)
    assert marks(reversed([info.name for info in CATALOG])) == drawn


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first, second):
    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_has_contrast_in_both_themes_and_on_every_fill(monkeypatch):
    monkeypatch.setattr(OptimizerPlan, "to_python", lambda plan: "import torch")
    style = "".join(Page(transformer(1).to_html()).sources["style"])
    themes = re.findall(r":root \{(.*?)\}", style, re.DOTALL)[:2]
    assert len(themes) == 2
    for theme in themes:
        colour = {
            name: value if len(value) == 7 else "#" + "".join(2 * c for c in value[1:])
            for name, value in re.findall(r"--([\w-]+): (#[0-9a-fA-F]{3,6})", theme)
        }
        for text in ("fg", "muted", "accent"):
            assert contrast(colour[text], colour["bg"]) >= 4.5
            assert contrast(colour[text], colour["card"]) >= 4.5
        assert contrast(colour["fg"], colour["warn"]) >= 4.5
    for mark in marks(info.name for info in CATALOG).values():
        assert contrast(mark.colour, {"#fff": "#ffffff", "#000": "#000000"}[mark.ink]) >= 4.5


def test_the_heat_scale_rises_in_lightness():
    levels = [luminance(heat(step / 20)[0]) for step in range(21)]
    assert levels == sorted(levels)


def test_a_taller_column_is_a_larger_rate():
    groups = group_layers([layer("a", OptimizerConfig("sgd", {"lr": lr})) for lr in [0.1]] + [
        layer("b", OptimizerConfig("sgd", {"lr": 0.001}))])  # fmt: skip
    bars = [node for node in ElementTree.fromstring(layer_strip(groups)).iter("rect")
            if node.get("stroke") == "currentColor"]  # fmt: skip
    assert float(bars[0].get("height")) > float(bars[1].get("height")) > 0


def test_a_rate_of_zero_is_drawn():
    groups = group_layers([layer("a", OptimizerConfig("sgd", {"lr": 0.0}))])
    assert ElementTree.fromstring(layer_strip(groups)).findall(".//rect")


def test_the_legend_counts_tensors():
    counts = {name: count for _, name, count in optimizer_legend(transformer(2).groups)}
    assert counts == {"AdamW": 17, "Muon": 8, "SparseAdam": 1}


def test_an_unmeasured_statistic_is_crossed_out_and_not_coloured():
    groups = group_layers([layer("a"), layer("b")])
    root = ElementTree.fromstring(statistics_heatmap(groups, {"a": {"s": 1.0}, "b": {"s": None}}))
    assert [node.text for node in root.iter("title") if ": s " in (node.text or "")] == ["a: s 1"]
    assert len([node for node in root.iter("path") if node.get("stroke") == "currentColor"]) == 1


def test_a_chart_axis_has_units_and_marks_no_change():
    root = ElementTree.fromstring(interval_chart("Gain", [IntervalRow("a", -0.1, (-0.2, 0.1))], "80 % intervals"))
    words = [node.text for node in root.iter("text")]
    assert "0 %" in words and "-10 %" in words
    assert "predicted change of the loss (%, log axis; 80 % intervals)" in words


def test_a_loss_curve_needs_two_losses():
    with pytest.raises(ValueError, match="two finite losses, got 1"):
        loss_curve([(0, 1.0), (1, None)], [])


def test_a_pattern_prints_its_ranges():
    assert NamePattern(("a", (0, 1, 3), "b")).label == "a.0-1,3.b"
