"""Reads sampled blocks, touched rows and norms from dense and sparse gradients, without waiting.

No function here synchronises with the device, densifies a sparse gradient, or makes a tensor whose
shape depends on values.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from autoopt.statistics.sampling import SampleLayout


def norms_of(tensors: list[Tensor]) -> list[Tensor]:
    """The Euclidean norm of every tensor, as 0-d float32 tensors on its device."""
    if all(t.dtype is torch.float32 for t in tensors):
        return list(torch._foreach_norm(tensors))  # pyright: ignore[reportPrivateImportUsage]
    # float16 overflows at 65504 and bfloat16 keeps 3 digits; float64 may not be narrowed inside.
    return [
        torch.linalg.vector_norm(t, dtype=None if t.dtype is torch.float64 else torch.float32).float() for t in tensors
    ]


def dense_block(tensor: Tensor, layout: SampleLayout) -> Tensor:
    """The sampled block of a dense tensor, flat, `(num_coordinates,)`; a view where it can be."""
    if layout.whole:
        return tensor if tensor.dim() == 1 else tensor.reshape(-1)
    if tensor.dim() == 1:
        _, stride, offset = layout.columns
        step = tensor.stride(0)
        start = tensor.storage_offset() + offset * step
        return tensor.as_strided((layout.num_coordinates,), (stride * step,), start)
    return picked(tensor, layout.rows, layout.columns).reshape(-1)


def dense_touched(grad: Tensor, layout: SampleLayout) -> Tensor:
    """1.0 for each counted row with a non-zero in the sampled columns of a dense gradient."""
    return picked(grad, layout.counted, layout.columns).ne(0).any(1).float()


def picked(tensor: Tensor, rows: tuple[int, int, int], columns: tuple[int, int, int]) -> Tensor:
    """The elements of a tensor's matrix view at rows and columns `(number, stride, offset)`; a view where it can be."""
    # as_strided throughout: one call where slicing takes two, and unlike subscripts it can be traced
    # for a device that is not there.
    number, stride, offset = rows
    if not tensor.is_contiguous() and tensor.dim() > 2:
        size, strides = tensor.size(), tensor.stride()
        start = tensor.storage_offset() + offset * strides[0]
        # Channels-last and the like: the sampled rows alone are copied into the logical order.
        tensor = tensor.as_strided((number, *size[1:]), (stride * strides[0], *strides[1:]), start)
        tensor, stride, offset = tensor.reshape(number, -1).contiguous(), 1, 0
    if tensor.is_contiguous():
        # Not its strides: those of dimensions of size 1 may be anything.
        row_step, column_step = tensor.numel() // tensor.size(0) if tensor.dim() > 1 else 0, 1
    else:
        row_step, column_step = tensor.stride(0) if tensor.dim() > 1 else 0, tensor.stride(-1)
    start = tensor.storage_offset() + offset * row_step + columns[2] * column_step
    return tensor.as_strided((number, columns[0]), (stride * row_step, columns[1] * column_step), start)


@dataclass(frozen=True)
class SparseRows:
    """A sparse gradient whose duplicate rows are summed.

    Attributes:
        rows: Row of each stored entry, `(nnz,)`.
        sums: The row's whole gradient at its first entry, 0 at its others, `(nnz, columns)`.
        first: Whether the entry is the first of its row, `(nnz,)`.
    """

    rows: Tensor
    sums: Tensor
    first: Tensor

    def _slots(self, strided: tuple[int, int, int]) -> Tensor:
        # Position of each entry's row among the sampled rows; their number for entries of no such row.
        number, stride, offset = strided
        shifted = self.rows - offset
        position = torch.div(shifted, stride, rounding_mode="floor")
        hit = self.first & (shifted >= 0) & (shifted - position * stride == 0) & (position < number)
        return torch.where(hit, position, number)

    def block(self, layout: SampleLayout) -> Tensor:
        """The sampled block, flat, `(num_coordinates,)`."""
        values = picked(self.sums, (len(self.rows), 1, 0), layout.columns)
        block = values.new_zeros(layout.rows[0] + 1, layout.columns[0])
        block.index_add_(0, self._slots(layout.rows), values)
        return block.narrow(0, 0, layout.rows[0]).reshape(-1)

    def touched(self, layout: SampleLayout) -> Tensor:
        """1.0 for each counted row that has an entry."""
        flags = torch.zeros(layout.counted[0] + 1, dtype=torch.float32, device=self.rows.device)
        flags.index_fill_(0, self._slots(layout.counted), 1.0)
        return flags.narrow(0, 0, layout.counted[0])


def summed_rows(grad: Tensor) -> SparseRows:
    """A sparse COO gradient (one sparse dimension) with its duplicate rows summed."""
    # Not coalesce(): its number of distinct rows is a value the host would have to wait for.
    rows, values = grad._indices().select(0, 0), grad._values()
    values = values.flatten(1) if values.dim() > 1 else values.unsqueeze(1)
    if values.dtype in (torch.float16, torch.bfloat16):
        values = values.float()
    if grad.is_coalesced():
        return SparseRows(rows, values, torch.ones_like(rows, dtype=torch.bool))
    rows, order = torch.sort(rows, stable=True)
    first = rows.diff(prepend=rows.new_full((1,), -1)) != 0
    segment = first.cumsum(0) - 1
    sums = torch.zeros_like(values).index_add_(0, segment, values.index_select(0, order))
    # `sums` is packed to the front, in the order of the distinct rows: spread it back, so that each
    # sum stands at the first entry of its row.
    spread = torch.where(first.unsqueeze(1), sums.index_select(0, segment), sums.new_zeros(()))
    return SparseRows(rows, spread, first)
