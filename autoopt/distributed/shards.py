"""Sharded parameters (`DTensor`, as FSDP2 and tensor parallelism make them): which part is here.

`torch.distributed.tensor` is not imported: where a `DTensor` exists, somebody has.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from autoopt.errors import ModelError


@dataclass(frozen=True)
class Shard:
    """The part of a sharded tensor that this rank holds: a range along one dimension.

    Attributes:
        dim: Dimension that is sharded; 0 where every rank holds all of it.
        start: First index along it that this rank holds.
        length: How many; 0 is possible.
        group: Process group over which the parts are spread, or None where every rank holds all.
    """

    dim: int
    start: int
    length: int
    group: Any


def is_sharded(tensor: Tensor) -> bool:
    """Whether the tensor is a `DTensor`."""
    return hasattr(tensor, "placements") and hasattr(tensor, "device_mesh")


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor: itself, unless it is a `DTensor`; shares its memory."""
    if not is_sharded(tensor):
        return tensor
    # Without gradients it is at hand; detaching first goes through DTensor's slow dispatch.
    return (tensor.detach() if torch.is_grad_enabled() else tensor).to_local()  # pyright: ignore


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor on every rank: a collective where it is a `DTensor`."""
    return tensor.detach().full_tensor() if is_sharded(tensor) else tensor  # pyright: ignore


def shard_of(tensor: Any) -> Shard:
    """Where this rank's part of a `DTensor` lies.

    Raises:
        ModelError: If the tensor is sharded over more than one dimension of the mesh, or unevenly
            in another way than `torch.chunk`.
    """
    placements = tensor.placements
    sharded = [position for position, placement in enumerate(placements) if placement.is_shard()]
    partial = any(placement.is_partial() for placement in placements)
    if partial or len(sharded) > 1:
        raise ModelError(_UNKNOWN.format(shape=tuple(tensor.shape), placements=tuple(placements)))
    if not sharded:
        return Shard(0, 0, tensor.shape[0] if tensor.ndim else 1, None)
    mesh, position = tensor.device_mesh, sharded[0]
    dim = placements[position].dim % tensor.ndim
    size, parts = tensor.shape[dim], mesh.size(position)
    chunk = -(-size // parts)
    start = min(mesh.get_local_rank(position) * chunk, size)
    length = min(chunk, size - start)
    if length != local(tensor).shape[dim]:
        raise ModelError(_UNKNOWN.format(shape=tuple(tensor.shape), placements=tuple(placements)))
    return Shard(dim, start, length, mesh.get_group(position))


_UNKNOWN = (
    "a parameter of shape {shape} is sharded as {placements}, which autoopt cannot measure: it takes parameters "
    "that are sharded along one dimension of the mesh (fully_shard, hybrid sharding, or tensor parallelism alone). "
    "Train it with a fixed plan (AutoOptimizer.from_plan)"
)


def like(part: Tensor, tensor: Any) -> Tensor:
    """A `DTensor` laid out as another one, from this rank's part of it."""
    return type(tensor).from_local(
        part, tensor.device_mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )


def own_part(full: Tensor, tensor: Any) -> Tensor:
    """This rank's part of a whole tensor, cut as `tensor` is: a view."""
    shard = shard_of(tensor)
    return full if shard.group is None else full.narrow(shard.dim, shard.start, shard.length)


def sum_over_shards(value: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """A sum that this rank took over its parts of some tensors, added up over all parts; in place.

    Meant for what shows in a sum wherever it arises, such as NaN: tensors that are sharded over
    different groups are counted more than once.
    """
    for group in groups_of(tensors):
        dist.all_reduce(value, group=group)
    return value


def groups_of(tensors: Iterable[Tensor]) -> list[Any]:
    """The process groups that tensors are sharded over, in order of appearance."""
    groups: dict[Any, None] = {}
    for tensor in tensors:
        if is_sharded(tensor):
            groups.setdefault(shard_of(tensor).group)
    return [group for group in groups if group is not None]


def norms_of_whole(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The Euclidean norm of every whole tensor, as 0-d float64 tensors; one collective a group."""
    norms = [torch.linalg.vector_norm(local(t.detach()), dtype=torch.float64) for t in tensors]
    by_group: dict[Any, list[int]] = {}
    for position, tensor in enumerate(tensors):
        if is_sharded(tensor) and (group := shard_of(tensor).group) is not None:
            by_group.setdefault(group, []).append(position)
    for group, positions in by_group.items():
        total = torch.stack([norms[position] for position in positions]).square()
        dist.all_reduce(total, group=group)
        for position, norm in zip(positions, total.sqrt().unbind(), strict=True):
            norms[position] = norm
    return norms
