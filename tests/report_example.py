"""Recommendations to render in tests, names that try to break out, and a reader of HTML."""

import math
import unicodedata
from html.parser import HTMLParser

from autoopt.architecture import ROLE_GROUPS
from autoopt.optimizers.plan import OptimizerConfig, OptimizerPlan
from autoopt.optimizers.schedule import Schedule
from autoopt.report import (
    Candidate,
    Event,
    Evidence,
    LayerRecommendation,
    NearestTask,
    Recommendation,
)

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
