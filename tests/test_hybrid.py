"""Plans that change optimizer on the way: what is trained, and how it is scored."""

import json
import math

import pytest
from script_modules import ROOT, script


@pytest.fixture(scope="module")
def hybrid():
    return script("evaluate_hybrid")


def test_the_table_scores_against_the_default_kept_throughout(hybrid):
    known = {
        "a": {"default": 1.0, "matrix at 0.5": math.e**0.1, "everything at 0.8": 0.9},
        "b": {"default": 2.0, "matrix at 0.5": 2.0},
    }
    lines = hybrid.table(known).splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| matrix at 0.5 | 2 | +0.050") and lines[2].endswith("| 0 % | 50 % |")
    assert lines[3].startswith("| everything at 0.8 | 1 | -0.105")


def test_every_variant_is_trained_and_differs(hybrid):
    name, losses = hybrid.losses_of("linear-map-deep-linear-narrow-w32-b32-s400", math.inf)
    assert name == "linear-map-deep-linear-narrow-w32-b32-s400"
    assert set(losses) == {"default", *(f"{v} at {s:g}" for v in hybrid.VARIANTS for s in hybrid.SHARES)}
    assert len(set(losses.values())) >= 4
    assert hybrid.losses_of(name, 0.0) == (name, {})


def test_the_page_shows_what_the_script_prints(hybrid):
    known = json.loads((ROOT / "meta_data" / "hybrid.json").read_text())
    page = (ROOT / "docs" / "how-selection-works.md").read_text()
    assert hybrid.table(known) in page
