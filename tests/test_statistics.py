"""Gradient statistics against brute force, and the warm-up collector against full gradients."""

import copy
import itertools
import json
import math
import pickle
import statistics as stdlib

import numpy as np
import pytest
import torch
from torch import nn

from autoopt.architecture import describe
from autoopt.errors import ProfileError
from autoopt.statistics import gradient, sampling, secant, spectrum, warmup


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def grads():
    rng = np.random.default_rng(0)
    values = rng.standard_t(4, (6, 35)) * np.exp(rng.normal(size=35)) + 0.3
    values[:, 30:] = 0
    values[2, :10] = 0
    return values


def dot(left, right):
    return sum(float(x) * float(y) for x, y in zip(left, right, strict=True))


def norm(row):
    return math.sqrt(dot(row, row))


def cosine(left, right):
    return dot(left, right) / (norm(left) * norm(right))


# Formulas ---------------------------------------------------------------------------------------


def test_shares_of_zeros(grads):
    assert gradient.zero_share(grads) == sum(x == 0 for row in grads for x in row) / grads.size
    blocks = grads.reshape(6, 7, 5)
    empty = [all(x == 0 for x in row) for block in blocks for row in block]
    assert gradient.untouched_row_share(blocks) == sum(empty) / len(empty) > 0


def test_hoyer_sparsity(grads):
    size = grads.shape[1]
    rows = [(math.sqrt(size) - sum(abs(x) for x in g) / norm(g)) / (math.sqrt(size) - 1) for g in grads]
    assert gradient.hoyer_sparsity(grads) == pytest.approx(stdlib.fmean(rows), rel=1e-12)
    assert gradient.hoyer_sparsity(np.ones((2, 9))) == pytest.approx(0)
    assert gradient.hoyer_sparsity(np.eye(9)[:2]) == pytest.approx(1)


def test_signal_and_noise_are_unbiased_and_match_brute_force(grads):
    num_steps, size = grads.shape
    pairs = [dot(grads[s], grads[t]) for s in range(num_steps) for t in range(num_steps) if s != t]
    signal, noise = gradient.signal_and_noise(grads)
    assert signal == pytest.approx(stdlib.fmean(pairs) / size, rel=1e-10)
    assert signal + noise == pytest.approx(stdlib.fmean(dot(g, g) for g in grads) / size, rel=1e-12)
    rng = np.random.default_rng(1)
    draws = [gradient.signal_and_noise(0.2 + rng.normal(size=(4, 50))) for _ in range(4000)]
    assert np.mean([d[0] for d in draws]) == pytest.approx(0.04, abs=0.002)
    assert np.mean([d[1] for d in draws]) == pytest.approx(1.0, abs=0.01)


def test_two_batch_noise_scale_solves_the_two_equations():
    square, trace = 0.7, 12.0
    found = gradient.two_batch_noise_scale(square + trace / 8, square + trace / 64, 8, 64)
    assert found == pytest.approx((square, trace, trace / square))
    with pytest.raises(ValueError, match="small_batch < big_batch"):
        gradient.two_batch_noise_scale(1.0, 1.0, 8, 8)


def test_cosines_and_signs(grads):
    left, right = grads[:-1], grads[1:]
    expected = stdlib.fmean(cosine(a, b) for a, b in zip(left, right, strict=True))
    assert gradient.mean_cosine(left, right) == pytest.approx(expected, rel=1e-12)
    both = [(a, b) for a, b in zip(left.flat, right.flat, strict=True) if a != 0 and b != 0]
    assert gradient.sign_agreement(left, right) == sum((a > 0) == (b > 0) for a, b in both) / len(both)
    signs = [[math.copysign(1, x) if x else 0.0 for x in g] for g in grads]
    expected = stdlib.fmean(cosine(g, s) for g, s in zip(grads, signs, strict=True))
    assert gradient.sign_cosine(grads) == pytest.approx(expected, rel=1e-12)


def test_adaptive_cosine(grads):
    roots = [math.sqrt(stdlib.fmean(float(x) ** 2 for x in column)) for column in grads.T]
    scaled = [[x / r if r else 0.0 for x, r in zip(g, roots, strict=True)] for g in grads]
    expected = stdlib.fmean(cosine(g, s) for g, s in zip(grads, scaled, strict=True))
    assert gradient.adaptive_cosine(grads) == pytest.approx(expected, rel=1e-12)


def test_tails(grads):
    scaled = [float(x) / (norm(g) / math.sqrt(len(g))) for g in grads for x in g]
    mean = stdlib.fmean(scaled)
    moments = [stdlib.fmean((x - mean) ** k for x in scaled) for k in (2, 4)]
    assert gradient.kurtosis(grads) == pytest.approx(moments[1] / moments[0] ** 2, rel=1e-10)
    ordered = sorted((abs(x) for x in scaled if x), reverse=True)
    k = int(0.05 * len(ordered))
    expected = 1 / stdlib.fmean(math.log(x / ordered[k]) for x in ordered[:k])
    assert gradient.hill_index(grads) == pytest.approx(expected, rel=1e-10)
    rng = np.random.default_rng(0)
    assert gradient.hill_index(rng.pareto(1.5, (4, 20000)) + 1) == pytest.approx(1.5, rel=0.1)
    assert gradient.kurtosis(rng.normal(size=(4, 20000))) == pytest.approx(3, rel=0.05)


def test_second_moment_spread(grads):
    blocks = grads.reshape(6, 7, 5)
    moment = [[stdlib.fmean(float(blocks[t][i][j]) ** 2 for t in range(6)) for j in range(5)] for i in range(7)]

    def spread(values):
        return stdlib.pstdev(math.log(v) for v in values if v > 0)

    expected = (
        spread(itertools.chain(*moment)),
        spread(stdlib.fmean(row) for row in moment),
        spread(stdlib.fmean(column) for column in zip(*moment, strict=True)),
    )
    assert gradient.second_moment_spread(blocks) == pytest.approx(expected, rel=1e-10)


def test_norm_trend():
    steps = np.array([1.0, 2.0, 7.0, 8.0])
    assert gradient.norm_trend(steps, np.exp(-0.3 * steps)) == pytest.approx(-2.1)


def test_row_tail_exponent_recovers_zipf():
    rng = np.random.default_rng(0)
    rates = 0.5 * np.arange(1, 201) ** -1.0
    counts = rng.binomial(20000, 1 - np.exp(-rates)).astype(float)
    assert gradient.row_tail_exponent(counts, 20000) == pytest.approx(1.0, abs=0.05)
    assert gradient.row_tail_exponent(np.full(50, 7.0), 20) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (5, 5)])
def test_spectra_match_a_full_decomposition(shape):
    blocks = np.random.default_rng(2).normal(size=(5, *shape))
    blocks[3] = 0
    singular = [np.linalg.svd(b / abs(b).max(), compute_uv=False) for b in blocks if b.any()]
    found = spectrum.singular_values(blocks)
    assert found == pytest.approx(np.array(singular), rel=1e-6)
    rank = min(shape)
    expected = {
        spectrum.stable_rank: [sum(s**2) / s[0] ** 2 for s in singular],
        spectrum.nuclear_rank: [sum(s) ** 2 / sum(s**2) for s in singular],
        spectrum.orthogonal_cosine: [sum(s) / math.sqrt(sum(s**2) * rank) for s in singular],
    }
    for function, values in expected.items():
        assert function(found) == pytest.approx(stdlib.fmean(values), rel=1e-6)


def test_orthogonal_cosine_is_the_cosine_with_the_polar_factor():
    block = np.random.default_rng(3).normal(size=(1, 6, 4))
    u, _, vt = np.linalg.svd(block[0], full_matrices=False)
    expected = cosine(block.ravel(), (u @ vt).ravel())
    assert spectrum.orthogonal_cosine(spectrum.singular_values(block)) == pytest.approx(expected)


def test_spectra_survive_tiny_gradients():
    blocks = np.random.default_rng(2).normal(size=(2, 4, 6))
    expected = spectrum.stable_rank(spectrum.singular_values(blocks))
    assert spectrum.stable_rank(spectrum.singular_values(blocks * 1e-200)) == pytest.approx(expected)


def test_subspace_alignment_matches_brute_force():
    rng = np.random.default_rng(4)
    left, right = rng.normal(size=(3, 8, 9)), rng.normal(size=(3, 8, 9))
    shares = []
    for a, b in zip(left, right, strict=True):
        leading = np.linalg.svd(a)[0][:, :2]
        shares.append((np.linalg.norm(leading.T @ b) ** 2 / np.linalg.norm(b) ** 2 - 0.25) / 0.75)
    assert spectrum.subspace_alignment(left, right) == pytest.approx(stdlib.fmean(shares), rel=1e-8)
    low_rank = rng.normal(size=(2, 8, 2)) @ rng.normal(size=(2, 2, 9))
    assert spectrum.subspace_alignment(low_rank, low_rank) == pytest.approx(1)


def test_secants_recover_a_quadratic():
    rng = np.random.default_rng(5)
    curvature = np.array([1.0, 4.0, 9.0])
    params = rng.normal(size=(6, 3))
    grads = params * curvature
    before = np.array([0, 2, 4])
    found = secant.secant_statistics(grads, params, before, 2.0, 3.0)
    steps = [params[i + 1] - params[i] for i in before]
    square = sum(dot(s, s) for s in steps)
    bend = sum(dot(s, curvature * s) for s in steps) / square
    lipschitz = math.sqrt(sum(dot(curvature * s, curvature * s) for s in steps) / square)
    assert found["secant_curvature"] == pytest.approx(bend)
    assert found["secant_lipschitz"] == pytest.approx(lipschitz)
    assert found["secant_time"] == pytest.approx(lipschitz * 1.5)
    expected = stdlib.fmean(cosine(s, -grads[i + 1]) for s, i in zip(steps, before, strict=True))
    assert found["step_alignment"] == pytest.approx(expected)
    expected = stdlib.fmean(cosine(s, curvature * s) for s in steps)
    assert found["secant_cosine"] == pytest.approx(expected)
    start = sum(dot(params[i], params[i]) for i in before)
    assert found["relative_step"] == pytest.approx(math.sqrt(square / start))


@pytest.mark.parametrize("empty", [np.zeros((0, 4)), np.zeros((3, 4)), np.zeros((1, 0))])
def test_undefined_statistics_are_nan_and_warn_of_nothing(empty):
    blocks = empty.reshape(len(empty), 2, empty.shape[1] // 2)
    singular = spectrum.singular_values(blocks)
    assert math.isnan(gradient.hoyer_sparsity(empty))
    assert math.isnan(gradient.kurtosis(empty))
    assert math.isnan(gradient.hill_index(empty))
    assert math.isnan(gradient.mean_cosine(empty, empty))
    assert math.isnan(gradient.sign_agreement(empty, empty))
    assert math.isnan(spectrum.stable_rank(singular))
    assert math.isnan(spectrum.nuclear_rank(singular))
    assert math.isnan(spectrum.orthogonal_cosine(singular))
    assert math.isnan(spectrum.subspace_alignment(blocks, blocks))


# Sampling ---------------------------------------------------------------------------------------


def test_kept_steps_are_pairs_spread_over_the_whole_warmup():
    kept = {}
    for step in range(1000):
        slot = sampling.slot_of(step)
        if slot is not None:
            assert 0 <= slot < sampling.NUM_SLOTS
            kept[slot] = step
        if step >= 34 and step % sampling.PAIR_SPACING == 2:
            steps = sorted(kept.values())
            assert steps[0] == 0 and steps[-1] >= step / 2
            assert all(second == first + 1 for first, second in zip(steps[::2], steps[1::2], strict=True))
            gaps = {b - a for a, b in itertools.pairwise(steps[::2])}
            assert max(gaps) <= 4 * min(gaps)


@pytest.mark.parametrize("shape", [(), (7,), (500,), (3, 5), (512, 1024), (1, 900), (64, 3, 3, 3), (1000, 2)])
@pytest.mark.parametrize("embedding", [False, True])
def test_sampled_blocks_lie_inside_and_stay_small(shape, embedding):
    for seed in range(5):
        layout = sampling.sample_layout("w", shape, embedding, seed)
        assert 1 <= layout.num_coordinates <= sampling.BLOCK_COORDINATES
        for (number, stride, offset), size in zip((layout.rows, layout.columns), layout.size, strict=True):
            assert 0 <= offset <= offset + (number - 1) * stride < size
            assert number == size or math.gcd(stride, size) == 1
        if math.prod(shape) <= sampling.VECTOR_COORDINATES:
            assert layout.whole


def test_state_stays_under_64_kib_and_one_percent_of_large_tensors():
    model = nn.Sequential(nn.Embedding(50_000, 32), nn.Linear(1024, 2048))
    params = dict(model.named_parameters())
    for layer in describe(model).layers:
        state = warmup.init_state(layer, params[layer.name])
        assert all(key.startswith(warmup.STATE_PREFIX) for key in state)
        assert all(value.dtype == torch.float32 for value in state.values())
        size = sum(value.nbytes for value in state.values())
        assert size <= 65536
        if layer.numel > 1_200_000:
            assert size <= 0.01 * params[layer.name].nbytes


# The collector ----------------------------------------------------------------------------------


class Tiny(nn.Module):
    """Every parameter fits into its sample, so that a summary can be checked on full gradients."""

    def __init__(self, sparse=False):
        super().__init__()
        self.embedding = nn.Embedding(40, 6, sparse=sparse)
        self.hidden = nn.Linear(6, 9)
        self.head = nn.Linear(9, 3)
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, tokens):
        return self.head(torch.relu(self.hidden(self.embedding(tokens).mean(1)))) * self.scale


def batches(num_steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weights = 1 / torch.arange(1, 41).float()
    for _ in range(num_steps):
        tokens = torch.multinomial(weights.expand(8, -1), 4, replacement=True, generator=generator)
        yield tokens, torch.randint(3, (8,), generator=generator)


class Run:
    """A model with its collector states, stepped by plain SGD."""

    def __init__(self, model, seed=0):
        self.model, self.seed = model, seed
        self.layers = describe(model).layers
        named = dict(model.named_parameters())
        self.params = [named[layer.name] for layer in self.layers]
        self.states = [warmup.init_state(la, p, seed) for la, p in zip(self.layers, self.params, strict=True)]
        self.seen = []

    def train(self, data, lr=0.1, spoil=None):
        for step, (inputs, labels) in enumerate(data):
            self.model.zero_grad()
            nn.functional.cross_entropy(self.model(inputs).float(), labels).backward()
            if spoil is not None:
                spoil(step, self)
            grads = [p.grad for p in self.params]
            warmup.update(self.layers, self.params, grads, self.states, step=step, seed=self.seed)
            if sampling.slot_of(step) is not None:
                self.seen.append((step, [None if g is None else full(g) for g in grads], self.weights()))
            with torch.no_grad():
                for p in self.params:
                    if p.grad is not None and bool(torch.isfinite(full(p.grad)).all()):
                        p -= (lr * full(p.grad)).to(p.dtype)
        return self

    def index(self, name):
        return next(i for i, layer in enumerate(self.layers) if layer.name == name)

    def weights(self):
        return [p.detach().double().clone() for p in self.params]

    def summarize(self, **task):
        return warmup.summarize(self.layers, self.params, self.states, task=task, seed=self.seed)


def full(grad):
    return (grad.to_dense() if grad.is_sparse else grad).detach().double().clone()


def test_summary_of_whole_tensors_is_that_of_full_gradients():
    torch.manual_seed(0)
    run = Run(Tiny()).train(batches(20))
    found = run.summarize(batch_size=8)
    assert found.num_steps == 18 and found.task["batch_size"] == 8.0
    assert [step for step, _, _ in run.seen] == [0, 1, 8, 9, 16, 17]
    squares = {}
    for i, layer in enumerate(run.layers):
        row = found.layers[layer.name]
        grads = np.stack([g[i].reshape(-1).numpy() for _, g, _ in run.seen])
        weights = np.stack([w[i].reshape(-1).numpy() for _, _, w in run.seen])
        rms = math.sqrt(stdlib.fmean(dot(g, g) for g in grads) / layer.numel)
        assert row["grad_rms"] == pytest.approx(rms, rel=1e-5)
        assert row["param_rms"] == pytest.approx(norm(run.weights()[i].reshape(-1)) / math.sqrt(layer.numel))
        assert row["zero_share"] == pytest.approx(gradient.zero_share(grads))
        signal, noise = gradient.signal_and_noise(grads)
        assert row["signal_to_noise"] == pytest.approx(max(0.0, signal) / noise, rel=1e-3, abs=1e-6)
        consecutive = [cosine(grads[k], grads[k + 1]) for k in (0, 2, 4)]
        assert row["step_cosine"] == pytest.approx(stdlib.fmean(consecutive), abs=1e-5)
        steps = [weights[k + 1] - weights[k] for k in (0, 2, 4)]
        overshoot = [cosine(s, -grads[k + 1]) for s, k in zip(steps, (0, 2, 4), strict=True)]
        assert row["step_alignment"] == pytest.approx(stdlib.fmean(overshoot), abs=1e-3)
        squares[layer.name] = rms**2 * layer.numel
    for name, square in squares.items():
        expected = square / sum(squares.values())
        assert found.layers[name]["norm_share"] == pytest.approx(expected, rel=1e-4)
    matrix = run.index("hidden.weight")
    singular = [np.linalg.svd(g[matrix].numpy(), compute_uv=False) for _, g, _ in run.seen]
    expected = stdlib.fmean(sum(s**2) / s[0] ** 2 for s in singular)
    assert found.layers["hidden.weight"]["stable_rank"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("learnable", [True, False])
def test_the_noise_scale_is_that_of_the_whole_model(learnable):
    torch.manual_seed(0)
    run = Run(Tiny()).train((inputs, labels * (not learnable)) for inputs, labels in batches(20))
    grads = np.stack([np.concatenate([g.reshape(-1).numpy() for g in step]) for _, step, _ in run.seen])
    pairs = [dot(a, b) for a, b in itertools.permutations(grads, 2)]
    signal = stdlib.fmean(pairs)
    noise = stdlib.fmean(dot(g, g) for g in grads) - signal
    found = run.summarize(batch_size=8).task
    assert (signal > 0) == learnable
    assert found["noise_ratio"] == pytest.approx(noise / signal if learnable else 1e4, rel=1e-3)
    assert found["noise_scale"] == pytest.approx(8 * found["noise_ratio"])


def test_rows_of_embeddings_are_counted():
    torch.manual_seed(0)
    run = Run(Tiny()).train(batches(20))
    row = run.summarize().layers["embedding.weight"]
    touched = [(g[run.index("embedding.weight")] != 0).any(1) for _, g, _ in run.seen]
    assert row["rows_touched"] == pytest.approx(stdlib.fmean(float(t.sum()) for t in touched))
    assert row["untouched_row_share"] == pytest.approx(1 - row["rows_touched"] / 40)
    counts = torch.stack(touched).sum(0).double().numpy()
    assert row["row_tail_exponent"] == pytest.approx(gradient.row_tail_exponent(counts, 6))


def test_sparse_gradients_give_what_dense_ones_do():
    torch.manual_seed(0)
    dense = Tiny()
    sparse = Tiny(sparse=True)
    sparse.load_state_dict(dense.state_dict())
    found = [Run(model).train(batches(20)).summarize().layers for model in (dense, sparse)]
    for name, row in found[0].items():
        for key, value in row.items():
            assert found[1][name][key] == pytest.approx(value, rel=1e-3, abs=1e-4), (name, key)


@pytest.mark.parametrize("coalesced", [False, True])
def test_large_sparse_gradients_are_sampled_like_dense_ones(coalesced):
    model = nn.ModuleDict({"e": nn.Embedding(5000, 12, sparse=True), "h": nn.Linear(12, 2)})
    layer, param = describe(model)["e.weight"], model["e"].weight
    torch.manual_seed(1)
    rows = torch.randint(5000, (6000,))
    grad = torch.sparse_coo_tensor(rows[None], torch.randn(6000, 12), (5000, 12), check_invariants=True)
    grad = grad.coalesce() if coalesced else grad
    states = [warmup.init_state(layer, param) for _ in range(2)]
    warmup.update([layer], [param], [grad], [states[0]], step=0)
    warmup.update([layer], [param], [grad.to_dense()], [states[1]], step=0)
    assert torch.allclose(states[0][warmup.HISTORY], states[1][warmup.HISTORY], rtol=1e-5, atol=1e-6)
    assert torch.equal(states[0][warmup.ROW_COUNTS], states[1][warmup.ROW_COUNTS])
    share = float(states[0][warmup.ROW_COUNTS][:-1].mean())
    assert share == pytest.approx(len(rows.unique()) / 5000, abs=0.05)


def test_a_non_finite_step_changes_nothing():
    torch.manual_seed(0)
    run = Run(Tiny(sparse=True)).train(batches(8))
    before = copy.deepcopy(run.states)
    grads = [torch.full_like(p, 1.0) for p in run.params]
    grads[2] = grads[2] * math.nan
    warmup.update(run.layers, run.params, grads, run.states, step=16)
    grads[2] = torch.zeros_like(run.params[2])
    warmup.update(run.layers, run.params, grads, run.states, step=16, finite=torch.tensor(False))
    for old, new in zip(before, run.states, strict=True):
        assert old.keys() == new.keys() and all(torch.equal(old[key], new[key]) for key in old)
    warmup.update(run.layers, run.params, grads, run.states, step=16, finite=torch.tensor(True))
    assert not torch.equal(before[0][warmup.HISTORY], run.states[0][warmup.HISTORY])


def test_layers_without_gradient_in_some_steps():
    torch.manual_seed(0)

    def spoil(step, run):
        if step < 12:
            run.model.hidden.weight.grad = None
        run.model.hidden.bias.grad = None
        run.model.scale.grad.zero_()

    run = Run(Tiny()).train(batches(20), spoil=spoil)
    found = run.summarize()
    matrix = run.index("hidden.weight")
    rows = [g[matrix] for _, g, _ in run.seen if g[matrix] is not None]
    rms = math.sqrt(stdlib.fmean(float((g**2).mean()) for g in rows))
    assert len(rows) == 2
    assert found.layers["hidden.weight"]["grad_rms"] == pytest.approx(rms, rel=1e-5)
    assert "grad_rms" not in found.layers["hidden.bias"]
    assert "only 0 of the steps" in found.missing["hidden.bias"]["grad_rms"]
    assert "zero in every step" in found.missing["scale"]["step_cosine"]
    assert all(math.isfinite(v) for row in found.layers.values() for v in row.values())


def test_empty_parameters_are_listed_as_missing():
    model = nn.Linear(4, 2)
    model.register_parameter("nothing", nn.Parameter(torch.zeros(0, 3)))
    run = Run(model)
    assert {} in run.states
    run.train((torch.randn(5, 4), torch.randint(2, (5,))) for _ in range(3))
    found = run.summarize()
    assert "nothing" not in found.layers and "empty" in found.missing["nothing"]["*"]


def test_bfloat16_gradients_give_float32_statistics():
    torch.manual_seed(0)
    model = Tiny().bfloat16()
    run = Run(model).train(batches(20))
    assert all(v.dtype == torch.float32 for state in run.states for v in state.values())
    matrix = run.index("hidden.weight")
    rms = math.sqrt(np.mean([g[matrix].numpy() ** 2 for _, g, _ in run.seen]))
    assert run.summarize().layers["hidden.weight"]["grad_rms"] == pytest.approx(rms, rel=1e-3)


def test_float64_and_mixed_models():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2).double())
    model.forward = lambda x: model[1](model[0](x).double())
    run = Run(model).train((torch.randn(5, 4), torch.randint(2, (5,))) for _ in range(8))
    assert run.summarize().layers["1.weight"]["grad_rms"] > 0


def test_memory_format_does_not_change_the_sample():
    conv = nn.Sequential(nn.Conv2d(40, 40, 3), nn.Flatten(), nn.Linear(40, 2))
    layer = describe(conv)["0.weight"]
    grad = torch.randn(40, 40, 3, 3)
    states = []
    for g in (
        grad,
        grad.to(memory_format=torch.channels_last),
        grad.transpose(0, 1).contiguous().transpose(0, 1),
    ):
        states.append(warmup.init_state(layer, conv[0].weight))
        warmup.update([layer], [conv[0].weight], [g], [states[-1]], step=0)
    for state in states[1:]:
        assert torch.allclose(states[0][warmup.HISTORY], state[warmup.HISTORY], rtol=1e-6)
        assert torch.equal(states[0][warmup.HISTORY][0, 2:], state[warmup.HISTORY][0, 2:])


def test_transposed_and_strided_gradients_are_sampled_alike():
    model = nn.Linear(300, 100)
    layer, grad = describe(model)["weight"], torch.randn(100, 300)
    states = []
    for g in (grad, grad.t().contiguous().t(), torch.stack([grad, grad], -1)[..., 0]):
        states.append(warmup.init_state(layer, model.weight))
        warmup.update([layer], [model.weight], [g], [states[-1]], step=0)
    block = states[0][warmup.HISTORY][0, 2 : 2 + 576]
    assert set(block.tolist()) <= set(grad.flatten().tolist())
    for state in states[1:]:
        assert torch.equal(state[warmup.HISTORY][0, 2:], states[0][warmup.HISTORY][0, 2:])


def test_sampled_statistics_are_near_the_whole_ones():
    torch.manual_seed(0)
    model = nn.Linear(700, 300)
    layer = describe(model)["weight"]
    signal, state = torch.randn(300, 700), warmup.init_state(layer, model.weight)
    for step in range(20):
        grad = 0.5 * signal + torch.randn(300, 700)
        warmup.update([layer], [model.weight], [grad], [state], step=step)
    row = warmup.summarize([layer], [model.weight], [state]).layers["weight"]
    assert row["signal_to_noise"] == pytest.approx(0.25, rel=0.15)
    assert row["step_cosine"] == pytest.approx(0.2, abs=0.05)
    assert row["grad_rms"] == pytest.approx(math.sqrt(1.25), rel=0.01)
    assert row["kurtosis"] == pytest.approx(3, rel=0.1)


def test_states_survive_pickling_and_a_later_resume():
    torch.manual_seed(0)
    data = list(batches(20))
    whole = Run(Tiny())
    parts = Run(copy.deepcopy(whole.model))
    whole.train(data)
    for step in range(20):
        parts.states = pickle.loads(pickle.dumps(parts.states))
        parts.model.zero_grad()
        nn.functional.cross_entropy(parts.model(data[step][0]), data[step][1]).backward()
        grads = [p.grad for p in parts.params]
        warmup.update(parts.layers, parts.params, grads, parts.states, step=step)
        with torch.no_grad():
            for p in parts.params:
                p -= (0.1 * full(p.grad)).to(p.dtype)
    assert parts.summarize() == whole.summarize()


def test_update_and_summary_leave_gradients_and_parameters_alone():
    torch.manual_seed(0)
    run = Run(Tiny())
    inputs, labels = next(batches(1))
    nn.functional.cross_entropy(run.model(inputs), labels).backward()
    before = copy.deepcopy([(p.detach(), p.grad) for p in run.params])
    warmup.update(run.layers, run.params, [p.grad for p in run.params], run.states, step=0)
    states = copy.deepcopy(run.states)
    assert run.summarize() == run.summarize()
    for (param, grad), p in zip(before, run.params, strict=True):
        assert torch.equal(param, p) and torch.equal(grad, p.grad)
    for old, new in zip(states, run.states, strict=True):
        assert all(torch.equal(old[key], new[key]) for key in old)


def test_update_never_waits_for_a_cuda_device():
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = nn.ModuleDict({"e": nn.Embedding(3000, 12), "c": nn.Conv2d(40, 40, 3), "h": nn.Linear(900, 50)})
    layers = describe(model).layers
    for dtype in (torch.float32, torch.bfloat16):
        with FakeTensorMode():
            params = [torch.empty(layer.shape, device="cuda", dtype=dtype) for layer in layers]
            grads = [torch.empty_like(p) for p in params]
            grads[1] = None
            states = [warmup.init_state(layer, p) for layer, p in zip(layers, params, strict=True)]
            for step in (0, 1, 8):
                finite = torch.ones((), dtype=torch.bool, device="cuda") if step % 2 else None
                warmup.update(layers, params, grads, states, step=step, finite=finite)
            assert all(value.device.type == "cuda" for state in states for value in state.values())


# The value --------------------------------------------------------------------------------------


def test_statistics_go_through_json_unchanged():
    torch.manual_seed(0)
    found = Run(Tiny()).train(batches(14)).summarize(batch_size=8, loss_first=math.nan)
    assert found.missing["task"] == {"loss_first": "not finite"}
    assert warmup.WarmupStatistics.from_json(found.to_json()) == found
    frame = found.to_frame()
    assert list(frame.index) == list(found.layers)
    value = found.layers["head.weight"]["grad_rms"]
    assert frame.loc["head.weight", "grad_rms"] == value
    extended = found.with_layer_values({"head.weight": {"measured_rate_sgd": 0.5, "x": math.inf}})
    assert extended.layers["head.weight"] == found.layers["head.weight"] | {"measured_rate_sgd": 0.5}
    assert "measured_rate_sgd" not in found.layers["head.weight"]


def test_damaged_json_is_refused():
    text = warmup.WarmupStatistics({"w": {"grad_rms": 1.0}}).to_json()
    newer = json.dumps(json.loads(text) | {"schema_version": 99})
    with pytest.raises(ProfileError, match="version 99"):
        warmup.WarmupStatistics.from_json(newer)
    for broken in (text[:-5], "[]", '{"schema_version": 1}'):
        with pytest.raises(ProfileError):
            warmup.WarmupStatistics.from_json(broken)
