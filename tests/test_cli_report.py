"""`autoopt report`: saved recommendations and checkpoints in every format, and files that are neither."""

import pytest
import torch
from cli_runner import run
from report_example import HOSTILE, transformer

import autoopt
from autoopt.report import Recommendation
from autoopt.report.formatting import visible


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current folder of the command."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def saved(folder):
    """A saved recommendation."""
    return transformer(1).save(folder / "saved.json")


@pytest.mark.parametrize(
    "form, start",
    [("text", "Muon on"), ("markdown", "# Opt"), ("json", "{"), ("html", "<!doctype"), ("python", '"""')],
)
def test_report_prints_every_format(saved, form, start):
    content = transformer(1)
    text = run("report", saved, "--format", form).stdout
    assert text.startswith(start)
    written = {"markdown": content.to_markdown, "html": content.to_html, "python": content.to_python}
    if form in written:
        assert text.rstrip("\n") == written[form]().rstrip("\n")


@pytest.mark.parametrize("suffix", [".html", ".md", ".json", ".txt", ".py"])
def test_report_writes_every_format(folder, saved, suffix):
    result = run("report", saved, "-o", folder / f"out{suffix}")
    assert (folder / f"out{suffix}").stat().st_size > 100
    assert result.stdout == "" and f"out{suffix}" in result.stderr


def test_report_says_what_is_wrong_with_a_file(folder, saved):
    files = {
        "empty.json": (b"", "is empty"),
        "half.json": (saved.read_bytes()[:-100], "not JSON"),
        "other.json": (b'{"a": 1}', "not a recommendation"),
        "future.json": (saved.read_bytes().replace(b'"schema_version": 1', b'"schema_version": 9'), "version 9"),
        "latin.json": (b'{"a": "\xe9"}', "is no text"),
        "notes.txt": (b"hello world", "neither a recommendation"),
        "cut.pt": (b"PK\x03\x04 and nothing", "neither a recommendation"),
    }
    for name, (content, message) in files.items():
        (folder / name).write_bytes(content)
        assert message in run("report", folder / name, code=1).stderr
    torch.save({"model": torch.nn.Linear(2, 2).state_dict()}, folder / "model.pt")
    assert "no state_dict of an AutoOptimizer" in run("report", folder / "model.pt", code=1).stderr
    assert "cannot write" in run("report", saved, "-o", folder / "missing" / "x.html", code=1).stderr
    assert "cannot tell the format" in run("report", saved, "-o", folder / "x.pdf", code=1).stderr


def trained(steps, **options):
    """A model and an optimizer that `select` made, after some steps."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    optimizer = autoopt.select(model, total_steps=100, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(torch.randn(4, 6)), torch.randint(3, (4,))).backward()
        optimizer.step()
    return model, optimizer


def test_a_checkpoint_shows_the_plan_in_force(folder):
    model, optimizer = trained(25)
    torch.save({"epoch": 1, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder / "run.pt")
    content = Recommendation.from_json(run("report", "run.pt", "--json").stdout)
    assert content.plan == optimizer.plan
    assert [layer.shape for layer in content.layers] == [tuple(p.shape) for p in model.parameters()]
    assert content.memory_bytes == optimizer.recommendation.memory_bytes
    text = run("report", "run.pt").stdout
    assert "Read from a checkpoint at step 25, phase selected." in text
    assert "calibrated default kept" not in text


def test_a_checkpoint_in_warmup_says_that_nothing_is_decided(folder):
    _, optimizer = trained(3)
    torch.save(optimizer.state_dict(), folder / "early.pt")
    content = Recommendation.from_json(run("report", "early.pt", "--json").stdout)
    assert content.plan == optimizer.plan
    assert any("before the decision" in warning for warning in content.warnings)


def test_a_checkpoint_with_a_damaged_plan_says_so(folder):
    _, optimizer = trained(3)
    state = optimizer.state_dict()
    state["param_groups"][0]["plan"] = '{"schema_version": 1}'
    torch.save(state, folder / "damaged.pt")
    assert "plan cannot be read" in run("report", "damaged.pt", code=1).stderr


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_survives_the_way_through_a_file(folder, name):
    content = transformer(1, note=name)
    content.save(folder / "saved.json")
    assert Recommendation.from_json(run("report", "saved.json", "--json").stdout) == content
    assert run("report", "saved.json", "--format", "markdown").stdout == content.to_markdown()
    text = run("report", "saved.json").stdout
    assert "\x1b" not in text and visible(name)[:6] in text
