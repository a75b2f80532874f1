"""Learning from own runs: what is tried, what a selector makes of it, and what that is worth."""

import json
import math
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cli_runner import run as command
from recorded_runs import dataset as recorded
from recorded_runs import features, trial
from small_models import batches, classifier, loss_fn
from synthetic_selector import FEATURES, config_of, synthetic_predictor

import autoopt
from autoopt.choice import GroupChoice, choose
from autoopt.errors import MetaDatasetError
from autoopt.exploration import Tried, explored, tried_in
from autoopt.features import Features
from autoopt.meta import artifact, own_simulation
from autoopt.meta.artifact import NEVER, CandidatePrediction
from autoopt.meta.encoding import encode_candidate
from autoopt.meta.fitting import SELECTED_FEATURES, GroupTable
from autoopt.meta.own_learning import learned_from, with_rows
from autoopt.meta.own_runs import OwnRun, own_dataset, read_own_runs
from autoopt.meta.pairs import canonical
from autoopt.optimizers.recipe import calibrated_default

TOTAL = 60
DEFAULT = calibrated_default()
FAVOURED, DECOY = DEFAULT.with_change("head", {"lr_factor": 4.0}), DEFAULT.with_change("head", {"lr_factor": 0.25})
HERE = {"log_fan_in": 0.0, "log_numel": 1.0, "hoyer_sparsity": 2.0, "log_signal_to_noise": 3.0}
SCRIPTS = Path(autoopt.__file__).parents[1] / "scripts"


def head(recipe):
    """A recipe's configuration of heads as selectors write it."""
    return canonical(config_of(recipe, "head"))


def own_run(recipe, outcome, *, task="", values=HERE, number=[0]):  # noqa: B006
    """A finished run of a model that has heads alone."""
    number[0] += 1
    return OwnRun(
        run=f"{number[0]:016x}",
        task=task,
        total_steps=TOTAL,
        step=TOTAL,
        ended=True,
        groups={"head": (1, 10)},
        batch_size=8.0,
        recipe=recipe.to_json(),
        features=[{"group": "head", "log_batch_size": math.log(8), **values}],
        mode="online",
        losses=[(TOTAL, outcome)],
        validations=[(TOTAL, outcome)],
        step_seconds=0.01,
        selection_seconds=0.1,
        state_bytes=80,
        recorded_at=f"2026-01-01T00:00:{number[0]:02d}",
    )


def table_of(values):
    row = np.array([[values[name] for name in FEATURES]])
    return Features(FEATURES, ("head",), ("head",), np.ones(1), row)


# ---- what is tried -------------------------------------------------------------------------------


def candidate(config, mean, std=0.01):
    return CandidatePrediction(config, mean, std, mean + std)


def choices(**ranked):
    return {group: GroupChoice(group, row[0], tuple(row), False, "") for group, row in ranked.items()}


def changed(found):
    return {group: choice.chosen.config for group, choice in found.items() if choice.chosen is not None}


def test_the_first_run_of_a_task_keeps_the_default():
    found = explored(choices(head=[candidate("a", -0.3)]), Tried(False, {}))
    assert changed(found) == {} and "default runs first" in found["head"].reason


def test_then_one_change_a_run_by_expected_improvement():
    known = choices(head=[candidate("a", -0.1), candidate("b", 0.1, 1.0)], matrix=[candidate("c", -0.2)])
    order, tried = [], {}
    for _ in range(4):
        (found,) = changed(explored(known, Tried(True, tried))).items() or [(None, None)]
        order.append(found)
        if found[0]:
            tried.setdefault(found[0], {})[found[1]] = math.nan
    # The wide prediction promises most although its mean is bad.
    assert order == [("head", "b"), ("matrix", "c"), ("head", "a"), (None, None)]


def test_a_change_that_gained_raises_the_bar_for_others_of_its_role():
    known = choices(head=[candidate("a", -0.1)], matrix=[candidate("c", -0.05)])
    assert changed(explored(known, Tried(True, {}))) == {"head": "a"}
    assert changed(explored(known, Tried(True, {"head": {"b": -0.3}}))) == {"matrix": "c"}


def test_a_role_group_unlike_everything_recorded_is_not_explored():
    known = {"head": GroupChoice("head", None, (candidate("a", -0.3),), True, "")}
    assert changed(explored(known, Tried(True, {}))) == {}


def test_what_own_runs_tried_is_read_off_their_recipes():
    both = FAVOURED.with_change("matrix", {"lr_factor": 2.0})
    runs = [own_run(DEFAULT, 2.0), own_run(FAVOURED, 1.5), own_run(both, 1.0)]
    interrupted = replace(own_run(DECOY, 3.0), step=10, validations=[], losses=[(10, 3.0)])
    found = tried_in([*runs, interrupted], DEFAULT.to_json())
    assert found.default and set(found.outcomes) == {"head"}
    assert found.outcomes["head"][head(FAVOURED)] == pytest.approx(math.log(0.75))
    assert math.isnan(found.outcomes["head"][head(DECOY)])
    assert not tried_in(runs[1:], DEFAULT.to_json()).default


def train(folder, seed=0, **options):
    model = classifier(seed)
    settings = {"total_steps": TOTAL, "warmup_steps": 6, "selector": synthetic_predictor(), "remember": folder}
    optimizer = autoopt.select(model, **settings | options)
    for batch in batches(TOTAL):
        optimizer.zero_grad()
        loss = loss_fn(model, batch)
        loss.backward()
        optimizer.observe(loss)
        optimizer.step()
    return optimizer


def test_exploring_runs_the_default_and_then_a_new_change_each_time(tmp_path):
    deviating = []
    for _ in range(4):
        layers = train(tmp_path, explore=True).recommendation.layers
        deviating.append({layer.group for layer in layers if layer.deviates})
    assert [len(groups) for groups in deviating] == [0, 1, 1, 1]
    recipes = [run.recipe for run in read_own_runs(tmp_path)]
    assert recipes[0] == DEFAULT.to_json() and len(set(recipes)) == 4
    other = train(tmp_path, explore=True, total_steps=80)  # another horizon is another task
    assert not any(layer.deviates for layer in other.recommendation.layers)


def test_exploring_beside_a_damaged_journal_trains_with_the_default_and_says_so(tmp_path):
    train(tmp_path)
    (path,) = tmp_path.rglob("*.jsonl")
    path.write_text("{}\n")
    recommendation = train(tmp_path, explore=True).recommendation
    assert not any(layer.deviates for layer in recommendation.layers)
    assert any("cannot be read" in text for text in recommendation.warnings)


# ---- what a selector makes of it -----------------------------------------------------------------


def test_own_outcomes_move_the_prediction_for_models_alike_and_leave_the_given_selector():
    before = synthetic_predictor(gain=-0.3, std=0.05)
    rows = {c.config: c.mean for c in before.rank("head", HERE)}
    own = own_dataset([own_run(DEFAULT, 1.0), own_run(FAVOURED, 1.2), own_run(DECOY, 1.0)])
    after = learned_from(before, own)
    moved = {c.config: c.mean for c in after.rank("head", HERE)}
    assert moved[head(FAVOURED)] > rows[head(FAVOURED)] + 0.1
    assert moved[head(DECOY)] < rows[head(DECOY)] - 0.05
    assert {c.config: c.mean for c in before.rank("head", HERE)} == rows
    assert after.groups["matrix"] is before.groups["matrix"]
    assert (after.info["num_own_tasks"], after.info["num_own_pairs"]) == (1, 2)


def test_conditioning_on_no_further_row_changes_nothing_and_on_all_at_once_equals_fitting():
    process = synthetic_predictor(std=0.05).groups["head"].process
    process = replace(process, weights=process.dual_of(np.array([-0.3, 0.2])))
    assert process.outcomes() == pytest.approx([-0.3, 0.2])
    again = with_rows(process, process.x[:0], np.zeros(0), np.zeros(0))
    assert again.weights == pytest.approx(process.weights, rel=1e-6)
    joined = with_rows(process, process.x[:1], np.array([-0.1]), np.ones(1))
    mean, _ = joined.predict(process.x[:1])
    # Two outcomes of equal noise at one place: their mean, drawn a little to the prior.
    assert mean[0] == pytest.approx(-0.2, abs=0.01)


def test_a_heavier_own_outcome_pulls_harder():
    process = synthetic_predictor(std=0.05).groups["head"].process
    row, outcome = process.x[:1], np.array([0.3])
    light, heavy = (float(with_rows(process, row, outcome, np.array([w])).mean(row)[0]) for w in (1.0, 16.0))
    assert -0.3 < light < heavy < 0.3


def untrusted():
    predictor = synthetic_predictor(std=0.05)
    groups = {group: replace(model, caution=NEVER, reach=0.5) for group, model in predictor.groups.items()}
    return replace(predictor, groups=groups)


def test_where_nothing_transfers_only_what_gained_in_own_runs_is_chosen_and_only_for_models_alike():
    own = own_dataset([own_run(DEFAULT, 1.0), own_run(DECOY, 0.5)])
    near, far = table_of(HERE), table_of({name: value + 6.0 for name, value in HERE.items()})
    before = choose(untrusted(), near, ["head"])["head"]
    assert before.chosen is None and "did not gain" in before.reason
    after = learned_from(untrusted(), own)
    assert choose(after, near, ["head"])["head"].chosen.config == head(DECOY)
    assert choose(after, far, ["head"])["head"].chosen is None
    lost = learned_from(untrusted(), own_dataset([own_run(DEFAULT, 1.0), own_run(DECOY, 1.1)]))
    assert lost.groups["head"].own == () and choose(lost, near, ["head"])["head"].chosen is None
    # Favoured by the recorded tasks by far, but not tried.
    favoured = {c.config: c for c in after.rank("head", HERE)}[head(FAVOURED)]
    assert favoured.mean < -0.1 and favoured.pessimistic > 1.0


def test_a_configuration_of_ones_own_becomes_a_candidate():
    mine = DEFAULT.with_change("head", {"optimizer": "sgd", "lr": 0.3})
    after = learned_from(synthetic_predictor(), own_dataset([own_run(DEFAULT, 1.0), own_run(mine, 0.5)]))
    assert head(mine) in [c.config for c in after.rank("head", HERE)]
    unknown = DEFAULT.with_change("head", {"optimizer": "radam", "lr": 0.01})  # the columns cannot tell it
    with pytest.raises(MetaDatasetError, match="no pair"):
        learned_from(synthetic_predictor(), own_dataset([own_run(DEFAULT, 1.0), own_run(unknown, 0.5)]))


@pytest.mark.parametrize(
    "runs",
    [
        [],
        [own_run(DEFAULT, 1.0)],
        [own_run(FAVOURED, 1.0), own_run(DECOY, 1.0)],
        [own_run(DEFAULT, 1.0, task="a"), own_run(DECOY, 1.0, task="b")],
    ],
    ids=["none", "the default alone", "no default", "other tasks"],
)
def test_without_a_pair_there_is_nothing_to_learn(runs):
    with pytest.raises(MetaDatasetError, match="explore=True does both"):
        learned_from(synthetic_predictor(), own_dataset(runs))


def test_what_was_learned_survives_the_file(tmp_path):
    own = own_dataset([own_run(DEFAULT, 1.0), own_run(DECOY, 0.5)])
    after = learned_from(untrusted(), own)
    artifact.save(after, tmp_path / "mine.npz")
    loaded = artifact.load(tmp_path / "mine.npz")
    assert loaded.rank("head", HERE) == after.rank("head", HERE)
    assert loaded.info == after.info
    assert "own 1" in [name for name, _, _ in loaded.nearest("head", HERE)]
    plain = untrusted()
    artifact.save(plain, tmp_path / "plain.npz")
    assert artifact.load(tmp_path / "plain.npz").groups["head"].own == ()


# ---- the command line ----------------------------------------------------------------------------


def test_own_runs_are_listed_and_learned_from(tmp_path, artifact_path):
    folder = tmp_path / "runs"
    for _ in range(3):
        train(folder, explore=True).finish()
    shown = command("runs", folder)
    lines = shown.stdout.splitlines()
    assert len(lines) == 4 and lines[1].endswith("default") and "60/60" in lines[1] and "finished" in lines[1]
    assert "3 runs, 1 tasks" in shown.stderr
    rows = json.loads(command("runs", folder, "--json").stdout)
    assert [row["task"] for row in rows] == ["own 1"] * 3 and rows[0]["measure"] == "training"
    output = tmp_path / "mine.npz"
    said = command("learn", folder, "-o", output, "--selector", artifact_path).stderr
    assert "2 own pairs of 1 tasks" in said
    learned = artifact.load(output)
    assert sum("own 1" in model.tasks for model in learned.groups.values()) in (1, 2)
    assert train(tmp_path / "next", selector=output).recommendation is not None


def test_learning_from_an_empty_folder_says_what_is_missing(tmp_path, artifact_path):
    said = command("learn", tmp_path, "-o", tmp_path / "mine.npz", "--selector", artifact_path, code=1)
    assert "no pair to learn from" in said.stderr


def test_train_selector_takes_own_runs_as_an_extra_folder(tmp_path, capsys):
    names = [f"t{number}" for number in range(10)]
    runs = [
        trial(name, recipe.to_json(), [loss], family=f"family-{name}", source=f"source-{name}")
        for name in names
        for recipe, loss in ((DEFAULT, 1.0), (FAVOURED, 0.9), (DECOY, 1.1))
    ]
    values = {name: (lambda number: number % 3) for name in SELECTED_FEATURES}
    recorded(runs, features(names, ("head",), **values)).save(tmp_path / "recorded")
    for recipe, outcome in ((DEFAULT, 1.0), (DECOY, 0.6)):
        model = classifier()
        plan = recipe.resolve(autoopt.describe(model).layers, TOTAL)
        # The first decides, so that there are meta-features; the second only joins its task.
        optimizer = (
            train(tmp_path / "own", selector="default")
            if recipe is DEFAULT
            else autoopt.AutoOptimizer.from_plan(model, plan, remember=tmp_path / "own")
        )
        if recipe is not DEFAULT:
            for batch in batches(TOTAL):
                optimizer.zero_grad()
                loss_fn(model, batch).backward()
                optimizer.step()
        optimizer.observe_validation(outcome)
        optimizer.finish()
    main = runpy.run_path(str(SCRIPTS / "train_selector.py"))["main"]
    outputs = [tmp_path / "plain.npz", tmp_path / "mine.npz"]
    folder = ["--folder", str(tmp_path / "recorded"), "--output"]
    assert main([*folder, str(outputs[0])]) == 0
    assert main([*folder, str(outputs[1]), "--extra", str(tmp_path / "own")]) == 0
    assert "own runs: 2, 1 pairs of 1 tasks" in capsys.readouterr().out
    plain, mine = map(artifact.load, outputs)
    (row,) = [r for run in read_own_runs(tmp_path / "own") for r in run.features if r["group"] == "head"]
    means = [{c.config: c.mean for c in p.rank("head", row)}[head(DECOY)] for p in (plain, mine)]
    assert means[1] < means[0] - 0.05
    assert main([*folder, str(outputs[1]), "--extra", str(tmp_path / "nothing")]) == 1


# ---- what it is worth ----------------------------------------------------------------------------

HELPS, HURTS = (canonical({"optimizer": "adamw", "lr": lr, "hyperparameters": {}}) for lr in (0.02, 0.04))
BASE = canonical({"optimizer": "adamw", "lr": 0.01, "hyperparameters": {}})


def table():
    """Heads of ten families of six tasks: which of two changes helps is a matter of the family alone."""
    rows = []
    generator = np.random.default_rng(0)
    for number in range(10):
        family, sign = f"family-{number}", 1 if number % 2 else -1
        center = generator.normal(size=len(SELECTED_FEATURES))
        for member in range(6):
            where = center + 0.1 * generator.normal(size=len(SELECTED_FEATURES))
            for config in (HELPS, HURTS):
                outcome = 0.1 * sign * (1 if config == HELPS else -1) + 0.005 * generator.normal()
                columns = np.hstack([where, encode_candidate(config, BASE)])
                rows.append((columns, outcome, f"task-{number}-{member}", family, config))
    x, y, tasks, families, configs = zip(*rows, strict=True)
    names = np.array(families)
    return GroupTable(
        np.stack(x), np.array(y), np.array(tasks), names, np.char.add("s-", names), np.array(configs), np.ones(len(y))
    )


@pytest.fixture(scope="module")
def held_out():
    return {family.name: family for family in own_simulation.held_out_families({"head": table()})}


def test_the_selector_of_a_family_has_not_seen_it(held_out):
    assert len(held_out) == 10
    family = held_out["family-0"]
    assert len(family.members) == 6
    assert not set(family.models["head"].tasks) & set(family.members)
    assert set(family.tables["head"].families) == {"family-0"}


def test_runs_are_spent_on_new_changes_of_few_members(held_out):
    family = held_out["family-0"]
    budget = own_simulation.Budget(num_runs=7, num_members=3)
    members, shown = own_simulation.spend(family, budget, np.random.default_rng(0))
    tried = family.tables["head"].tasks[shown["head"]].tolist()
    # 3, 2 and 2 runs, the default's among them.
    assert [tried.count(member) for member in members] == [2, 1, 1]
    assert len(set(shown["head"])) == 4


def test_own_runs_tell_the_choices_of_families_that_others_say_nothing_of(held_out):
    learning, budget = own_simulation.Learning(1.0, artifact.OWN_CAUTION), own_simulation.Budget(6, 2)
    results = [
        own_simulation.summary(own_simulation.play(family, budget, learning, draws=3), len(family.members))
        for family in held_out.values()
    ]
    before, after, oracle = (np.mean([getattr(row, key) for row in results]) for key in ("before", "after", "oracle"))
    assert before > -0.02 and oracle == pytest.approx(-0.1, abs=0.01)
    assert after < -0.08
    ruled_out = own_simulation.Learning(1.0, None)
    family = held_out["family-0"]
    assert family.models["head"].caution == NEVER
    assert all(row.after == row.before == 0 for row in own_simulation.play(family, budget, ruled_out, draws=1))


def test_the_strict_protocol_leaves_sources_out_too():
    rows = table()
    shared = replace(rows, sources=np.where(rows.families == "family-1", "s-family-0", rows.sources))
    (family,) = [f for f in own_simulation.held_out_families({"head": shared}, "strict") if f.name == "family-0"]
    assert len(family.models["head"].tasks) == 48
