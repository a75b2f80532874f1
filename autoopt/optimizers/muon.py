"""Muon for every matrix-like shape: convolutions, fused projections and stacked experts included.

This file needs torch alone, so that generated training code can carry it along.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NS_STEPS = 5
EPS = 1e-7
RESTART = 3
"""Steps after which a Gram matrix in bfloat16 is taken afresh: after 2 or 4, more is lost to rounding."""
GRAM_ASPECT = 2.0
"""Columns over rows from which iterating on the Gram matrix takes less arithmetic than the plain form."""


CPU_HAS_BFLOAT16 = any(
    getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
)
"""Whether the CPU has instructions for products in bfloat16: without, they take ten times as long as in float32."""


def orthogonalize(matrices: Tensor) -> Tensor:
    """The Newton-Schulz approximation of `U V^T` for a batch of matrices `U S V^T`.

    The quintic iteration of Jordan et al. 2024 leaves singular values between about 0.7 and 1.2,
    not at 1. For a wide matrix `X`, every iterate is `Q X` with `Q` a polynomial of the Gram matrix
    `X X^T`: iterating on the small Gram matrix needs the long side twice instead of ten times.

    Args:
        matrices: Shape `(batch, rows, columns)`, any floating dtype.

    Returns:
        A tensor of the same shape, in the dtype that the products were computed in.
    """
    x = matrices.to(_product_dtype(matrices))
    return _newton_schulz(x / _norms(x))


def _norms(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=EPS)


def _newton_schulz(x: Tensor) -> Tensor:
    rows, columns = x.size(-2), x.size(-1)
    if max(rows, columns) >= GRAM_ASPECT * min(rows, columns):
        return _gram_iterations(x)
    a, b, c = NS_COEFFICIENTS
    for _ in range(NS_STEPS):
        gram = _gram(x)
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, x, factor, beta=a) if rows > columns else torch.baddbmm(x, factor, x, beta=a)
    return x


def _gram(x: Tensor) -> Tensor:
    """The smaller Gram matrix: turning a tall matrix instead would leave its update turned in memory."""
    return x.mT @ x if x.size(-2) > x.size(-1) else x @ x.mT


def _gram_iterations(x: Tensor) -> Tensor:
    # Each step is X <- p(A) X with p(A) = a I + b A + c A^2 and A = X X^T, so A <- p(A)^2 A, all of
    # them polynomials of the first Gram matrix, which commute. Rounding of A is amplified by every
    # step: in bfloat16 the Gram matrix is taken afresh after RESTART steps, or directions with tiny
    # singular values would be blown up threefold.
    a, b, c = NS_COEFFICIENTS
    start = 0
    for stop in (NS_STEPS,) if x.dtype == torch.float32 else (RESTART, NS_STEPS):
        gram = _gram(x)
        product = None
        for step in range(start, stop):
            factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            factor.diagonal(dim1=-2, dim2=-1).add_(a)
            product = factor if product is None else factor @ product
            if step + 1 < stop:
                gram = factor @ gram @ factor
        assert product is not None
        x = x @ product if x.size(-2) > x.size(-1) else product @ x
        start = stop
    return x


def _product_dtype(matrices: Tensor) -> torch.dtype:
    if matrices.device.type == "cpu" and not CPU_HAS_BFLOAT16:
        return torch.float32
    if matrices.device.type == "cuda" or matrices.dtype in (torch.bfloat16, torch.float16):
        return torch.bfloat16
    # On a CPU small products are bound by memory and dispatch, where bfloat16 only costs precision.
    return torch.bfloat16 if matrices.size(-1) * matrices.size(-2) >= 1 << 16 else torch.float32


def as_matrices(tensor: Tensor, splits: int = 1, stacked: bool = False, transposed: bool = False) -> Tensor:
    """A parameter as a batch of matrices of outputs by inputs, shape `(batch, rows, columns)`.

    Args:
        tensor: A parameter of at least two dimensions.
        splits: Equal blocks of outputs fused in one tensor, orthogonalised one by one.
        stacked: Whether dimension 0 stacks independent matrices (experts).
        transposed: Whether the tensor holds inputs before outputs.
    """
    if stacked and tensor.ndim > 2:
        matrices = tensor.reshape(tensor.size(0), tensor.size(1), -1)
        return matrices.mT if transposed else matrices
    matrix = tensor.reshape(tensor.size(0), -1)
    if transposed:
        matrix = matrix.mT
    return matrix.reshape(splits, matrix.size(0) // splits, matrix.size(1))


def as_tensor(matrices: Tensor, like: Tensor, stacked: bool = False, transposed: bool = False) -> Tensor:
    """The inverse of `as_matrices`: a batch of matrices in the shape of the parameter `like`."""
    if stacked and like.ndim > 2:
        return (matrices.mT if transposed else matrices).reshape(like.shape)
    matrix = matrices.reshape(-1, matrices.size(-1))
    return (matrix.mT if transposed else matrix).reshape(like.shape)


def same_shapes(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Positions of tensors of one shape, dtype and device, to be orthogonalised in one batch.

    Fewer, larger products take less time.
    """
    buckets: dict[object, list[int]] = {}
    for position, tensor in enumerate(tensors):
        buckets.setdefault((tensor.shape, tensor.dtype, tensor.device), []).append(position)
    return list(buckets.values())


def orthogonal_updates(
    updates: Sequence[Tensor], dtype: torch.dtype, splits: int = 1, stacked: bool = False, transposed: bool = False
) -> tuple[list[Tensor], float]:
    """The orthogonalised form of updates of one shape, and the factor that the rate gets for their shape.

    Args:
        updates: Tensors of one shape.
        dtype: Type of the results.
        splits: See `as_matrices`, as for the others.
        stacked: Likewise.
        transposed: Likewise.
    """
    views = [as_matrices(update, splits, stacked, transposed) for update in updates]
    batch = _batch(views)
    parts = _newton_schulz(batch.div_(_norms(batch))).to(dtype).split(views[0].size(0))
    scale = math.sqrt(max(1.0, batch.size(-2) / batch.size(-1)))
    return [as_tensor(part, update, stacked, transposed) for part, update in zip(parts, updates, strict=True)], scale


def limit_updates(deltas: Sequence[Tensor], params: Sequence[Tensor], limit: float, rate: float | Tensor) -> None:
    """Scale directions in place so that none changes its tensor by more than a share of the tensor's norm.

    Tensors that are 0 are not limited: they have no scale yet. Nothing waits for the device.

    Args:
        deltas: Directions, one a tensor.
        params: The tensors.
        limit: Largest norm of an update over that of its tensor.
        rate: Factor on the directions.
    """
    for delta, param in zip(deltas, params, strict=True):
        norm, step = torch.linalg.vector_norm(param), torch.linalg.vector_norm(delta) * rate
        delta.mul_(limiting_factor(norm, step, limit))


def limiting_factor(norm: Tensor, step: Tensor, limit: float) -> Tensor:
    """The factor at most 1 that brings updates of norm `step` to the limit for tensors of norm `norm`."""
    return torch.where((norm > 0) & (step > limit * norm), limit * norm / step, 1.0)


def _batch(matrices: Sequence[Tensor]) -> Tensor:
    """A copy of several batches of matrices as one, in the dtype that products are computed in."""
    first = matrices[0]
    dtype = _product_dtype(first)
    if len(matrices) == 1:
        return first.to(dtype, copy=True)
    if dtype == first.dtype:
        return torch.cat(list(matrices))
    # Copied and converted at once: torch.cat would make a large tensor more.
    batch = first.new_empty(len(matrices) * first.size(0), *first.shape[1:], dtype=dtype)
    torch._foreach_copy_(list(batch.split(first.size(0))), list(matrices))
    return batch


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are orthogonalised before they are applied.

    With momentum `B <- mu B + (1 - mu) G` and Nesterov's `M = (1 - mu) G + mu B`, the update is
    `-lr sqrt(max(1, rows / columns)) orthogonalize(M)`, as in `torch.optim.Muon`. Tensors of more
    than two dimensions are seen as matrices of their first dimension against the rest.

    Args:
        params: Parameters of at least two dimensions.
        lr: Learning rate: the spectral norm of an update to a wide or square matrix.
        momentum: Decay `mu` of the momentum.
        nesterov: Whether Nesterov's look-ahead is used.
        weight_decay: Decoupled weight decay, scaled by the rate.
        splits: Equal blocks of outputs fused in one tensor, orthogonalised one by one.
        stacked: Whether dimension 0 stacks independent matrices.
        transposed: Whether the tensor holds inputs before outputs.
        max_relative_update: Largest Frobenius norm of an update over that of the tensor, for tensors that
            are not 0; None for no limit. It bounds what one step can change of weights that are small
            on purpose, as trust ratios do (You et al. 2017, arXiv 1708.03888).
        maximize: Whether to ascend.

    Raises:
        ValueError: If a hyper-parameter is out of range or a parameter has fewer than two dimensions.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/.
    """

    def __init__(
        self,
        params,
        lr: float | Tensor = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        splits: int = 1,
        stacked: bool = False,
        transposed: bool = False,
        max_relative_update: float | None = None,
        maximize: bool = False,
    ) -> None:
        if not isinstance(lr, Tensor) and not lr >= 0.0:
            raise ValueError(f"lr must be >= 0, got {lr}")
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        if not weight_decay >= 0.0:
            raise ValueError(f"weight_decay must be >= 0, got {weight_decay}")
        if max_relative_update is not None and not max_relative_update > 0.0:
            raise ValueError(f"max_relative_update must be above 0 or None, got {max_relative_update}")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "splits": splits,
            "stacked": stacked,
            "transposed": transposed,
            "max_relative_update": max_relative_update,
            "maximize": maximize,
        }
        super().__init__(params, defaults)
        for group in self.param_groups:
            for param in group["params"]:
                if param.ndim < 2 and param.numel() > 0:
                    raise ValueError(f"Muon needs at least 2 dimensions, got shape {tuple(param.shape)}")

    @torch.no_grad()
    def step(self, closure=None):
        """Update the parameters once; returns the closure's loss, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group) -> None:
        params, grads, buffers = [], [], []
        self._init_group(group, params, grads, buffers)
        if not params:
            return
        if group["maximize"]:
            grads = torch._foreach_neg(grads)
        momentum = group["momentum"]
        torch._foreach_lerp_(buffers, grads, 1.0 - momentum)
        updates = torch._foreach_lerp(grads, buffers, momentum) if group["nesterov"] else buffers
        lr = group["lr"]
        if group["weight_decay"] != 0.0:
            torch._foreach_mul_(params, 1.0 - lr * group["weight_decay"])
        for positions in same_shapes(updates):
            self._apply(group, lr, [params[i] for i in positions], [updates[i] for i in positions])

    def _init_group(self, group, params: list[Tensor], grads: list[Tensor], buffers: list[Tensor]) -> None:
        # torch.compile knows a method of this name, and runs it beside the graph.
        for param in group["params"]:
            if param.grad is None or param.numel() == 0:
                continue
            state = self.state[param]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(param.grad, memory_format=torch.preserve_format)
            params.append(param)
            grads.append(param.grad)
            buffers.append(state["momentum_buffer"])

    @staticmethod
    def _apply(group, lr, params: list[Tensor], updates: list[Tensor]) -> None:
        layout = group["splits"], group["stacked"], group["transposed"]
        deltas, scale = orthogonal_updates(updates, params[0].dtype, *layout)
        if group["max_relative_update"] is not None:
            limit_updates(deltas, params, group["max_relative_update"], lr * scale)
        for param, delta in zip(params, deltas, strict=True):
            if isinstance(lr, Tensor):
                param.sub_(delta * (lr * scale))
            else:
                param.add_(delta, alpha=-lr * scale)
