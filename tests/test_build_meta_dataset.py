"""The recording script from end to end, on a user's own tasks in a module of theirs."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from autoopt.meta.dataset import MetaDataset

ROOT = Path(__file__).parent.parent

TASKS = """
from functools import partial

import torch
from torch import nn

from autoopt.tasks import Task, TaskInstance


def loss_fn(model, batch):
    inputs, targets = batch
    return nn.functional.mse_loss(model(inputs), targets)


def build(seed, width):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(64, 4, generator=generator)
    targets = inputs.sin().sum(1, keepdim=True)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 1))

    def batches():
        shuffle = torch.Generator().manual_seed(seed)
        while True:
            rows = torch.randint(48, (8,), generator=shuffle)
            yield inputs[rows], targets[rows]

    return TaskInstance(model, loss_fn, batches, validation=((inputs[48:], targets[48:]),))


def tasks():
    return [
        Task(f"mine-w{width}", "mlp", "sines", 8, 60, partial(build, width=width), width=width)
        for width in (4, 8)
    ]
"""


MINE = ("--tasks", "mypkg.mytasks", "--only", "mine-*")
SCRIPT = ROOT / "scripts" / "build_meta_dataset.py"


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    """A module with tasks below the current folder."""
    (tmp_path / "mypkg").mkdir()
    (tmp_path / "mypkg" / "mytasks.py").write_text(TASKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in ("mypkg", "mypkg.mytasks"):
        sys.modules.pop(name, None)


def in_process(*arguments):
    """The exit code of the script's `main`."""
    spec = importlib.util.spec_from_file_location("build_meta_dataset", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main(arguments)


def script(*arguments):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=600,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_a_users_tasks_are_recorded_by_workers_and_compacted(tmp_path):
    result = script("--rounds", "features,adamw-sweep", *MINE, "--jobs", "2")
    assert result.returncode == 0, result.stderr
    assert "24 of 24 runs recorded" in result.stderr and "24 journal records compacted" in result.stderr
    data = MetaDataset.load(tmp_path / "meta_data")
    assert set(data.trials["task"]) == {"mine-w4", "mine-w8"} and len(data.trials) == 24
    assert set(data.trials["family"]) == {"mlp"} and set(data.trials["status"]) <= {"completed", "diverged"}
    assert data.trials["best_val_loss"].min() < 1.0 and (data.trials["step_seconds"] > 0).all()
    assert (tmp_path / "meta_data" / "trials" / "adamw-sweep-000.parquet").exists()
    assert set(data.features["task"]) == {"mine-w4", "mine-w8"} and len(data.features.columns) > 15


def test_what_is_missing_is_listed_then_recorded_and_not_repeated(tmp_path, capsys):
    arguments = ("--round", "adamw-sweep", *MINE, "--folder", "there")
    assert in_process(*arguments, "--list") == 0
    listed = capsys.readouterr().out
    assert "round adamw-sweep: 24 of 24 runs on 2 tasks are missing" in listed
    assert "  mine-w4: 12 of 12" in listed and not (tmp_path / "there").exists()
    assert in_process(*arguments, "--no-compact") == 0
    assert "24 of 24 runs recorded" in capsys.readouterr().err and not (tmp_path / "there" / "trials").exists()
    assert in_process(*arguments, "--list") == 0
    assert "round adamw-sweep: 0 of 24 runs on 2 tasks are missing" in capsys.readouterr().out
    assert in_process(*arguments) == 0
    said = capsys.readouterr().err
    assert "0 of 24 runs recorded" in said and "24 journal records compacted" in said


def test_a_budget_that_ends_first_has_its_own_exit_code(capsys):
    assert in_process("--rounds", "adamw-sweep", *MINE, "--budget-minutes", "0.0001", "--no-compact") == 3
    assert "the time budget is used up" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rounds", "nonsense", *MINE), "error: there is no round 'nonsense'"),
        (("--rounds", "adamw-sweep", "--tasks", "mypkg.absent"), "error: the task module 'mypkg.absent'"),
        (("--rounds", "adamw-sweep", "--only", "zzz*"), "error: no task matches --only 'zzz*'"),
    ],
)
def test_errors_are_one_line_and_exit_code_1(arguments, message, capsys):
    assert in_process(*arguments) == 1
    assert capsys.readouterr().err.startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "required: --rounds"),
        (("--rounds", ","), "expected one or more names"),
        (("--rounds", "portfolio", "--seeds", "1,x"), "expected integers"),
        (("--rounds", "portfolio", "--backend", "threads"), "invalid choice"),
    ],
)
def test_the_command_line_is_checked(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        in_process(*arguments)
    assert message in capsys.readouterr().err
