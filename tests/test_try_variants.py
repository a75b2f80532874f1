"""The script that tries ideas on recorded tasks."""

import json

import pytest
from script_modules import script

VARIANTS = """
from dataclasses import replace

def scaled(factor):
    def change(layer, config, total_steps):
        if layer.group != "head":
            return config
        return replace(config, hyperparameters={**config.hyperparameters, "lr": factor * config.lr})
    return change

VARIANTS = {"same": scaled(1.0), "tiny": scaled(1e-4), "tables": lambda layer, config, steps: config}
"""
TASK = "digits-mlp-w32-b16-s400"


@pytest.fixture
def variants(tmp_path):
    path = tmp_path / "variants.py"
    path.write_text(VARIANTS)
    return path


def test_variants_are_paired_with_the_recorded_default(variants, tmp_path, capsys):
    output = tmp_path / "tried.jsonl"
    arguments = [str(variants), "--output", str(output), "--only", TASK]
    assert script("try_variants").main([*arguments, "--names", "tiny,tables"]) == 0
    rows = {row["variant"]: row for row in map(json.loads, output.read_text().splitlines())}
    assert rows["tables"]["loss"] is None and rows["tiny"]["loss"] > 0
    lines = capsys.readouterr().out.splitlines()
    (tiny,) = [line for line in lines if line.startswith("tiny")]
    assert "1 tasks, 1 of them changed, 0 better" in tiny
    assert float(tiny.split("mean log loss ")[1].split()[0]) > 0.01
    (tables,) = [line for line in lines if line.startswith("tables")]
    assert "mean log loss +0.0000" in tables and "0 of them changed" in tables
    before = output.read_text()
    assert script("try_variants").main([*arguments, "--names", "tiny"]) == 0
    assert output.read_text() == before  # what it holds is not run again


@pytest.mark.parametrize(
    ("text", "arguments", "words"),
    [
        (None, [], "there is no Python file"),
        ("VARIANTS = {}", [], "defines no VARIANTS"),
        (VARIANTS, ["--names", "other"], "has no variant 'other'"),
    ],
)
def test_what_cannot_be_tried_is_said(text, arguments, words, tmp_path, capsys):
    path = tmp_path / "variants.py"
    if text is not None:
        path.write_text(text)
    output = tmp_path / "tried.jsonl"
    assert script("try_variants").main([str(path), "--output", str(output), *arguments]) == 1
    assert words in capsys.readouterr().err and not output.exists()
