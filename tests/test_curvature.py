"""Measured curvature and rates against exact Hessians, and what measuring leaves behind."""

import copy
import math

import pytest
import torch
from torch import nn

from autoopt.architecture import describe
from autoopt.errors import ProfileError
from autoopt.optimizers.reference import reference_lr
from autoopt.statistics.curvature import hutchinson_traces, measure_curvature, sharpness
from autoopt.statistics.direction import FAMILIES, update_direction
from autoopt.statistics.probe import Probe
from autoopt.statistics.warmup import WarmupStatistics


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def regression(seed=0):
    """A linear model under squared loss: its loss is quadratic, so finite differences are exact."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)).double()
    model[1].requires_grad_(False)
    teacher = torch.randn(5, 3, dtype=torch.float64)
    batches = []
    for _ in range(10):
        inputs = torch.randn(16, 5, dtype=torch.float64)
        batches.append((inputs, inputs @ teacher + 0.1 * torch.randn(16, 3, dtype=torch.float64)))
    return model, batches


def squared_loss(model, batch):
    inputs, targets = batch
    return (model(inputs) - targets).square().mean()


def exact(model, loss_fn, batches, params):
    """The mean gradient and Hessian of the loss over the batches, flat."""
    loss = sum(loss_fn(model, batch) for batch in batches) / len(batches)
    grads = torch.autograd.grad(loss, params, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in grads])
    rows = [torch.cat([h.reshape(-1) for h in torch.autograd.grad(g, params, retain_graph=True)]) for g in flat]
    return flat.detach(), torch.stack(rows)


def test_rates_match_the_exact_hessian():
    model, batches = regression()
    layers = describe(model).layers
    params = [dict(model.named_parameters())[layer.name] for layer in layers]
    found = measure_curvature(model, squared_loss, batches, layers, seed=1)
    per_batch = [torch.autograd.grad(squared_loss(model, b), params) for b in batches[:8]]
    stacks = [torch.stack(grads) for grads in zip(*per_batch, strict=True)]
    grad, hessian = exact(model, squared_loss, batches[8:], params)
    for group, directions in found.directions.items():
        for family, measured in directions.items():
            parts = [
                update_direction(family, layer, stack.mean(0), stack.square().mean(0))
                if layer.group == group
                else torch.zeros(layer.shape)
                for layer, stack in zip(layers, stacks, strict=True)
            ]
            u = torch.cat([part.double().reshape(-1) for part in parts])
            slope, curvature = float(u @ grad), float(u @ hessian @ u)
            assert measured.slope == pytest.approx(slope, rel=1e-3, abs=1e-4)
            assert measured.curvature == pytest.approx(curvature, rel=1e-3)
            expected = slope / curvature if slope > 0 else math.nan
            assert measured.rate == pytest.approx(expected, rel=1e-2, nan_ok=True)
    assert set(found.directions["vector"]) == {"sgd", "adamw", "lion"}
    assert set(found.directions["matrix"]) == set(FAMILIES)
    assert found.num_passes == 8 + 2 * (1 + 7 + 2)


def test_the_measured_rate_minimises_the_loss_along_the_update():
    model, batches = regression()
    layers = describe(model).layers
    weight = model[0].weight
    found = measure_curvature(model, squared_loss, batches, layers).directions["matrix"]["sgd"]
    mean = torch.stack([torch.autograd.grad(squared_loss(model, b), weight)[0] for b in batches[:8]]).mean(0)
    layer = next(la for la in layers if la.name == "0.weight")
    update = update_direction("sgd", layer, mean, mean.square())

    def loss_at(rate):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            moved[0].weight.sub_(rate * update)
        return sum(squared_loss(moved, b).item() for b in batches[8:])

    best = loss_at(found.rate)
    assert best < loss_at(0.9 * found.rate) and best < loss_at(1.1 * found.rate) and best < loss_at(0.0)


def test_traces_and_sharpness_match_the_exact_hessian():
    model, batches = regression()
    layers = describe(model).layers
    params = [dict(model.named_parameters())[layer.name] for layer in layers]
    _, hessian = exact(model, squared_loss, batches[:1], params)
    probe = Probe(model, squared_loss, batches[:1], params)
    traces = hutchinson_traces(probe, probe.gradient(), layers, 150, seed=0)
    start = 0
    for layer in layers:
        block = hessian[start : start + layer.numel, start : start + layer.numel]
        assert traces[layer.name] == pytest.approx(float(block.trace()), rel=0.2)
        start += layer.numel
    expected = float(torch.linalg.eigvalsh(hessian)[-1])
    assert sharpness(probe, 40) == pytest.approx(expected, rel=1e-2)


class Awkward(nn.Module):
    """Everything that measuring could disturb or trip over."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 8, sparse=True)
        self.norm = nn.BatchNorm1d(8)
        self.hidden = nn.Linear(8, 8)
        self.unused = nn.Linear(3, 3)
        self.head = nn.Linear(8, 4)

    def forward(self, tokens):
        hidden = nn.functional.dropout(self.norm(self.embedding(tokens).mean(1)), 0.3, self.training)
        return self.head(torch.tanh(self.hidden(hidden)))


def cross_entropy(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def token_batches(count=6):
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randint(20, (12, 3), generator=generator), torch.randint(4, (12,), generator=generator))
        for _ in range(count)
    ]


def test_nothing_is_left_behind_and_dropout_is_the_same_each_time():
    torch.manual_seed(0)
    model = Awkward()
    model.head.weight.grad = torch.ones(4, 8)
    before = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    layers = describe(model).layers
    first = measure_curvature(model, cross_entropy, token_batches(), layers, seed=3)
    assert torch.equal(torch.get_rng_state(), random)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert model.training and torch.equal(model.head.weight.grad, torch.ones(4, 8))
    assert model.hidden.weight.grad is None
    assert measure_curvature(model, cross_entropy, token_batches(), layers, seed=3) == first
    assert set(first.directions) == {"embedding", "matrix", "head", "vector"}
    assert math.isfinite(first.directions["head"]["adamw"].rate)


def test_a_raising_loss_leaves_the_model_as_it_was():
    model = Awkward()
    before = copy.deepcopy(model.state_dict())
    calls = []

    def loss_fn(model, batch):
        calls.append(1)
        if len(calls) > 9:
            raise RuntimeError("out of memory")
        return cross_entropy(model, batch)

    with pytest.raises(RuntimeError, match="out of memory"):
        measure_curvature(model, loss_fn, token_batches(), describe(model).layers)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_layer_values_merge_into_warmup_statistics():
    model, batches = regression()
    layers = describe(model).layers
    found = measure_curvature(model, squared_loss, batches, layers)
    values = found.layer_values(layers)
    assert values["0.weight"]["measured_rate_muon"] == found.directions["matrix"]["muon"].rate
    assert values["0.weight"]["curvature_mean"] == pytest.approx(found.traces["0.weight"] / 20)
    assert "measured_rate_muon" not in values["0.bias"]
    merged = WarmupStatistics({"0.weight": {"grad_rms": 1.0}}).with_layer_values(values)
    assert merged.layers["0.weight"] == {"grad_rms": 1.0} | values["0.weight"]


def test_update_directions_are_those_of_the_optimizers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(200, 30), nn.ReLU(), nn.Linear(30, 2))
    layer = describe(model)["0.weight"]
    grad = torch.randn(30, 200)
    classes = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW, "muon": torch.optim.Muon}
    for family, optimizer in classes.items():
        weight = nn.Parameter(model[0].weight.detach().clone())
        weight.grad = grad.clone()
        optimizer([weight], lr=1e-2, weight_decay=0.0).step()
        step = (model[0].weight.detach() - weight.detach()) / 1e-2
        update = update_direction(family, layer, grad, grad.square()) / reference_lr(family, layer)
        close = torch.nn.functional.cosine_similarity(step.flatten(), update.flatten(), dim=0)
        assert float(close) > 0.999 and float(update.norm() / step.norm()) == pytest.approx(1, rel=0.02)
    assert torch.equal(update_direction("lion", layer, grad, grad).sign(), grad.sign())
    with pytest.raises(ValueError, match="unknown family 'soap'"):
        update_direction("soap", layer, grad, grad)


def test_unusable_input_is_refused():
    model, batches = regression()
    layers = describe(model).layers
    with pytest.raises(ProfileError, match="at least num_probe_batches"):
        measure_curvature(model, squared_loss, batches[:2], layers)
    with pytest.raises(ProfileError, match="no parameter named '0.weight'"):
        measure_curvature(nn.Linear(2, 2), squared_loss, batches, layers)
    with pytest.raises(ProfileError, match="scalar tensor"):
        measure_curvature(model, lambda m, b: (m(b[0]) - b[1]).square(), batches, layers)
    with pytest.raises(ProfileError, match="not finite"):
        measure_curvature(model, lambda m, b: squared_loss(m, b) * math.nan, batches, layers)
