"""The Muon kernel: the reference's singular values on every shape, and blocks stepped as if they were apart."""

import pytest
import torch
from torch import nn
from torch.optim._muon import _zeropower_via_newtonschulz

from autoopt.optimizers import muon
from autoopt.optimizers.auto_optimizer import AutoOptimizer
from autoopt.optimizers.muon import EPS, NS_COEFFICIENTS, NS_STEPS, Muon, orthogonalize
from autoopt.optimizers.plan import OptimizerConfig, OptimizerPlan

SMALL = [(48, 48), (40, 48), (48, 40), (48, 96), (96, 48), (16, 400), (400, 16), (1, 64), (64, 1), (2, 9000), (9000, 2)]
LARGE = [(256, 256), (280, 256), (256, 520), (128, 1024), (1024, 128), (16, 8192), (4, 20_000), (20_000, 4)]
"""Shapes whose products are taken in float32 and in bfloat16."""
SPECTRA = {
    "even": lambda count: torch.linspace(0.8, 1.2, count, dtype=torch.float64),
    "geometric": lambda count: torch.logspace(0, -5, count, dtype=torch.float64),
    "one large": lambda count: torch.cat([torch.ones(1), torch.full((count - 1,), 1e-3)]).double(),
    "low rank": lambda count: (torch.arange(count) < max(1, count // 4)).double(),
}


PEAK = 1.203
"""The largest value that five exact steps make of any number in (0, 1]."""


def matrix(shape, spectrum):
    """A matrix with known singular values."""
    generator = torch.Generator().manual_seed(0)
    count = min(shape)
    left, right = (
        torch.linalg.qr(torch.randn(size, count, generator=generator, dtype=torch.float64))[0] for size in shape
    )
    return (left * SPECTRA[spectrum](count)) @ right.mT


def exact_values(values):
    """What the iteration makes of singular values: the same polynomial, on numbers."""
    a, b, c = NS_COEFFICIENTS
    values = values / values.norm()
    for _ in range(NS_STEPS):
        values = a * values + b * values**3 + c * values**5
    return values.abs().sort(descending=True).values


def test_the_peak_of_the_iteration_is_known():
    a, b, c = NS_COEFFICIENTS
    values = torch.linspace(0, 1, 1_000_001, dtype=torch.float64)
    for _ in range(NS_STEPS):
        values = a * values + b * values**3 + c * values**5
    assert values.max().item() == pytest.approx(PEAK, abs=1e-3)


def singular_values(result):
    return torch.linalg.svdvals(result.double())


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_singular_values_are_those_of_the_exact_iteration(shape, spectrum):
    given = matrix(shape, spectrum).float()
    found = orthogonalize(given[None])[0]
    assert found.dtype == torch.float32
    # Singular values of 1e-3 beside 1 are of 1e-6 beside 1 in the Gram matrix, where float32 rounds at 6e-8.
    tolerance = 0.03 if spectrum == "one large" else 2e-3
    exact = exact_values(SPECTRA[spectrum](min(shape)))
    torch.testing.assert_close(singular_values(found), exact, rtol=1e-3, atol=tolerance)


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_singular_values_lie_in_the_references_band(shape, spectrum, monkeypatch):
    """In bfloat16 nobody's are exact: ours stay below the iteration's peak, and as near to exact as the reference's."""
    monkeypatch.setattr(muon, "CPU_HAS_BFLOAT16", True)
    given = matrix(shape, spectrum).float()
    ours = orthogonalize(given[None])[0]
    reference = _zeropower_via_newtonschulz(given, NS_COEFFICIENTS, NS_STEPS, EPS)
    assert ours.dtype == torch.bfloat16
    exact = exact_values(SPECTRA[spectrum](min(shape)))
    found, theirs = singular_values(ours), singular_values(reference)
    assert found.max() < PEAK + 0.01
    assert found.min() > theirs.min() - 0.04
    slack = 0.05 if min(shape) >= 64 else 0.15
    assert (found - exact).abs().max() < (theirs - exact).abs().max() + slack


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_cpu_without_bfloat16_multiplies_in_float32(dtype, monkeypatch):
    """There a product in bfloat16 takes ten times as long and more, and says less."""
    monkeypatch.setattr(muon, "CPU_HAS_BFLOAT16", False)
    given = matrix((280, 256), "even").to(dtype)
    found = orthogonalize(given[None])[0]
    assert found.dtype == torch.float32
    torch.testing.assert_close(singular_values(found), exact_values(SPECTRA["even"](256)), rtol=1e-3, atol=5e-3)


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e8, 1e18])
def test_the_scale_of_a_gradient_does_not_matter_unless_it_vanishes(scale):
    given = matrix((48, 96), "even").float()
    found = orthogonalize(scale * given[None])[0]
    if scale > EPS:
        torch.testing.assert_close(found, orthogonalize(given[None])[0], rtol=1e-3, atol=1e-4)
    else:
        assert found.abs().max() < 1e-3
    assert torch.isfinite(found).all()


def stepped(shape, grads, **options):
    """A parameter after steps on given gradients, from zero."""
    param = nn.Parameter(torch.zeros(shape))
    optimizer = Muon([param], lr=0.1, **options)
    for grad in grads:
        param.grad = grad.reshape(shape).clone()
        optimizer.step()
    return param.detach()


def gradients(*shape):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator) for _ in range(3)]


def test_fused_projections_are_stepped_block_by_block():
    grads = gradients(36, 12)
    whole = stepped((36, 12), grads, splits=3)
    for block in range(3):
        rows = slice(12 * block, 12 * (block + 1))
        alone = stepped((12, 12), [grad[rows] for grad in grads])
        torch.testing.assert_close(whole[rows], alone, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(whole, stepped((36, 12), grads), atol=1e-3)


@pytest.mark.parametrize("transposed", [False, True])
def test_stacked_experts_are_stepped_one_by_one(transposed):
    grads = gradients(3, 8, 20)
    whole = stepped((3, 8, 20), grads, stacked=True, transposed=transposed)
    for expert in range(3):
        own = [grad[expert].mT if transposed else grad[expert] for grad in grads]
        alone = stepped(own[0].shape, own)
        torch.testing.assert_close(whole[expert], alone.mT if transposed else alone, rtol=1e-4, atol=1e-6)


def test_kernels_of_convolutions_are_stepped_as_matrices_of_outputs():
    grads = gradients(6, 4 * 3 * 3)
    torch.testing.assert_close(stepped((6, 4, 3, 3), grads).flatten(1), stepped((6, 36), grads))


def test_a_matrix_of_inputs_by_outputs_is_stepped_as_its_transpose():
    grads = gradients(12, 30)
    turned = stepped((30, 12), [grad.mT for grad in grads])
    torch.testing.assert_close(stepped((12, 30), grads, transposed=True), turned.mT, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(24, 16), (16, 24), (24, 24), (6, 90)], ids=str)
def test_a_step_is_the_references(shape):
    grads = gradients(*shape)
    ours = stepped(shape, grads, weight_decay=0.1)
    param = nn.Parameter(torch.zeros(shape))
    reference = torch.optim.Muon([param], lr=0.1, momentum=0.95, weight_decay=0.1)
    for grad in grads:
        param.grad = grad.clone()
        reference.step()
    # torch's works in bfloat16 throughout.
    assert (ours - param).norm() < 0.03 * param.norm()


def test_equal_shapes_in_one_batch_step_as_they_do_alone():
    grads = [gradients(300, 250), gradients(300, 250)]
    params = [nn.Parameter(torch.zeros(300, 250)) for _ in grads]
    plan = OptimizerPlan({str(i): OptimizerConfig("muon", {"lr": 0.1}) for i in range(len(params))})
    optimizer = AutoOptimizer(params, plan=plan)
    for step in range(3):
        for param, own in zip(params, grads, strict=True):
            param.grad = own[step].clone()
        optimizer.step()
    for param, own in zip(params, grads, strict=True):
        torch.testing.assert_close(param.detach(), stepped((300, 250), own), rtol=1e-2, atol=1e-4)


def test_gradients_and_momenta_are_left_as_they_are():
    """The iteration works on a copy, also where the momentum itself is what is orthogonalised."""
    param = nn.Parameter(torch.zeros(8, 8))
    optimizer = Muon([param], nesterov=False, momentum=0.5)
    param.grad = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    grad = param.grad.clone()
    optimizer.step()
    assert torch.equal(param.grad, grad)
    torch.testing.assert_close(optimizer.state[param]["momentum_buffer"], 0.5 * grad)
