"""Library rules that read values back from the device, written so that they do not.

torch's Adafactor asks for norms with `.item()`, and its sparse rules coalesce, which asks for the
number of distinct rows: each waits for the device on every step. These functions compute the same
updates, over the same state, with tensors of fixed shapes. On a CPU nothing waits, and the library's
own code runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

State = Mapping[Tensor, MutableMapping[str, Any]]
Rate = float | Tensor
DeviceRule = Callable[[State, list[Tensor], Mapping[str, Any], Rate, bool], None]


def device_rule(name: str, sparse: bool, values: Mapping[str, Any]) -> DeviceRule | None:
    """The rule `(state, params, hyperparameters, lr, maximize)` that replaces the library's, if any.

    Args:
        name: Catalog name.
        sparse: Whether the gradients are sparse (COO, rows along dimension 0).
        values: Complete hyper-parameters.
    """
    if sparse and (values.get("momentum") or values.get("weight_decay")):
        return None  # these touch every row: the library's own way is kept
    return _SPARSE_RULES.get(name) if sparse else _DENSE_RULES.get(name)


def _adafactor(state: State, params: list[Tensor], values: Mapping[str, Any], lr: Rate, maximize: bool) -> None:
    for param in params:
        grad = param.grad
        if grad is None or param.numel() == 0:
            continue
        own = state[param]
        if not own:
            # The counter lives on the CPU, as torch's does: it is known without asking the device.
            own["step"] = torch.tensor(0.0)
            if grad.dim() > 1:
                own["row_var"] = grad.new_zeros((*grad.shape[:-1], 1))
                own["col_var"] = grad.new_zeros((*grad.shape[:-2], 1, grad.shape[-1]))
            else:
                own["variance"] = torch.zeros_like(grad)
        own["step"] += 1
        step = own["step"].item()
        decay = step ** values["beta2_decay"]
        eps1, eps2 = values["eps"]
        eps1 = torch.finfo(param.dtype).eps if eps1 is None else eps1
        rho = torch.clamp(lr, max=step**-0.5) if isinstance(lr, Tensor) else min(lr, step**-0.5)
        alpha = _root_mean_square(param).clamp(min=eps2) * rho
        if values["weight_decay"] != 0:
            param.mul_(1 - lr * values["weight_decay"])
        if grad.dim() > 1:
            own["row_var"].lerp_(grad.square().mean(dim=-1, keepdim=True), decay)
            own["col_var"].lerp_(grad.square().mean(dim=-2, keepdim=True), decay)
            estimate = own["row_var"] @ own["col_var"]
            estimate.div_(own["row_var"].mean(dim=-2, keepdim=True).clamp_(min=eps1))
        else:
            own["variance"].lerp_(grad.square(), decay)
            estimate = own["variance"].clone()
        update = estimate.clamp_(min=eps1 * eps1).rsqrt_().mul_(grad)
        scale = alpha / (_root_mean_square(update) / values["d"]).clamp(min=1.0)
        param.add_(update.mul_(scale)) if maximize else param.sub_(update.mul_(scale))


def _root_mean_square(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor) / math.sqrt(tensor.numel())


def _sparse_adam(state: State, params: list[Tensor], values: Mapping[str, Any], lr: Rate, maximize: bool) -> None:
    beta1, beta2 = values["betas"]
    for param in params:
        if param.grad is None:
            continue
        own = state[param]
        if not own:
            own["step"] = 0
            own["exp_avg"] = torch.zeros_like(param)
            own["exp_avg_sq"] = torch.zeros_like(param)
        own["step"] += 1
        if param.grad._values().numel() == 0:
            continue
        rows, grad, first = _summed_rows(param.grad, maximize)
        mean, square = own["exp_avg"].index_select(0, rows), own["exp_avg_sq"].index_select(0, rows)
        mean_change = (grad - mean).mul_(1 - beta1)
        square_change = (grad.square() - square).mul_(1 - beta2)
        _add_rows(own["exp_avg"], rows, mean_change, first)
        _add_rows(own["exp_avg_sq"], rows, square_change, first)
        correction = math.sqrt(1 - beta2 ** own["step"]) / (1 - beta1 ** own["step"])
        denominator = square.add_(square_change).sqrt_().add_(values["eps"])
        _add_rows(param, rows, mean.add_(mean_change).div_(denominator) * (-lr * correction), first)


def _sparse_adagrad(state: State, params: list[Tensor], values: Mapping[str, Any], lr: Rate, maximize: bool) -> None:
    for param in params:
        if param.grad is None:
            continue
        own = state[param]
        if not own:
            own["step"] = torch.tensor(0.0)
            own["sum"] = torch.full_like(param, values["initial_accumulator_value"])
        own["step"] += 1
        if param.grad._values().numel() == 0:
            continue
        rows, grad, first = _summed_rows(param.grad, maximize)
        rate = lr / (1 + (own["step"].item() - 1) * values["lr_decay"])
        square = grad.square()
        deviation = own["sum"].index_select(0, rows).add_(square).sqrt_().add_(values["eps"])
        _add_rows(own["sum"], rows, square, first)
        _add_rows(param, rows, (grad / deviation) * -rate, first)


def _sparse_sgd(state: State, params: list[Tensor], values: Mapping[str, Any], lr: Rate, maximize: bool) -> None:
    for param in params:
        grad = param.grad
        if grad is not None:
            # The update is linear: rows that occur twice may be added twice.
            change = grad._values() * (lr if maximize else -lr)
            param.index_add_(0, grad._indices().select(0, 0), change.to(param.dtype))


def _summed_rows(grad: Tensor, negated: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Row of each stored entry in ascending order, its row's whole gradient, and whether it is the first.

    Unlike `coalesce`, the number of entries stays, so that its shape is known without waiting.
    """
    rows, order = torch.sort(grad._indices().select(0, 0), stable=True)
    values = grad._values().index_select(0, order)
    first = rows.diff(prepend=rows.new_full((1,), -1)) != 0
    segment = first.cumsum(0) - 1
    sums = torch.zeros_like(values).index_add_(0, segment, values, alpha=-1 if negated else 1)
    return rows, sums.index_select(0, segment), first


def _add_rows(table: Tensor, rows: Tensor, change: Tensor, first: Tensor) -> None:
    mask = first.reshape(-1, *[1] * (change.dim() - 1))
    table.index_add_(0, rows, torch.where(mask, change, change.new_zeros(())))


_DENSE_RULES: dict[str, DeviceRule] = {"adafactor": _adafactor}
_SPARSE_RULES: dict[str, DeviceRule] = {"sgd": _sparse_sgd, "adagrad": _sparse_adagrad, "sparseadam": _sparse_adam}
