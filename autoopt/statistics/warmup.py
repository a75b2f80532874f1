"""Collects gradient statistics while the user's own first steps train, in constant memory.

Every layer keeps a few snapshots of a sampled block of its gradient and parameter (`sampling.py`
says which), and embeddings count which rows were touched. These are float32 tensors in the
optimizer's per-parameter state, so they survive checkpoints, pickling and copies. `update` only
copies and never waits for the device; all formulas run once, in `summarize`, in float64 on the CPU.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from autoopt.architecture import LayerInfo
from autoopt.distributed.shards import is_sharded, norms_of_whole, shard_of
from autoopt.errors import ProfileError
from autoopt.statistics.layer import add_shares, layer_statistics
from autoopt.statistics.reading import SparseRows, dense_block, dense_touched, norms_of, summed_rows
from autoopt.statistics.sampling import NUM_SLOTS, SampleLayout, sample_layout, slot_of
from autoopt.statistics.sharded import ShardedBlock, completed

if TYPE_CHECKING:
    import pandas

STATISTICS_SCHEMA_VERSION = 1
STATE_PREFIX = "warmup_"
HISTORY = "warmup_history"
ROW_COUNTS = "warmup_row_counts"
_HEADER = 2  # step + 1 (0: empty slot) and the whole gradient's norm, before each snapshot's sample


def layout_of(layer: LayerInfo, seed: int = 0) -> SampleLayout:
    """The sampled block of a layer."""
    return sample_layout(layer.name, layer.shape, layer.sparse or layer.group == "embedding", seed)


def init_state(layer: LayerInfo, param: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Zeroed float32 accumulators for one parameter, on its device; empty for an empty parameter.

    `warmup_history` has shape `(8, 2 + 2 n)` for `n` sampled coordinates: step, gradient norm,
    gradient sample, parameter sample. `warmup_row_counts` (embeddings) has one count for each of up
    to 2,048 sampled rows and then the number of steps counted. At most 46 KiB together.
    """
    layout = layout_of(layer, seed)
    if layout.num_coordinates == 0:
        return {}
    width = _HEADER + 2 * layout.num_coordinates
    state = {HISTORY: torch.zeros(NUM_SLOTS, width, dtype=torch.float32, device=param.device)}
    if layout.counted[0]:
        state[ROW_COUNTS] = torch.zeros(layout.counted[0] + 1, dtype=torch.float32, device=param.device)
    return state


def collects(step: int) -> bool:
    """Whether `update` looks at this 0-based step at all; cheap, so that callers can skip it."""
    return slot_of(step) is not None


@torch.no_grad()
def update(
    layers: Sequence[LayerInfo],
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    states: Sequence[MutableMapping[str, Any]],
    *,
    step: int,
    finite: Tensor | None = None,
    seed: int = 0,
) -> None:
    """Adds one step's gradients to the states; returns at once on steps that are not looked at.

    Never synchronises with the device. Layers whose gradient is None in this step, or whose state
    has no accumulators, are passed over. Gradients may be sparse COO (one sparse dimension); they
    are not densified.

    Args:
        layers: What the parameters are.
        params: The parameters, before this step changes them.
        grads: Their gradients.
        states: Their optimizer states, holding what `init_state` returned; changed in place.
        step: 0-based step of the warm-up.
        finite: 0-d bool tensor: whether the whole step is finite. If it is False nothing changes.
            Where None, it is found from the norms of the gradients, one verdict a device.
        seed: As given to `init_state`.

    Raises:
        ProfileError: If a parameter has another shape than it had when the model was described.
    """
    slot = slot_of(step)
    if slot is None:
        return
    together: dict[tuple[torch.device, Any], list[tuple[SampleLayout, Tensor, Tensor, MutableMapping[str, Any]]]] = {}
    for layer, param, grad, state in zip(layers, params, grads, states, strict=True):
        if grad is not None and HISTORY in state and _readable(grad):
            if param.shape != layer.shape:
                raise ProfileError(
                    f"parameter {layer.name!r} has changed its shape from {layer.shape} to {tuple(param.shape)} "
                    "during warm-up; change the model first, and select an optimizer for it then"
                )
            entry = (layout_of(layer, seed), param, grad, state)
            group = shard_of(grad).group if is_sharded(grad) else None
            together.setdefault((param.device, group), []).append(entry)
    for (device, group), entries in together.items():
        known = None if finite is None else finite.to(device, non_blocking=True)
        _update_device(entries, slot, step, known, group)


def _readable(grad: Tensor) -> bool:
    return grad.layout is torch.strided or (grad.layout is torch.sparse_coo and grad.sparse_dim() == 1)


def _update_device(
    entries: list[tuple[SampleLayout, Tensor, Tensor, MutableMapping[str, Any]]],
    slot: int,
    step: int,
    finite: Tensor | None,
    group: Any,
) -> None:
    sources = [_source(grad) for _, _, grad, _ in entries]
    norms = norms_of([_values(source) for source in sources])
    stamp = norms[0].new_full((1,), step + 1.0)
    lengths = torch.stack(norms)
    blocks = []
    for (layout, param, _, state), source in zip(entries, sources, strict=True):
        blocks += (_block(source, layout), _block(_source(param), layout))
        if layout.counted[0] and ROW_COUNTS in state:
            blocks.append(dense_touched(source, layout) if isinstance(source, Tensor) else source.touched(layout))
    lengths, blocks = (lengths, iter(blocks)) if group is None else completed(group, lengths, blocks)
    if finite is None:
        finite = torch.isfinite(lengths).all()
    pieces, widths, rows = [], [], []
    for (layout, _, _, state), norm in zip(entries, lengths.split(1), strict=True):
        pieces += (stamp, norm, next(blocks), next(blocks))
        widths.append(_HEADER + 2 * layout.num_coordinates)
        rows.append(state[HISTORY].select(0, slot))
        if layout.counted[0] and ROW_COUNTS in state:
            touched = next(blocks).clamp(max=1.0)  # a row may be touched in several parts
            state[ROW_COUNTS] += torch.cat([touched, touched.new_ones(1)]) * finite
    # One concatenation and one mask for all layers: on small models the calls are what costs. A
    # non-finite step keeps the old snapshot; `where`, since NaN times 0 is NaN.
    fresh = torch.where(finite, torch.cat(pieces), torch.cat(rows))
    torch._foreach_copy_(rows, fresh.split(widths))  # pyright: ignore[reportPrivateImportUsage]


def _source(tensor: Tensor) -> Tensor | SparseRows | ShardedBlock:
    if is_sharded(tensor):
        return ShardedBlock.of(tensor)
    return summed_rows(tensor) if tensor.is_sparse else tensor


def _values(source: Tensor | SparseRows | ShardedBlock) -> Tensor:
    if isinstance(source, SparseRows):
        return source.sums
    return source.part if isinstance(source, ShardedBlock) else source


def _block(source: Tensor | SparseRows | ShardedBlock, layout: SampleLayout) -> Tensor:
    return dense_block(source, layout) if isinstance(source, Tensor) else source.block(layout)


@dataclass(frozen=True)
class WarmupStatistics:
    """What was measured in warm-up: a value that goes through JSON unchanged.

    Attributes:
        layers: Parameter name -> statistic -> finite value. What could not be measured is absent.
        task: Facts of the whole run, such as `batch_size`, `loss_start` and `num_nonfinite_steps`, and
            the whole model's gradient noise scale in examples (`noise_scale`) and over the batch size
            (`noise_ratio`).
        missing: Parameter name -> statistic (or `"*"`) -> why it is absent.
        num_steps: Warm-up steps up to the last one looked at.
        schema_version: Version of this layout.
    """

    layers: dict[str, dict[str, float]]
    task: dict[str, float] = field(default_factory=dict)
    missing: dict[str, dict[str, str]] = field(default_factory=dict)
    num_steps: int = 0
    schema_version: int = STATISTICS_SCHEMA_VERSION

    def with_layer_values(self, values: Mapping[str, Mapping[str, float]]) -> WarmupStatistics:
        """A copy with further statistics of some layers, such as measured rates; finite ones only."""
        layers = {name: dict(row) for name, row in self.layers.items()}
        for name, row in values.items():
            finite = {key: float(value) for key, value in row.items() if math.isfinite(value)}
            layers.setdefault(name, {}).update(finite)
        return replace(self, layers=layers)

    def to_json(self, indent: int | None = None) -> str:
        """The statistics as JSON text; `from_json` gives an equal value back."""
        value = {
            "schema_version": self.schema_version,
            "num_steps": self.num_steps,
            "task": self.task,
            "layers": self.layers,
            "missing": self.missing,
        }
        return json.dumps(value, indent=indent, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> WarmupStatistics:
        """The statistics in a JSON text.

        Raises:
            ProfileError: If the text is not JSON, no statistics, or of another schema.
        """
        try:
            value = json.loads(text)
            version = value["schema_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise ProfileError(f"these are not warm-up statistics: {error!r}") from error
        if version != STATISTICS_SCHEMA_VERSION:
            raise ProfileError(
                f"the warm-up statistics have schema version {version}, this autoopt reads "
                f"{STATISTICS_SCHEMA_VERSION}; use the autoopt release that wrote them"
            )
        try:
            return cls(value["layers"], value["task"], value["missing"], int(value["num_steps"]), version)
        except (KeyError, TypeError, ValueError) as error:
            raise ProfileError(f"the warm-up statistics are damaged: {error!r}") from error

    def to_frame(self) -> pandas.DataFrame:
        """The layers' statistics as a table: one row a layer, NaN where a statistic is missing."""
        import pandas as pd

        return pd.DataFrame.from_dict(self.layers, orient="index", dtype="float64")


@torch.no_grad()
def summarize(
    layers: Sequence[LayerInfo],
    params: Sequence[Tensor],
    states: Sequence[Mapping[str, Any]],
    *,
    task: Mapping[str, float] | None = None,
    seed: int = 0,
) -> WarmupStatistics:
    """The statistics of everything that `update` added: one transfer from each device.

    The accumulators are left as they are. A layer that had a gradient in fewer than two of the
    steps looked at, or only zeros, has few or no statistics, and `missing` says why.

    Args:
        layers: What the parameters are.
        params: The parameters.
        states: Their optimizer states.
        task: Facts to carry along; values that are not finite are dropped and listed as missing.
        seed: As given to `update`.
    """
    arrays = _to_host([s.get(HISTORY) for s in states], [s.get(ROW_COUNTS) for s in states], params)
    values: dict[str, dict[str, float]] = {}
    missing: dict[str, dict[str, str]] = {}
    num_steps = 0
    for layer, (history, counts, param_norm) in zip(layers, arrays, strict=True):
        if history is None:
            missing[layer.name] = {"*": "no accumulators: an empty parameter, or no gradient came in any step"}
            continue
        kept = history[(history[:, 0] > 0) & np.isfinite(history).all(1)]
        kept = kept[np.argsort(kept[:, 0])]
        num_steps = max([num_steps, *kept[-1:, 0].astype(int).tolist()])
        layout = layout_of(layer, seed)
        row = layer_statistics(kept, counts, param_norm, layer.numel, layout, layer.transposed)
        values[layer.name] = {key: value for key, value in row.items() if math.isfinite(value)}
        absent = {
            key.replace("grad_square", "norm_share"): _reason(kept)
            for key, value in row.items()
            if not math.isfinite(value) and key != "signal_share"
        }
        if absent:
            missing[layer.name] = absent
    noise_ratio = add_shares(values)
    facts = {key: float(value) for key, value in (task or {}).items()}
    if not math.isnan(noise_ratio):
        facts["noise_ratio"] = noise_ratio
        if "batch_size" in facts:
            facts["noise_scale"] = noise_ratio * facts["batch_size"]
    unusable = {key: "not finite" for key, value in facts.items() if not math.isfinite(value)}
    if unusable:
        missing["task"] = unusable
    facts = {key: value for key, value in facts.items() if math.isfinite(value)}
    return WarmupStatistics(values, facts, missing, num_steps)


def _reason(kept: np.ndarray) -> str:
    if len(kept) < 2:
        return f"a finite gradient in only {len(kept)} of the steps looked at"
    if not kept[:, 1].any():
        return "the gradient was zero in every step"
    return "undefined on this sample (too few or only equal or zero elements)"


def _to_host(
    histories: Sequence[Tensor | None], counts: Sequence[Tensor | None], params: Sequence[Tensor]
) -> list[tuple[np.ndarray | None, np.ndarray | None, float]]:
    """Everything a summary needs as float64 arrays, through one copy from each device."""
    norms = [norm if p.numel() else None for p, norm in zip(params, norms_of_whole(params), strict=True)]
    chunks: dict[torch.device, list[Tensor]] = {}
    for tensor in (*histories, *counts, *norms):
        if tensor is not None:
            chunks.setdefault(tensor.device, []).append(tensor.reshape(-1).double())
    flat = {device: torch.cat(parts).cpu().numpy() for device, parts in chunks.items()}
    taken = dict.fromkeys(flat, 0)

    def take(tensor: Tensor | None) -> np.ndarray | None:
        if tensor is None:
            return None
        start = taken[tensor.device]
        taken[tensor.device] = start + tensor.numel()
        return flat[tensor.device][start : start + tensor.numel()].reshape(tensor.shape)

    host_histories = [take(t) for t in histories]
    host_counts = [take(t) for t in counts]
    host_norms = [take(t) for t in norms]
    return [
        (history, count, float(norm) if norm is not None else 0.0)
        for history, count, norm in zip(host_histories, host_counts, host_norms, strict=True)
    ]
