"""skorch: pipelines, grid search, pickling and saved parameters with a selected optimizer."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from integration_models import WARMUP
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from small_models import parameters
from synthetic_selector import synthetic_predictor
from torch import nn

import autoopt
from autoopt.integrations import when_decided
from autoopt.integrations.skorch import SelectedClassifier, SelectedRegressor

EPOCHS, BATCH = 3, 64


class Net(nn.Module):
    def __init__(self, width=16, outputs=10):
        super().__init__()
        self.hidden = nn.Linear(64, width)
        self.head = nn.Linear(width, outputs)

    def forward(self, x):
        return self.head(torch.relu(self.hidden(x)))


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return (x[:600] / 16).astype(np.float32), y[:600].astype(np.int64)


def net(kind=SelectedClassifier, **options):
    torch.manual_seed(0)
    settings = {
        "criterion": nn.CrossEntropyLoss,
        "max_epochs": EPOCHS,
        "batch_size": BATCH,
        "verbose": 0,
        "optimizer__warmup_steps": WARMUP,
        "optimizer__selector": synthetic_predictor(),
    }
    return kind(Net, **settings | options)


def steps_of(examples):
    return EPOCHS * math.ceil(examples / BATCH)


def test_fit_selects_for_the_module_and_knows_the_length_of_the_run(digits):
    fitted = net().fit(*digits)
    optimizer = fitted.optimizer_
    assert isinstance(optimizer, autoopt.AutoOptimizer) and optimizer.phase == "selected"
    assert list(optimizer.plan.layers) == [name for name, _ in fitted.module_.named_parameters()]
    roles = {layer.name: layer.role for layer in optimizer.recommendation.layers}
    assert (roles["hidden.weight"], roles["head.weight"]) == ("matrix", "head")
    total = steps_of(480)  # skorch keeps a fifth for validation
    assert fitted.run_facts_ == {"total_steps": total, "num_examples": 480}
    assert optimizer.param_groups[0]["step"] == total
    assert optimizer.plan.schedule.factor(total - 1) > 0 == optimizer.plan.schedule.factor(total)
    losses = fitted.history[:, "train_loss"]
    assert losses[-1] < losses[0]


def test_it_trains_as_select_in_a_plain_loop(digits):
    x, y = (torch.from_numpy(part) for part in digits)
    ours = net(train_split=None)
    ours.initialize()
    plain = copy.deepcopy(ours.module_)
    ours.set_params(warm_start=True, optimizer__total_steps=steps_of(600))
    ours.fit(x, y)
    optimizer = autoopt.select(plain, total_steps=steps_of(600), warmup_steps=WARMUP, selector=synthetic_predictor())
    for _ in range(EPOCHS):
        for start in range(0, len(x), BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(plain(x[start : start + BATCH]), y[start : start + BATCH]).backward()
            optimizer.step()
    assert parameters(ours.module_) == parameters(plain)


def test_a_given_number_of_steps_is_kept_and_partial_fit_leaves_it_unknown(digits):
    kept = net(optimizer__total_steps=500).fit(*digits)
    assert kept.optimizer_.plan.schedule.factor(499) > 0
    unknown = net().partial_fit(*digits)
    assert any("total_steps is unknown" in warning for warning in unknown.optimizer_.recommendation.warnings)


def test_a_run_that_is_shorter_than_its_warmup_is_refused(digits):
    with pytest.raises(ValueError, match="warmup_steps"):
        net(optimizer__warmup_steps=1000).fit(*digits)


def test_a_pipeline_is_searched_over(digits):
    pipeline = make_pipeline(StandardScaler(), net())
    grid = {
        "selectedclassifier__module__width": [8, 16],
        "selectedclassifier__optimizer__candidates": [None, ["adamw"]],
    }
    search = GridSearchCV(pipeline, grid, cv=2, scoring="accuracy").fit(*digits)
    assert len(search.cv_results_["params"]) == 4 and np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_score_ > 0.5  # of ten classes
    best = search.best_estimator_[-1]
    wanted = search.best_params_["selectedclassifier__optimizer__candidates"]
    used = {config.optimizer for config in best.optimizer_.plan.layers.values()}
    assert used == ({"adamw"} if wanted else {"adamw", "muon"})


def test_setting_arguments_of_select_selects_anew(digits):
    fitted = net().fit(*digits)
    fitted.set_params(optimizer__candidates=["adamw"])
    assert fitted.optimizer_.phase == "warmup"
    assert {config.optimizer for config in fitted.optimizer_.plan.layers.values()} == {"adamw"}


def test_clones_start_anew(digits):
    fitted = net().fit(*digits)
    other = clone(fitted)
    assert not hasattr(other, "optimizer_") and other.get_params()["optimizer"] is autoopt.select


def test_pickles_and_copies_predict_and_train_on(digits):
    fitted = net().fit(*digits)
    for other in (pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted)):
        assert np.array_equal(other.predict(digits[0]), fitted.predict(digits[0]))
        assert other.optimizer_.plan == fitted.optimizer_.plan
        before = other.optimizer_.param_groups[0]["step"]
        other.partial_fit(*digits)
        assert other.optimizer_.param_groups[0]["step"] == before + steps_of(480)


def test_saved_parameters_go_on(digits, tmp_path):
    fitted = net().fit(*digits)
    files = {"f_params": tmp_path / "params.pt", "f_optimizer": tmp_path / "optimizer.pt"}
    fitted.save_params(**files)
    other = net().initialize()
    other.load_params(**files)
    assert other.optimizer_.phase == "selected" and other.optimizer_.plan == fitted.optimizer_.plan
    assert parameters(other.module_) == parameters(fitted.module_)


def test_the_recommendation_of_a_fit_is_told(digits):
    told = []

    class Telling(SelectedClassifier):
        def initialize_optimizer(self, triggered_directly=None):
            super().initialize_optimizer()
            when_decided(self.optimizer_, lambda recommendation, step: told.append(step))
            return self

    net(Telling).fit(*digits)
    assert told == [WARMUP]


class Weighted(nn.Module):
    """A criterion with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, prediction, target):
        error = nn.functional.mse_loss(prediction, target)
        return error * torch.exp(-self.log_scale) + self.log_scale


def test_a_regressor_trains_its_criterions_parameters_too(digits):
    x, y = digits
    fitted = net(SelectedRegressor, criterion=Weighted, module__outputs=1).fit(x, y[:, None].astype(np.float32))
    assert "criterion.log_scale" in fitted.optimizer_.plan.layers
    assert fitted.criterion_.log_scale.item() != 0
