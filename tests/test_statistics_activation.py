"""Statistics of layers' inputs against float64 brute force, and hooks that leave no trace."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from autoopt.architecture import describe
from autoopt.statistics import activation
from autoopt.statistics.activation import activation_statistics, inputs_read


def read(model, *inputs):
    layers = describe(model).layers
    with inputs_read(model, layers) as found:
        model(*inputs)
    return found


def svd(matrix):
    return np.linalg.svd(np.asarray(matrix, dtype=np.float64), compute_uv=False)


def brute_force(rows, grad):
    """Every statistic from its definition, element by element or from a full decomposition."""
    singular, gradient = svd(rows), svd(grad)
    squares = [float(x) ** 2 for row in rows for x in row]
    input_stable_rank = sum(squares) / singular[0] ** 2
    frobenius = math.sqrt(sum(float(x) ** 2 for row in grad for x in row))
    return {
        "input_rms": math.sqrt(sum(squares) / len(squares)),
        "input_stable_rank": input_stable_rank,
        "dead_input_share": sum(all(x == 0 for x in column) for column in zip(*rows, strict=True)) / len(rows[0]),
        "spectral_advantage": (gradient.sum() / frobenius) ** 2 / input_stable_rank,
    }


@pytest.mark.parametrize(("fan_in", "fan_out", "num_rows"), [(9, 5, 30), (30, 7, 6), (4, 4, 4)])
def test_statistics_match_brute_force(fan_in, fan_out, num_rows):
    torch.manual_seed(fan_in)
    model = nn.Sequential(nn.Linear(3, fan_in), nn.ReLU(), nn.Linear(fan_in, fan_out), nn.ReLU(), nn.Linear(fan_out, 2))
    with torch.no_grad():
        model[0].bias[:2] = -100.0
    layers = describe(model).layers
    with inputs_read(model, layers) as inputs:
        model(torch.randn(num_rows, 3)).square().sum().backward()
    grads = {name: param.grad for name, param in model.named_parameters()}
    found = activation_statistics(layers, inputs, grads)
    assert set(found) == {"0.weight", "2.weight", "4.weight"}
    expected = brute_force(inputs["2.weight"].tolist(), model[2].weight.grad.tolist())
    assert expected["dead_input_share"] >= 2 / fan_in
    assert found["2.weight"] == pytest.approx(expected, rel=1e-5)
    assert "spectral_advantage" not in activation_statistics(layers, inputs, {})["2.weight"]


def test_the_advantage_is_that_of_one_step_on_a_linear_layer():
    """Where the criterion is exact: per-layer least descent bounds of both steps, at any input spectrum."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 8, generator=generator, dtype=torch.float64) * 0.5 ** torch.arange(8)
    grad = torch.randn(6, 8, generator=generator, dtype=torch.float64)
    nuclear, frobenius = svd(grad).sum(), math.sqrt(float(grad.square().sum()))
    # A step of size s lowers the loss by s |G|_dual - s^2 curvature / 2 (up to a shared factor).
    spectral = nuclear**2 / float(rows.square().sum())
    euclidean = frobenius**2 / svd(rows)[0] ** 2
    assert activation.spectral_advantage(grad, rows) == pytest.approx(spectral / euclidean)


@pytest.mark.parametrize("function", [activation.stable_rank, activation.nuclear_rank])
def test_ranks_are_1_for_outer_products_full_for_identities_and_free_of_scale(function):
    outer = torch.outer(torch.arange(1.0, 6.0), torch.arange(1.0, 9.0))
    assert function(outer) == pytest.approx(1, abs=1e-3)
    assert function(torch.eye(6, 9)) == pytest.approx(6)
    matrix = torch.randn(5, 9, generator=torch.Generator().manual_seed(1))
    assert function(matrix * 1e-30) == pytest.approx(function(matrix))
    assert all(math.isnan(function(bad)) for bad in (torch.zeros(3, 4), matrix * math.inf, torch.zeros(0, 4)))


@pytest.mark.parametrize(
    ("conv", "shape"),
    [
        (nn.Conv2d(3, 5, 3, stride=2, padding=1), (4, 3, 8, 8)),
        (nn.Conv2d(2, 4, (1, 3), dilation=(1, 2)), (3, 2, 5, 9)),
        (nn.Conv1d(2, 6, 4, stride=3, padding=2, dilation=2), (5, 2, 20)),
    ],
)
def test_rows_of_convolutions_are_the_patches_under_their_kernel(conv, shape):
    model = nn.Sequential(conv, nn.Flatten(), nn.LazyLinear(2))
    value = torch.randn(shape)
    model(value)
    rows = read(model, value)["0.weight"]
    products = rows @ conv.weight.detach().reshape(conv.out_channels, -1).T + conv.bias.detach()
    outputs = conv(value).detach().reshape(shape[0], conv.out_channels, -1).transpose(1, 2)
    assert torch.allclose(products, outputs.reshape(-1, conv.out_channels), atol=1e-5)


def test_many_rows_are_sampled_and_the_statistics_stay_near():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(700, 600), nn.Linear(600, 2))
    value = torch.randn(3, 1000, 700) * torch.linspace(0.1, 2, 700)
    layers = describe(model).layers
    with inputs_read(model, layers) as inputs:
        model(value).square().mean().backward()
    assert inputs["0.weight"].shape == (activation.MOST_ROWS, 700)
    grads = {name: param.grad for name, param in model.named_parameters()}
    row = activation_statistics(layers, inputs, grads)["0.weight"]
    assert row["input_rms"] == pytest.approx(float(value.square().mean().sqrt()), rel=0.02)
    whole = svd(value.reshape(-1, 700))
    assert 0.4 < row["input_stable_rank"] / (sum(whole**2) / whole[0] ** 2) <= 1.05
    assert activation.sampled(model[0].weight.grad).shape == (512, 512)


class Stubborn(nn.Module):
    """Calls a layer twice, overwrites activations in place, and counts its calls."""

    def __init__(self):
        super().__init__()
        self.shared, self.head, self.unused = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(9, 9)
        self.attention = nn.MultiheadAttention(4, 2)
        self.calls = 0

    def forward(self, x, fail=False):
        self.calls += 1
        hidden = self.shared(x)
        hidden = self.shared(hidden.relu_())
        hidden, _ = self.attention(hidden, hidden, hidden)
        if fail:
            raise RuntimeError("under hooks")
        return self.head(input=hidden.relu_())


def test_the_first_call_counts_and_in_place_operations_do_no_harm():
    torch.manual_seed(0)
    model, value = Stubborn(), torch.randn(6, 4)
    found = read(model, value)
    assert torch.equal(found["shared.weight"], value)
    assert torch.equal(found["head.weight"], found["head.weight"].clamp(min=0))
    # A projection that its attention multiplies with itself is not called, a layer without a use neither.
    assert "attention.out_proj.weight" not in found and "unused.weight" not in found


def hooks(model):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [len(getattr(module, kind)) for module in model.modules() for kind in kinds]


@pytest.mark.parametrize("fail", [False, True])
def test_hooks_are_gone_afterwards_and_outputs_are_what_they_were(fail):
    torch.manual_seed(0)
    model, value = Stubborn(), torch.randn(6, 4)
    plain = copy.deepcopy(model)(value.clone())
    if fail:
        with pytest.raises(RuntimeError, match="under hooks"), inputs_read(model, describe(model).layers):
            model(value, fail=True)
    else:
        with inputs_read(model, describe(model).layers):
            assert torch.equal(model(value), plain)
    assert not any(hooks(model))


@pytest.mark.parametrize("value", [torch.zeros(3, dtype=torch.long), torch.zeros(0, 4), torch.zeros(())])
def test_inputs_that_are_no_rows_are_left_alone(value):
    layer = describe(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))["0.weight"]
    assert activation.input_rows(layer, nn.Linear(4, 4), value) is None
