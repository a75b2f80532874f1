"""Curvature along the way that training took anyway: secants of consecutive steps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autoopt.statistics.gradient import NAN, Array, mean_cosine


def secant_statistics(
    grads: Array, params: Array, before: NDArray[np.intp], grad_rms: float, param_rms: float
) -> dict[str, float]:
    """Statistics of `s = w_{t+1} - w_t` and `y = g_{t+1} - g_t` over pairs of consecutive steps.

    - `secant_curvature`: `sum s.y / sum s.s`, the curvature along the steps taken (loss per squared
      parameter unit). The two gradients are of two batches, and the step follows the first: gradient
      noise biases it upwards for gradient-like steps, so it is a signal of scale, no Hessian value.
    - `secant_lipschitz`: `sqrt(sum y.y / sum s.s)`, an upper estimate of curvature that noise fills.
    - `secant_time`: `secant_lipschitz * param_rms / grad_rms`, the same without units.
    - `secant_cosine`: the mean cosine of `s` and `y`: how much of that change the curvature explains.
    - `step_alignment`: the mean cosine of the step with `-g_{t+1}`. Positive: going further would
      have helped, the rate was small; negative: it overshot (hypergradient, Baydin et al. 2018,
      arXiv 1703.04782). The next batch is independent of the step, so its noise does not bias it.
    - `step_generalisation`: `sum s.g_{t+1} / sum s.g_t`, clipped to [-1, 2]: the gain that the step
      promises on the next batch over what it promised on its own (one-step generalisation ratio, Liu
      et al. 2020, arXiv 2001.07384). Near 1 steps follow what batches share; near 0 they fit the one
      batch that made them; below 0 they overshoot. Curvature lowers it as well as noise does.
    - `relative_step`: `|s| / |w|`, the mean size of a step against the sampled parameters.

    All are undefined where parameters did not move (a rate of 0).

    Args:
        grads: Sampled gradients, `(num_kept, n)`.
        params: Sampled parameters before each of those steps, `(num_kept, n)`.
        before: Indices `i` such that `i + 1` is the very next step.
        grad_rms: Root mean square of the layer's gradient.
        param_rms: Root mean square of the layer's parameter.
    """
    step, change = params[before + 1] - params[before], grads[before + 1] - grads[before]
    square = float(np.sum(step**2))
    start = float(np.sum(params[before] ** 2))
    own, following = (float(np.sum(step * grads[before + k])) for k in (0, 1))
    lipschitz = float(np.sqrt(np.sum(change**2) / square)) if square > 0 else NAN
    return {
        "secant_curvature": float(np.sum(step * change) / square) if square > 0 else NAN,
        "secant_lipschitz": lipschitz,
        "secant_time": lipschitz * param_rms / grad_rms if grad_rms > 0 and param_rms > 0 else NAN,
        "secant_cosine": mean_cosine(step, change),
        "step_alignment": mean_cosine(step, -grads[before + 1]),
        "step_generalisation": max(-1.0, min(2.0, following / own)) if own < 0 else NAN,
        "relative_step": float(np.sqrt(square / start)) if start > 0 and square > 0 else NAN,
    }
