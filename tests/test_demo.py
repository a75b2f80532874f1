"""The demo as a newcomer runs it, with tiny budgets."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from interrupts import heed_interrupts

from autoopt.tasks import all_tasks

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "examples" / "demo.py"
STEPS = 24
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


@pytest.fixture(scope="module")
def demo():
    """The demo as a module."""
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    module = importlib.util.module_from_spec(spec)
    sys.modules["demo"] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


def test_the_demos_tasks_are_those_that_nothing_was_recorded_on(demo):
    assert set(demo.TASKS) == {task.name for task in all_tasks() if task.demo}
    trials = (ROOT / "meta_data" / "trials").glob("*.parquet")
    import pandas as pd

    recorded = {name for path in trials for name in pd.read_parquet(path, columns=["task"])["task"].unique()}
    assert recorded and not recorded & set(demo.TASKS)


def test_the_demo_trains_compares_and_reports(demo, tmp_path):
    done = subprocess.run(
        [sys.executable, DEMO, "--steps", str(STEPS), "--json", "figures.json"],
        cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    runs = json.loads((tmp_path / "figures.json").read_text())["runs"]
    assert [(run["task"], run["optimizer"]) for run in runs] == [
        (task, optimizer) for task in demo.TASKS for optimizer in ("AdamW 1e-3", "autoopt")
    ]
    for run in runs:
        assert run["steps"] == STEPS and run["seconds"] > 0 and run["final_val_loss"] > 0
        assert f"{run['final_val_loss']:.4f}" in done.stdout
    for task in demo.TASKS:
        assert f"{task} with AdamW 1e-3" in done.stdout and f"{task} with autoopt" in done.stdout
        page = tmp_path / "reports" / f"{task}.html"
        assert str(page) in done.stdout and "<html" in page.read_text(encoding="utf-8")
    assert "selector='default'" not in done.stdout
    assert "\x1b" not in done.stdout
    assert all(len(line) <= 110 for line in done.stdout.splitlines() if str(tmp_path) not in line)


def test_both_runs_differ_in_the_optimizer_alone(demo):
    import torch

    from autoopt import Schedule
    from autoopt.training import build_instance

    task = next(task for task in all_tasks() if task.name == "demo-insteval-mf")
    instance = build_instance(task, demo.SEED)
    schedule = Schedule("linear", 5, 100)
    optimizer = demo.adamw(instance.model, schedule)
    assert optimizer.plan.schedule == schedule
    configs = set(map(repr, optimizer.plan.layers.values()))
    assert len(configs) == 2
    sparse = {name for name, config in optimizer.plan.layers.items() if config.optimizer == "sparseadam"}
    assert sparse == {
        f"{name}.weight" for name, m in instance.model.named_modules() if isinstance(m, torch.nn.Embedding)
    }
    assert {config.lr for config in optimizer.plan.layers.values()} == {1e-3}


@pytest.mark.parametrize("seconds", [0.3, None], ids=["at once", "while training"])
def test_ctrl_c_ends_it_in_one_line(tmp_path, seconds):
    process = subprocess.Popen(
        [sys.executable, DEMO, "--steps", "5000"],
        cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=heed_interrupts,
    )  # fmt: skip
    if seconds is None:
        while "steps" not in process.stdout.readline():
            pass
        time.sleep(0.5)
    else:
        process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors.strip().splitlines() == ["Interrupted; nothing was saved."]
    assert not (tmp_path / "reports").exists()


@pytest.mark.parametrize("steps", ["20", "0", "-3", "many"])
def test_too_few_steps_are_refused(demo, steps, capsys):
    with pytest.raises(SystemExit) as caught:
        demo.main(["--steps", steps])
    assert caught.value.code == 2
    assert "above 20" in capsys.readouterr().err


def test_a_missing_selector_is_one_line(demo, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert demo.main(["--selector", "nowhere.npz"]) == 1
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1 and errors[0].startswith("error: there is no selector artifact at nowhere.npz")
