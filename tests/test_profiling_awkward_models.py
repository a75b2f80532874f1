"""Models and data that resist being profiled: exact restore, or an error that names what is wrong."""

import pytest
import torch
from small_models import Snapshot, batches, classifier, loss_fn, train
from torch import nn

import autoopt
from autoopt.errors import ProfileError
from autoopt.start_profile import EFFORTS, affordable, batches_wanted, measure_start

WARMUP, TOTAL = 5, 200


def recommend(model, predictor, data=None, loss=loss_fn, **options):
    data = batches(20) if data is None else data
    defaults = {"total_steps": TOTAL, "warmup_steps": WARMUP, "selector": predictor}
    return autoopt.recommend(model, batches=data, loss_fn=loss, **defaults | options)


class Wrapped(nn.Module):
    """The small classifier with a hindrance around it."""

    def __init__(self, hindrance):
        super().__init__()
        self.inner = classifier()
        self.hindrance = hindrance

    def forward(self, tokens):
        return self.hindrance(self, tokens)


def fails_in_eval(model, tokens):
    if not model.training:
        raise RuntimeError("this model only trains")
    return model.inner(tokens)


def fails_under_hooks(model, tokens):
    if any(module._forward_pre_hooks or module._forward_hooks for module in model.modules()):
        raise RuntimeError("hooks are not supported here")
    return model.inner(tokens)


def twice(model, tokens):
    return model.inner(tokens) + model.inner(tokens.flip(1))


def replaces_a_parameter(model, tokens):
    model.inner.head.weight = nn.Parameter(model.inner.head.weight.detach() * 1.0)
    return model.inner(tokens)


def moves_a_parameter(model, tokens):
    model.inner.head.weight.data = model.inner.head.weight.data * 1.0
    return model.inner(tokens)


def writes_to_a_parameter(model, tokens):
    with torch.no_grad():
        model.inner.hidden.bias.clamp_(-0.01, 0.01)
    return model.inner(tokens)


def freezes_batch_norm(model, tokens):
    model.inner.norm.eval()
    return model.inner(tokens)


def draws_from_all_generators(model, tokens):
    import random

    import numpy as np

    noise = torch.rand(()) + random.random() + np.random.rand()
    return model.inner(tokens) * (1 + 1e-3 * float(noise))


@pytest.mark.parametrize(
    "hindrance",
    [
        fails_in_eval,
        twice,
        replaces_a_parameter,
        moves_a_parameter,
        writes_to_a_parameter,
        freezes_batch_norm,
        draws_from_all_generators,
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_profiling_aside_leaves_no_trace(predictor, hindrance, training):
    model = Wrapped(hindrance).train(training)
    train(model.inner, torch.optim.SGD(model.parameters(), lr=0.1), batches(1))
    view = model.inner.head.weight[0]
    before = Snapshot(model)
    recommendation = recommend(model, predictor)
    before.assert_unchanged()
    assert set(recommendation.plan.layers) == set(before.tensors) - {name for name, _ in model.named_buffers()}
    with torch.no_grad():
        model.inner.head.weight[0, 0] = 42.0
    assert view[0] == 42.0


def test_a_model_that_fails_under_hooks_is_put_back_and_its_error_is_its_own(predictor):
    model = Wrapped(fails_under_hooks)
    before = Snapshot(model)
    with pytest.raises(RuntimeError, match="hooks are not supported here"):
        recommend(model, predictor)
    before.assert_unchanged()
    logits = model(next(batches(1))[0])
    assert logits.shape == (16, 5)


def test_measuring_repeats_whatever_generator_the_model_draws_from():
    model = Wrapped(draws_from_all_generators)
    architecture = autoopt.api.describe(model)
    first, second = (measure_start(model, loss_fn, list(batches(10)), architecture) for _ in range(2))
    assert first.layers == second.layers and first.problem == ""
    assert first.layers["inner.head.weight"]["measured_rate_adamw"] > 0


def test_a_parameter_that_grows_in_warm_up_is_named():
    model = classifier(sparse=False)
    optimizer = autoopt.select(model, total_steps=TOTAL, warmup_steps=WARMUP, selector="default")

    def grow(step):
        if step == 1:
            weight = model.hidden.weight
            weight.data = weight.data.repeat(1, 2)
            weight.grad = weight.grad.repeat(1, 2)

    with pytest.raises(ProfileError, match=r"'hidden.weight' has changed its shape from \(16, 8\) to \(16, 16\)"):
        train(model, optimizer, batches(3), grow)


def test_new_values_between_steps_are_measured_as_they_are():
    model = classifier(sparse=False)
    optimizer = autoopt.select(model, total_steps=TOTAL, warmup_steps=WARMUP, selector="default")

    def load(step):
        if step == WARMUP - 1:
            model.load_state_dict({key: value * 3 for key, value in classifier(1, False).state_dict().items()})
            optimizer.param_groups[0]["lr"] = 0.0

    train(model, optimizer, batches(WARMUP), load)
    rms = float(model.head.weight.detach().square().mean().sqrt())
    assert optimizer.recommendation.statistics["head.weight"]["param_rms"] == pytest.approx(rms, rel=1e-5)


def test_a_stream_that_cannot_start_again_is_read_once_and_no_further(predictor):
    drawn = []

    def stream():
        for batch in batches(100):
            drawn.append(None)
            yield batch

    source = stream()
    recommend(classifier(), predictor, source)
    assert len(drawn) == WARMUP
    with pytest.raises(ProfileError, match="ran out after 3 of 5"):
        recommend(classifier(), predictor, batches(3))


def test_16_bit_models_are_profiled_without_rates_and_it_is_said(predictor):
    model = classifier(sparse=False).bfloat16()
    before = Snapshot(model)
    recommendation = recommend(model, predictor, loss=lambda m, b: loss_fn(lambda x: m(x).float(), b))
    before.assert_unchanged()
    assert any("rates were not measured: 16-bit" in warning for warning in recommendation.warnings)
    row = recommendation.statistics["head.weight"]
    assert row["grad_rms"] > 0 and "measured_rate_adamw" not in row


def test_gradients_that_overflow_at_the_start_are_no_error(predictor):
    calls = []

    def overflows(model, batch):
        calls.append(None)
        loss = loss_fn(model, batch)
        return loss * torch.where(loss > 0, 1.0, loss) if len(calls) > 3 else _InfiniteGradient.apply(loss)

    recommendation = recommend(classifier(), predictor, loss=overflows)
    assert any("the gradients are not finite" in warning for warning in recommendation.warnings)
    assert recommendation.statistics["head.weight"]["grad_rms"] > 0


class _InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * torch.inf


# ---- cost ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "warmup", "most"), [(None, 20, 60), (60, 20, 60), (200, 20, 200), (25, 20, 25)])
def test_profiling_aside_takes_no_more_passes_than_it_may(predictor, steps, warmup, most):
    calls = []

    def counted(model, batch):
        calls.append(None)
        return loss_fn(model, batch)

    model = classifier()
    found = recommend(model, predictor, batches(30), counted, warmup_steps=None, profile_steps=steps)
    assert found.profile["warmup_steps"] == warmup
    assert found.profile["start_passes"] + warmup == len(calls) <= most
    assert ("measured_rate_adamw" in found.statistics["head.weight"]) == (most >= 60)
    assert any("too few" in warning for warning in found.warnings) == (most < 60)


def test_a_few_steps_may_be_all_that_is_allowed(predictor):
    found = recommend(classifier(), predictor, warmup_steps=None, profile_steps=7)
    assert found.profile["warmup_steps"] == 7 and found.profile["start_passes"] == 0


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True])
def test_an_impossible_allowance_is_refused(predictor, wrong):
    with pytest.raises(ValueError, match="profile_steps must be a positive whole number"):
        recommend(classifier(), predictor, profile_steps=wrong)


@pytest.mark.parametrize("effort", EFFORTS)
def test_efforts_take_what_they_promise(effort):
    model = classifier()
    architecture = autoopt.api.describe(model)
    promised = effort.num_passes(architecture.layers)
    chosen = affordable(promised, effort.num_batches, architecture.layers)
    assert chosen is not None and chosen.num_passes(architecture.layers) <= promised
    found = measure_start(model, loss_fn, list(batches(effort.num_batches)), architecture, max_passes=promised)
    assert found.num_passes == chosen.num_passes(architecture.layers) and found.seconds > 0
    assert batches_wanted(promised, architecture) <= EFFORTS[0].num_batches
    assert batches_wanted(1, architecture) == 0
