"""The examples of the training stacks, run on tiny budgets in this process."""

import math
import runpy
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState

import autoopt

ROOT = Path(__file__).parent.parent
NAMES = (
    "accelerate_loop",
    "huggingface_bert_classifier",
    "huggingface_gpt2",
    "lightning_digits",
    "skorch_grid_search",
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:.*LeafSpec")  # Lightning calls what torch has deprecated
def test_an_example_trains_and_says_what_was_recommended(name, monkeypatch, capsys):
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    monkeypatch.setenv("EXAMPLE_STEPS", "24")
    found = runpy.run_path(str(ROOT / "examples" / f"{name}.py"))
    assert math.isfinite(found["loss"]) and math.isfinite(found["baseline_loss"])
    optimizer = found["optimizer"]
    assert isinstance(optimizer, autoopt.AutoOptimizer) and optimizer.phase == "selected"
    printed = capsys.readouterr().out.splitlines()
    assert optimizer.recommendation.headline in printed
    kept = (ROOT / "docs" / "example-output" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    assert len(kept) == len(printed) and kept[0].split()[:2] == printed[0].split()[:2] == ["validation", "loss"]
    if "written" in found:
        assert found["written"] == ["autoopt.html", "autoopt.json"]
