"""All statistics of one layer from the snapshots that the warm-up collector kept."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from autoopt.statistics import gradient, rows, spectrum
from autoopt.statistics.gradient import NAN, Array
from autoopt.statistics.sampling import SampleLayout
from autoopt.statistics.secant import secant_statistics

LARGEST_NOISE_RATIO = 1e4
"""Where noise drowns the mean gradient, their ratio is this: the most that some steps can tell."""


def layer_statistics(
    history: Array,
    counts: Array | None,
    param_norm: float,
    numel: int,
    layout: SampleLayout,
    transposed: bool = False,
) -> dict[str, float]:
    """Statistic -> value of one layer, NaN where it is undefined.

    Args:
        history: `(num_kept, 2 + 2 n)`, in the order of steps: step + 1, norm of the whole gradient,
            gradient sample, parameter sample.
        counts: Touches of the counted rows and then the number of steps counted, or None.
        param_norm: Norm of the whole parameter at the end.
        numel: Elements of the parameter.
        layout: The sampled block.
        transposed: Whether the tensor holds inputs before outputs; "rows" are outputs all the same.
    """
    n = layout.num_coordinates
    steps, norms = history[:, 0], history[:, 1]
    grads, params = history[:, 2 : 2 + n], history[:, 2 + n :]
    blocks = grads.reshape(-1, layout.rows[0], layout.columns[0])
    if transposed:
        blocks = np.swapaxes(blocks, 1, 2)
    before = np.flatnonzero(np.diff(steps) == 1)
    signal, noise = gradient.signal_and_noise(grads)
    grad_rms = float(np.sqrt(np.mean(norms**2) / numel)) if len(norms) else NAN
    param_rms = param_norm / np.sqrt(numel)
    values = {
        "zero_share": gradient.zero_share(grads),
        "hoyer_sparsity": gradient.hoyer_sparsity(grads),
        "signal_to_noise": max(signal, 0.0) / noise if noise > 0 else NAN,
        "signal_share": signal / (signal + noise) if signal + noise > 0 else NAN,
        "step_cosine": gradient.mean_cosine(grads[before], grads[before + 1]),
        "sign_agreement": gradient.sign_agreement(grads[before], grads[before + 1]),
        "grad_square": float(np.mean(norms**2)) if len(norms) else NAN,
        "grad_rms": grad_rms,
        "param_rms": float(param_rms),
        "grad_to_param": grad_rms / param_rms if param_rms > 0 else NAN,
        "norm_trend": gradient.norm_trend(steps, norms),
        "norm_variation": gradient.log_spread(norms),
        "kurtosis": gradient.kurtosis(grads),
        "hill_index": gradient.hill_index(grads),
        "sign_cosine": gradient.sign_cosine(grads),
        "adaptive_cosine": gradient.adaptive_cosine(grads) if len(grads) > 2 else NAN,
    }
    spread = gradient.second_moment_spread(blocks) if len(grads) > 1 else (NAN, NAN, NAN)
    values["second_moment_spread"] = spread[0]
    if min(layout.rows[0], layout.columns[0]) > 1:
        values |= _matrix_statistics(blocks, before) | {
            "second_moment_row_spread": spread[1],
            "second_moment_column_spread": spread[2],
        }
    if counts is not None:
        values |= _row_statistics(counts, layout)
    return values | secant_statistics(grads, params, before, grad_rms, float(param_rms))


def _matrix_statistics(blocks: Array, before: NDArray[np.intp]) -> dict[str, float]:
    singular = spectrum.singular_values(blocks)
    return {
        "untouched_row_share": gradient.untouched_row_share(blocks),
        "row_agreement": rows.row_agreement(blocks) if len(blocks) > 1 else NAN,
        "stable_rank": spectrum.stable_rank(singular),
        "nuclear_rank": spectrum.nuclear_rank(singular),
        "orthogonal_cosine": spectrum.orthogonal_cosine(singular),
        "subspace_alignment": spectrum.subspace_alignment(blocks[before], blocks[before + 1]),
    }


def _row_statistics(counts: Array, layout: SampleLayout) -> dict[str, float]:
    num_steps = counts[-1]
    touched = float(counts[:-1].sum() / (num_steps * (len(counts) - 1))) if num_steps > 0 else NAN
    return {
        "untouched_row_share": 1 - touched,
        "rows_touched": touched * layout.size[0],
        "row_novelty": rows.row_novelty(counts[:-1]),
        "row_tail_exponent": gradient.row_tail_exponent(counts[:-1], num_steps),
    }


def add_shares(layers: Mapping[str, dict[str, float]]) -> float:
    """The model's gradient noise scale over the batch size; adds `norm_share` to each layer, in place.

    `norm_share` is the layer's share of the squared gradient norm of the model. The noise scale over
    the batch size is `sum noise / sum signal` over the layers, at most `LARGEST_NOISE_RATIO` (where the
    steps looked at share no direction), NaN where no layer had a gradient in two steps. Above 1 a
    batch is mostly noise, and rates scale with its size (McCandlish et al. 2018, arXiv 1812.06162).

    Needs `grad_square`, the layer's mean squared gradient norm, and `signal_share`, the share of it
    that is the mean gradient's (as estimated, so possibly negative); takes both out again.
    """
    total = sum(row.get("grad_square", 0.0) for row in layers.values())
    signal = noise = 0.0
    for row in layers.values():
        square, share = row.pop("grad_square", None), row.pop("signal_share", None)
        if square is not None and total > 0:
            row["norm_share"] = square / total
            if share is not None:
                signal += share * square
                noise += (1 - share) * square
    if signal + noise <= 0:
        return NAN
    return max(noise, 0.0) / max(signal, noise / LARGEST_NOISE_RATIO)
