"""How large the elements of parameters are when a model is described."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from autoopt.architecture.layer import LayerInfo


def with_scales(layers: Sequence[LayerInfo], parameters: Sequence[Tensor]) -> tuple[LayerInfo, ...]:
    """The layers with the root mean square of their elements, where these can be read.

    One synchronisation a device. Of a sharded parameter the part on this rank is read.

    Args:
        layers: Descriptions, in the order of the parameters.
        parameters: The parameters.
    """
    by_kind: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    parts = [_here(parameter.detach()) for parameter in parameters]
    for position, part in enumerate(parts):
        if part.numel() and not part.is_meta and not is_fake(part):
            by_kind.setdefault((part.device, part.dtype), []).append(position)
    found: dict[int, float] = {}
    for positions in by_kind.values():
        kept = [parts[position] for position in positions]
        wide = torch.float64 if kept[0].dtype == torch.float64 else torch.float32  # squares overflow in float16
        norms = torch.stack(torch._foreach_norm(kept, dtype=wide))
        found |= dict(zip(positions, norms.tolist(), strict=True))
    scaled = []
    for position, layer in enumerate(layers):
        rms = found.get(position, math.nan) / math.sqrt(max(1, parts[position].numel()))
        scaled.append(replace(layer, rms=float(f"{rms:.4g}")) if math.isfinite(rms) else layer)
    return tuple(scaled)


def _here(tensor: Tensor) -> Tensor:
    """What this rank holds of a `DTensor`; any other tensor itself."""
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()
