"""Reads the part of a sampled block that this rank holds of a sharded tensor; sums over ranks complete it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from autoopt.distributed.shards import Shard, local, shard_of
from autoopt.errors import ModelError
from autoopt.statistics.reading import picked
from autoopt.statistics.sampling import SampleLayout

Strided = tuple[int, int, int]


@dataclass(frozen=True)
class ShardedBlock:
    """A sharded tensor, read at global coordinates: what lies on other ranks is 0 here.

    Attributes:
        part: This rank's part.
        shard: Where it lies.
    """

    part: Tensor
    shard: Shard

    @classmethod
    def of(cls, tensor: Tensor) -> ShardedBlock:
        """The reader of a `DTensor`.

        Raises:
            ModelError: If it is sharded in a way that cannot be read.
        """
        shard = shard_of(tensor)
        if shard.dim > 0 and tensor.ndim > 2:
            raise ModelError(
                f"a parameter of shape {tuple(tensor.shape)} is sharded along dimension {shard.dim}, which autoopt "
                "cannot measure: shard tensors of more than two dimensions along dimension 0, or train with a "
                "fixed plan (AutoOptimizer.from_plan)"
            )
        return cls(local(tensor), shard)

    def block(self, layout: SampleLayout) -> Tensor:
        """The sampled block, flat, `(num_coordinates,)`."""
        return self._read(layout.rows, layout.columns).reshape(-1)

    def touched(self, layout: SampleLayout) -> Tensor:
        """1.0 for each counted row with a non-zero in the sampled columns of this part."""
        return self._read(layout.counted, layout.columns).ne(0).any(1).float()

    def _read(self, rows: Strided, columns: Strided) -> Tensor:
        block = self.part.new_zeros(rows[0], columns[0])
        along_rows = self.part.dim() > 1 and self.shard.dim == 0
        first, own = _overlap(rows if along_rows else columns, self.shard)
        if own[0] > 0 and self.part.numel() > 0:
            read = picked(self.part, own, columns) if along_rows else picked(self.part, rows, own)
            block.narrow(0 if along_rows else 1, first, own[0]).copy_(read)
        return block


def _overlap(strided: Strided, shard: Shard) -> tuple[int, Strided]:
    """First of the sampled indices that lie in the shard, and those indices counted from its start."""
    number, stride, offset = strided
    first = max(0, -(-(shard.start - offset) // stride))
    last = min(number, -(-(shard.start + shard.length - offset) // stride))
    return min(first, number), (max(0, last - first), stride, offset + first * stride - shard.start)


def completed(group: Any, lengths: Tensor, blocks: Sequence[Tensor]) -> tuple[Tensor, Iterator[Tensor]]:
    """Norms and blocks of whole tensors from those of the parts, in one collective.

    Args:
        group: Process group that the tensors are sharded over.
        lengths: Norm of each tensor's part here, `(num_tensors,)` float32.
        blocks: Flat blocks that are 0 where another rank holds them, in the same order on all ranks.
    """
    total = torch.cat([lengths.square(), *blocks])
    dist.all_reduce(total, group=group)
    norms, *whole = total.split([len(lengths), *(len(block) for block in blocks)])
    return norms.sqrt(), iter(whole)
