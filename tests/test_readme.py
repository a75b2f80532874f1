"""The README and the guides: their Python runs as it stands, and what they point at is there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
FENCE = re.compile(r"^```(\w*|\{[\w-]+\})\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")


def blocks(page, language):
    return [code for found, code in FENCE.findall(page.read_text(encoding="utf-8")) if found == language]


WITH_CODE = [page for page in PAGES if blocks(page, "python")]


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.name)
def test_the_code_of_a_page_runs_from_top_to_bottom(page, tmp_path):
    """In one fresh interpreter a page, with warnings as errors, away from the checkout."""
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks(page, "python")), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def test_the_readme_opens_with_the_two_commands_and_a_short_example():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first, example = FENCE.findall(text)[:2]
    assert [line.split("#")[0].strip() for line in first[1].strip().splitlines()] == ["make demo", "make test"]
    assert example[0] == "python" and "autoopt.select(model, total_steps=" in example[1]
    assert len([line for line in example[1].splitlines() if line.strip()]) <= 10


def test_make_knows_the_commands():
    done = subprocess.run(["make", "-n", "demo", "test"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "examples/demo.py" in done.stdout and "pytest" in done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    links = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
    missing = [link for link in links if not (page.parent / link.split("#")[0]).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_scripts_and_options_that_are_named_exist(page):
    text = page.read_text(encoding="utf-8")
    for line in re.findall(r"^python (\S+\.py.*)$", text, re.MULTILINE):
        script, *arguments = line.split()
        source = (ROOT / script).read_text(encoding="utf-8")
        for option in (a for a in arguments if a.startswith("--")):
            assert f'"{option}"' in source, f"{script} has no option {option}"


def test_every_guide_is_reached_from_the_readme_or_the_sites_first_page():
    """By links from page to page, which work on a code host too, or by the lists of the site's sections."""
    names = {page.name for page in PAGES[1:]}
    reached, waiting = set(), [PAGES[0], ROOT / "docs" / "index.md"]
    while waiting:
        page = waiting.pop()
        text = page.read_text(encoding="utf-8")
        listed = re.findall(r"^([\w-]+)$", "\n".join(blocks(page, "{toctree}")), re.MULTILINE)
        found = {Path(link.split("#")[0]).name for link in LINK.findall(text)} | {f"{name}.md" for name in listed}
        waiting += [ROOT / "docs" / name for name in (found & names) - reached]
        reached |= found & names
    assert names - reached - {"index.md"} == set()
