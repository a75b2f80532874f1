"""Remembered runs: what is kept, what is not, and that nothing of it touches the training."""

import copy
import gc
import math
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributed_worker import Launcher
from small_models import batches, classifier, loss_fn, parameters
from synthetic_selector import synthetic_predictor
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import autoopt
from autoopt import AutoOptimizer, OptimizerPlan, Remember
from autoopt.architecture import describe
from autoopt.errors import MetaDatasetError
from autoopt.meta.own_runs import own_dataset, read_own_runs
from autoopt.optimizers.recipe import Recipe, calibrated_default
from autoopt.optimizers.recipe_of_plan import recipe_of

WARMUP, TOTAL = 6, 60


def select(model, **options):
    settings = {"total_steps": TOTAL, "warmup_steps": WARMUP, "selector": synthetic_predictor()}
    return autoopt.select(model, **settings | options)


def train(model, optimizer, steps=TOTAL, start=0, closure=False):
    """Train on the batches from `start` on; the losses."""
    losses = []
    for batch in list(batches(start + steps))[start:]:

        def evaluate(batch=batch):
            optimizer.zero_grad()
            loss = loss_fn(model, batch)
            loss.backward()
            losses.append(loss.item())
            return loss

        if closure:
            optimizer.step(evaluate)
        else:
            optimizer.observe(evaluate())
            optimizer.step()
    return losses


def remembered(folder, steps=TOTAL, **options):
    """The only run of a folder, after training."""
    model = classifier()
    train(model, select(model, remember=folder, **options), steps)
    gc.collect()
    return read_own_runs(folder)[-1]


# ---- what is kept --------------------------------------------------------------------------------


@pytest.mark.parametrize("closure", [False, True])
def test_a_finished_run_holds_its_curve_and_what_it_was_trained_with(tmp_path, closure):
    model = classifier()
    optimizer = select(model, remember=tmp_path)
    losses = train(model, optimizer, closure=closure)
    optimizer.observe_validation(torch.tensor(1.5))
    run = read_own_runs(tmp_path)[0]
    assert (run.status, run.step, run.measure, run.outcome) == ("finished", TOTAL, "validation", 1.5)
    assert run.losses == [(step, pytest.approx(sum(losses[step - 20 : step]) / 20, rel=1e-5)) for step in (20, 40, 60)]
    assert Recipe.from_json(run.recipe).resolve(describe(classifier()).layers, TOTAL) == optimizer.plan
    assert run.batch_size == 16 and run.num_parameters == sum(p.numel() for p in model.parameters())
    assert {row["group"] for row in run.features} == {"embedding", "matrix", "vector", "head"}
    tensors = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    assert run.state_bytes == sum(t.numel() * t.element_size() for t in tensors) > 0
    assert run.step_seconds > 0 and run.versions["torch"] == torch.__version__


def test_without_validation_the_smoothed_training_loss_stands_in_and_says_so(tmp_path):
    run = remembered(tmp_path)
    assert run.measure == "training"
    assert run.outcome == run.losses[-1][1]
    dataset = own_dataset([run])
    assert dataset.trials["round"].tolist() == ["own-training"]
    assert dataset.trials["best_val_loss"].tolist() == [run.outcome]


def test_a_run_that_was_cut_off_is_interrupted_and_no_evidence(tmp_path):
    run = remembered(tmp_path, steps=30)
    assert (run.status, run.step, run.ended) == ("interrupted", 30, True)
    assert not run.is_evidence and own_dataset([run]).trials.empty


def test_a_run_without_a_horizon_is_over_when_it_was_finished(tmp_path):
    model = classifier()
    optimizer = select(model, total_steps=None, remember=tmp_path)
    train(model, optimizer, 520)
    assert read_own_runs(tmp_path)[0].status == "interrupted"
    optimizer.finish()
    optimizer.finish()
    run = read_own_runs(tmp_path)[0]
    assert (run.status, run.step) == ("finished", 520)


def test_a_diverged_run_is_evidence_of_an_infinite_loss(tmp_path):
    model = classifier()
    optimizer = select(model, remember=tmp_path, guard=False)
    train(model, optimizer, 20)
    for _ in range(20):
        optimizer.observe(math.nan)
        optimizer.step()
    optimizer.finish()
    run = read_own_runs(tmp_path)[0]
    assert (run.status, run.outcome, run.is_evidence) == ("diverged", math.inf, True)
    assert own_dataset([run]).trials["status"].tolist() == ["diverged"]


def test_a_single_bad_loss_is_left_out_of_the_curve(tmp_path):
    model = classifier()
    optimizer = select(model, remember=tmp_path, guard=False)
    losses = train(model, optimizer, TOTAL - 1)
    optimizer.observe(torch.tensor(math.inf))
    optimizer.step()
    (run,) = read_own_runs(tmp_path)
    assert run.status == "finished"
    assert run.losses[-1][1] == pytest.approx(sum(losses[40:]) / 19, rel=1e-5)


@pytest.mark.parametrize("resumed", [False, True])
def test_a_run_whose_plan_was_replaced_is_no_evidence(tmp_path, resumed):
    model = classifier()
    optimizer = select(model, remember=tmp_path)
    train(model, optimizer, 30)
    checkpoint = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    plan = calibrated_default().with_change("head", {"lr_factor": 0.5}).resolve(describe(model).layers, TOTAL)
    optimizer.change_plan(plan, [30] * len(optimizer.param_groups))  # as a guard does
    train(model, optimizer, 30, start=30)
    if resumed:  # from before that
        model, optimizer = classifier(), select(classifier(), remember=tmp_path)
        optimizer.load_state_dict(checkpoint[1])
        train(model, optimizer, 30, start=30)
    (run,) = read_own_runs(tmp_path)
    assert (run.status, run.is_evidence) == ("finished", resumed)


def test_a_profile_aside_is_not_part_of_the_run(tmp_path):
    model = classifier()
    optimizer = select(model, remember=tmp_path, batches=list(batches(WARMUP)), loss_fn=loss_fn)
    losses = train(model, optimizer)
    run = read_own_runs(tmp_path)[0]
    assert run.mode == "aside" and run.features and run.recipe
    assert run.losses[0] == (20, pytest.approx(sum(losses[:20]) / 20, rel=1e-5))


def test_a_fixed_plan_joins_the_task_of_runs_that_decided(tmp_path):
    remembered(tmp_path, selector="default")
    model = classifier()
    changed = calibrated_default().with_change("head", {"lr_factor": 2.0})
    plan = changed.resolve(describe(model).layers, TOTAL)
    train(model, AutoOptimizer.from_plan(model, plan, remember=tmp_path))
    trials = own_dataset(read_own_runs(tmp_path)).trials
    assert trials["task"].tolist() == ["own 1", "own 1"]
    assert trials["plan"].tolist() == [calibrated_default().to_json(), changed.to_json()]


def test_repeated_runs_are_one_trial_with_the_median_outcome(tmp_path):
    for outcome in (3.0, 1.0, 2.0):
        model = classifier()
        optimizer = select(model, remember=tmp_path, selector="default")
        train(model, optimizer)
        optimizer.observe_validation(outcome)
    assert own_dataset(read_own_runs(tmp_path)).trials["best_val_loss"].tolist() == [2.0]


def test_labels_and_horizons_and_kinds_of_loss_tell_tasks_apart(tmp_path):
    for label, steps, validated in (("a", 60, 0), ("b", 60, 0), ("a", 80, 0), ("a", 60, 1), ("a", 60, 0)):
        model = classifier()
        optimizer = select(model, remember=Remember(tmp_path, task=label), total_steps=steps, selector="default")
        train(model, optimizer, steps)
        if validated:
            optimizer.observe_validation(1.0)
    assert sorted(own_dataset(read_own_runs(tmp_path)).trials["task"]) == ["a 1", "a 3", "a 4", "b 2"]


@pytest.mark.parametrize("group", list(calibrated_default().groups))
def test_the_recipe_behind_a_plan_is_found_again(group):
    layers = describe(classifier(sparse=False)).layers
    for change in ({"lr_factor": 3.0}, {"optimizer": "sgd", "lr": 0.2}, {"weight_decay": 0.05}):
        if group in ("matrix", "conv") and "weight_decay" in change:
            continue
        default = calibrated_default().over(TOTAL)
        recipe = default.with_change(group, change)
        plan = recipe.resolve(layers, TOTAL)
        found = recipe_of(OptimizerPlan.from_json(plan.to_json()), layers, default)
        assert found is not None and found.resolve(layers, TOTAL).layers.keys() == plan.layers.keys()
        present = group in {layer.group for layer in layers}
        assert found == (recipe if present else default)


def test_the_recipe_behind_sparse_rules_is_the_role_groups_own():
    layers = describe(classifier(sparse=True)).layers
    default = calibrated_default().over(TOTAL)
    recipe = default.with_change("embedding", {"lr_factor": 0.5})
    plan = recipe.resolve(layers, TOTAL)
    assert "sparseadam" in {config.optimizer for config in plan.layers.values()}
    assert recipe_of(plan, layers, default) == recipe


def test_a_plan_that_no_recipe_says_is_remembered_and_no_evidence(tmp_path):
    model = classifier()
    layers = describe(model).layers
    plan = calibrated_default().resolve(layers, TOTAL)
    first = next(layer.name for layer in layers if layer.group == "vector")
    odd = OptimizerPlan({**plan.layers, first: autoopt.OptimizerConfig("lion", {"lr": 1e-4})}, plan.schedule)
    assert recipe_of(odd, layers, calibrated_default().over(TOTAL)) is None
    train(model, AutoOptimizer.from_plan(model, odd, remember=tmp_path))
    (run,) = read_own_runs(tmp_path)
    assert run.status == "finished" and not run.is_evidence


# ---- what is not kept ----------------------------------------------------------------------------


class SecretArchitecture(nn.Module):
    """A model whose every name is a secret."""

    def __init__(self):
        super().__init__()
        self.secret_layer = nn.Linear(4, 2)

    def forward(self, x):
        return self.secret_layer(x)


@pytest.mark.parametrize("names", [False, True])
def test_no_name_and_no_path_is_kept_unless_asked_for(tmp_path, names):
    folder = tmp_path / "confidential"
    model = SecretArchitecture()
    optimizer = select(model, remember=Remember(folder, names=names))
    for _ in range(TOTAL):
        loss = model(torch.ones(3, 4)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.observe(loss)
        optimizer.step()
    optimizer.finish()
    text = "".join(path.read_text() for path in folder.rglob("*") if path.is_file())
    assert '"kind":"decision"' in text and '"kind":"losses"' in text
    assert ("SecretArchitecture" in text) == ("secret_layer" in text) == names
    for secret in ("confidential", str(tmp_path), os.uname().nodename, Path.home().name + "/"):
        assert secret not in text, secret
    (run,) = read_own_runs(folder)
    assert own_dataset([run]).trials["task"].tolist() == ["own 1"]
    assert set(run.names) == ({"model", "groups"} if names else set())


# ---- the run is left alone -----------------------------------------------------------------------


def trained(**options):
    model = classifier()
    optimizer = select(model, **options)
    train(model, optimizer)
    return parameters(model), torch.get_rng_state().tolist(), optimizer


def test_remembering_changes_no_bit_of_the_training(tmp_path):
    plain, plain_rng, off = trained()
    kept, kept_rng, on = trained(remember=tmp_path)
    assert kept == plain and kept_rng == plain_rng
    saved = on.state_dict()
    for group in saved["param_groups"]:
        assert len(group.pop("run_id")) == 16
    assert [set(g) for g in saved["param_groups"]] == [set(g) for g in off.state_dict()["param_groups"]]


def test_a_select_that_was_never_trained_leaves_nothing_behind(tmp_path):
    optimizer = select(classifier(), remember=tmp_path / "runs")
    optimizer.finish()
    del optimizer
    gc.collect()
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_cannot_be_written_costs_one_warning(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    plain, _, _ = trained()
    with pytest.warns(UserWarning, match="no longer remembered, training goes on") as caught:
        kept, _, optimizer = trained(remember=blocked)
        optimizer.observe_validation(1.0)
        optimizer.finish()
    assert len(caught) == 1 and caught[0].category is UserWarning
    assert kept == plain


def test_a_disk_that_fills_up_keeps_what_was_written(tmp_path, monkeypatch):
    model = classifier()
    optimizer = select(model, remember=tmp_path)
    train(model, optimizer, 20)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="disk is full"):
        patch.setattr(os, "write", full)
        train(model, optimizer, 40, start=20)
    (run,) = read_own_runs(tmp_path)
    assert (run.step, run.status) == (20, "interrupted")


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_a_copy_remembers_nothing(tmp_path, twin):
    optimizer = select(classifier(), remember=tmp_path)
    other = twin(optimizer)
    for _ in range(20):
        other.observe(1.0)
    other.finish()
    assert other._recorder is None and optimizer._recorder is not None
    assert not list(tmp_path.rglob("*.jsonl"))


def test_a_step_between_two_blocks_waits_for_no_device(tmp_path):
    with FakeTensorMode(allow_non_fake_inputs=False):
        params = {"a": nn.Parameter(torch.zeros(6, 4, device="cuda"))}
        model = nn.ParameterDict(params)
        plan = OptimizerPlan.uniform(model, "adamw")
        optimizer = AutoOptimizer.from_plan(model, plan, remember=tmp_path)
        for _ in range(400):
            next(iter(model.values())).grad = torch.zeros(6, 4, device="cuda")
            optimizer.observe(torch.zeros((), device="cuda"))
            optimizer.step()
        assert isinstance(optimizer._recorder.total, torch.Tensor)
        with pytest.warns(UserWarning, match="no longer remembered"):  # the first block's end reads the device
            for _ in range(101):
                optimizer.observe(torch.zeros((), device="cuda"))
                optimizer.step()


# ---- how a run ends, and goes on -----------------------------------------------------------------


def test_a_resumed_run_goes_on_as_the_same_run(tmp_path):
    model = classifier()
    optimizer = select(model, remember=tmp_path)
    train(model, optimizer, 20)
    checkpoint = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer, 20, start=20)  # lost by the crash
    optimizer.observe_validation(0.001)
    again = classifier()
    resumed = select(again, remember=tmp_path)
    again.load_state_dict(checkpoint[0])
    resumed.load_state_dict(checkpoint[1])
    assert "run_id" not in resumed.param_groups[0]
    losses = train(again, resumed, 40, start=20)
    (run,) = read_own_runs(tmp_path)
    assert (run.status, run.step, run.validations) == ("finished", TOTAL, [])
    assert [step for step, _ in run.losses] == [20, 40, 60]
    assert run.losses[-1][1] == pytest.approx(sum(losses[20:]) / 20, rel=1e-5)
    assert run.features and run.recipe


def test_a_checkpoint_of_a_remembered_run_loads_where_nothing_is_remembered(tmp_path):
    model = classifier()
    optimizer = select(model, remember=tmp_path)
    train(model, optimizer, 10)
    other = select(classifier())
    other.load_state_dict(optimizer.state_dict())
    assert "run_id" not in other.state_dict()["param_groups"][0]


SCRIPT = """
import sys, time, warnings
sys.path.insert(0, {tests!r})
from test_own_runs import *
model = classifier()
optimizer = select(model, remember={folder!r})
train(model, optimizer, 50)
{end}
"""


@pytest.mark.parametrize(
    ("end", "step"),
    [
        ("", 50),
        ("raise KeyboardInterrupt", 50),
        ("sys.exit(3)", 50),
        ("print('at it', flush=True); time.sleep(60)", 40),
    ],
    ids=["exit", "Ctrl-C", "error", "SIGKILL"],
)
def test_however_the_process_ends_the_run_is_there(tmp_path, end, step):
    code = SCRIPT.format(tests=str(Path(__file__).parent), folder=str(tmp_path), end=end)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if "sleep" in end:
        assert process.stdout.readline() == "at it\n"
        process.send_signal(signal.SIGKILL)
    _, error = process.communicate(timeout=100)
    (run,) = read_own_runs(tmp_path)
    assert (run.step, run.status, run.ended) == (step, "interrupted", step == 50), error


def test_only_the_first_rank_writes(tmp_path):
    with Launcher() as launcher:
        answers = launcher.run("distributed_ddp:remember", folder=str(tmp_path))
    assert answers[0]["parameters"] == answers[1]["parameters"]
    (run,) = read_own_runs(tmp_path)
    assert run.features and run.recipe and run.step == 40 and run.batch_size == 32


# ---- arguments and damage ------------------------------------------------------------------------


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="explore=True needs remember="):
        select(classifier(), explore=True)
    with pytest.raises(ValueError, match="explore=True needs a selector"):
        select(classifier(), explore=True, remember="runs", selector="default")
    aside = {"batches": list(batches(WARMUP)), "loss_fn": loss_fn}
    for budget in ({"objective": "memory"}, {"max_state_bytes": 10**6}, {"race": 0.2, **aside}):
        with pytest.raises(ValueError, match="explore=True changes one role group"):
            select(classifier(), explore=True, remember="runs", **budget)
    with pytest.raises(ValueError, match="remember needs a folder"):
        select(classifier(), remember="")


def test_a_missing_folder_is_empty_and_a_damaged_or_newer_journal_is_refused(tmp_path):
    assert read_own_runs(tmp_path / "none") == []
    remembered(tmp_path)
    (path,) = tmp_path.rglob("*.jsonl")
    text = path.read_text()
    path.write_text(text.replace('"schema_version":1', '"schema_version":99'))
    with pytest.raises(MetaDatasetError, match="newer autoopt"):
        read_own_runs(tmp_path)
    path.write_text(text.replace('"versions"', '"others"'))
    with pytest.raises(MetaDatasetError, match="cannot be read"):
        read_own_runs(tmp_path)
    path.write_text("{}\n")
    with pytest.raises(MetaDatasetError, match="of no run"):
        read_own_runs(tmp_path)
