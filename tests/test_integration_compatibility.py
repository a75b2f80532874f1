"""The table of compatibility: written from results, of tests that exist, with the versions that are pinned."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "compatibility.md"


@pytest.fixture
def writer(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import write_compatibility

    yield write_compatibility
    sys.modules.pop("write_compatibility")


def functions_of(file):
    tree = ast.parse((ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_row_names_tests_that_exist(writer):
    missing = [(row.file, test) for row in writer.ROWS for test in row.tests if test not in functions_of(row.file)]
    assert not missing and all(row.tests for row in writer.ROWS)


def test_every_stack_that_has_tests_has_rows(writer):
    files = {path.stem for path in (ROOT / "tests").glob("test_integration_*.py")}
    assert files - {row.file for row in writer.ROWS} == {"test_integration_compatibility", "test_integration_examples"}


def test_the_page_has_every_row_and_all_hold(writer):
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    for row in writer.ROWS:
        (found,) = (line for line in lines if line.startswith(f"| {row.what} |"))
        assert "| holds |" in found and row.file in found


def test_the_page_was_written_with_the_pinned_versions(writer):
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    shown = dict(re.findall(r"^\| ([\w-]+) \| (\d\S*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert shown == {name: pins[name] for name in writer.PACKAGES}


REPORT = """<testsuites><testsuite>
<testcase classname="tests.test_integration_skorch" name="test_clones_start_anew"/>
<testcase classname="tests.test_integration_skorch" name="test_a_pipeline_is_searched_over[a]"/>
<testcase classname="tests.test_integration_skorch" name="test_a_pipeline_is_searched_over[b]">
<failure message="m">text</failure></testcase>
<testcase classname="tests.test_integration_accelerate" name="test_it_trains_as_a_plain_loop_does[x]">
<skipped message="m"/></testcase>
</testsuite></testsuites>"""


def test_results_are_told_as_they_are(writer, tmp_path, monkeypatch, capsys):
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    monkeypatch.setattr(writer, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(writer, "ROOT", tmp_path)
    assert writer.main(["--results", str(report)]) == 1
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    search = next(line for line in text.splitlines() if "grid search" in line)
    assert "| 1 failed, 1 missing | 4 |" in search
    assert "| 1 skipped | 1 |" in next(line for line in text.splitlines() if "`accumulate`" in line)
    assert f"0 of {len(writer.ROWS)} rows hold" in capsys.readouterr().out


def test_all_that_pass_hold(writer):
    results = {(row.file, test): ["passed"] * 2 for row in writer.ROWS for test in row.tests}
    text = writer.page(results, {"torch": "2"})
    assert text.count("| holds |") == len(writer.ROWS)
    assert "| torch | 2 |" in text
