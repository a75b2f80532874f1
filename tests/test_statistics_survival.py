"""What real training loops do to gradients does not spoil what the warm-up measures."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from small_models import batches, classifier, loss_fn
from torch import nn

import autoopt
from autoopt import AutoOptimizer
from autoopt.selection import OnlineSelection
from autoopt.statistics.warmup import WarmupStatistics

WARMUP = 20


class Watched:
    """A selected optimizer whose measured statistics are kept."""

    def __init__(self, model, monkeypatch, predictor):
        self.found = None

        def keep(selection, optimizer):
            self.found = measure(selection, optimizer)
            return self.found

        measure = OnlineSelection.measure
        monkeypatch.setattr(OnlineSelection, "measure", keep)
        self.model = model
        self.optimizer = autoopt.select(model, total_steps=400, warmup_steps=WARMUP, selector=predictor)

    def train(self, step=None, num_steps=WARMUP, data=None):
        """One `step(index, batch)` for each batch; plain training where it is not given."""
        for index, batch in enumerate(data or batches(num_steps)):
            (step or self.plain)(index, batch)
        return self.found

    def plain(self, index, batch):
        self.optimizer.zero_grad()
        loss_fn(self.model, batch).backward()
        self.optimizer.step()


@pytest.fixture
def watched(monkeypatch, predictor):
    return lambda model: Watched(model, monkeypatch, predictor)


def assert_alike(found, expected, rel):
    assert found.layers.keys() == expected.layers.keys() and found.missing == expected.missing
    for name, row in expected.layers.items():
        assert found.layers[name] == pytest.approx(row, rel=rel, abs=rel), name


def without_noise(model):
    """Batch statistics and dropout make a batch another thing than its halves."""
    model.norm = nn.LayerNorm(16)
    model.drop = nn.Identity()
    return model


def without(statistics, name):
    """The statistics with one left out of every layer."""
    layers, missing = (
        {layer: {key: value for key, value in row.items() if key != name} for layer, row in rows.items()}
        for rows in (statistics.layers, statistics.missing)
    )
    return replace(statistics, layers=layers, missing={layer: row for layer, row in missing.items() if row})


def test_accumulated_micro_batches_are_one_batch(watched):
    whole, parts = (watched(without_noise(classifier(sparse=False))) for _ in range(2))

    def accumulate(index, batch):
        parts.optimizer.zero_grad()
        for tokens, labels in zip(*(part.chunk(4) for part in batch), strict=True):
            (loss_fn(parts.model, (tokens, labels)) / 4).backward()
        parts.optimizer.step()

    expected, found = whole.train(), parts.train(accumulate)
    assert_alike(without(found, "two_batch_noise_ratio"), expected, 1e-2)  # which a whole batch does not tell
    for key in ("batch_size", "batch_outputs"):
        assert expected.task[key] == found.task[key] == 16.0
    assert (expected.task["micro_batches"], found.task["micro_batches"]) == (1.0, 4.0)
    assert found.task["noise_scale"] == pytest.approx(expected.task["noise_scale"], rel=1e-2)


@pytest.mark.parametrize("divided", [True, False])
@pytest.mark.parametrize("num_parts", [2, 4])
def test_micro_batches_tell_the_noise_scale(watched, num_parts, divided):
    """Against the unbiased estimator of gradients taken by themselves in float64."""
    run = watched(without_noise(classifier(sparse=False)))
    small, big = {}, {}

    def accumulate(index, batch):
        parts = list(zip(*(part.chunk(num_parts) for part in batch), strict=True))
        twin = copy.deepcopy(run.model).double()
        named = dict(twin.named_parameters())
        if index > 1:  # the first step counts the passes, and hooks come within the second
            for sums, data in ((small, parts[0]), (big, batch)):
                grads = torch.autograd.grad(loss_fn(twin, data), list(named.values()))
                for name, grad in zip(named, grads, strict=True):
                    sums[name] = sums.get(name, 0.0) + float(grad.square().sum())
        run.optimizer.zero_grad()
        for part in parts:
            (loss_fn(run.model, part) / (num_parts if divided else 1)).backward()
        run.optimizer.step()

    found = run.train(accumulate)
    for name, values in found.layers.items():
        square = (num_parts * big[name] - small[name]) / (num_parts - 1)
        trace = (small[name] - big[name]) / (1 - 1 / num_parts)
        if square > 0:
            assert values["two_batch_noise_ratio"] == pytest.approx(max(trace, 0) / square / num_parts, rel=1e-3)
        else:
            assert "mostly noise" in found.missing[name]["two_batch_noise_ratio"]
    assert found.task["two_batch_noise_scale"] == pytest.approx(16 * found.task["two_batch_noise_ratio"])
    run.plain(WARMUP, next(iter(batches(1))))
    assert not any(param._post_accumulate_grad_hooks for param in run.model.parameters())


def test_a_step_of_one_backward_pass_has_no_hooks_and_no_noise_scale(watched):
    run = watched(classifier())
    found = run.train()
    assert "two_batch_noise_ratio" not in found.task
    assert not any(param._post_accumulate_grad_hooks for param in run.model.parameters())


def test_backward_passes_are_counted_until_the_first_step_only(watched):
    run = watched(classifier())
    hooks = run.model.head.weight._post_accumulate_grad_hooks
    assert len(hooks) == 1
    copy.deepcopy(run.model)
    run.train(num_steps=2)
    assert not hooks


def test_a_loss_scaler_changes_nothing_and_its_skipped_steps_are_no_steps(watched):
    plain, scaled = (watched(classifier()) for _ in range(2))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=10**6)
    attempts = []

    def scaled_step(index, batch):
        while True:
            scaled.optimizer.zero_grad()
            state = torch.get_rng_state()
            attempts.append(index)
            loss = loss_fn(scaled.model, batch)
            overflow = len(attempts) in (4, 9)
            scaler.scale(loss * float("inf") if overflow else loss).backward()
            scaler.step(scaled.optimizer)
            scaler.update()
            if not overflow:
                return
            torch.set_rng_state(state)

    expected = plain.train()
    torch.manual_seed(1)
    scaled.model.norm.momentum = plain.model.norm.momentum
    found = scaled.train(scaled_step)
    assert len(attempts) == WARMUP + 2 and found.task["num_nonfinite_steps"] == 0
    assert_alike(found, expected, 1e-5)


def test_clipping_scales_what_has_a_scale_and_nothing_else(watched):
    plain, clipped = (watched(classifier()) for _ in range(2))
    for run in (plain, clipped):
        for group in run.optimizer.param_groups:
            group["lr"] = 0.0

    def clip(index, batch):
        clipped.optimizer.zero_grad()
        loss_fn(clipped.model, batch).backward()
        for param in clipped.model.parameters():
            param.grad.mul_(0.125)
        clipped.optimizer.step()

    expected = plain.train()
    torch.manual_seed(1)
    found = clipped.train(clip)
    for name, row in expected.layers.items():
        scaled = {key: row[key] / 8 for key in ("grad_rms", "grad_to_param") if key in row}
        assert found.layers[name] == pytest.approx(row | scaled, rel=1e-4, abs=1e-6), name
    torch.manual_seed(1)
    third = watched(classifier(sparse=False))
    norms = []

    def torch_clip(index, batch):
        third.optimizer.zero_grad()
        loss_fn(third.model, batch).backward()
        norms.append(nn.utils.clip_grad_norm_(third.model.parameters(), 0.01))
        third.optimizer.step()

    squares = [row["grad_rms"] ** 2 for row in third.train(torch_clip).layers.values()]
    assert min(norms) > 0.01 and max(squares) <= 0.01**2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_are_measured_like_float32(watched, dtype):
    plain, other = (watched(without_noise(classifier(sparse=False))) for _ in range(2))
    other.model.to(dtype)
    expected = plain.train()
    found = other.train()
    assert found.task["dtype_bits"] == torch.finfo(dtype).bits
    tolerance = 0.15 if dtype is torch.bfloat16 else 1e-3
    for name, row in expected.layers.items():
        for key in ("grad_rms", "param_rms", "norm_share"):
            assert found.layers[name][key] == pytest.approx(row[key], rel=tolerance), (name, key)


def test_a_layer_that_thaws_in_warm_up_is_measured_from_then_on(watched):
    run = watched(classifier())
    run.model.hidden.requires_grad_(False)

    def step(index, batch):
        if index == 12:
            run.model.hidden.requires_grad_(True)
        run.plain(index, batch)

    found = run.train(step)
    assert found.layers["hidden.weight"]["grad_rms"] > 0 and "step_cosine" in found.layers["hidden.weight"]
    assert run.optimizer.phase == "selected"


def test_a_layer_that_freezes_before_it_was_seen_is_missing_and_said_to_be(watched):
    run = watched(classifier())
    run.model.head.requires_grad_(False)
    found = run.train()
    assert "head.weight" not in found.layers
    assert "no gradient" in found.missing["head.weight"]["*"]
    assert "head" in " ".join(run.optimizer.recommendation.warnings)


def test_a_layer_frozen_at_selection_is_measured_once_its_group_joins(watched):
    model = classifier()
    model.head.requires_grad_(False)
    run = watched(model)

    def step(index, batch):
        if index == 6:
            model.head.requires_grad_(True)
            run.optimizer.add_param_group({"params": list(model.head.named_parameters(prefix="head"))})
        run.plain(index, batch)

    found = run.train(step)
    assert found.layers["head.weight"]["grad_rms"] > 0 and "step_cosine" in found.layers["head.weight"]
    assert set(run.optimizer.plan.layers) == {name for name, _ in model.named_parameters()}


def test_layers_used_in_some_steps_only(watched):
    class Either(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 5)
            self.calls = 0

        def forward(self, tokens):
            self.calls += 1
            branch = self.first if self.calls % 3 else self.second
            return self.head(torch.relu(branch(tokens.float())))

    torch.manual_seed(0)
    run = watched(Either())
    found = run.train()
    # Of the steps looked at (0, 1, 8, 9, 16, 17), the second branch is used in 8 and 17.
    assert found.layers["second.weight"]["grad_rms"] > 0 and "step_cosine" not in found.layers["second.weight"]
    assert "step_cosine" in found.missing["second.weight"] and "step_cosine" in found.layers["first.weight"]
    assert all(math.isfinite(value) for row in found.layers.values() for value in row.values())


def test_the_value_is_frozen_and_goes_through_json(watched):
    found = watched(classifier()).train()
    assert WarmupStatistics.from_json(found.to_json()) == found
    with pytest.raises(AttributeError):
        found.num_steps = 3
    frame = found.to_frame()
    assert set(frame.index) == set(found.layers) and not frame.isna().all(axis=None)


def test_an_optimizer_without_selection_measures_nothing():
    model = classifier(sparse=False)
    optimizer = AutoOptimizer(model.named_parameters())
    loss_fn(model, next(batches(1))).backward()
    optimizer.step()
    assert not any(key.startswith("warmup_") for state in optimizer.state.values() for key in state)
