"""The reference rate of an optimizer family for a tensor's shape: rates are learned relative to it."""

from __future__ import annotations

from autoopt.architecture import LayerInfo
from autoopt.optimizers.catalog import get

BASE_FAN_IN = 64
"""Fan-in at which the reference rate of adaptive families is 1."""

SCALE_POWER = 0.4
"""Power of an embedding's initial scale that its reference rate falls with."""

HORIZON = 400
"""Steps of a run at which the horizon changes no reference rate."""

HORIZON_POWER = 0.5
"""Power of the steps of a run that the reference rates of matrices, convolutions and heads fall with."""

HORIZON_RANGE = (100, 3000)
"""Steps of the shortest and the longest run that the power was measured on: beyond, rates stay as there."""

NORM_FREE_FACTOR = 2.0
"""Factor on the reference rate of a convolution that no normalisation stands next to."""

SMALL = 0.5
"""Relative initial scale below which a hidden matrix or convolution is taken to be small on purpose."""

_SCALED_GROUPS = ("matrix", "conv", "head")


def reference_lr(
    optimizer: str,
    layer: LayerInfo,
    scale_free: bool = False,
    norm_free: bool = False,
    total_steps: int | None = None,
) -> float:
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

    The options were measured on the recorded tasks (`scripts/move_default.py --round 5` and `6`):

    - `scale_free`: rules whose update has a size of its own (all but SGD) fall with an embedding's scale:
      times `min(1, rms)^0.4`. An update of a given size changes a table of small elements more, and
      tables of dot products, which nothing normalises, the most.
    - `norm_free`: twice the rate on convolutions that no normalisation stands next to. Beside one, the size
      of the weights does not matter and larger updates only turn them further.
    - `total_steps`: the rates of hidden matrices, convolutions and heads that no normalisation stands next
      to, times `(400 / total_steps)^0.5` between 100 and 3,000 steps. The longer a run, the smaller the best
      rate: so have it the bounds of stochastic gradient methods. Beside a normalisation nothing was left to
      gain: there the weights grow, and with them the same update turns them less and less (Arora et al.
      2018, arXiv 1812.03981). Embeddings, whose rows are touched now and then, and vectors show no such
      dependence either.

    Args:
        optimizer: Catalog name.
        layer: The tensor's description.
        scale_free: Whether an embedding's rate is also relative to its initial scale.
        norm_free: Whether a convolution's rate also depends on whether a normalisation stands next to it.
        total_steps: Steps of the whole run, None for rates that are not relative to them.
    """
    family = get(optimizer).family
    if layer.group == "embedding":
        return min(1.0, layer.relative_scale or 1.0) ** SCALE_POWER if scale_free and family != "sgd" else 1.0
    if layer.group not in _SCALED_GROUPS:
        return 1.0
    factor = 1.0
    if not layer.norm_adjacent:
        factor = horizon_factor(total_steps) * (NORM_FREE_FACTOR if norm_free and layer.group == "conv" else 1.0)
    if family in ("adam", "sign"):
        return factor * min(1.0, BASE_FAN_IN / max(1, layer.fan_in))
    if family == "sgd":
        return factor * min(4.0, max(0.25, layer.fan_out / max(1, layer.fan_in)))
    return factor


def horizon_factor(total_steps: int | None) -> float:
    """The factor on the rates of layers that no normalisation stands next to, for a run of `total_steps`.

    >>> [round(horizon_factor(steps), 2) for steps in (None, 50, 100, 400, 1600, 100_000)]
    [1.0, 2.0, 2.0, 1.0, 0.5, 0.37]
    """
    if total_steps is None:
        return 1.0
    low, high = HORIZON_RANGE
    return (HORIZON / min(high, max(low, total_steps))) ** HORIZON_POWER


def decay_factor(layer: LayerInfo, total_steps: int | None) -> float:
    """The factor on an embedding's weight decay for a run of `total_steps`: `400 / total_steps`, at most 4.

    Decoupled weight decay averages over the last `1 / (lr * weight_decay)` updates; what counts is how large a
    part of the run that is (Wang & Aitchison 2024, arXiv 2405.13698). A decay that suits 400 steps would
    leave nothing of a table in a long run.

    Args:
        layer: The tensor's description.
        total_steps: Steps of the whole run, None where they are not known.
    """
    if total_steps is None or layer.group != "embedding":
        return 1.0
    return HORIZON / max(HORIZON_RANGE[0], total_steps)


def is_wide(layer: LayerInfo) -> bool:
    """Whether a table has one column and its rows are summed or averaged in bags: a linear model of sparse inputs."""
    return layer.group == "embedding" and layer.module == "EmbeddingBag" and layer.shape[1:] == (1,)


def starts_small(layer: LayerInfo) -> bool:
    """Whether a hidden matrix or convolution was initialised to much less than the usual scale, but not to 0.

    Then its smallness is made up for elsewhere (the frequencies of sine networks, Sitzmann et al. 2020,
    arXiv 2006.09661), and an update of the usual size would be a large part of it.
    """
    scale = layer.relative_scale
    return layer.group in ("matrix", "conv") and scale is not None and 1e-3 < scale < SMALL
