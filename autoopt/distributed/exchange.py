"""Whole tensors for work that needs them whole: each is put together on one rank, and taken apart again.

With `n` sharded tensors of one shape over `W` ranks, each rank works on about `n / W` of them. Every
element is sent twice, to its tensor's owner and back: less than gathering all tensors everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from autoopt.distributed.shards import Shard


@dataclass(frozen=True)
class Exchange:
    """Who owns which of some tensors that share a shape and a sharding; all its methods are collectives.

    Attributes:
        shape: Shape of each whole tensor.
        shard: Where this rank's parts lie.
        count: How many tensors there are.
        first: Turn of the first tensor: owners take turns, also from one shape to the next.
    """

    shape: tuple[int, ...]
    shard: Shard
    count: int
    first: int

    @property
    def _owners(self) -> list[int]:
        return [(self.first + position) % self._size for position in range(self.count)]

    @property
    def _size(self) -> int:
        return dist.get_world_size(self.shard.group)

    def _ranges(self) -> list[tuple[int, int]]:
        """First index and length of every rank's part along the sharded dimension, as `torch.chunk` cuts."""
        length, size = self.shape[self.shard.dim], self._size
        chunk = -(-length // size)
        starts = [min(rank * chunk, length) for rank in range(size)]
        return [(start, min(chunk, length - start)) for start in starts]

    def gather(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """The whole tensors that this rank owns, from every rank's parts of all of them."""
        owners, dim, own = self._owners, self.shard.dim, dist.get_rank(self.shard.group)
        sent = [
            [p.reshape(-1) for p, owner in zip(parts, owners, strict=True) if owner == r] for r in range(self._size)
        ]
        owned = owners.count(own)
        shapes = [(owned, *self.shape[:dim], length, *self.shape[dim + 1 :]) for _, length in self._ranges()]
        received = self._all_to_all([_joined(some, parts[0]) for some in sent], [math.prod(shape) for shape in shapes])
        pieces = [piece.reshape(shape) for piece, shape in zip(received, shapes, strict=True)]
        return list(torch.cat(pieces, dim=dim + 1).unbind())

    def scatter(self, owned: Sequence[Tensor], like: Tensor) -> list[Tensor]:
        """This rank's parts of all tensors, from their owners.

        Args:
            owned: What `gather` gave, in the same order, changed.
            like: A tensor of their type, for ranks that own none.
        """
        owners, dim = self._owners, self.shard.dim
        stack = torch.stack(list(owned)) if owned else like.new_empty((0, *self.shape))
        sent = [stack.narrow(dim + 1, start, length).reshape(-1) for start, length in self._ranges()]
        part = (*self.shape[:dim], self.shard.length, *self.shape[dim + 1 :])
        counts = [owners.count(rank) for rank in range(self._size)]
        received = self._all_to_all(sent, [count * math.prod(part) for count in counts])
        streams = [iter(piece.reshape(count, *part).unbind()) for piece, count in zip(received, counts, strict=True)]
        return [next(streams[owner]) for owner in owners]

    def _all_to_all(self, sent: list[Tensor], sizes: list[int]) -> tuple[Tensor, ...]:
        received = sent[0].new_empty(sum(sizes))
        dist.all_to_all_single(received, torch.cat(sent), sizes, [len(some) for some in sent], group=self.shard.group)
        return received.split(sizes)


def _joined(parts: Sequence[Tensor], like: Tensor) -> Tensor:
    return torch.cat(list(parts)) if parts else like.new_empty(0)
