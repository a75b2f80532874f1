"""Reports in every format, with names that try to break out of each of them."""

import base64
import hashlib
import io
import re
import subprocess
import sys
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt
from report_example import (
    HOSTILE,
    MUON,
    Page,
    layer,
    recommendation,
    transformer,
    unseen,
)
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from autoopt.errors import PlanError
from autoopt.optimizers.plan import OptimizerPlan
from autoopt.report import (
    Event,
    ReportError,
)
from autoopt.report.charts import IntervalRow, interval_chart, loss_curve
from autoopt.report.formatting import visible
from autoopt.report.pictures import layer_strip, statistics_heatmap

MARKDOWN_TAGS = {"h1", "h2", "p", "strong", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "code"}
SVG_TAGS = {"svg", "title", "desc", "defs", "pattern", "g"} | {
    "rect",
    "path",
    "line",
    "circle",
    "text",
    "polyline",
}


@pytest.fixture(autouse=True)
def generated_code(monkeypatch):
    """Plan code with markup in it: what the generator writes is tested where the generator is."""
    code = "import torch\n# <script>code()</script> & 'quoted'\n"
    monkeypatch.setattr(OptimizerPlan, "to_python", lambda plan: code)
    return code


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_shows_as_text_in_the_page(name):
    content = transformer(1, note=name)
    html = content.to_html()
    page = Page(html)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not [tag for tag, _ in page.tags if tag in ("img", "b", "iframe", "object", "base")]
    assert [tag for tag, _ in page.tags].count("style") == 1
    assert not [key for _, attrs in page.tags for key in attrs if key.startswith("on")]
    assert page.text.count(visible(f"tok.weight{name}")) >= 2
    assert not unseen(html)
    svgs = re.findall(r"<svg.*?</svg>(?!\s*</svg>)", html, re.DOTALL)
    assert len(svgs) > 4
    notebook = Page(content._repr_html_())
    assert "script" not in [tag for tag, _ in notebook.tags]
    assert visible(f"tok.weight{name}") in notebook.text


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_shows_as_text_in_markdown(name):
    text = transformer(1, note=name).to_markdown()
    html = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text)
    rendered = Page(html)
    tags = [tag for tag, _ in rendered.tags]
    assert set(tags) <= MARKDOWN_TAGS
    assert not unseen(text)
    assert tags.count("table") == 3
    cells = [Page(cell).text for cell in re.findall(r"<td[^>]*>(.*?)</td>", html, re.DOTALL)]
    assert visible(f"tok.weight{name}").strip() in cells
    assert visible(f"char-lm-w64{name}").strip() in cells
    assert tags.count("strong") == 1
    assert rendered.text.count(visible(f"tok.weight{name}").strip()) >= 2


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_shows_as_text_in_the_terminal(name):
    content = transformer(1, note=name)
    text = content.to_text(2000)
    assert f"├─ {visible(f'tok.weight{name}')}" in text
    assert visible(f"tok.weight{name}:") in text
    assert not unseen(text)
    # A console of the user's, which obeys markup in strings, shows the same.
    console = Console(width=2000, file=io.StringIO(), legacy_windows=False)
    console.print(content)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert lines == text.splitlines()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_shows_as_text_in_pictures(name):
    groups = transformer(1, note=name).groups
    values = {group.members[0].name: {name: 1.0} for group in groups}
    pictures = [
        layer_strip(groups),
        statistics_heatmap(groups, values),
        interval_chart(name, [IntervalRow(name, -0.1, (-0.2, 0.0))], "80 % intervals"),
        loss_curve([(0, 1.0), (9, 0.5)], [Event(3, name, name)], 2),
    ]
    for picture in pictures:
        root = ElementTree.fromstring(picture)
        assert {element.tag for element in root.iter()} <= SVG_TAGS
        assert visible(name) in "".join(root.itertext())


def test_the_page_loads_nothing_and_allows_only_its_own_script_and_style():
    page = Page(transformer().to_html())
    for _, attrs in page.tags:
        for key in ("src", "href", "action", "data", "poster", "srcset", "xlink:href"):
            assert attrs.get(key, "#").startswith(("#", "data:"))
        assert "style" not in attrs
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    for kind in ("script", "style"):
        source = "".join(page.sources[kind])
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
        assert "url(http" not in source and "@import" not in source


def test_the_page_of_a_transformer_is_small_and_describes_its_pictures():
    content = transformer(12)
    # As many statistics as are measured, and for the largest layers everything that can be said of one.
    rows = {item.name: {f"statistic_{i}": 0.1 * i for i in range(32)} for item in content.layers}
    layers = [
        replace(item, evidence=content.layers[0].evidence, runner_up=MUON, runner_up_gain=-0.01)
        for item in content.layers
    ]
    html = replace(content, layers=layers, statistics=rows).to_html()
    assert len(html.encode()) <= 500_000
    page = Page(html)
    ids = [attrs["id"] for tag, attrs in page.tags if "id" in attrs and tag != "pattern"]
    assert len(ids) == len(set(ids))
    for tag, attrs in page.tags:
        if tag == "svg" and attrs.get("aria-hidden") != "true" and "preserveaspectratio" not in attrs:
            assert attrs["role"] == "img" and attrs["aria-label"]
        if "aria-labelledby" in attrs:
            assert attrs["aria-labelledby"] in ids
        if attrs.get("href", "").startswith("#"):
            assert attrs["href"][1:] in ids
        if tag == "label" and "for" in attrs:
            assert attrs["for"] in ids
    assert [tag for tag, _ in page.tags].count("h1") == 1


def test_the_page_says_everything_that_the_content_holds():
    content = transformer()
    text = Page(content.to_html()).text
    expected = [
        content.headline, "Wider than any recorded model.", "668 MiB", "1.12 times AdamW's", "80 % intervals",
        "blocks.0-11.attn.qkv.weight", "blocks.7.mlp.2.bias", "With fewer rows touched, SparseAdam.",
        "char-lm-w64", "2 tensors left the default", "ab12ab12", "higher than 83 % of the recorded tasks",
        "import torch\n# <script>code()</script>", "2 steps with non-finite gradients skipped",
        "cosine decay over 1,000 steps after 50 of linear warm-up", "AdamW at 0.008 (-7.7 %)",
    ]  # fmt: skip
    for words in expected:
        assert words in text


def test_a_plan_that_cannot_be_written_as_code_says_so(monkeypatch):
    def refuse(plan):
        raise PlanError("no code for this")

    monkeypatch.setattr(OptimizerPlan, "to_python", refuse)
    assert "cannot be written as plain PyTorch: no code for this" in Page(transformer(1).to_html()).text


def test_a_bare_recommendation_renders_in_every_format(tmp_path):
    content = recommendation([layer("w")])
    for suffix in (".html", ".md", ".json", ".txt", ".py"):
        path = content.save(tmp_path / f"report{suffix}")
        assert path.read_text(encoding="utf-8").strip()
    empty = recommendation([])
    assert "no trainable parameters" in empty.to_text()
    assert Page(empty.to_html()).text and empty.to_markdown() and empty._repr_html_()


def test_save_refuses_an_unknown_suffix_and_lists_the_known_ones(tmp_path):
    with pytest.raises(ReportError, match=r"'report\.pdf'.*\.html, \.json, \.md, \.py, \.txt"):
        recommendation([layer("w")]).save(tmp_path / "report.pdf")
    assert not list(tmp_path.iterdir())


def test_the_code_is_the_plans(generated_code):
    assert recommendation([layer("w")]).to_python() == generated_code


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 160])
def test_the_terminal_report_fits_its_width_and_keeps_every_group(width):
    content = transformer(note=" 漢字")
    text = content.to_text(width)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    assert text.count("Muon") >= len([g for g in content.groups if g.config == MUON])
    if width >= 80:
        assert "-9.5 %" in text


def test_printing_and_rich_give_the_terminal_report():
    content = transformer(1)
    assert str(content) == content.to_text()
    console = Console(width=100, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(content)
    assert "\x1b[1m" in console.file.getvalue()
    assert Text.from_ansi(console.file.getvalue()).plain.split() == content.to_text(100).split()
    assert repr(content) == f"<Recommendation: {content.headline}>"


def test_importing_the_report_loads_neither_jinja2_nor_rich():
    code = "import sys, torch; before = set(sys.modules); import autoopt.report; " \
           "print(sorted({'jinja2', 'rich', 'sklearn', 'pandas'} & (set(sys.modules) - before)))"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", HOSTILE)
def test_a_plan_shows_in_a_notebook_with_hostile_names_as_text(name):
    plan = transformer(1, note=name).plan
    page = Page(plan._repr_html_())
    allowed = {"p", "strong", "table", "thead", "tbody", "tr", "th", "td", "code", "br", "details", "summary"}
    assert {tag for tag, _ in page.tags} <= allowed
    assert visible(f"tok.weight{name}") in page.text and not unseen(page.text)
    assert "cosine rate over 1,000 steps, 50 of warm-up" in page.text
    for layer_name in plan.layers:
        assert visible(layer_name) in page.text
    assert "Muon" in page.text and "betas (0.9, 0.99)" in page.text
