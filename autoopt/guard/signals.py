"""What the guard looks at, on the device: squared gradient norms of role groups, running statistics, the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from autoopt.distributed.shards import is_sharded, local, sum_over_shards


class GradientNorms:
    """Squared gradient norms by role group.

    Args:
        groups: Role group of every parameter, in order.
        device: Where results are wanted.
    """

    def __init__(self, groups: Sequence[str], device: torch.device) -> None:
        names = list(dict.fromkeys(groups))
        self._num_groups = len(names)
        self._index = [names.index(group) for group in groups]
        self._device = device
        self._rows: tuple[tuple[int, ...], Tensor] | None = None

    def squares(self, grads: Sequence[Any], positions: tuple[int, ...]) -> Tensor:
        """Float32, shape `(num_groups,)`; never waits for the device, but asks the shards' other ranks.

        Args:
            grads: The gradients that there are: dense, sparse or sharded.
            positions: Positions of their parameters.
        """
        if self._rows is None or self._rows[0] != positions:
            rows = torch.tensor([self._index[position] for position in positions], device=self._device)
            self._rows = (positions, rows)
        values = [grad._values() if grad.is_sparse else local(grad) for grad in grads]
        # Norms are taken in single precision, to which torch does not narrow by itself.
        values = [value.float() if value.dtype == torch.float64 else value for value in values]
        norms = torch._foreach_norm(values, 2, dtype=torch.float32)  # pyright: ignore[reportPrivateImportUsage]
        lengths = torch.stack([norm.to(self._device) for norm in norms])
        squares = lengths.new_zeros(self._num_groups).index_add_(0, self._rows[1], lengths.square_())
        return sum_over_shards(squares, [grad for grad in grads if is_sharded(grad)])


def size_of(buffers: Sequence[Tensor], device: torch.device) -> Tensor:
    """The squared norm of running statistics together, float32, shape `(1,)`; never waits for the device."""
    # Half precision would overflow, and double is not narrowed by `dtype`.
    norms = torch._foreach_norm([buffer.float() for buffer in buffers], 2)  # pyright: ignore[reportPrivateImportUsage]
    return torch.stack([norm.to(device) for norm in norms]).square_().sum().reshape(1)


def scalar(loss: Tensor | float | None, device: torch.device) -> Tensor | None:
    """The loss as a 0-d float32 tensor on a device, without waiting for it."""
    if loss is None:
        return None
    if isinstance(loss, Tensor):
        return loss.detach().to(device, torch.float32, non_blocking=True).mean()
    return torch.full((), float(loss), dtype=torch.float32, device=device)
