"""Spectral statistics of gradient matrices: how many directions a gradient really has.

`blocks` is an array `(num_steps, rows, columns)`: a sampled block of one layer's gradient matrix,
one a step. On a block the ranks saturate at the block's smaller side, so values compare only between
blocks of one size; every function returns NaN where its statistic is undefined.
"""

from __future__ import annotations

import numpy as np

from autoopt.statistics.gradient import NAN, Array


def singular_values(blocks: Array) -> Array:
    """Singular values of every non-zero block over its largest magnitude, `(num_nonzero, min(r, c))`.

    The statistics below are free of scale, so the division costs nothing and keeps squares of tiny
    gradients in the float64 range. From the eigenvalues of the smaller Gram matrix: accurate to about
    1e-8 of the largest, which is enough for norms, and several times cheaper than a decomposition.
    """
    blocks = blocks[np.any(blocks != 0, axis=(1, 2))]
    if not blocks.size:
        return np.zeros((0, min(blocks.shape[1:])))
    blocks = blocks / np.abs(blocks).max(axis=(1, 2), keepdims=True)
    transposed = np.swapaxes(blocks, 1, 2)
    wide = blocks.shape[1] <= blocks.shape[2]
    gram = blocks @ transposed if wide else transposed @ blocks
    return np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0.0))[:, ::-1]


def stable_rank(singular: Array) -> float:
    """The stable rank `|G|_F^2 / |G|_2^2`, averaged over steps, at least 1.

    Takes what `singular_values` returns. Near 1 the gradient is one outer product and a spectral
    step (Muon) differs most from a Euclidean one. Does not see the tail of small singular values.
    """
    return float(np.mean(np.sum(singular**2, axis=1) / singular[:, 0] ** 2)) if singular.size else NAN


def nuclear_rank(singular: Array) -> float:
    """The squared nuclear-to-Frobenius ratio `(|G|_* / |G|_F)^2`, averaged over steps, at least 1.

    Takes what `singular_values` returns. Spectral steps are favoured where it is at least the
    squared Frobenius-to-operator norm ratio of the layer's input (arXiv 2512.04299).
    """
    if not singular.size:
        return NAN
    return float(np.mean(np.sum(singular, axis=1) ** 2 / np.sum(singular**2, axis=1)))


def orthogonal_cosine(singular: Array) -> float:
    """The mean cosine between a gradient matrix and its orthogonalised form, in (0, 1].

    Takes what `singular_values` returns. With `G = U S V^T` and the update `U V^T` (Muon):
    `cos = |G|_* / (|G|_F sqrt(rank))`, the rank counting singular values above 1e-6 of the largest.
    """
    if not singular.size:
        return NAN
    rank = np.sum(singular > 1e-6 * singular[:, :1], axis=1)
    cosine = np.sum(singular, axis=1) / np.sqrt(np.sum(singular**2, axis=1) * rank)
    return float(np.mean(cosine))


def subspace_alignment(left: Array, right: Array) -> float:
    """How much of one gradient lies in the leading subspace of the one before; 0 is chance, 1 all.

    With `U` the leading quarter (at least one) of left singular vectors of each block of `left`, and
    `a = |U^T R|_F^2 / |R|_F^2` for the same step's block of `right`: `(a - c) / (1 - c)`, averaged,
    where `c = k / rows` is what a random subspace catches. Can be slightly negative.
    """
    rows = left.shape[1]
    k = max(1, min(left.shape[1:]) // 4)
    keep = np.any(left != 0, axis=(1, 2)) & np.any(right != 0, axis=(1, 2))
    if k >= rows or not keep.any():
        return NAN
    left = left[keep] / np.abs(left[keep]).max(axis=(1, 2), keepdims=True)
    right = right[keep] / np.abs(right[keep]).max(axis=(1, 2), keepdims=True)
    _, vectors = np.linalg.eigh(left @ np.swapaxes(left, 1, 2))
    leading = vectors[:, :, -k:]
    caught = np.sum((np.swapaxes(leading, 1, 2) @ right) ** 2, axis=(1, 2)) / np.sum(right**2, axis=(1, 2))
    chance = k / rows
    return float(np.mean((caught - chance) / (1 - chance)))
