"""Raw values of the meta-features, before their transforms: one dict a layer, what is unknown absent."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median_low
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from autoopt.architecture import LayerInfo

NAN = float("nan")

_WIDE_GROUPS = ("matrix", "conv", "head")


def architecture_values(layers: Sequence[LayerInfo], roles: Sequence[str]) -> list[dict[str, float]]:
    """What each layer, its role group and its model are; `role_<role>` is 1 for the layer's own role."""
    total = sum(layer.numel for layer in layers)
    last = max(layer.depth for layer in layers)
    weights = [layer for layer in layers if layer.role not in ("norm", "bias", "bare")]
    elements, tensors = _elements(layers), _tensors(layers)
    fans = {group: [layer.fan_in for layer in layers if layer.group == group] for group in _WIDE_GROUPS}
    hidden = next((found for found in fans.values() if found), [])
    model = {
        "num_parameters": total,
        "num_layers": len({layer.depth for layer in weights}),
        "width": float(median_low(hidden)) if hidden else NAN,
        "output_size": _largest(la.fan_out for la in layers if la.group == "head"),
        "vocabulary": _largest(la.shape[0] for la in layers if la.group == "embedding" and la.shape),
        "embedding_share": elements.get("embedding", 0) / total if total else NAN,
        "conv_share": elements.get("conv", 0) / total if total else NAN,
        "vector_share": tensors.get("vector", 0) / len(layers),
    }
    return [
        model
        | {
            "fan_in": layer.fan_in,
            "fan_out": layer.fan_out,
            "aspect": layer.fan_out / max(1, layer.fan_in),
            "numel": layer.numel,
            "share": layer.numel / total if total else NAN,
            "depth": 1 + layer.depth,
            "relative_depth": layer.depth / last if last else 0.0,
            "groups": layer.groups,
            "splits": layer.splits,
            "norm_adjacent": float(layer.norm_adjacent),
            "residual": float(layer.residual),
            "sparse": float(layer.sparse),
            "group_tensors": tensors[layer.group],
            "group_share": elements[layer.group] / total if total else NAN,
        }
        | {f"role_{role}": float(role == layer.role) for role in roles}
        for layer in layers
    ]


def statistics_values(layers: Sequence[LayerInfo], known: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """What warm-up measured of each layer (`known`), and how its gradient compares with the others'."""
    rows = [dict(row) for row in known]
    scales = np.array([row.get("grad_rms", NAN) for row in rows])
    sizes = np.array([layer.numel for layer in layers], dtype=np.float64)
    positive = np.isfinite(scales) & (scales > 0)
    if positive.any():
        whole = math.sqrt(float(np.sum(sizes[positive] * scales[positive] ** 2) / np.sum(sizes[positive])))
        for i in np.flatnonzero(positive):
            rows[i]["relative_grad_rms"] = scales[i] / whole
        groups = np.array([layer.group for layer in layers])
        spread = float(np.std(np.log(scales[positive])))
        within = {group: float(np.std(np.log(scales[positive & (groups == group)]))) for group in set(groups[positive])}
        for row, group in zip(rows, groups, strict=True):
            row["model_grad_spread"] = spread
            row["group_grad_spread"] = within.get(group, NAN)
    bends = np.array([row.get("curvature_mean", NAN) for row in rows])
    bends = bends[np.isfinite(bends) & (bends > 0)]
    if len(bends) > 1:
        spread = float(np.std(np.log(bends)))
        for row in rows:
            row["curvature_spread"] = spread
    return rows


def exposure_values(
    layers: Sequence[LayerInfo], known: Sequence[Mapping[str, float]], context: Mapping[str, float]
) -> list[dict[str, float]]:
    """How much the whole run will show each layer: what tells over-fitting from under-training.

    With batch size `B`, horizon `T`, distinct training examples `N` and model size `P`:

    - `examples_seen`: `B T`; `examples_per_parameter`: `B T / P`, `group_examples_per_parameter`: the
      same with the elements of the layer's role group. Few examples an element under-train, or
      leave an element free to fit single examples.
    - `outputs_per_parameter`: predictions of the run (tokens, for language models) over `P`; about 20
      is compute-optimal for large language models (Hoffmann et al. 2022, arXiv 2203.15556).
    - `epochs`: `B T / N`, how often the run comes back to an example; a few times cost little, many
      over-fit (Muennighoff et al. 2023, arXiv 2305.16264).
    - `parameters_per_example`: `P / N`; above 1 a model can fit the data's noise (Zhang et al. 2017,
      arXiv 1611.03530).
    - `row_visits`: for embeddings `T` times the share of rows that a batch touched in warm-up: the
      updates that a mean row will get. Rows' frequencies are uneven (`row_tail_exponent`).

    `N` is not measurable in warm-up while the first epoch lasts: it is known only where it was told.
    """
    elements, total = _elements(layers), sum(layer.numel for layer in layers)
    num_steps, num_examples = context.get("total_steps", NAN), context.get("num_examples", NAN)
    seen = context.get("batch_size", NAN) * num_steps
    predicted = context.get("batch_outputs", NAN) * num_steps
    rows = []
    for layer, row in zip(layers, known, strict=True):
        touched = row.get("rows_touched", NAN)
        rows.append(
            {
                "examples_seen": seen,
                "examples_per_parameter": seen / total if total else NAN,
                "group_examples_per_parameter": seen / elements[layer.group] if elements[layer.group] else NAN,
                "outputs_per_parameter": predicted / total if total else NAN,
                "epochs": seen / num_examples if num_examples > 0 else NAN,
                "parameters_per_example": total / num_examples if num_examples > 0 else NAN,
                "row_visits": num_steps * touched / layer.shape[0] if layer.shape and layer.shape[0] else NAN,
            }
        )
    return rows


def _elements(layers: Sequence[LayerInfo]) -> dict[str, int]:
    found: dict[str, int] = {}
    for layer in layers:
        found[layer.group] = found.get(layer.group, 0) + layer.numel
    return found


def _tensors(layers: Sequence[LayerInfo]) -> dict[str, int]:
    found: dict[str, int] = {}
    for layer in layers:
        found[layer.group] = found.get(layer.group, 0) + 1
    return found


def _largest(values: Iterable[int]) -> float:
    return float(max(values, default=NAN))
