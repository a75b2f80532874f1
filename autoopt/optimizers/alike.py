"""Which layers are alike: deep models repeat themselves, and what holds for one holds for all of its kind."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

from autoopt.architecture import LayerInfo
from autoopt.optimizers.reference import is_wide, starts_small

Result = TypeVar("Result")


def kind_of(layer: LayerInfo) -> Hashable:
    """What of a layer its configuration, its state's bytes and its report depend on, in every recipe.

    Not on its name or depth, and on its initial scale only where rates are relative to it.

    Example:
        >>> layer = LayerInfo("0.weight", "matrix", (6, 4), fan_in=4, fan_out=6, depth=0, rms=0.31)
        >>> other = LayerInfo("7.weight", "matrix", (6, 4), fan_in=4, fan_out=6, depth=7, rms=0.32)
        >>> kind_of(layer) == kind_of(other)
        True
    """
    return (
        *(layer.role, layer.shape, layer.fan_in, layer.fan_out, layer.itemsize),
        *(layer.sparse, layer.groups, layer.splits, layer.transposed, layer.norm_adjacent),
        *(is_wide(layer), starts_small(layer), layer.rms if layer.group == "embedding" else None),
    )


def by_kind(function: Callable[[LayerInfo], Result], layers: Iterable[LayerInfo]) -> list[Result]:
    """The results of a function for layers, which is called once for each kind of them."""
    known: dict[Hashable, Result] = {}
    results = []
    for layer in layers:
        kind = kind_of(layer)
        if kind not in known:
            known[kind] = function(layer)
        results.append(known[kind])
    return results
