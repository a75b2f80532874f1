"""Counterfactuals: the thresholds that are told are those at which the choice really flips."""

import json
import math

import numpy as np
import pytest

from autoopt.counterfactuals import describe_change, original, thresholds

MUON = json.dumps({"optimizer": "muon", "lr": 0.02, "hyperparameters": {"momentum": 0.8}})


class Recorded:
    """What is asked of a selector: where values lie among the recorded ones, and what is too far away."""

    def __init__(self, far_below=-math.inf, **columns):
        self.columns, self.far_below = columns, far_below

    def percentile(self, group, feature, value):
        column = self.columns.get(feature)
        return None if column is None else float(100.0 * np.mean(np.asarray(column) <= value))

    def is_far(self, group, values):
        return any(value < self.far_below for value in values.values())


STEPS = np.log(np.geomspace(100, 10_000, 201))


def found(now=1000.0, limit=421.0, recorded=None, **more):
    """Thresholds of a choice that takes Muon below `limit` steps."""
    return thresholds(
        recorded or Recorded(log_total_steps=STEPS),
        "conv",
        {"log_total_steps": math.log(now), **more},
        lambda values: MUON if values["log_total_steps"] < math.log(limit) else None,
        ["log_total_steps", *more],
    )


def test_the_threshold_is_where_the_choice_flips_and_is_said_in_the_readers_units():
    (flip,) = found()
    assert math.exp(flip.threshold) == pytest.approx(421, rel=1e-3) and flip.config == MUON
    assert flip.sentence == (
        "With 'horizon of the run' below 421 (here 1000), Muon at 0.02 x reference (momentum 0.8) would be preferred "
        "for convolutions."
    )
    between = 100 * np.mean((math.log(421) < STEPS) & (math.log(1000) >= STEPS))
    assert flip.distance == pytest.approx(between, abs=0.6)


def test_the_default_that_would_be_kept_is_named_too():
    (flip,) = found(now=200.0)
    assert flip.sentence == (
        "With 'horizon of the run' above 421 (here 200), the calibrated default would be kept for convolutions."
    )


@pytest.mark.parametrize("limit", [50.0, 101.0])
def test_a_flip_outside_the_recorded_range_is_not_told(limit):
    assert found(limit=limit) == []


def test_a_flip_among_what_is_unlike_everything_recorded_is_not_told():
    assert found(recorded=Recorded(log_total_steps=STEPS, far_below=math.log(500))) == []
    assert len(found(recorded=Recorded(log_total_steps=STEPS, far_below=math.log(300)))) == 1


def test_what_was_not_measured_or_never_recorded_has_no_threshold():
    assert found(now=math.nan) == []
    assert thresholds(Recorded(), "conv", {"loss_drop": 0.1}, lambda values: None, ["loss_drop"]) == []


def test_the_nearest_threshold_comes_first_and_only_so_many():
    recorded = Recorded(
        loss_drop=np.linspace(-1, 1, 101), step_alignment=np.linspace(-1, 1, 101), sparse=np.linspace(0, 1, 101)
    )
    values = {"loss_drop": 0.0, "step_alignment": 0.0, "sparse": 0.5}
    limits = {"loss_drop": 0.5, "step_alignment": 0.2, "sparse": 0.55}

    def choice(moved):
        return MUON if any(moved[name] > limits[name] for name in limits) else None

    flips = thresholds(recorded, "matrix", values, choice, list(values))
    assert [flip.feature for flip in flips] == ["sparse", "step_alignment"]
    assert "above 55 % (here 50 %)" in flips[0].sentence
    assert "hidden matrices" in flips[0].sentence
    assert len(thresholds(recorded, "matrix", values, choice, list(values), count=3)) == 3


def test_values_are_told_before_their_logarithm_and_pure_numbers_without_a_unit():
    assert original("log_total_steps", math.log(1000.0)) == (pytest.approx(1000.0), "")
    assert original("loss_drop", 0.25) == (0.25, "")
    assert original("dtype_bits", 32.0) == (32.0, "bits")
    assert describe_change('{"optimizer": "adamw", "lr": 8, "hyperparameters": {}}') == "AdamW at 8 x reference"
    betas = '{"optimizer": "adamw", "lr": 8, "hyperparameters": {"betas": [0.9, 0.99]}}'
    assert describe_change(betas) == "AdamW at 8 x reference (betas (0.9, 0.99))"
