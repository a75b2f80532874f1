"""The reference rate of an optimizer family for a tensor's shape: rates are learned relative to it."""

from __future__ import annotations

from autoopt.architecture import LayerInfo
from autoopt.optimizers.catalog import get

BASE_FAN_IN = 64
"""Fan-in at which the reference rate of adaptive families is 1."""

_SCALED_GROUPS = ("matrix", "conv", "head")


def reference_lr(optimizer: str, layer: LayerInfo) -> float:
    """The rate that one unit of relative rate stands for on this tensor.

    - Adam-like and sign families on hidden matrices, convolutions and heads: `min(1, 64 / fan_in)`.
      An update of a given size per coordinate changes the layer's output in proportion to fan_in
      when its inputs are aligned with it (Yang et al. 2022, muP, arXiv 2203.03466). It is not raised
      above 1 for narrower layers, where muP says nothing about finite width.
    - SGD on the same tensors: `min(4, max(1/4, fan_out / fan_in))`, the spectral condition on the
      update's size (Yang et al. 2023, arXiv 2310.17813), bounded since raw gradients of very
      oblong layers do not follow it.
    - Spectral (Muon): 1. The kernel's own factor `sqrt(max(1, fan_out / fan_in))` already fixes the
      spectral norm of an update (Bernstein & Newhouse 2024, arXiv 2409.20325).
    - Embeddings and vectors: 1 for every family, since an update of a row or a bias reaches the
      output once, whatever the width.

    Args:
        optimizer: Catalog name.
        layer: The tensor's description.
    """
    family = get(optimizer).family
    if layer.group not in _SCALED_GROUPS:
        return 1.0
    if family in ("adam", "sign"):
        return min(1.0, BASE_FAN_IN / max(1, layer.fan_in))
    if family == "sgd":
        return min(4.0, max(0.25, layer.fan_out / max(1, layer.fan_in)))
    return 1.0
