"""The evaluation from end to end on made-up recordings: choices by fold, tables, page, pictures, script."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import script_modules
from recorded_runs import dataset, features, recipe, sweep, trial

from autoopt.errors import MetaDatasetError
from autoopt.fold_selection import propose
from autoopt.meta.ablations import ABLATIONS, ablations
from autoopt.meta.evaluation_page import updated_page
from autoopt.meta.evaluation_pictures import coverage
from autoopt.meta.evaluation_tables import results_table
from autoopt.meta.fitting import SELECTED_FEATURES, Settings, learning_tables
from autoopt.meta.fold_fitting import FoldFitter
from autoopt.meta.runs import Recordings
from autoopt.meta.scoreboard import evaluate, score
from autoopt.meta.selections import Selection, Selections, save_selections, selection_text

ROOT = Path(__file__).parent.parent
DEFAULT = recipe(head=("adamw", 0.01), matrix=("muon", 0.02, {"momentum": 0.8}))
FASTER = recipe(head=("adamw", 0.04), matrix=("muon", 0.02, {"momentum": 0.8}))
OTHER = recipe(head=("sgd", 0.1), matrix=("muon", 0.02, {"momentum": 0.8}))
NAMES = tuple(f"t{k}" for k in range(8))


def recorded():
    """Tuned AdamW has 1.0 after 40 steps, the default 0.9, and the faster head 0.6 on even tasks, 1.8 on odd ones."""
    trials = []
    for number, name in enumerate(NAMES):
        trials += sweep(name)
        trials.append(trial(name, DEFAULT, [4.0, 2.0, 1.0, 0.9], plan_name="default 3"))
        end = 0.6 if number % 2 == 0 else 1.8
        changed = [4.0, 1.0, 0.8, end] if number % 2 == 0 else [4.0, 3.0, 2.0, end]
        trials.append(trial(name, FASTER, changed, group="head"))
        prodigy = '{"baseline":"prodigy","d_coef":1.0}'
        trials.append(trial(name, prodigy, [4.0, 3.0, 2.0, 1.5], mode="baseline", plan_name="prodigy"))
        text = selection_text(DEFAULT, FASTER)
        if number % 2 == 0:
            trials.append(trial(name, text, [4.0, 2.0, 1.0, 0.7], mode="select", selection_seconds=1.0))
    return dataset(trials, features(NAMES, depth=lambda k: float(k)))


@pytest.fixture(scope="module")
def data():
    return recorded()


@pytest.fixture(scope="module")
def chosen():
    """A selector that is right on the even tasks and keeps the default on the odd ones."""
    right, kept = Selection(FASTER, DEFAULT, ("head",), (-0.4,)), Selection(DEFAULT, DEFAULT)
    by_task = {name: right if number % 2 == 0 else kept for number, name in enumerate(NAMES)}
    return Selections({"strict": by_task}, {"num_trials": 1234}, {"head": [0.5, 0.1, 0.97], "matrix": []})


@pytest.fixture(scope="module")
def result(data, chosen):
    return evaluate(data, selections=chosen, default=DEFAULT)


class TestScoreboard:
    def test_the_default_and_the_selector_by_hand(self, result):
        rows = result[0]["strict"]
        # The default reaches 1.0 after 30 of 40 steps; the changed head after 20.
        assert rows["sbs"]["time_to_target"] == pytest.approx(0.75) and rows["sbs"]["missed"] == 0.0
        assert rows["selector"]["time_to_target"] == pytest.approx(math.sqrt(0.5 * 0.75))
        assert rows["selector"]["time_over_sbs"] == pytest.approx(math.sqrt(0.5 / 0.75))
        # The best known plan is 0.6 on even tasks and the default on odd ones: all that there is to gain.
        assert rows["selector"]["closed_gap_loss"] == pytest.approx(1.0) == rows["vbs"]["closed_gap_loss"]
        assert rows["selector"]["no_harm"] == rows["selector"]["no_harm_tuned"] == 1.0
        assert rows["sbs"]["closed_gap_loss"] == 0.0 and rows["tuned_adamw"]["time_to_target"] == 1.0
        assert rows["prodigy"]["missed"] == 1.0 and rows["prodigy"]["time_to_target"] == 4.0

    def test_online_counts_its_own_runs_and_the_defaults_where_nothing_changes(self, result):
        online = result[0]["strict"]["selector_online"]
        # 0.7 after the switch, 0.9 where the default is kept; SBS 0.9, VBS 0.6 and 0.9.
        assert online["closed_gap_loss"] == pytest.approx(math.log(0.9 / 0.7) / math.log(0.9 / 0.6))
        assert online["num_tasks"] == len(NAMES) and result[0]["main"] == "selector_online"
        # A run of 30 steps at half a second, one more second for choosing, against 20 of tuned AdamW.
        assert online["seconds_to_target"] == pytest.approx(math.sqrt((15 + 1) / 20 * 15 / 20))

    def test_the_profile_is_over_all_that_were_recorded(self, result):
        rows = result[0]["strict"]
        # The selector is the fastest everywhere; the default takes 1.5 times as long on half of the tasks.
        assert rows["selector"]["profile_integral"] == pytest.approx(1.0)
        assert rows["sbs"]["profile_integral"] == pytest.approx(0.5 + 0.5 * 2.5 / 3)
        assert rows["vbs"]["profile_integral"] is None

    def test_what_was_not_recorded_is_said(self, result):
        missing = result[0]["missing"]["strict"]
        assert missing["schedule_free"] == "not recorded" and "prodigy" not in missing
        assert "selector" in result[0]["missing"]["family"]
        assert "larger" not in result[0]

    def test_families_and_worst_tasks_come_with_reasons(self, result):
        families = result[0]["by_family"]
        assert len(families) == len(NAMES) and families[0]["time_to_target"] == pytest.approx(0.75)
        worst = result[0]["worst"][0]
        assert worst["task"] in NAMES[1::2] and worst["missed"] is False
        assert "the target rests on 1 seed" in worst["reasons"]
        assert "the SBS fares the same: nothing was chosen that helps here" in worst["reasons"]

    def test_reasons_name_over_fitting_divergence_and_choices_that_cost(self):
        trials = [one for name in NAMES for one in sweep(name, best_lr=1e5 if name == "t3" else 1e-3)]
        trials += [trial(name, DEFAULT, [0.9, 2.0, 3.0, 4.0], plan_name="default 3") for name in NAMES if name != "t1"]
        trials += [trial("t1", DEFAULT, [math.inf]), trial("t2", FASTER, [4.0, 2.0, 1.9], group="head")]
        choices = {name: Selection(DEFAULT, DEFAULT) for name in NAMES}
        choices["t2"] = Selection(FASTER, DEFAULT, ("head",), (-0.1,))
        found, _ = evaluate(dataset(trials), selections=Selections({"strict": choices}, {}, {}))
        reasons = {row["task"]: " / ".join(row["reasons"]) for row in found["worst"]}
        assert reasons["t1"] == "it diverged"
        assert "'default 3' was recorded 53 % better" in reasons["t2"]
        assert "the changed groups (head) cost 90 % loss against the SBS" in reasons["t2"]
        assert "it over-fits: the best validation is at 25 % of the run" in reasons["t0"]
        assert "AdamW's best rate, 100000, is at the border" in reasons["t3"]
        assert found["data"]["targets_at_border"] == ["t3"]

    def test_the_larger_tasks_are_a_protocol_of_their_own(self, data):
        found, scores = evaluate(data, default=DEFAULT, evaluation_only=["t0", "t1"])
        assert set(scores["larger"].contenders["sbs"].runs) == {"t0", "t1"}
        assert set(scores["strict"].contenders["vbs"].runs) == set(NAMES[2:])
        assert found["larger"]["sbs"]["num_tasks"] == 2

    def test_without_a_whole_plan_there_is_nothing_to_compare(self):
        with pytest.raises(MetaDatasetError, match="no whole plan.*coordinate round"):
            score(Recordings.of(dataset([trial("t", DEFAULT, [1.0], group="head")])), "strict")

    def test_the_results_are_json_and_a_table(self, result):
        assert json.loads(json.dumps(result[0], allow_nan=False)) == result[0]
        text = results_table(result[0])
        assert "Selector, its plan from step 0" in text and "missing: selector_aside not recorded" in text
        assert "selector_online, with 95 % bootstrap intervals over tasks: time_to_target 0.75 (" in text


MARKED = "\n".join(
    f"<!-- begin {name} -->\nstale {name}\n<!-- end {name} -->"
    for name in ("data", "strict", "milder", "pictures", "families", "worst", "ablations")
)


class TestPage:
    def test_generated_parts_are_replaced_and_the_rest_stays(self, result):
        page = updated_page(f"# Mine\n{MARKED}\nThe end.\n", result[0], {"times.svg": "Time to target"})
        assert page.startswith("# Mine\n") and page.endswith("The end.\n") and "stale" not in page
        assert "![Time to target](evaluation/times.svg)" in page
        assert "| Selector through select(), profiling online | 8 | 0.75 (" in page
        assert "The selections were made when 1,234 runs were recorded." in page
        assert "--ablate" in page and updated_page(page, result[0], {"times.svg": "Time to target"}) == page

    def test_ablations_have_a_table(self, result):
        row = {"title": "whole", "num_tasks": 3, "gain": -0.1, "gain_ci": [-0.2, 0.0], "closed": 0.5}
        row |= {"closed_ci": [0.2, 0.7], "changed": 0.5, "harmed": 0.0}
        page = updated_page(MARKED, {**result[0], "ablations": [row]}, {})
        assert "| whole | 3 | -0.100 (-0.200 to +0.000) | 0.50 (0.20 to 0.70) | 50 % | 0 % |" in page

    def test_a_page_without_markers_is_refused(self, result):
        with pytest.raises(MetaDatasetError, match="no markers <!-- begin data -->"):
            updated_page("# Mine", result[0], {})

    def test_the_committed_page_has_all_markers(self, result):
        page = (ROOT / "docs" / "evaluation.md").read_text()
        assert "t0" in updated_page(page, result[0], {})

    def test_coverage_of_calibrated_positions_is_nominal(self):
        uniform = (np.arange(1000) + 0.5) / 1000
        assert coverage(uniform, [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9])


class TestScript:
    @pytest.fixture
    def script(self):
        return script_modules.script("evaluate")

    def test_results_page_and_pictures_are_the_same_each_time(self, script, data, chosen, tmp_path, capsys):
        data.save(tmp_path / "data")
        save_selections(chosen, tmp_path / "data")
        (tmp_path / "docs").mkdir()
        (tmp_path / "docs" / "evaluation.md").write_text((ROOT / "docs" / "evaluation.md").read_text())
        options = ["--folder", str(tmp_path / "data"), "--docs", str(tmp_path / "docs")]
        found = []
        for _ in range(2):
            assert script.main(options) == 0
            files = [*(tmp_path / "docs").rglob("*.*"), tmp_path / "data" / "evaluation.json"]
            found.append({path.name: path.read_bytes() for path in files if path.is_file()})
        assert found[0] == found[1]
        pictures = {"profiles.svg", "times.svg", "families.svg", "gaps.svg", "reliability.svg"}
        assert pictures < set(found[0]) and b"<svg" in found[0]["times.svg"]
        assert json.loads(found[0]["evaluation.json"])["strict"]["selector"]["closed_gap_loss"] == pytest.approx(1.0)
        assert "by architecture family" in capsys.readouterr().out

    def test_without_recordings_or_page_the_way_out_is_named(self, script, data, tmp_path, capsys):
        assert script.main(["--folder", str(tmp_path / "nothing")]) == 1
        assert "build_meta_dataset.py" in capsys.readouterr().err
        data.save(tmp_path / "data")
        assert script.main(["--folder", str(tmp_path / "data"), "--docs", str(tmp_path)]) == 1
        assert "--docs -" in capsys.readouterr().err
        assert script.main(["--folder", str(tmp_path / "data"), "--docs", "-", "--output", "-"]) == 0


LEARNED = tuple(f"task{k:02d}" for k in range(24))


def learnable(flipped=()):
    """A faster head gains on tasks with wide inputs and costs on narrow ones; SGD there always costs."""
    trials = []
    for number, name in enumerate(LEARNED):
        effect = math.exp(-0.3 if number % 2 == 0 else 0.3)
        noise = math.exp(0.004 * math.sin(7.0 * number))
        if name in flipped:
            effect = 1.0 / effect
        trials.append(trial(name, DEFAULT, [1.0], plan_name="default"))
        trials.append(trial(name, FASTER, [effect * noise], group="head"))
        trials.append(trial(name, OTHER, [1.2 * noise], group="head"))
    values = dict.fromkeys(SELECTED_FEATURES, 0.0) | {"log_fan_in": lambda k: 1.0 if k % 2 == 0 else -1.0}
    return dataset(trials, features(LEARNED, **values))


@pytest.fixture(scope="module")
def proposed():
    return propose(learnable(), [DEFAULT], protocols=("strict",))


class TestFolds:
    def test_the_folds_selectors_choose_what_gains_on_tasks_that_they_have_not_seen(self, proposed):
        chosen = proposed.by_protocol["strict"]
        assert {name for name, choice in chosen.items() if choice.changed} == set(LEARNED[::2])
        assert {choice.plan for choice in chosen.values()} == {DEFAULT, FASTER}
        assert all(choice.predicted[0] < -0.15 for choice in chosen.values() if choice.changed)
        assert len(proposed.predictions["head"]) == 2 * len(LEARNED)

    def test_a_tasks_own_outcomes_have_no_part_in_its_choice(self, proposed):
        other = propose(learnable(flipped=LEARNED[:1]), [DEFAULT], protocols=("strict",))
        assert other.by_protocol["strict"][LEARNED[0]].plan == proposed.by_protocol["strict"][LEARNED[0]].plan

    def test_nothing_is_learned_from_the_larger_tasks(self):
        found = propose(learnable(), [DEFAULT], protocols=("larger",), evaluation_only=LEARNED[:2])
        assert {name: bool(c.changed) for name, c in found.by_protocol["larger"].items()} == {
            "task00": True,
            "task01": False,
        }
        fitter = FoldFitter(learnable(), DEFAULT)
        predictor = fitter.fit(LEARNED[2:])
        assert set(predictor.groups["head"].tasks) == set(LEARNED[2:])
        assert set(fitter.fit(LEARNED[2:], ["head"]).groups) == {"head"}

    def test_defaults_must_have_been_recorded(self):
        with pytest.raises(MetaDatasetError, match="none of the defaults was recorded"):
            propose(learnable(), [OTHER])

    def test_each_ablation_leaves_what_it_says(self, monkeypatch):
        monkeypatch.setattr("autoopt.meta.calibration.MIN_FAMILIES", 2)
        tables = learning_tables(learnable(), DEFAULT)
        rows = {row["name"]: row for row in ablations(tables, DEFAULT, Settings(max_iter=25), ["loss_drop"])}
        assert list(rows) == list(ABLATIONS)
        # The oracle gains 0.3 on half of the tasks; so does the selector, from a feature of the architecture.
        assert rows["whole"]["gain"] == pytest.approx(-0.15, abs=0.005) and rows["whole"]["harmed"] == 0.0
        assert rows["whole"]["closed"] == pytest.approx(1.0, abs=0.03) and rows["whole"]["changed"] == 0.5
        for name in ("rate_only", "architecture_only", "half"):
            assert rows[name]["gain"] == pytest.approx(-0.15, abs=0.005)
        # Without the feature, with another task's, or with SGD as the only change, the default is kept.
        for name in ("statistics_only", "shuffled", "family_only"):
            assert rows[name]["gain"] == 0.0 and rows[name]["changed"] == 0.0

    def test_without_pairs_there_are_no_ablations(self):
        assert ablations({}, DEFAULT, Settings(), [])[0]["gain"] is None
