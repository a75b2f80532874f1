"""Transfer over width and horizon, and the prediction of best rates, on outcomes that are known."""

import json

import numpy as np
import pytest
from test_rank_features import BASE, FEATURES, config, table

from autoopt.meta.fitting import GroupTable, Settings
from autoopt.meta.rate_prediction import group_scores, interpolated_best, sweep_score
from autoopt.meta.transfer import BORDERS, Border, Size, transfers

SETTINGS = Settings(features=FEATURES)


def sizes_of(rows, wide):
    return {str(task): Size(512 if task in wide else 16, 300) for task in np.unique(rows.tasks)}


def shifted(rows, wide, by):
    """The same tasks, the wide ones of which want another rate for equal features."""
    y = rows.y.copy()
    for task in wide:
        here = np.flatnonzero(rows.tasks == task)
        telling = rows.x[here[0], 0] + by
        distance = np.log(np.array([json.loads(str(c))["lr"] for c in rows.configs[here]]) / 0.01)
        y[here] = 0.1 * ((distance - telling) ** 2 - telling**2)
    return GroupTable(**{**rows.__dict__, "y": y})


@pytest.fixture
def few_families(monkeypatch):
    monkeypatch.setattr("autoopt.meta.calibration.MIN_FAMILIES", 2)


@pytest.mark.usefixtures("few_families")
class TestTransfer:
    wide = tuple(f"task-{task:02d}" for task in range(12))
    border = Border("width", "narrow to wide", lambda t: t.width <= 64, lambda t: t.width >= 512)

    def row(self, rows):
        return transfers({"matrix": rows}, sizes_of(rows, self.wide), SETTINGS, borders=(self.border,))[0]

    def test_what_holds_for_all_widths_carries_over(self):
        row = self.row(table(60))
        assert (row["num_learned"], row["num_tasks"]) == (48, 12)
        assert row["all"]["closed"] > 0.5
        assert abs(row["lost"]) < 0.15

    def test_what_only_narrow_models_show_is_lost(self):
        row = self.row(shifted(table(60), self.wide, 2.5))
        assert row["across"]["closed"] < row["all"]["closed"]
        assert row["lost"] > 0.15

    def test_a_border_without_tasks_beyond_it_has_no_figures(self):
        rows = table(24)
        row = transfers({"matrix": rows}, sizes_of(rows, ()), SETTINGS, borders=(self.border,))[0]
        assert row["num_tasks"] == 0 and row["lost"] is None and row["across"]["gain"] is None

    def test_the_borders_keep_both_sides_apart(self):
        sizes = [Size(width, steps) for width in (4, 64, 512, 1024) for steps in (150, 600, 3000)]
        for border in BORDERS:
            assert any(map(border.learned, sizes)) and any(map(border.judged, sizes))
            assert not any(border.learned(size) and border.judged(size) for size in sizes)


class TestRates:
    def test_the_best_of_a_parabola_lies_between_the_rates(self):
        x = np.arange(-3.0, 4.0)
        assert interpolated_best(x, (x - 0.3) ** 2) == (pytest.approx(0.3), False)
        assert interpolated_best(x, x) == (-3.0, True)
        assert interpolated_best(x, np.where(np.abs(x) == 1, np.inf, x**2)) == (0.0, False)

    def test_a_telling_feature_finds_the_rate_and_a_constant_does_not(self):
        rows = table(60, rates=(0.00125, 0.0025, 0.005, 0.02, 0.04, 0.08))
        stretched = shifted_by_feature(rows, 2.0)
        (score,) = group_scores({"matrix": stretched}, {"matrix": BASE}, SETTINGS)
        assert (score.group, score.optimizer, score.num_tasks) == ("matrix", "adamw", 60)
        assert score.predicted > score.constant + 0.15
        assert score.error < score.constant_error

    def test_groups_with_few_rates_are_left_out(self):
        assert group_scores({"matrix": table(30, rates=(0.02,))}, {"matrix": BASE}, SETTINGS) == []
        other = GroupTable(**{**table(30).__dict__, "configs": np.array([config(0.01, "sgd")] * 120)})
        assert group_scores({"matrix": other}, {"matrix": BASE}, SETTINGS) == []

    def test_a_regression_finds_the_rate_of_a_sweep(self):
        generator = np.random.default_rng(0)
        features = {f"t{i}": np.array([generator.uniform(-3, 3), np.nan, generator.normal()]) for i in range(48)}
        best = {task: (float(values[0]) - 8.0, False) for task, values in features.items()}
        families = {task: f"f{index % 6}" for index, task in enumerate(features)}
        score = sweep_score(best, features, families)
        assert score.num_tasks == 48 and score.predicted == 1.0 and score.constant < 0.6
        assert score.at_border == 0.0


def shifted_by_feature(rows, scale):
    """The rows with optima that lie further from the default for equal features."""
    y = rows.y.copy()
    for task in np.unique(rows.tasks):
        here = np.flatnonzero(rows.tasks == task)
        telling = rows.x[here[0], 0] * scale
        distance = np.log(np.array([json.loads(str(c))["lr"] for c in rows.configs[here]]) / 0.01)
        y[here] = 0.1 * ((distance - telling) ** 2 - telling**2)
    return GroupTable(**{**rows.__dict__, "y": y})
