"""The `autoopt` command: what it prints, how it exits, and that users' mistakes never show a traceback."""

import json
import re
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from cli_runner import run
from click.testing import CliRunner

import autoopt
from autoopt.cli import main
from autoopt.cli.group import COMMANDS, reported_errors
from autoopt.cli.output import counted
from autoopt.optimizers.catalog import CATALOG
from autoopt.report import Recommendation

HEAVY = ("torch", "numpy", "sklearn", "pandas", "rich", "jinja2", "joblib", "pyarrow", "matplotlib")
FACTORIES = """
import sys
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

def workload():
    made = model()
    batches = [(torch.randn(4, 6), torch.randint(3, (4,))) for _ in range(20)]
    return made, batches, lambda m, batch: nn.functional.cross_entropy(m(batch[0]), batch[1])

def few():
    made, batches, loss_fn = workload()
    return made, batches[:3], loss_fn

def bad_loss():
    made, batches, _ = workload()
    return made, batches, lambda m, batch: m(batch[0])

def failing_loss():
    made, batches, _ = workload()
    return made, batches, lambda m, batch: {}["no such key"]

def failing():
    raise ValueError("no data \\x1b[31m here")

def leaving():
    sys.exit(3)

def pair():
    return model(), []

def number():
    return 3

def uncallable_loss():
    return model(), [], 7

class Hostile(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_parameter("w\\x1b[31m", nn.Parameter(torch.zeros(3, dtype=torch.complex64)))

def hostile():
    return Hostile()

def frozen():
    return model().requires_grad_(False)

ready = model()
answer = 42
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with a module of factories, as a user's project."""
    (tmp_path / "factories.py").write_text(FACTORIES)
    (tmp_path / "broken.py").write_text("x = 1\ny = )\n")
    (tmp_path / "needs.py").write_text("import no_such_package\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("factories", "broken", "needs"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help_lists_and_explains_every_command(command):
    text = run(*command, "--help").stdout
    assert "usage:" in text.lower() or "Runs scripts/" in text
    if not command:
        for name, (_, line) in COMMANDS.items():
            assert f"{name} " in text and line in text
        assert "Exit codes:" in text and "130  interrupted" in text


def test_help_is_quick_and_imports_nothing_heavy():
    names = [name for name in COMMANDS if name not in ("record", "train", "evaluate")]
    code = textwrap.dedent(f"""
        import sys
        from click.testing import CliRunner
        from autoopt.cli import main
        for arguments in ([], *([name] for name in {names!r})):
            assert CliRunner().invoke(main, [*arguments, "--help"]).exit_code == 0
        assert CliRunner().invoke(main, ["optimizers", "--json"]).exit_code == 0
        print(*[name for name in {HEAVY!r} if name in sys.modules])
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
    command = [sys.executable, "-c", "from autoopt.cli import main; main()", "--help"]
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.5


def test_the_version_is_the_packages():
    assert run("--version").stdout == f"autoopt {autoopt.__version__}\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["recommand"], "No such command"),
        (["recommend"], "Missing argument"),
        (["recommend", "factories"], "expected module:factory"),
        (["recommend", "factories:model", "--total-steps", "0"], "0 is not in the range"),
        (["recommend", "factories:model", "--json", "--format", "html"], "contradict"),
        (["recommend", "factories:model", "--json", "-o", "x.html"], "suffix"),
        (["recommend", "factories:model", "--total-steps", "10"], "must be above warmup_steps"),
        (["report", "missing.json"], "does not exist"),
        (["optimizers", "--role", "brain"], "is not one of"),
        (["optimizers", "--family", "brain"], "none of adam"),
        (["optimizers", "--shape", "3x-1"], "such as 4096x1024"),
    ],
)
def test_a_wrong_argument_exits_with_2_and_says_what_is_right(arguments, message):
    assert message in run(*arguments, code=2).stderr


@pytest.mark.parametrize(
    "target, message",
    [
        ("nowhere:make", "no module 'nowhere'"),
        ("factories.inner:make", "no module 'factories.inner'"),
        ("needs:make", "no module 'no_such_package'|needs.py, line 1"),
        ("broken:make", r"SyntaxError: .*broken\.py, line 2"),
        ("factories:missing", "has no 'missing'"),
        ("factories:answer", "is an int; expected a function"),
        ("factories:number", "returned an int; expected a torch.nn.Module, or a tuple"),
        ("factories:pair", r"returned a tuple of 2 \(Sequential, list\)"),
        ("factories:uncallable_loss", "returned an int as loss_fn"),
        ("factories:failing", r"raised ValueError: no data \\x1b\[31m here \(.*factories\.py, line 28\)"),
        ("factories:leaving", r"sys\.exit\(3\)"),
        ("factories:few", "ran out after 3 of 20"),
        ("factories:bad_loss", "scalar tensor, got shape"),
        ("factories:failing_loss", r"the profile raised KeyError: 'no such key' \(.*factories\.py, line 25\)"),
        ("factories:hostile", r"w\\x1b\[31m"),
        ("factories:frozen", "no trainable parameter"),
    ],
)
def test_a_users_mistake_is_a_message_with_its_place_and_never_a_traceback(target, message):
    result = run("recommend", target, "--total-steps", "100", code=1)
    assert re.search(message, result.stderr, re.DOTALL), result.stderr
    assert result.stdout == "" and "\x1b" not in result.stderr


def test_a_traceback_is_shown_to_who_asks_for_it():
    result = CliRunner().invoke(main, ["--traceback", "recommend", "factories:failing"])
    assert result.exit_code == 1
    assert "Traceback" in result.stderr and 'raise ValueError("no data' in result.stderr


def test_recommend_profiles_and_prints_json_that_can_be_read_back(folder):
    result = run("recommend", "factories:workload", "--total-steps", "100", "--json")
    content = Recommendation.from_json(result.stdout)
    assert list(content.plan.layers) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert content.profile["mode"] == "aside" and content.profile["warmup_steps"] == 20
    assert content.provenance["artifact_sha256"]
    assert result.stderr == ""


@pytest.mark.parametrize("name", ["model", "ready"])
def test_a_model_alone_gets_the_calibrated_default_and_is_told_so(name):
    content = Recommendation.from_json(run("recommend", f"factories:{name}", "--json").stdout)
    assert content.abstained and not content.statistics
    assert any("no batches" in warning for warning in content.warnings)


def test_candidates_and_selector_reach_the_choice():
    options = ["--candidate", "sgd", "--selector", "default", "--total-steps", "100"]
    limited = run("recommend", "factories:model", "--max-state-bytes", "0", "--objective", "memory", "--json")
    found = json.loads(limited.stdout)
    assert (found["memory_bytes"], found["max_state_bytes"], found["objective"]) == (0, 0, "memory")
    adamw = ["--candidate", "adamw", "--max-state-bytes", "3"]
    assert "leanest plan" in run("recommend", "factories:model", *adamw, code=2).stderr
    content = Recommendation.from_json(run("recommend", "factories:workload", "--json", *options).stdout)
    assert {config.optimizer for config in content.plan.layers.values()} == {"sgd"}
    assert "no optimizer 'nosuch'" in run("recommend", "factories:model", "--candidate", "nosuch", code=1).stderr
    assert "no selector artifact" in run("recommend", "factories:model", "--selector", "x.npz", code=1).stderr


def test_the_catalog_is_listed_and_filtered():
    rows = json.loads(run("optimizers", "--json").stdout)
    assert [row["name"] for row in rows] == [info.name for info in CATALOG]
    by_name = {row["name"]: row for row in rows}
    assert by_name["adamw"]["state_bytes_per_parameter"] == 8
    assert by_name["muon"]["state_bytes_per_parameter"] == 4
    assert by_name["adafactor"]["state_bytes_per_parameter"] == pytest.approx(8 / 1024)
    assert "1711.05101" in by_name["adamw"]["paper"]
    sparse = json.loads(run("optimizers", "--sparse", "--role", "embedding", "--json").stdout)
    assert {row["name"] for row in sparse} == {i.name for i in CATALOG if i.gradients != "dense"}
    spectral = json.loads(run("optimizers", "--family", "spectral", "--json").stdout)
    assert {row["family"] for row in spectral} == {"spectral"}
    text = run("optimizers", "muon", "--shape", "64").stdout
    assert "needs 2 dimensions" in text and "Jordan et al. 2024" in text
    assert "No optimizer" in run("optimizers", "--role", "vector", "--family", "spectral").stdout
    assert "did you mean" in run("optimizers", "muno", code=1).stderr


def test_doctor_finds_nothing_wrong_here_and_says_what_it_is_working_with():
    found = json.loads(run("doctor", "--json").stdout)
    assert found["problems"] == [] and found["versions"]["torch"] == torch.__version__
    assert len(found["selector"]["sha256"]) == 64 and found["devices"][0]["device"] == "cpu"
    assert {"fused AdamW", "bfloat16 products"} == set(found["fast_paths"])
    assert all(path["relative_seconds"] > 0 for path in found["fast_paths"].values())
    text = run("doctor").stdout
    assert found["selector"]["sha256"] in text and "no problem found" in text


def test_doctor_exits_with_1_where_the_selector_does_not_load(folder, monkeypatch):
    from autoopt.meta import artifact

    (folder / "selector.npz").write_bytes(b"damaged")
    monkeypatch.setattr(artifact, "shipped_path", lambda: folder / "selector.npz")
    result = run("doctor", code=1)
    assert "PROBLEM" in result.stdout and "truncated or corrupted" in result.stdout


def test_record_lists_through_the_script_and_passes_its_exit_code_on(folder):
    arguments = ["record", "--rounds", "features", "--only", "digits-mlp*", "--list", "--folder", folder / "data"]
    assert "round features:" in run(*arguments).stdout
    found = json.loads(run(*arguments, "--json").stdout)
    assert found["exit_code"] == 0 and found["num_trials"] == 0
    assert "no task matches" in run("record", "--rounds", "features", "--only", "nothing", code=1).stderr
    assert "required: --rounds" in run("record", code=2).stderr


def test_train_fails_plainly_without_data(folder):
    assert "error:" in run("train", "--folder", folder / "nothing", code=1).stderr


@pytest.mark.parametrize("command", ["record", "train", "evaluate"])
def test_the_scripts_commands_need_the_source_tree_and_say_so(folder, monkeypatch, command):
    from autoopt.cli import scripts

    monkeypatch.setattr(scripts, "FOLDER", folder / "scripts")
    assert "not in the installed package" in run(command, code=1).stderr


def test_what_is_not_installed_is_named_with_its_extra():
    import click

    with pytest.raises(click.ClickException, match=r"pip install 'autoopt\[cluster\]'"), reported_errors(False):
        raise ModuleNotFoundError("No module named 'ray'", name="ray")
    with pytest.raises(ModuleNotFoundError), reported_errors(False):
        raise ModuleNotFoundError("No module named 'autoopt.nowhere'", name="autoopt.nowhere")


def test_an_interrupted_command_exits_with_130(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("autoopt.cli.recommend.load_workload", interrupt)
    assert "interrupted" in run("recommend", "factories:model", code=130).stderr


class Terminal:
    """A standard error that is a terminal, and remembers what it was sent."""

    def __init__(self):
        self.text = ""

    def isatty(self):
        return True

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_progress_shows_on_a_terminal_once_it_takes_long_and_leaves_no_trace(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(counted(range(3), 3, "step")) == [0, 1, 2]
    assert terminal.text == ""  # quick enough
    monkeypatch.setattr("autoopt.cli.output.PATIENCE_SECONDS", -1.0)
    assert list(counted(range(3), 3, "step")) == [0, 1, 2]
    assert "step: 2 of 3" in terminal.text and terminal.text.endswith("\r\x1b[K")
    terminal.text, terminal.isatty = "", lambda: False
    assert list(counted(range(3), 3, "step")) == [0, 1, 2]
    assert terminal.text == ""
