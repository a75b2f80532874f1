"""The reference rate of an optimizer family for a tensor's shape: rates are learned relative to it."""

from __future__ import annotations

from autoopt.architecture import LayerInfo
from autoopt.optimizers.catalog import get

BASE_FAN_IN = 64
"""Fan-in at which the reference rate of adaptive families is 1."""

SCALE_POWER = 0.4
"""Power of an embedding's initial scale that its reference rate falls with."""

SMALL = 0.5
"""Relative initial scale below which a hidden matrix or convolution is taken to be small on purpose."""

_SCALED_GROUPS = ("matrix", "conv", "head")


def reference_lr(optimizer: str, layer: LayerInfo, scale_free: bool = False) -> float:
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

    With `scale_free`, rules whose update has a size of its own (all but SGD) fall with an embedding's
    scale: times `min(1, rms)^0.4`. An update of a given size changes a table of small elements more,
    and tables of dot products, which nothing normalises, the most. `scripts/move_default.py
    --round 5` shows what it is worth on the recorded tasks.

    Args:
        optimizer: Catalog name.
        layer: The tensor's description.
        scale_free: Whether an embedding's rate is also relative to its initial scale.
    """
    family = get(optimizer).family
    if scale_free and layer.group == "embedding" and family != "sgd":
        return min(1.0, layer.relative_scale or 1.0) ** SCALE_POWER
    if layer.group not in _SCALED_GROUPS:
        return 1.0
    if family in ("adam", "sign"):
        return min(1.0, BASE_FAN_IN / max(1, layer.fan_in))
    if family == "sgd":
        return min(4.0, max(0.25, layer.fan_out / max(1, layer.fan_in)))
    return 1.0


def starts_small(layer: LayerInfo) -> bool:
    """Whether a hidden matrix or convolution was initialised to much less than the usual scale, but not to 0.

    Then its smallness is made up for elsewhere (the frequencies of sine networks, Sitzmann et al. 2020,
    arXiv 2006.09661), and an update of the usual size would be a large part of it.
    """
    scale = layer.relative_scale
    return layer.group in ("matrix", "conv") and scale is not None and 1e-3 < scale < SMALL
