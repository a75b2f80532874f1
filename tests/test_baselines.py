"""Baselines and selections as trials: what runs, on which budget, and what it leaves behind."""

import json
import math

import pytest
import torch
from torch import nn

from autoopt import baselines, evaluation_rounds, training
from autoopt.architecture import describe
from autoopt.baselines import BASELINES, baseline_text, prepare, valley_rate
from autoopt.errors import MetaDatasetError, PlanError
from autoopt.evaluation_rounds import EVALUATION_ROUNDS
from autoopt.fixed_choice import FixedChoice
from autoopt.meta import artifact
from autoopt.meta.dataset import MetaDataset
from autoopt.meta.selections import Selection, Selections, load_selections, save_selections, selection_text
from autoopt.meta.trial import TrialRequest
from autoopt.optimizers.recipe import calibrated_default
from autoopt.rounds import ADAMW_RATES, requests
from autoopt.tasks.base import Task, TaskInstance

STEPS = 60
SETTINGS = [(row.name, setting) for row in BASELINES for setting in row.settings[:1]]
DEFAULT = calibrated_default().to_json()
CHANGED = calibrated_default().with_change("head", {"lr_factor": 0.25}).to_json()


def loss_fn(model, batch):
    inputs, targets = batch
    return nn.functional.mse_loss(model(inputs), targets)


def build(seed, sparse=False, norm=False):
    """Sums of sines of four inputs; or the sum of two looked-up values, with sparse gradients."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(1)
    if sparse:
        inputs = torch.randint(12, (64, 2), generator=generator)
        targets = inputs.float().mean(1, keepdim=True) / 6 - 1
        model = nn.Sequential(nn.EmbeddingBag(12, 8, sparse=True), nn.Linear(8, 1))
    else:
        inputs = torch.randn(64, 4, generator=generator)
        targets = inputs.sin().sum(1, keepdim=True)
        between = nn.BatchNorm1d(16) if norm else nn.Tanh()
        model = nn.Sequential(nn.Linear(4, 16), between, nn.Linear(16, 1))

    def batches():
        shuffle = torch.Generator().manual_seed(seed)
        while True:
            rows = torch.randint(48, (16,), generator=shuffle)
            yield inputs[rows], targets[rows]

    return TaskInstance(model, loss_fn, batches, validation=((inputs[48:], targets[48:]),))


TASKS = (
    Task("small", "mlp", "sines", 16, STEPS, build),
    Task("large", "mlp", "sines", 16, STEPS, build, evaluation_only=True),
    Task("shown", "mlp", "sines", 16, STEPS, build, demo=True),
)


@pytest.fixture(autouse=True)
def own_tasks(monkeypatch):
    monkeypatch.setattr(training, "find_task", lambda name, modules=(): next(t for t in TASKS if t.name == name))


def run(plan, mode="plan", task="small", seed=0):
    return training.run_trial(TrialRequest(task, plan, mode=mode, seed=seed))


class TestBaselines:
    @pytest.mark.parametrize(("name", "setting"), SETTINGS)
    @pytest.mark.parametrize("options", [{}, {"sparse": True}, {"norm": True}])
    def test_each_learns_on_dense_and_sparse_gradients_and_with_batch_norm(self, name, setting, options):
        instance = training.build_instance(Task("t", "f", "s", 16, 300, lambda seed: build(seed, **options)), 0)
        before = training.validate(instance, instance.model)
        prepared = prepare(baseline_text(name, setting), instance, 300)
        curve = training.train(
            instance,
            prepared.optimizer,
            300 - prepared.spent_steps,
            scheduler=prepared.scheduler,
            validating=prepared.validating,
        )
        assert curve.status == "completed" and curve.best_val_loss < 0.97 * before

    @pytest.mark.parametrize("name", ["prodigy", "sgd-sai", "range-test"])
    def test_rates_rise_over_five_percent_and_fall_to_zero_at_the_end_of_the_budget(self, name):
        row = next(row for row in BASELINES if row.name == name)
        instance = training.build_instance(TASKS[0], 0)
        prepared = prepare(baseline_text(name, row.settings[0]), instance, STEPS)
        peak, rates = prepared.scheduler.base_lrs[0], []
        training.train(instance, prepared.optimizer, STEPS - prepared.spent_steps, scheduler=_Spy(prepared, rates))
        left = STEPS - prepared.spent_steps
        warmup = round(0.05 * left)
        assert rates[:warmup] == pytest.approx([peak * (step + 1) / warmup for step in range(warmup)])
        assert rates[-1] == pytest.approx(peak / (left - warmup)) and len(rates) == left

    def test_schedule_free_is_validated_at_its_averaged_weights_and_trains_on_from_where_it_was(self):
        instance = training.build_instance(TASKS[0], 0)
        prepared = prepare(baseline_text("schedule-free", {"lr": 0.01}), instance, STEPS)
        training.train(instance, prepared.optimizer, 20, validating=prepared.validating)
        weight = instance.model[0].weight
        trained, state = weight.detach().clone(), prepared.optimizer.state[weight]
        with prepared.validating():
            # y = (1 - beta) z + beta x, so the average is x = (y - (1 - beta) z) / beta.
            torch.testing.assert_close(weight.detach(), (trained - 0.1 * state["z"]) / 0.9)
        torch.testing.assert_close(weight.detach(), trained)

    def test_batch_norm_is_measured_anew_for_averaged_weights_and_put_back(self):
        instance = build(0, norm=True)
        norm = instance.model[1]
        prepared = prepare(baseline_text("schedule-free", {"lr": 0.01}), instance, STEPS)
        training.train(instance, prepared.optimizer, 10, validating=prepared.validating)
        before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
        generator = torch.get_rng_state()
        with prepared.validating():
            batches = [b for _, b in zip(range(baselines.NUM_STATISTICS_BATCHES), instance.batches(), strict=False)]
            means = torch.stack([instance.model[0](inputs).mean(0) for inputs, _ in batches]).mean(0)
            torch.testing.assert_close(norm.running_mean, means.detach())
        for name, buffer in norm.named_buffers():
            assert torch.equal(buffer, before[name])
        assert norm.momentum == 0.1 and torch.equal(torch.get_rng_state(), generator)

    def test_the_range_test_leaves_the_model_as_it_was_and_pays_from_the_budget(self):
        instance = training.build_instance(TASKS[0], 0)
        before = [param.detach().clone() for param in instance.model.parameters()]
        prepared = prepare(baseline_text("range-test", {"position": 0.75}), instance, STEPS)
        assert all(torch.equal(a, b) for a, b in zip(before, instance.model.parameters(), strict=True))
        assert 0 < prepared.spent_steps <= 20 and prepared.selection_seconds > 0
        trial = run(baseline_text("range-test", {"position": 0.75}), mode="baseline")
        assert trial.val_steps[-1] == STEPS and trial.val_steps[0] > prepared.spent_steps
        assert trial.selection_seconds > 0

    def test_a_range_test_that_never_sees_a_finite_loss_still_gives_a_rate(self):
        instance = build(0)
        instance.loss_fn = lambda model, batch: loss_fn(model, batch) * math.nan
        assert (
            prepare(baseline_text("range-test", {"position": 0.75}), instance, STEPS).optimizer.param_groups[0]["lr"]
            > 0
        )

    def test_the_descent_may_be_noisy_and_ends_before_the_loss_explodes(self):
        rates = [10.0**k for k in range(-6, 1)]
        # Flat, then down from rate 1e-5 to 1e-1 with one step back, then up.
        losses = [5.0, 5.0, 4.0, 3.0, 3.5, 1.0, 7.0]
        assert [valley_rate(rates, losses, p) for p in (0.0, 0.5, 1.0)] == pytest.approx([1e-6, 1e-3, 1e-1])
        assert valley_rate([0.1], [1.0]) == 0.1 and valley_rate([0.1], []) == 0.1

    @pytest.mark.parametrize("text", ["{}", '{"baseline":"lbfgs"}', "[]", "no json"])
    def test_an_unknown_baseline_is_named(self, text):
        with pytest.raises(PlanError, match="names no baseline; there are schedule-free"):
            prepare(text, build(0), STEPS)

    def test_settings_must_be_those_of_the_baseline(self):
        with pytest.raises(PlanError, match=r"'prodigy' takes \['d_coef'\], got \['lr'\]"):
            prepare('{"baseline":"prodigy","lr":1.0}', build(0), STEPS)


class _Spy:
    """A scheduler that notes the rate of every step before passing it on."""

    def __init__(self, prepared, rates):
        self.prepared, self.rates = prepared, rates

    def step(self):
        self.rates.append(self.prepared.optimizer.param_groups[0]["lr"])
        self.prepared.scheduler.step()


class TestSelectionsAsTrials:
    def test_online_with_nothing_changed_is_the_default_step_by_step(self):
        plain, online = run(DEFAULT), run(selection_text(DEFAULT, DEFAULT), mode="select")
        assert online.val_losses == plain.val_losses and online.mode == "select"
        assert online.trial_id != plain.trial_id

    def test_online_leaves_the_default_once_it_has_decided(self):
        plain, online = run(DEFAULT), run(selection_text(DEFAULT, CHANGED), mode="select")
        # 20 of 60 steps profile: validations come every 5 steps, so four of them are the default's.
        assert online.val_losses[:4] == plain.val_losses[:4]
        assert online.val_losses[4:] != plain.val_losses[4:]
        assert online.selection_seconds >= 0

    def test_aside_pays_for_its_profile_in_steps_and_then_runs_the_choice_from_the_start(self):
        trial = run(selection_text(DEFAULT, CHANGED), mode="aside")
        assert trial.val_steps[0] > 20 and trial.val_steps[-1] == STEPS
        assert trial.selection_seconds > 0 and trial.status == "completed"

    def test_the_shipped_selector_is_asked_for_by_its_hash(self):
        shipped = artifact.load().sha256
        assert run(json.dumps({"artifact": shipped}), mode="select").status == "completed"
        with pytest.raises(PlanError, match="asks for the selector 0000"):
            run('{"artifact":"0000"}', mode="select")

    @pytest.mark.parametrize("text", ["{}", "[]", "no json", '{"default":{}}'])
    def test_what_is_no_selection_is_said(self, text):
        with pytest.raises(PlanError, match="is no selection"):
            run(text, mode="select")

    def test_an_unknown_mode_is_named(self):
        with pytest.raises(PlanError, match="mode 'magic' is unknown; the modes are plan, select"):
            run(DEFAULT, mode="magic")

    def test_a_choice_beyond_role_groups_is_refused(self):
        other = calibrated_default().with_change("*", {"shape": "cosine"}).to_json()
        with pytest.raises(PlanError, match="'shape' differs"):
            FixedChoice.between(DEFAULT, other)


def default_on(name):
    """The default's text on a task, without what does nothing there."""
    (task,) = [task for task in TASKS if task.name == name]
    return calibrated_default().on(describe(task.build(0).model).layers, task.budget_steps).to_json()


class TestRounds:
    def test_published_defaults_and_further_settings_are_two_rounds(self):
        first = requests("baselines", TASKS, [0, 1])
        names = [r.plan_name for r in first if r.task == "small" and r.seed == 0]
        assert names == [
            "adamw 0.001",
            "schedule-free lr=0.0025",
            "prodigy d_coef=1",
            "sgd-sai lr=0.01",
            "range-test position=0.5",
        ]
        assert {r.task for r in first} == {"small", "large"} and {r.mode for r in first} == {"plan", "baseline"}
        further = requests("baselines-tuned", TASKS, [0])
        assert not {r.trial_id for r in first} & {r.trial_id for r in further}
        settings = sum(len(row.settings) for row in BASELINES)
        assert len(first) / 4 - 1 + len(further) / 2 == settings

    def test_the_larger_tasks_get_their_sweep_and_the_default(self):
        found = requests("larger", TASKS, [0])
        assert {r.task for r in found} == {"large"}
        assert len(found) == len(ADAMW_RATES) + 2 and default_on("large") in {r.plan for r in found}

    def test_selections_are_asked_for_once_and_only_where_something_changes(self, tmp_path):
        changed = Selection(CHANGED, DEFAULT, ("head",), (-0.1,))
        kept = Selection(DEFAULT, DEFAULT)
        by_protocol = {"strict": {"small": changed, "large": kept}, "family": {"small": changed, "large": kept}}
        save_selections(Selections(by_protocol, {"num_trials": 3}, {}), tmp_path)
        assert load_selections(tmp_path).by_protocol == by_protocol

        def asked(name):
            found = requests(name, TASKS, [0], folder=tmp_path)
            return [(r.task, r.mode, r.plan == default_on(r.task)) for r in found]

        assert asked("strict-selection") == [("small", "plan", True), ("small", "plan", False), ("large", "plan", True)]
        assert asked("select") == [("small", "select", False), ("large", "plan", True)]
        assert asked("aside") == [("small", "aside", False), ("large", "aside", False)]

    @pytest.mark.parametrize("name", ["strict-selection", "select", "aside"])
    def test_without_selections_the_way_to_them_is_named(self, name, tmp_path):
        with pytest.raises(MetaDatasetError, match=f"'{name}' .*evaluate.py --propose"):
            requests(name, TASKS, [0], folder=tmp_path)

    def test_damaged_selections_are_named(self, tmp_path):
        (tmp_path / "selections.json").write_text('{"schema_version":9}')
        with pytest.raises(MetaDatasetError, match="schema version 9.*--propose"):
            load_selections(tmp_path)

    def test_the_best_known_plans_of_the_base_seed_and_the_default(self, monkeypatch):
        trials = [
            run(calibrated_default().with_change("head", {"lr_factor": f}).to_json()) for f in (1.0, 0.5, 0.1, 8.0)
        ]
        data = MetaDataset.read("nowhere")
        from autoopt.meta import parquet

        data = MetaDataset(parquet.trial_table([trial.to_row() for trial in trials]).to_pandas(), data.features)
        monkeypatch.setattr(evaluation_rounds, "NUM_BEST", 2)
        found = requests("best-known", TASKS, [1, 2], data)
        best = sorted(trials, key=lambda trial: trial.best_val_loss)[:2]
        wanted = {trial.plan for trial in best} | {default_on("small")}
        assert {(r.plan, r.seed) for r in found} == {(plan, seed) for plan in wanted for seed in (1, 2)}

    def test_every_round_is_known_by_the_script(self):
        for name in set(EVALUATION_ROUNDS) - {"strict-selection", "select", "aside", "best-known"}:
            assert requests(name, TASKS, [0])
        with pytest.raises(MetaDatasetError, match="strict-selection"):
            requests("nonsense", TASKS, [0])
