"""The examples of the gallery, run on tiny budgets in this process, and what is kept of their full runs."""

import math
import re
import runpy
import sys
from pathlib import Path

import pytest

import autoopt

ROOT = Path(__file__).parent.parent
NAMES = ("character_transformer", "gpu_launch", "image_cnn", "medical_survival", "sparse_recommender")
NUMBER = re.compile(r"\d+\.\d+")
STEPS = 22


@pytest.fixture
def record_examples(monkeypatch):
    """The script that runs the examples in full, as a module."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import record_examples

    yield record_examples
    sys.modules.pop("record_examples")


@pytest.mark.parametrize("name", NAMES)
def test_an_example_trains_and_prints_what_its_page_shows(name, monkeypatch, capsys):
    monkeypatch.setenv("EXAMPLE_STEPS", str(STEPS))
    found = runpy.run_path(str(ROOT / "examples" / f"{name}.py"))
    assert math.isfinite(found["loss"]) and math.isfinite(found["baseline_loss"])
    optimizer = found["optimizer"]
    assert isinstance(optimizer, autoopt.AutoOptimizer) and optimizer.phase == "selected"
    printed = capsys.readouterr().out.splitlines()
    assert optimizer.recommendation.headline in printed
    kept = (ROOT / "docs" / "example-output" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    losses, kept_losses = (next(line for line in text if "validation loss" in line) for text in (printed, kept))
    assert NUMBER.sub("#", kept_losses) == NUMBER.sub("#", losses).replace(f"after {STEPS} ", kept_steps(kept_losses))
    assert len(kept) == len(printed)


def kept_steps(line):
    return re.search(r"after \d+ ", line)[0]


@pytest.mark.parametrize("name", NAMES)
def test_an_example_uses_nothing_of_autoopt_but_select(name):
    """A reader can copy it into a project of their own; no task of the suite is touched."""
    source = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")
    used = {match for match in re.findall(r"^from (autoopt\S*)|\bautoopt(\.\w+)", source, re.MULTILINE)}
    assert used == {("", ".select")}


def test_all_pages_of_the_gallery_are_known_here_or_tested_elsewhere(record_examples):
    titled = {path.stem for path in (ROOT / "examples").glob("*.py") if record_examples.has_title(path)}
    assert titled >= set(NAMES)
    tests = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests").glob("test_*.py"))
    assert [name for name in titled if name not in tests] == []


def test_an_unknown_example_is_refused_by_name(record_examples, capsys):
    with pytest.raises(SystemExit) as caught:
        record_examples.main(["image_cn"])
    assert caught.value.code == 2
    assert "'image_cn'" in capsys.readouterr().err


def test_output_is_kept_of_what_ran_and_only_of_that(record_examples, tmp_path, monkeypatch, capsys):
    examples = tmp_path / "examples"
    examples.mkdir()
    (examples / "good.py").write_text('"""Good\n====\n"""\nprint("fine")\n')
    (examples / "bad.py").write_text('"""Bad\n===\n"""\nprint("half")\nraise SystemExit(3)\n')
    (examples / "other.py").write_text('"""No page of the gallery."""\nprint("other")\n')
    monkeypatch.setattr(record_examples, "EXAMPLES", examples)
    monkeypatch.setattr(record_examples, "OUTPUT", tmp_path / "output")
    assert record_examples.main([]) == 1
    assert {p.name: p.read_text() for p in (tmp_path / "output").iterdir()} == {"good.txt": "fine\n"}
    assert "bad: 0 s, exit code 3" in capsys.readouterr().out
