"""Races of short runs: what they learn, which runs they make, and that they leave no trace."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from small_models import Snapshot, batches, classifier, loss_fn
from synthetic_selector import config_of, synthetic_predictor

import autoopt
from autoopt.architecture import describe
from autoopt.errors import ArtifactError, ProfileError
from autoopt.meta import extrapolation, halving
from autoopt.meta.evaluation import HeldOut
from autoopt.meta.extrapolation import Extrapolation, Measurement, direction, fit_measurement, short_log_ratio
from autoopt.meta.halving import EDGE, Contestant, RaceResult
from autoopt.meta.pairs import canonical
from autoopt.meta.race_evaluation import race_held_out, raced_tasks, summary
from autoopt.meta.raced_predictor import RacedPredictor
from autoopt.optimizers.recipe import calibrated_default
from autoopt.report.recommendation import Recommendation
from autoopt.short_runs import short_run

TOTAL, SHARE = 400, 0.3
SURE = Measurement(slope=1.0, noise=0.05)
LEARNED = Extrapolation(dict.fromkeys(extrapolation.SHARES, SURE), ("matrix",), caution=1.0, surprise=0.3)
DEFAULT = calibrated_default()


def candidate(factor, group="matrix", mean=0.0, std=0.05):
    recipe = DEFAULT.with_change(group, {"lr_factor": factor})
    config = canonical(config_of(recipe, group))
    way = direction(config, canonical(config_of(DEFAULT, group)))
    return Contestant(group, config, way, (mean, std), LEARNED.caution, LEARNED.surprise)


def race(contestants, shorts, total=TOTAL, share=SHARE):
    """A race in which the short log ratio of a rate is `shorts[its factor]`, and the rungs it measured."""
    seen = []
    rate = config_of(DEFAULT, "matrix")["lr"]

    def measure(items, rung):
        seen.append((rung.num_steps, [round(json.loads(item.config)["lr"] / rate, 4) for item in items]))
        return [shorts[factor] for factor in seen[-1][1]]

    return halving.run(contestants, total, math.floor(share * total), LEARNED, 0.01, measure), seen


RATES = [candidate(factor) for factor in (2.0, 4.0, 0.5, 0.25)]


# ---- what is learned ----------------------------------------------------------------------------


def test_posterior_is_the_bivariate_gaussians():
    slope, noise, mean, std, short = 0.7, 0.2, 0.05, 0.1, -0.3
    covariance = np.array([[std**2, slope * std**2], [slope * std**2, slope**2 * std**2 + noise**2]])
    expected = mean + covariance[0, 1] / covariance[1, 1] * (short - slope * mean)
    variance = covariance[0, 0] - covariance[0, 1] ** 2 / covariance[1, 1]
    assert Measurement(slope, noise).posterior(short, mean, std) == pytest.approx((expected, math.sqrt(variance)))
    assert Measurement(0.0, noise).posterior(short, mean, std) == (mean, std)
    assert Measurement(slope, noise).shift(std) ** 2 == pytest.approx(std**2 - variance)


def test_measurement_recovers_what_made_the_results():
    generator = np.random.default_rng(0)
    effects = generator.normal(0.0, 0.3, 4000)
    shorts = 0.6 * effects + generator.normal(0.0, 0.1, 4000)
    found = fit_measurement(shorts, effects)
    assert (found.slope, found.noise, found.num_results) == (
        pytest.approx(0.6, abs=0.02),
        pytest.approx(0.1, abs=0.01),
        4000,
    )
    nothing = fit_measurement([], [])
    assert (nothing.slope, nothing.noise) == (1.0, pytest.approx(0.15))


def test_short_losses_that_are_not_finite_count_as_very_bad():
    assert short_log_ratio(math.inf, 1.0, 2.0) == short_log_ratio(math.nan, 1.0, 2.0) == 0.5
    assert short_log_ratio(1.0, math.inf, 2.0) == -0.5
    assert short_log_ratio(0.9, 1.0, 2.0) == pytest.approx(math.log(0.9))
    assert short_log_ratio(-1.5, -1.0, 1.0) == pytest.approx(-0.25)  # over what the default's run gained


def test_a_result_shifts_the_prediction_its_own_way_and_only_where_it_is_contrary():
    lower = candidate(0.5, mean=-0.1)
    assert lower.after(0.2, 8, SURE).posterior == lower.prior  # slower, as a lower rate should be
    assert lower.after(-0.05, 8, SURE).posterior == lower.prior  # in favour, but less so than the prediction
    moved = lower.after(-0.4, 8, SURE)
    assert moved.posterior[0] < -0.1 and moved.is_moved
    assert moved.pessimistic(before=-0.2) <= -0.2 and lower.pessimistic(before=0.7) == 0.7
    against = candidate(2.0, mean=-0.1).after(0.4, 8, SURE)
    assert against.posterior[0] > -0.1 and against.pessimistic(before=0.9) == 0.9


# ---- which runs are made ------------------------------------------------------------------------


def test_lower_rates_run_only_where_a_higher_one_failed():
    result, seen = race(RATES, {4.0: EDGE})
    assert seen == [(4, [4.0])] and result.num_steps == 2 * (4 + halving.LOOK_STEPS)
    assert "No higher rate failed" in result.reason
    result, seen = race(RATES, {4.0: EDGE + 0.01, 0.5: -0.2, 0.25: -0.4})
    assert [steps for steps, _ in seen] == [4, 8, 16]
    assert sorted(seen[1][1]) == [0.25, 0.5] and seen[2][1] == [0.25]
    assert result.num_steps <= SHARE * TOTAL
    assert result.num_steps == sum((len(items) + 1) * (steps + halving.LOOK_STEPS) for steps, items in seen)
    best = min(result.contestants, key=lambda item: item.posterior[0])
    assert json.loads(best.config)["lr"] == pytest.approx(0.25 * config_of(DEFAULT, "matrix")["lr"])
    assert (best.lengths, best.shorts) == ((8, 16), (-0.4, -0.4))


def steps_of(share, total):
    return extrapolation.num_steps(share, total)


@pytest.mark.parametrize("total", [100, 300, 2000, 100_000])
@pytest.mark.parametrize("share", [0.02, 0.05, 0.12, 0.15, 0.5])
def test_a_race_keeps_to_its_steps(total, share):
    shorts = dict.fromkeys((2.0, 4.0), 0.5) | dict.fromkeys((0.5, 0.25), -0.5)
    result, seen = race(RATES, shorts, total, share)
    assert result.num_steps <= share * total
    assert all(steps <= halving.longest_run(total, math.floor(share * total)) for steps, _ in seen)
    assert bool(seen) == (share * total >= 2 * (steps_of(0.01, total) + steps_of(0.04, total) + 2 * halving.LOOK_STEPS))
    if not seen:
        assert "too few steps" in result.reason


def test_without_a_higher_rate_there_is_no_probe_and_no_race():
    result, seen = race([candidate(0.5)], {})
    assert not seen and not result.contestants and result.num_steps == 0


# ---- what it is worth ---------------------------------------------------------------------------


def recorded(tasks):
    """Short runs and predictions of tasks `{name: (short of x4, short of x1/4, long effect of x1/4)}`."""
    high, low = candidate(4.0).config, candidate(0.25).config
    rows, held_out = [], []
    for name, (short_high, short_low, actual) in tasks.items():
        for group, config, short in (("", "", 0.0), ("matrix", high, short_high), ("matrix", low, short_low)):
            for steps in sorted({0, *(extrapolation.num_steps(share, TOTAL) for share in extrapolation.SHARES)}):
                rows.append((name, f"f-{name}", f"s-{name}", TOTAL, group, config, steps, math.exp(short)))
        held_out += [(name, f"f-{name}", high, 0.05, 0.03, 0.02, 0.1, True, False)]
        held_out += [(name, f"f-{name}", low, 0.05, 0.03, 0.02, actual, True, False)]
    names = ["task", "family", "source", "budget_steps", "group", "config", "steps", "held_back_loss"]
    predictions = HeldOut(*(np.array(column) for column in zip(*held_out, strict=True)))
    return raced_tasks(pd.DataFrame(rows, columns=names), {"matrix": predictions}, DEFAULT.to_json(), 1.0)


def test_held_out_races_find_what_no_selector_has_seen():
    ordinary = {f"t{k}": (-0.1, 0.1, 0.05) for k in range(9)}
    outcomes = race_held_out(recorded(ordinary | {"odd": (0.5, -0.5, -0.5)}), SHARE, {"matrix": 1.0}, 0.01, ("matrix",))
    by_task = {item.task: item for item in outcomes}
    assert (by_task["odd"].without, by_task["odd"].raced, by_task["odd"].oracle) == (0.0, -0.5, -0.5)
    assert all(item.raced == 0.0 for item in outcomes if item.task != "odd")
    row = summary(outcomes)
    assert row["gap_gain"] == pytest.approx(1.0) and row["num_changed"] == 1 and row["harmed"] == 0.0


def test_races_that_mislead_elsewhere_are_made_timid():
    misleading = {f"t{k}": (0.5, -0.5, 0.3) for k in range(9)}
    outcomes = race_held_out(recorded(misleading), SHARE, {"matrix": 1.0}, 0.01, ("matrix",))
    assert all(item.raced == 0.0 for item in outcomes)


# ---- short runs ---------------------------------------------------------------------------------


def test_short_runs_share_start_batches_and_random_numbers_and_leave_no_trace():
    model, data = classifier(), list(batches(12))
    before = Snapshot(model)
    layers = describe(model).layers
    plan = DEFAULT.resolve(layers, 8)
    first = short_run(model, loss_fn, plan, data[:8], data[8:])
    second = short_run(model, loss_fn, plan, data[:8], data[8:])
    before.assert_unchanged()
    assert first == second and first.num_steps == 8
    other = short_run(
        model, loss_fn, DEFAULT.with_change("matrix", {"lr_factor": 4.0}).resolve(layers, 8), data[:8], data[8:]
    )
    assert other.held_back_loss != first.held_back_loss
    start = short_run(model, loss_fn, plan, [], data[8:])
    assert math.isnan(start.train_loss) and first.held_back_loss != start.held_back_loss


def test_a_short_run_that_diverges_has_infinite_losses():
    model, data = classifier(), list(batches(12))

    def broken(model, batch):
        return loss_fn(model, batch) * float("nan")

    run = short_run(model, broken, DEFAULT.resolve(describe(model).layers, 8), data[:8], data[8:])
    assert run.train_loss == run.held_back_loss == math.inf


# ---- select(race=) ------------------------------------------------------------------------------


class Cliff(torch.nn.Module):
    """One hidden matrix; the loss punishes every move of it by the square of its length."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.hidden, self.head = (torch.nn.Linear(*size) for size in ((4, 8), (8, 8), (8, 1)))
        self.register_buffer("home", self.hidden.weight.detach().clone())

    def forward(self, x):
        return self.head(torch.tanh(self.hidden(torch.tanh(self.inner(x)))))


def cliff_loss(model, batch):
    return model(batch).square().mean() + 1.0 + 1e5 * (model.hidden.weight - model.home).square().sum()


def recommend(model, data, loss=loss_fn, **options):
    settings = {"total_steps": TOTAL, "warmup_steps": 5, "selector": synthetic_predictor(gain=0.0, std=0.05)}
    return autoopt.recommend(model, batches=data, loss_fn=loss, **settings | {"race": SHARE} | options)


@pytest.fixture
def learned(monkeypatch):
    monkeypatch.setattr(extrapolation, "load", lambda path=None: LEARNED)


def test_a_race_turns_to_the_lower_rate_where_the_default_is_too_fast(learned):
    model, data = Cliff(), [torch.randn(16, 4, generator=torch.Generator().manual_seed(k)) for k in range(40)]
    before = Snapshot(model)
    without = recommend(model, data, cliff_loss, race=None)
    found = recommend(model, data, cliff_loss)
    before.assert_unchanged()
    assert without.abstained and not without.race
    rate = config_of(DEFAULT, "matrix")["lr"]
    assert found.plan.layers["hidden.weight"].relative_lr == pytest.approx(rate / 4)
    assert [run.chosen for run in found.race] == [True, False]
    assert found.race[0].short_gains[-1] < 0 < found.race[1].short_gains[-1]
    assert 0 < found.profile["race_steps"] <= SHARE * TOTAL
    assert Recommendation.from_json(found.to_json()) == found
    for text in (found.to_text(120), found.to_markdown(), found.to_html()):
        assert "Race of short runs" in text and f"{found.profile['race_steps']} steps" in text
    assert "Race of short runs" not in without.to_html()


def test_select_trains_with_what_the_race_chose(learned):
    model, data = Cliff(), [torch.randn(16, 4, generator=torch.Generator().manual_seed(k)) for k in range(40)]
    optimizer = autoopt.select(
        model,
        batches=data,
        loss_fn=cliff_loss,
        total_steps=TOTAL,
        warmup_steps=5,
        race=SHARE,
        selector=synthetic_predictor(gain=0.0, std=0.05),
    )
    assert optimizer.plan.layers == recommend(Cliff(), data, cliff_loss).plan.layers


def test_a_race_that_shows_nothing_leaves_the_plan_as_it_was(learned):
    data = list(batches(40))
    without, found = recommend(classifier(), data, race=None), recommend(classifier(), data)
    assert found.plan == without.plan and "No higher rate failed" in found.profile["race_reason"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"race": 0.0}, "share of total_steps above 0"),
        ({"race": 0.6}, "up to 0.5"),
        ({"race": True}, "up to 0.5"),
        ({"race": float("nan")}, "up to 0.5"),
        ({"total_steps": None}, "pass total_steps"),
        ({"selector": "default"}, "predicts nothing"),
    ],
)
def test_races_that_cannot_be_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        recommend(classifier(), list(batches(40)), **options)


def test_a_race_without_batches_is_refused():
    with pytest.raises(ValueError, match="needs batches and loss_fn"):
        autoopt.select(classifier(), total_steps=TOTAL, race=0.1)


def test_batches_that_run_out_are_named(learned):
    model = classifier()
    before = Snapshot(model)
    with pytest.raises(ProfileError, match="held back, but only 12 came"):
        recommend(model, list(batches(12)))
    before.assert_unchanged()


def test_a_race_without_runs_is_the_same_selector():
    predictor = synthetic_predictor(gain=-0.3)
    values = dict.fromkeys(predictor.features, 0.5)
    raced = RacedPredictor.after(predictor, RaceResult())
    for group in predictor.groups:
        assert raced.rank(group, values) == predictor.rank(group, values)
        assert raced.is_trusted(group) == predictor.is_trusted(group)


# ---- what ships ---------------------------------------------------------------------------------


def test_the_extrapolation_that_ships_can_be_read_and_round_trips(tmp_path):
    shipped = extrapolation.load()
    assert set(shipped.measurements) == set(extrapolation.SHARES) and shipped.groups
    path = tmp_path / "extrapolation.json"
    path.write_text(shipped.to_json())
    assert extrapolation.load(path) == shipped


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"schema_version": 99}'])
def test_a_damaged_extrapolation_is_refused(tmp_path, text):
    path = tmp_path / "extrapolation.json"
    path.write_text(text)
    with pytest.raises(ArtifactError, match="leave race= out"):
        extrapolation.load(path)
    with pytest.raises(ArtifactError, match="leave race= out"):
        extrapolation.load(tmp_path / "missing.json")


def test_without_surprise_a_sure_selector_is_not_moved_far():
    sure = replace(candidate(0.5, mean=0.05, std=0.01), surprise=0.0)
    assert abs(sure.after(-0.5, 16, SURE).posterior[0] - 0.05) < 0.05
    assert candidate(0.5, mean=0.05, std=0.01).after(-0.5, 16, SURE).posterior[0] < -0.3
