"""Statistics of the rows of a gradient matrix: tokens or items of an embedding, outputs of a matrix."""

from __future__ import annotations

import numpy as np

from autoopt.statistics.gradient import NAN, Array


def row_novelty(counts: Array) -> float:
    """The chance that a touched row is one that was never touched before, in [0, 1].

    Good-Turing: the number of rows touched in exactly one step over all touches (Good 1953,
    Biometrika 40). At the end of the warm-up it estimates how much of the coming data will fall on
    rows still at their initial values; where it stays high, validation data meets untrained rows
    whatever the rate. Touches of a row within one step count once, so words repeated in a batch
    bias it upwards.
    """
    total = float(counts.sum())
    return float(np.sum(counts == 1)) / total if total > 0 else NAN


def row_agreement(blocks: Array) -> float:
    """How far the gradients of a row agree between the steps that touch it, in [-1, 1].

    For `blocks` of shape `(num_steps, rows, columns)`, over pairs of steps `s != t` and rows `i`:
    `sum <g_s,i , g_t,i> / sum |g_s,i| |g_t,i|`. Rows that a step did not touch drop out, unlike in
    the signal-to-noise ratio of the whole block, which they drown. Near 1 the examples of a row
    pull the same way, and what is learned on one serves the next; near 0 each pulls its own way, so
    that a large step fits single examples (gradient signal-to-noise ratio and generalisation: Liu
    et al. 2020, arXiv 2001.07384). NaN where no sampled row was touched twice in the steps kept.
    """
    norms = np.linalg.norm(blocks, axis=2)
    inner = np.sum(blocks.sum(0) ** 2) - np.sum(blocks**2)
    bound = np.sum(norms.sum(0) ** 2) - np.sum(norms**2)
    # Of rows touched once both are differences of equal numbers: what is left of them is rounding.
    return float(inner / bound) if bound > 1e-9 * np.sum(norms**2) else NAN
