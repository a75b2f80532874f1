"""The recording script from end to end, on a user's own tasks in a module of theirs."""

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


@pytest.fixture
def script(tmp_path):
    (tmp_path / "mypkg").mkdir()
    (tmp_path / "mypkg" / "mytasks.py").write_text(TASKS)

    def call(*arguments):
        return subprocess.run(
            [sys.executable, str(ROOT / "scripts" / "build_meta_dataset.py"), *arguments],
            capture_output=True, text=True, timeout=600, cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    return call


MINE = ("--tasks", "mypkg.mytasks", "--only", "mine-*")


def test_a_users_tasks_are_listed_recorded_by_workers_compacted_and_not_repeated(script, tmp_path):
    rounds = ("--rounds", "features,adamw-sweep", *MINE)
    listed = script(*rounds, "--list")
    assert listed.returncode == 0, listed.stderr
    assert "round adamw-sweep: 24 of 24 runs on 2 tasks are missing" in listed.stdout
    assert "  mine-w4: 12 of 12" in listed.stdout and not (tmp_path / "meta_data").exists()

    result = script(*rounds, "--jobs", "2")
    assert result.returncode == 0, result.stderr
    assert "24 of 24 runs recorded" in result.stderr and "24 journal records compacted" in result.stderr
    data = MetaDataset.load(tmp_path / "meta_data")
    assert set(data.trials["task"]) == {"mine-w4", "mine-w8"} and len(data.trials) == 24
    assert set(data.trials["family"]) == {"mlp"} and set(data.trials["status"]) <= {"completed", "diverged"}
    assert data.trials["best_val_loss"].min() < 1.0 and (data.trials["step_seconds"] > 0).all()
    assert (tmp_path / "meta_data" / "trials" / "adamw-sweep-000.parquet").exists()
    assert set(data.features["task"]) == {"mine-w4", "mine-w8"} and len(data.features.columns) > 15

    again = script("--round", "adamw-sweep", *MINE, "--folder", "meta_data")
    assert again.returncode == 0 and "0 of 24 runs recorded" in again.stderr


def test_a_budget_that_ends_first_has_its_own_exit_code(script, tmp_path):
    result = script("--rounds", "adamw-sweep", *MINE, "--budget-minutes", "0.0001", "--no-compact")
    assert result.returncode == 3, result.stderr
    assert "the time budget is used up" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rounds", "nonsense", *MINE), "error: there is no round 'nonsense'"),
        (("--rounds", "adamw-sweep", "--tasks", "mypkg.absent"), "error: the task module 'mypkg.absent'"),
        (("--rounds", "adamw-sweep", "--only", "zzz*"), "error: no task matches --only 'zzz*'"),
    ],
)
def test_errors_are_one_line_without_a_traceback(script, arguments, message):
    result = script(*arguments)
    assert result.returncode == 1 and message in result.stderr and "Traceback" not in result.stderr


def test_the_command_line_is_checked(script):
    for arguments, message in [
        ((), "required: --rounds"),
        (("--rounds", ","), "expected one or more names"),
        (("--rounds", "portfolio", "--seeds", "1,x"), "expected integers"),
        (("--rounds", "portfolio", "--backend", "threads"), "invalid choice"),
    ]:
        result = script(*arguments)
        assert result.returncode == 2 and message in result.stderr
