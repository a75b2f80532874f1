"""Clipping of the gradients of all parameters together, as a plan asks for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from autoopt.distributed.shards import is_sharded, local


def clip_gradients(params: Iterable[Tensor], max_norm: float) -> None:
    """Scale all gradients down in place so that together they have at most a norm; nothing waits for the device.

    Sparse gradients neither count nor are scaled, as torch has no norm of them. On several ranks the norm is that
    of the whole gradients: those of sharded parameters are summed up over ranks, the others are alike on all.

    Args:
        params: The parameters; those without a gradient are left alone.
        max_norm: Largest Euclidean norm.

    Source: Pascanu et al. 2013 (arXiv 1211.5063).
    """
    dense = [param for param in params if param.grad is not None and not param.grad.is_sparse]
    parts = [param.grad for param in dense if param.grad is not None and is_sharded(param.grad)]
    whole = [param for param in dense if param.grad is not None and not is_sharded(param.grad)]
    if not dense:
        return
    norm = total_norm([param.grad for param in dense if param.grad is not None])
    clip_grads_with_norm_(whole, max_norm, norm)
    if parts:
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch has it
        torch._foreach_mul_([local(part) for part in parts], factor)  # pyright: ignore[reportPrivateImportUsage]


def total_norm(grads: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of dense gradients together, the whole of sharded ones included; a collective for those."""
    sharded = [grad for grad in grads if is_sharded(grad)]
    if not sharded:
        return get_total_norm(grads)
    norms = [get_total_norm(sharded).full_tensor()]  # pyright: ignore[reportAttributeAccessIssue]
    if whole := [grad for grad in grads if not is_sharded(grad)]:
        norms.append(get_total_norm(whole).to(norms[0].device))
    return torch.linalg.vector_norm(torch.stack(norms))
