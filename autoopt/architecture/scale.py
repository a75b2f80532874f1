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

    One synchronisation a device, and one collective for each sharded parameter (`DTensor`).

    Args:
        layers: Descriptions, in the order of the parameters.
        parameters: The parameters.
    """
    by_kind: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    found: dict[int, float] = {}
    parts = [parameter.detach() for parameter in parameters]
    for position, part in enumerate(parts):
        if not part.numel() or part.is_meta or is_fake(part):
            continue
        if hasattr(part, "full_tensor"):
            found[position] = float(torch.linalg.vector_norm(part).full_tensor())
        else:
            by_kind.setdefault((part.device, part.dtype), []).append(position)
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
