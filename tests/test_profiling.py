"""Profiling aside leaves no trace: parameters, buffers, gradients, modes and random generators."""

import random

import numpy as np
import pytest
import torch
from small_models import Snapshot, batches, classifier, loss_fn, parameters, train
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import autoopt
from autoopt import AutoOptimizer

WARMUP, TOTAL = 5, 12


class Restless(nn.Module):
    """Uses everything that a careless profile would leave changed."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 4, 3)
        self.batch_norm = nn.BatchNorm1d(4)
        self.frozen_norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 3)
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("latest", torch.zeros(4), persistent=False)
        self.register_buffer("never", None)
        self.frozen_norm.eval()

    def forward(self, x):
        x = x + random.random() + float(np.random.rand())
        x = self.frozen_norm(self.batch_norm(self.conv(x[:, None])))
        self.calls += 1
        self.latest = x.mean((0, 2)).detach()  # another tensor, not another value
        return self.head(self.drop(torch.relu(x)).mean(2)) + self.frozen


def restless():
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    model = Restless()
    model.head.weight.grad = torch.full((3, 4), -0.0)
    model.batch_norm.bias.grad = torch.tensor([float("nan"), 1.0, 2.0, 3.0])
    return model


def examples(count):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        yield torch.randn(8, 10, generator=generator), torch.randint(3, (8,), generator=generator)


def restless_loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def recommend(model, predictor, data, loss=restless_loss, **options):
    return autoopt.recommend(
        model,
        **{"batches": data, "loss_fn": loss, "total_steps": TOTAL, "warmup_steps": WARMUP, "selector": predictor}
        | options,
    )


def test_everything_is_put_back_bit_by_bit(predictor):
    model = restless()
    before = Snapshot(model)
    recommendation = recommend(model, predictor, examples(WARMUP))
    before.assert_unchanged()
    assert recommendation.profile["mode"] == "aside"
    assert recommendation.profile["warmup_steps"] == WARMUP
    assert set(recommendation.plan.layers) == {n for n, p in model.named_parameters() if p.requires_grad}


def test_profiling_does_train_meanwhile(predictor):
    model = restless()
    start = model.conv.weight.detach().clone()
    seen = []

    def watching(model, batch):
        seen.append((model.conv.weight.detach().clone(), model.training, model.conv.weight.grad))
        return restless_loss(model, batch)

    profile = recommend(model, predictor, examples(WARMUP), watching).profile
    assert len(seen) == profile["start_passes"] + WARMUP and profile["start_passes"] > 10
    steps = seen[profile["start_passes"] :]
    assert torch.equal(seen[0][0], start) and torch.equal(steps[0][0], start)
    assert not torch.equal(steps[-1][0], start)
    assert all(training for _, training, _ in seen)


@pytest.mark.parametrize("fails_at", [0, 1, 3, 12, 16, 19])  # measured at the start, then in 5 steps
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_everything_is_put_back_when_loss_fn_raises(predictor, fails_at, error):
    model = restless()
    before = Snapshot(model)
    calls = []

    def breaking(model, batch):
        loss = restless_loss(model, batch)
        calls.append(loss)
        if len(calls) > fails_at:
            raise error("in the middle of a step")
        return loss

    with pytest.raises(error, match="in the middle"):
        recommend(model, predictor, examples(WARMUP), breaking)
    before.assert_unchanged()


def test_everything_is_put_back_when_the_batches_raise(predictor):
    def broken():
        yield from examples(2)
        raise OSError("the disk is gone")

    model = restless()
    before = Snapshot(model)
    with pytest.raises(OSError, match="disk"):
        recommend(model, predictor, broken())
    before.assert_unchanged()


def test_sparse_gradients_are_put_back(predictor):
    model = classifier()
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), batches(1))
    assert model.embedding.weight.grad.is_sparse
    before = Snapshot(model)
    recommend(model, predictor, batches(WARMUP), loss_fn)
    before.assert_unchanged()


def test_a_model_in_eval_mode_is_profiled_in_train_mode_and_stays_in_eval_mode(predictor):
    model = restless().eval()
    before = Snapshot(model)
    recommend(model, predictor, examples(WARMUP))
    before.assert_unchanged()
    assert not model.training


def test_views_of_parameters_stay_valid(predictor):
    model = restless()
    view = model.head.weight[0]
    recommend(model, predictor, examples(WARMUP))
    with torch.no_grad():
        model.head.weight[0, 0] = 42.0
    assert view[0] == 42.0


def test_a_generator_is_read_no_further_than_needed(predictor):
    stream = examples(WARMUP + 3)
    recommend(restless(), predictor, stream)
    assert len(list(stream)) == 3


def test_a_shuffling_loader_draws_from_the_generators_that_are_put_back(predictor):
    inputs, labels = next(examples(1))
    loader = DataLoader(TensorDataset(inputs.repeat(6, 1), labels.repeat(6)), batch_size=8, shuffle=True)
    model = restless()
    before = Snapshot(model)
    recommend(model, predictor, loader)
    before.assert_unchanged()


def test_profiles_repeat(predictor):
    model = restless()
    first, second = (recommend(model, predictor, examples(WARMUP)) for _ in range(2))
    assert first.plan == second.plan
    assert first.statistics == second.statistics
    assert first.statistics["conv.weight"]["grad_rms"] > 0


def test_training_after_a_profile_is_training_without_one(predictor):
    profiled, plain = classifier(), classifier()
    torch.manual_seed(3)
    optimizer = autoopt.select(
        profiled,
        total_steps=TOTAL,
        warmup_steps=WARMUP,
        batches=batches(WARMUP, seed=8),
        loss_fn=loss_fn,
        selector=predictor,
    )
    assert optimizer.phase == "selected" and optimizer.recommendation.plan == optimizer.plan
    train(profiled, optimizer, batches(TOTAL))
    torch.manual_seed(3)
    train(plain, AutoOptimizer.from_plan(plain, optimizer.plan), batches(TOTAL))
    assert parameters(profiled) == parameters(plain)


def test_online_and_aside_measure_the_same_gradients(predictor):
    """On the same weights, batches and random numbers, both ways of profiling see one thing."""
    online, aside = classifier(), classifier()
    torch.manual_seed(3)
    optimizer = autoopt.select(online, total_steps=TOTAL, warmup_steps=WARMUP, selector=predictor)
    train(online, optimizer, batches(WARMUP))
    torch.manual_seed(3)
    recommendation = recommend(aside, predictor, batches(WARMUP), loss_fn)
    measured = optimizer.recommendation
    assert recommendation.plan == measured.plan
    for name, row in measured.statistics.items():
        assert {key: recommendation.statistics[name].get(key) for key in row} == row, name
