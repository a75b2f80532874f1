"""Reports: one content, every format, and names that try to break out of each of them."""

import base64
import hashlib
import io
import json
import math
import re
import subprocess
import sys
import unicodedata
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from autoopt.architecture import ROLE_GROUPS
from autoopt.errors import AutoOptError, PlanError
from autoopt.optimizers.catalog import CATALOG
from autoopt.optimizers.plan import OptimizerConfig, OptimizerPlan
from autoopt.optimizers.schedule import Schedule
from autoopt.report import (
    Candidate,
    Event,
    Evidence,
    LayerRecommendation,
    NearestTask,
    Recommendation,
    ReportError,
    group_layers,
)
from autoopt.report.charts import IntervalRow, interval_chart, loss_curve
from autoopt.report.grouping import NamePattern
from autoopt.report.pictures import layer_strip, optimizer_legend, statistics_heatmap
from autoopt.report.svg import heat, marks
from autoopt.report.wording import format_bytes, format_loss_change, format_number, visible

MUON = OptimizerConfig("muon", {"lr": 0.02}, 1.0)
ADAMW = OptimizerConfig("adamw", {"lr": 8e-3, "betas": (0.9, 0.99)}, 8.0)
SPARSE = OptimizerConfig("sparseadam", {"lr": 0.064})

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "a|b",
    "`tick` ``` |",
    "[red]bold[/red] [link=https://example.org]x[/link]",
    "line\nbreak\r\n\ttab",
    "\x1b[31mred\x1b[0m \x00",
    "\u202eright to left",
    "lone \ud800 surrogate",
    "**bold** _em_ ~~x~~ ![img](http://example.org/x.png)",
    "http://example.org/www.example.org",
    "&lt;b&gt; &amp; \"quoted\" 'single'",
    "{{ 7 * 7 }} {% raw %} ${x} \\(x\\)",
    "]]><style>*{display:none}</style><!-- -->",
    "# heading",
    "- list",
    "漢字 with wide letters",
    "x" * 300,
]

MARKDOWN_TAGS = {"h1", "h2", "p", "strong", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "code"}
SVG_TAGS = {"svg", "title", "desc", "defs", "pattern", "g"} | {
    "rect",
    "path",
    "line",
    "circle",
    "text",
    "polyline",
}


def unseen(text):
    """Characters that act on a reader's screen without being seen."""
    return [c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]


def layer(name, config=ADAMW, role="bias", **fields):
    shape = fields.pop("shape", (4,))
    return LayerRecommendation(
        name, role, ROLE_GROUPS[role], shape, math.prod(shape), config, reason="A reason.", **fields
    )


def recommendation(layers, **fields):
    plan = OptimizerPlan({item.name: item.config for item in layers}, Schedule("cosine", 50, 1000))
    return Recommendation(plan=plan, layers=tuple(layers), **fields)


def deviating(name, config=MUON, role="matrix", gain=-0.1, note="", **fields):
    evidence = (
        Evidence("row_sparsity" + note, 0.9, "", 83.0, -0.08, "rows without a gradient" + note),
        Evidence("snr" + note, 1e-3, "nats" + note, 12.0, 0.01),
    )
    return layer(
        name, config, role, shape=(8, 4), deviates=True, predicted_gain=gain,
        predicted_gain_interval=(gain - 0.05, gain + 0.04), confidence=0.9, runner_up=ADAMW,
        runner_up_gain=gain + 0.02, evidence=evidence, **fields,
    )  # fmt: skip


def transformer(num_layers=12, note=""):
    """A recommendation with every field filled, for a transformer of a real size."""
    layers = [deviating("tok.weight" + note, SPARSE, "embedding", sparse=True, note=note)]
    for index in range(num_layers):
        block = f"blocks.{index}"
        for name in ("attn.qkv", "attn.proj", "mlp.0", "mlp.2"):
            role = "qkv" if name == "attn.qkv" else "matrix"
            layers.append(layer(f"{block}.{name}.weight", MUON, role, shape=(3072, 768)))
            layers.append(layer(f"{block}.{name}.bias", shape=(3072,)))
        for name in ("norm1", "norm2"):
            layers.append(layer(f"{block}.{name}.weight", role="norm", shape=(768,)))
            layers.append(layer(f"{block}.{name}.bias", shape=(768,)))
    layers.append(deviating("head.weight" + note, ADAMW, "head", gain=-0.03, note=note))
    return recommendation(
        layers,
        abstained_groups=("conv",),
        expected={"time_to_target": 0.6, "low": 0.4, "high": 0.9},
        nearest_tasks=(NearestTask("char-lm-w64" + note, 0.41, "Muon at 0.02" + note),),
        warnings=("Wider than any recorded model." + note,),
        memory_bytes=700_000_000,
        adamw_memory_bytes=990_000_000,
        step_time_ratio=1.12,
        profile={"warmup_steps": 50, "seconds": 3.2, "num_nonfinite_steps": 2, "mode": "online"},
        provenance={"autoopt" + note: "0.1.0" + note, "artifact_sha256": "ab12" * 16, "seed": 0},
        counterfactuals=("With fewer rows touched, SparseAdam." + note,),
        events=(Event(50, "switch" + note, "2 tensors left the default" + note),),
        interval_coverage=0.8,
        statistics={item.name: {"snr" + note: 0.1 * i, "rank": None} for i, item in enumerate(layers)},
        candidates=(Candidate("default" + note, 0.0), Candidate("this one", -0.1, (-0.2, -0.05), True)),
        losses=tuple((10 * step, 2 + math.exp(-step / 12)) for step in range(100)),
    )


class Page(HTMLParser):
    """The tags with attributes, and the text outside of style and script, of an HTML page."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.words, self.sources, self._inside = [], [], {"script": [], "style": []}, None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in self.sources else None

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        (self.sources[self._inside] if self._inside else self.words).append(data)

    @property
    def text(self):
        return "".join(self.words)


# --- content -------------------------------------------------------------------------------------


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


# --- grouping ------------------------------------------------------------------------------------


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
    layers = [
        layer(name, config, role, deviates=deviates) for name, (config, role, deviates) in choices.items()
    ]
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


# --- words ---------------------------------------------------------------------------------------


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
        assert "evidence was too thin" in text


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


# --- every format --------------------------------------------------------------------------------


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
    html = transformer(12).to_html()
    assert len(html.encode()) <= 500_000
    page = Page(html)
    ids = [attrs["id"] for tag, attrs in page.tags if "id" in attrs and tag != "pattern"]
    assert len(ids) == len(set(ids))
    for tag, attrs in page.tags:
        if tag == "svg" and attrs.get("aria-hidden") != "true" and "viewbox" not in attrs:
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
        "import torch\n# <script>code()</script>", "2 steps with non-finite gradients were skipped",
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


# --- pictures ------------------------------------------------------------------------------------


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


def test_text_has_contrast_in_both_themes_and_on_every_fill():
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
    root = ElementTree.fromstring(
        interval_chart("Gain", [IntervalRow("a", -0.1, (-0.2, 0.1))], "80 % intervals")
    )
    words = [node.text for node in root.iter("text")]
    assert "0 %" in words and "-10 %" in words
    assert "predicted change of the loss (%, log axis; 80 % intervals)" in words


def test_a_loss_curve_needs_two_losses():
    with pytest.raises(ValueError, match="two finite losses, got 1"):
        loss_curve([(0, 1.0), (1, None)], [])


def test_a_pattern_prints_its_ranges():
    assert NamePattern(("a", (0, 1, 3), "b")).label == "a.0-1,3.b"
