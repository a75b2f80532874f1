"""The documentation site builds without a warning and lacks nothing; its generated figures are right."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

import autoopt
from autoopt.features import FEATURES
from autoopt.meta.dataset import MetaDataset
from autoopt.meta.trial import TrialRequest, TrialStatus
from autoopt.optimizers.catalog import CATALOG
from autoopt.optimizers.recipe import Recipe, RoleConfig

ROOT = Path(__file__).parent.parent


class Page(HTMLParser):
    """The ids of a page, its links, and what it would fetch from elsewhere."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.fetched = set(), [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if "id" in attributes:
            self.ids.add(attributes["id"])
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])
        source = attributes.get("src") if tag != "link" else attributes.get("href")
        if tag in ("script", "img", "link", "iframe") and source and re.match(r"(https?:)?//", source):
            self.fetched.append(source)


def test_the_site_builds_without_warnings_and_is_complete(tmp_path):
    """One test and one build, since parallel workers would build it once each."""
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", tmp_path / "cache", ROOT / "docs", tmp_path],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    pages = {path.relative_to(tmp_path).as_posix(): Page(path) for path in tmp_path.rglob("*.html")}

    assert {f"autoopt.{name}" for name in autoopt.__all__} <= pages["api.html"].ids
    optimizers = pages["optimizers.html"].ids
    assert {f"optimizer-{info.name}" for info in CATALOG} <= optimizers
    features = (tmp_path / "meta-features.html").read_text(encoding="utf-8")
    assert [feature.name for feature in FEATURES if feature.name not in features] == []
    for path in (ROOT / "docs" / "example-output").glob("*.txt"):
        page = (tmp_path / "gallery" / f"{path.stem}.html").read_text(encoding="utf-8")
        assert "What it printed" in page and path.read_text(encoding="utf-8").splitlines()[-1] in page

    assert {name: page.fetched for name, page in pages.items() if page.fetched} == {}
    assert broken_links(tmp_path, pages) == []


def broken_links(site, pages):
    """Links within the site that lead to no page, or to no place of one."""
    broken = []
    for name, page in pages.items():
        for link in page.links:
            target, _, anchor = link.partition("#")
            if re.match(r"\w+:", target) or name.startswith("_modules/"):
                continue
            path = ((site / name).parent / target).resolve() if target else site / name
            known = pages.get(path.relative_to(site.resolve()).as_posix()) if path.exists() else None
            if not path.exists() or (anchor and known is not None and anchor not in known.ids):
                broken.append(f"{name}: {link}")
    return sorted(set(broken))


# ---- when each optimizer wins ---------------------------------------------------------------------


@pytest.fixture
def optimizer_wins(monkeypatch):
    """The script that compares optimizers, as a module."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import optimizer_wins

    yield optimizer_wins
    sys.modules.pop("optimizer_wins")


DEFAULT = Recipe.uniform("adamw", 0.01)
LOSSES = {
    # Family and number of the task -> the head on SGD at two rates, and on AdamW at another, over the default's 1.
    ("cnn", 0): (0.90, 0.80, 0.5),
    ("cnn", 1): (0.99, 0.90, 0.5),
    ("cnn", 2): (1.10, 1.30, 0.5),
    ("mlp", 0): (1.05, 1.20, 0.5),
}


def with_head(name, lr):
    return Recipe(DEFAULT.groups | {"head": RoleConfig(name, lr)})


@pytest.fixture
def folder(tmp_path):
    """A folder of recorded trials: every task of `LOSSES` at two seeds that differ by 1 % either way."""
    rows = []
    for (family, number), values in LOSSES.items():
        recipes = (DEFAULT, with_head("sgd", 0.1), with_head("sgd", 0.5), with_head("adamw", 0.04))
        for recipe, loss in zip(recipes, (1.0, *values), strict=True):
            for seed, noise in ((0, 0.99), (1, 1.01)):
                rows.append(row(f"{family}-{number}", family, recipe, seed, loss * (noise if loss != 1.0 else 1.0)))
    features = pd.DataFrame(columns=["task", "seed", "group", "family", "source"]).astype({"seed": "int64"})
    MetaDataset(pd.DataFrame(rows), features).save(tmp_path)
    (tmp_path / "defaults.json").write_text(json.dumps({"1": json.loads(DEFAULT.to_json())}))
    return tmp_path


def row(task, family, recipe, seed, loss):
    from trial_rows import run

    request = TrialRequest(task, json.dumps({"plan": 0}), round="coordinate-1", seed=seed)
    trial = run(request, family=family, plan=recipe.to_json(), best_val_loss=loss, status=TrialStatus.COMPLETED)
    return trial.to_row() | {"trial_id": f"{task} {recipe.to_json()} {seed}"}


def test_wins_are_counted_by_task_beyond_the_noise_and_from_both_sides(optimizer_wins, folder):
    found = optimizer_wins.comparisons(folder)
    assert {(c.group, c.optimizer, c.is_default, c.config["lr"]) for c in found} == {
        ("head", "sgd", False, 0.1), ("head", "adamw", True, 0.01), ("head", "sgd", False, 0.5),
    }  # fmt: skip
    assert len(found) == 4  # the changed rate of the same optimizer is no comparison of two
    mild = next(c for c in found if c.config["lr"] == 0.1)
    # 0.99 is a tie; of the other three one is a win.
    assert (mild.num_tasks, mild.better, mild.worse) == (4, 1, 2)
    assert mild.families == {"cnn": (1, 3)}
    mirrored = next(c for c in found if c.is_default and c.against["lr"] == 0.1)
    assert (mirrored.better, mirrored.worse) == (2, 1)
    assert mirrored.families == {"mlp": (1, 1), "cnn": (1, 3)}
    assert mirrored.median == pytest.approx(-mild.median)


def test_the_strongest_setting_of_a_challenger_stands_for_it(optimizer_wins, folder):
    chosen = optimizer_wins.strongest(optimizer_wins.comparisons(folder))
    assert len(chosen) == 2
    # Medians: 0.1 has (log 0.99 + log 1.05) / 2 = +0.019, 0.5 has (log 0.90 + log 1.20) / 2 = +0.038.
    settings = {(c.optimizer, c.config["lr"], c.against["lr"]) for c in chosen}
    assert settings == {("sgd", 0.1, 0.01), ("adamw", 0.01, 0.1)}


def test_the_script_prints_and_writes_the_comparisons_of_one_optimizer(optimizer_wins, folder, capsys):
    path = folder / "wins.json"
    assert optimizer_wins.main(["--folder", str(folder), "--optimizer", "sgd", "--json", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all("against adamw 0.01" in line for line in lines[1:])
    assert {c["config"]["lr"] for c in json.loads(path.read_text())} == {0.1, 0.5}


@pytest.mark.parametrize("arguments", [["--optimizer", "sdg"], ["--folder", "nowhere"]])
def test_wrong_input_is_one_line(optimizer_wins, arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert optimizer_wins.main(arguments) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_every_feature_that_is_computed_leads_to_its_formula(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    monkeypatch.syspath_prepend(ROOT / "docs" / "_ext")
    from feature_pages import formula_of

    found = {feature.name: formula_of(feature) for feature in FEATURES}
    assert found["hoyer_sparsity"] == "autoopt.statistics.gradient.hoyer_sparsity"
    assert found["log_epochs"] == "autoopt.feature_values.exposure_values"
    without = [feature.name for feature in FEATURES if not found[feature.name] and feature.kind != "context"]
    assert without == []
