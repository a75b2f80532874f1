"""Statistics of the gradients that a layer received over several steps, as pure float64 formulas.

Unless said otherwise `grads` is an array `(num_steps, num_coordinates)`: the same sampled
coordinates of one layer's gradient, one row a step, in the order of the steps. Every function
returns NaN where its statistic is undefined (no gradient, only zeros, too few steps); callers turn
that into "missing". Nothing here knows about models or optimizers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

NAN = float("nan")


def zero_share(grads: Array) -> float:
    """The share of gradient elements that are exactly 0, in [0, 1].

    Formula: `mean(g == 0)`. Exact zeros mark rows that a batch did not touch and dead ReLU units.
    Does not tell the two apart (see `untouched_row_share`), nor how small the others are.
    """
    return float(np.mean(grads == 0)) if grads.size else NAN


def untouched_row_share(blocks: Array) -> float:
    """The share of rows whose gradient is 0 throughout, averaged over steps, in [0, 1].

    Formula: `mean_t mean_i [g_t[i, :] = 0]` for `blocks` of shape `(num_steps, rows, columns)`.
    For embeddings a row is a token or an item, for matrices an output unit. On sampled columns it
    is an upper bound: a row may have its only non-zero elsewhere.
    """
    return float(np.mean(np.all(blocks == 0, axis=-1))) if blocks.size else NAN


def row_tail_exponent(counts: Array, num_steps: float) -> float:
    """The Zipf exponent of how often rows are touched: 0 for even use, about 1 for words.

    With `p_i = counts_i / num_steps` the share of steps that touched row `i`, the expected touches
    a batch are `f_i = -log(1 - p_i)` (Poisson; `p` is capped at `1 - 1/(2 num_steps)`). Over rows
    touched at least once, sorted by `f`, it is minus the least-squares slope of `log f` on
    `log rank`. Heavy-tailed tokens slow SGD against Adam (Kunstner et al. 2024, arXiv 2402.19449).
    Does not tell the true tail where most rows were touched in no or in every step: both ends are
    flattened, so the value is biased towards 0.
    """
    touched = np.sort(counts[counts > 0])[::-1]
    if touched.size < 3 or num_steps < 2:
        return NAN
    share = np.minimum(touched / num_steps, 1 - 0.5 / num_steps)
    log_rate = np.log(-np.log1p(-share))
    return -slope(np.log(np.arange(1, touched.size + 1, dtype=np.float64)), log_rate)


def hoyer_sparsity(grads: Array) -> float:
    """Hoyer's sparsity averaged over steps: 0 where all magnitudes are equal, 1 for a single spike.

    Formula: `(sqrt(n) - |g|_1 / |g|_2) / (sqrt(n) - 1)` (Hoyer 2004, JMLR 5). About 0.2 for
    Gaussian elements. Does not see which coordinates are large, nor whether they stay the same.
    """
    grads = nonzero_rows(grads)
    size = grads.shape[1]
    if not grads.size or size < 2:
        return NAN
    ratio = np.abs(grads).sum(1) / np.linalg.norm(grads, axis=1)
    return float(np.mean((np.sqrt(size) - ratio) / (np.sqrt(size) - 1)))


def signal_and_noise(grads: Array) -> tuple[float, float]:
    """Unbiased `(|E g|^2, tr Cov g)`, both divided by the number of coordinates.

    With `T` steps: signal `(|sum_t g_t|^2 - sum_t |g_t|^2) / (T (T - 1))` (the mean of `g_s . g_t`
    over `s != t`), noise `mean_t |g_t|^2 - signal`. The signal may come out negative. Their ratio
    is the signal-to-noise ratio; batch size over it is the simple gradient noise scale
    (McCandlish et al. 2018, arXiv 1812.06162), and per layer it sets rates in SGD-SaI
    (Xu et al. 2024, arXiv 2412.11768). Over warm-up the parameters move, so drift of the mean
    gradient counts as noise.
    """
    num_steps, size = grads.shape
    if num_steps < 2 or size == 0:
        return NAN, NAN
    squares = float(np.sum(grads**2))
    signal = (float(np.sum(grads.sum(0) ** 2)) - squares) / (num_steps * (num_steps - 1))
    noise = squares / num_steps - signal
    return signal / size, noise / size


def two_batch_noise_scale(
    small_square: float, big_square: float, small_batch: float, big_batch: float
) -> tuple[float, float, float]:
    """Unbiased `(|G|^2, tr Sigma, tr Sigma / |G|^2)` from squared gradient norms at two batch sizes.

    `E |g_B|^2 = |G|^2 + tr(Sigma) / B` at both sizes is solved for the two unknowns; the ratio is
    the simple noise scale in examples (McCandlish et al. 2018, arXiv 1812.06162, appendix A.1). The
    ratio is biased and noisy: average the first two over steps before dividing.

    Raises:
        ValueError: If the batch sizes are not positive and different.
    """
    if not 0 < small_batch < big_batch:
        raise ValueError(f"need 0 < small_batch < big_batch, got {small_batch} and {big_batch}")
    square = (big_batch * big_square - small_batch * small_square) / (big_batch - small_batch)
    trace = (small_square - big_square) / (1 / small_batch - 1 / big_batch)
    return square, trace, trace / square if square != 0 else NAN


def mean_cosine(left: Array, right: Array) -> float:
    """The mean cosine between rows of `left` and the same rows of `right`, in [-1, 1].

    On gradients of consecutive steps it tells drift (near 1), noise (near 0) and oscillation along
    sharp directions (negative). On a sample it is noisy to about `1 / sqrt(num_coordinates)` a row.
    """
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    keep = norms > 0
    if not keep.any():
        return NAN
    return float(np.mean(np.sum(left * right, axis=1)[keep] / norms[keep]))


def sign_agreement(left: Array, right: Array) -> float:
    """The share of coordinates, non-zero in both, whose sign is the same in both; 0.5 is chance.

    On gradients of consecutive steps it tells how much sign-based updates would persist. It weighs
    tiny and large coordinates alike.
    """
    both = (left != 0) & (right != 0)
    return float(np.mean(np.sign(left[both]) == np.sign(right[both]))) if both.any() else NAN


def kurtosis(grads: Array) -> float:
    """The kurtosis of gradient elements, 3 for Gaussian ones, larger for heavy tails.

    Each step is divided by its root mean square (so that a trend of the norm is no tail), then
    `E (x - E x)^4 / (E (x - E x)^2)^2` over all elements. Mixes tails over coordinates (scales that
    differ) with tails over steps (outlier batches), and grows with the share of zeros.
    """
    grads = nonzero_rows(grads)
    if grads.size < 4:
        return NAN
    scaled = grads / root_mean_square(grads, axis=1)[:, None]
    squares = (scaled - scaled.mean()) ** 2
    variance = np.mean(squares)
    # NumPy takes a power of 4 by logarithms: a quarter of the cost of all statistics together.
    return float(np.mean(squares * squares) / variance**2) if variance > 1e-24 else NAN


def hill_index(grads: Array, fraction: float = 0.05) -> float:
    """Hill's tail index of gradient magnitudes: small for heavy tails, infinite variance below 2.

    Over the `k` largest of the per-step scaled magnitudes, `k = fraction` of the non-zero ones:
    `1 / mean(log(x_(i) / x_(k+1)))` (Hill 1975, Annals of Statistics 3). On bounded or Gaussian
    data it is large and means nothing more.
    """
    grads = nonzero_rows(grads)
    if not grads.size:
        return NAN
    scaled = np.abs(grads / root_mean_square(grads, axis=1)[:, None])
    ordered = np.sort(scaled[scaled > 0])[::-1]
    k = int(fraction * ordered.size)
    if k < 5:
        return NAN
    excess = float(np.mean(np.log(ordered[:k] / ordered[k])))
    return 1 / excess if excess > 0 else NAN


def second_moment_spread(blocks: Array) -> tuple[float, float, float]:
    """Standard deviations, in nats, of log second moments: of elements, of rows, of columns.

    With `v = mean_t g_t^2` over `blocks` of shape `(num_steps, rows, columns)`: the spread of
    `log v`, of `log mean_j v`, and of `log mean_i v`; zeros are left out. Large values mean that
    one rate for all coordinates wastes some, the case for adaptive steps (per row and column:
    Adafactor, arXiv 1804.04235; between blocks: arXiv 2402.16788). The first is inflated by
    sampling noise of about `sqrt(2 / num_steps)` even for identical coordinates.
    """
    moment = np.mean(blocks**2, axis=0)
    return log_spread(moment), log_spread(moment.mean(1)), log_spread(moment.mean(0))


def sign_cosine(grads: Array) -> float:
    """The mean cosine between a gradient and its sign, in (0, 1]; 0.8 for Gaussian elements.

    Formula: `|g|_1 / (|g|_2 sqrt(num_nonzero))`. Near 1 a sign step (Lion, signSGD) follows the
    gradient; low values mean that sign steps move mostly along coordinates that matter little.
    """
    return mean_cosine(grads, np.sign(grads))


def adaptive_cosine(grads: Array) -> float:
    """The mean cosine between a gradient and itself divided by its root second moment, in (0, 1].

    Formula: `cos(g_t, g_t / sqrt(v))` with `v = mean_t g_t^2`: how far an Adam-like step turns away
    from the gradient. With few steps, `v` follows `g_t` and the cosine comes out low.
    """
    root = np.sqrt(np.mean(grads**2, axis=0))
    return mean_cosine(grads, np.divide(grads, root, out=np.zeros_like(grads), where=root > 0))


def norm_trend(steps: Array, norms: Array) -> float:
    """The change of the log gradient norm from the first to the last step, in nats.

    Least-squares slope of `log |g_t|` on the step, times the steps spanned. Noisy to about the
    spread of single norms; growth early in training is no sign of divergence by itself.
    """
    keep = norms > 0
    if keep.sum() < 3:
        return NAN
    steps = steps[keep]
    return slope(steps, np.log(norms[keep])) * float(steps.max() - steps.min())


def root_mean_square(values: Array, axis: int | None = None) -> Array:
    """`sqrt(mean(values^2))` along an axis."""
    return np.sqrt(np.mean(values**2, axis=axis))


def log_spread(values: Array) -> float:
    """The standard deviation of the logarithm of the positive values, NaN for fewer than two."""
    positive = values[values > 0]
    return float(np.std(np.log(positive))) if positive.size > 1 else NAN


def slope(x: Array, y: Array) -> float:
    """The least-squares slope of `y` on `x`, NaN where `x` does not vary."""
    centred = x - x.mean()
    square = float(np.sum(centred**2))
    return float(np.sum(centred * (y - y.mean())) / square) if square > 0 else NAN


def nonzero_rows(grads: Array) -> Array:
    """The rows that have at least one non-zero element."""
    return grads[np.any(grads != 0, axis=1)]
