"""The update that each optimizer family would make on a layer, at a relative rate of 1."""

from __future__ import annotations

import torch
from torch import Tensor

from autoopt.architecture import LayerInfo
from autoopt.optimizers.muon import as_matrices, as_tensor, orthogonalize
from autoopt.optimizers.reference import reference_lr

FAMILIES = ("sgd", "adamw", "lion", "muon")
"""Catalog names whose updates can be measured: one of each kind of update rule."""

ADAM_EPS = 1e-8


def update_direction(family: str, layer: LayerInfo, mean: Tensor, square: Tensor) -> Tensor | None:
    """The update `u` of a layer, to be subtracted; None where the family cannot take the layer.

    With `m` the mean gradient and `v` the mean squared gradient: `m` (SGD without momentum: with
    momentum `b`, the same way is made at `1 - b` of the rate), `m / (sqrt(v) + eps)` (Adam),
    `sign(m)` (Lion, Chen et al. 2023, arXiv 2302.06675), `sqrt(max(1, rows / columns))` times the
    orthogonalised `m` (Muon; tensors of at least two dimensions). Each is multiplied by the
    family's reference rate for the shape, so that a rate along `u` is a relative rate.

    Raises:
        ValueError: If the family is none of `FAMILIES`.
    """
    reference = reference_lr(family, layer) if family in FAMILIES else 0.0
    if family == "sgd":
        return reference * mean
    if family == "adamw":
        return reference * mean / (square.sqrt() + ADAM_EPS)
    if family == "lion":
        return reference * torch.sign(mean)
    if family == "muon":
        if not takes(family, layer):
            return None
        stacked = layer.groups > 1 and layer.role == "matrix"
        matrices = as_matrices(mean, layer.splits, stacked, layer.transposed)
        factor = reference * max(1.0, matrices.size(-2) / matrices.size(-1)) ** 0.5
        return factor * as_tensor(orthogonalize(matrices).float(), mean, stacked, layer.transposed)
    raise ValueError(f"unknown family {family!r}; choose from {', '.join(FAMILIES)}")


def takes(family: str, layer: LayerInfo) -> bool:
    """Whether the family has an update for the layer: Muon none for vectors and empty tensors."""
    return family != "muon" or (len(layer.shape) > 1 and layer.group != "vector" and layer.numel > 0)
