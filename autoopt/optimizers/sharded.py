"""How a rule steps parameters that are sharded over ranks (`DTensor`): the same update as unsharded.

Rules that treat elements alike step each rank's own part. Muon keeps its momentum in parts; each
matrix is put together and orthogonalised on one rank, the ranks taking turns. All others, whose
statistics span rows and columns, gather a parameter and keep state for all of it on every rank.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from autoopt.distributed.exchange import Exchange
from autoopt.distributed.shards import like, local, own_part, shard_of, whole
from autoopt.optimizers.muon import as_matrices, limiting_factor, orthogonal_updates

if TYPE_CHECKING:
    from autoopt.optimizers.kernels import Kernel, Options, State


def step_sharded(
    kernel: Kernel,
    state: State,
    params: list[Tensor],
    lr: float,
    scale: Tensor | None,
    overrides: Mapping[str, Any],
    options: Options,
) -> None:
    """Update sharded parameters; the arguments are those of `Kernel.step`.

    A collective for rules that are not element-wise: all ranks must call it with the same parameters.
    """
    params = [param for param in params if param.grad is not None and (kernel.info.takes_empty or param.numel())]
    if kernel.info.elementwise:
        _step_parts(kernel, state, params, lr, scale, overrides, options)
    elif kernel.info.name == "muon":
        values = {**kernel.hyperparameters, **overrides}
        _step_muon(state, params, values, lr if scale is None else scale * lr, options.maximize)
    else:
        for param in params:
            _step_whole(kernel, state, param, lr, scale, overrides, options)


def _step_parts(
    kernel: Kernel,
    state: State,
    params: list[Tensor],
    lr: float,
    scale: Tensor | None,
    overrides: Mapping[str, Any],
    options: Options,
) -> None:
    parts, states = [], {}
    for param in params:
        part = local(param)
        part.grad = local(_grad(param))
        states[part] = {
            key: local(value) if isinstance(value, Tensor) else value for key, value in state[param].items()
        }
        parts.append(part)
    known = {part: dict(own) for part, own in states.items()}
    try:
        kernel.step(states, parts, lr, scale, overrides, options, False)
    finally:
        for part in parts:
            part.grad = None  # it lives as long as the parameter
    for param, part in zip(params, parts, strict=True):
        own = state[param]
        for key, value in states[part].items():
            if value is known[part].get(key):
                continue  # changed in place, which is seen through the sharded tensor
            of_elements = isinstance(value, Tensor) and value.dim() > 0 and value.shape == part.shape
            own[key] = like(value, param) if of_elements else value


def _step_muon(state: State, params: list[Tensor], values: Mapping[str, Any], lr: Any, maximize: bool) -> None:
    momentum, decay = values["momentum"], values["weight_decay"]
    updates = []
    for param in params:
        own, grad = state[param], local(_grad(param))
        grad = -grad if maximize else grad
        if "momentum_buffer" not in own:
            own["momentum_buffer"] = like(torch.zeros_like(grad, memory_format=torch.preserve_format), param)
        buffer = local(own["momentum_buffer"])
        buffer.lerp_(grad, 1.0 - momentum)
        updates.append(grad.lerp(buffer, momentum) if values["nesterov"] else buffer)
        if decay != 0.0:
            local(param).mul_(1.0 - lr * decay)
    layout = values["splits"], values["stacked"], values["transposed"]
    turn = 0
    for positions in _alike(params):
        deltas, scale = _orthogonal_parts([updates[i] for i in positions], params[positions[0]], turn, layout)
        turn += len(positions)
        if values["max_relative_update"] is not None:
            parts = [local(params[position]) for position in positions]
            _limit(deltas, parts, values["max_relative_update"], lr * scale, shard_of(params[positions[0]]).group)
        for position, delta in zip(positions, deltas, strict=True):
            part = local(params[position])
            if isinstance(lr, Tensor):
                part.sub_(delta * (lr * scale))
            else:
                part.add_(delta, alpha=-lr * scale)


def _limit(deltas: list[Tensor], parts: list[Tensor], limit: float, rate: float | Tensor, group: Any) -> None:
    """`limit_updates` where ranks hold parts: the norms are those of whole tensors, in one collective."""
    squares = torch.stack([torch.linalg.vector_norm(tensor).float().square() for tensor in (*parts, *deltas)])
    if group is not None:
        dist.all_reduce(squares, group=group)
    norms, steps = squares.sqrt().split(len(parts))
    for delta, factor in zip(deltas, limiting_factor(norms, steps * rate, limit).unbind(), strict=True):
        delta.mul_(factor.to(delta.dtype))


def _alike(params: Sequence[Tensor]) -> list[list[int]]:
    """Positions of parameters of one shape and type that are sharded alike."""
    buckets: dict[object, list[int]] = {}
    for position, param in enumerate(params):
        shard = shard_of(param)
        buckets.setdefault((param.shape, param.dtype, param.device, shard.dim, shard.group), []).append(position)
    return list(buckets.values())


def _orthogonal_parts(
    parts: list[Tensor], param: Tensor, turn: int, layout: tuple[int, bool, bool]
) -> tuple[list[Tensor], float]:
    """This rank's parts of orthogonalised updates, each orthogonalised whole on one rank, and their factor."""
    shard = shard_of(param)
    if shard.group is None:
        return orthogonal_updates(parts, param.dtype, *layout)
    exchange = Exchange(tuple(param.shape), shard, len(parts), turn)
    owned = exchange.gather(parts)
    if owned:
        owned, _ = orthogonal_updates(owned, param.dtype, *layout)
    matrices = as_matrices(torch.empty(param.shape, device="meta"), *layout)
    scale = math.sqrt(max(1.0, matrices.size(-2) / matrices.size(-1)))
    return exchange.scatter(owned, local(param)), scale


def _step_whole(
    kernel: Kernel,
    state: State,
    param: Tensor,
    lr: float,
    scale: Tensor | None,
    overrides: Mapping[str, Any],
    options: Options,
) -> None:
    full = whole(param.detach())
    full.grad = whole(_grad(param))
    # What another rule handed over is sharded once, and whole from then on.
    own = {key: whole(value) if isinstance(value, Tensor) else value for key, value in state[param].items()}
    states: State = defaultdict(dict, {full: own})
    kernel.step(states, [full], lr, scale, overrides, options, False)
    local(param).copy_(own_part(full, param))
    state[param].update(states[full])


def _grad(param: Tensor) -> Tensor:
    assert param.grad is not None
    return param.grad
