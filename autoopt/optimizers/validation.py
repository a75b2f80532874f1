"""What is checked of parameters, parameter groups and their plan before anything is stepped."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from autoopt.architecture import LayerInfo, describe_parameters
from autoopt.errors import ModelError, PlanError
from autoopt.optimizers.catalog import OptimizerInfo, get
from autoopt.optimizers.plan import OptimizerConfig


def check_group(group: Mapping[str, Any]) -> None:
    """Check the options of a parameter group.

    Raises:
        ValueError: If the multiplier, a beta or the weight decay is out of range.
    """
    lr = group["lr"]
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
    elif not (math.isfinite(lr) and lr >= 0.0):
        raise ValueError(f"Invalid learning rate: {lr} (lr is a multiplier of the planned rates, finite and >= 0)")
    for position, beta in enumerate(group["betas"]):
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"Invalid beta parameter at index {position}: {beta}")
    decay = group["weight_decay"]
    if decay is not None and not decay >= 0.0:
        raise ValueError(f"Invalid weight_decay value: {decay}")


def check_parameters(named: Sequence[tuple[str, Tensor]], taken: Collection[str] = ()) -> None:
    """Check that parameters can be optimized and have a name of their own.

    Args:
        named: Parameters by name.
        taken: Names that other groups have.

    Raises:
        ModelError: If a parameter is complex or no floating-point tensor, or a name occurs twice.
    """
    seen = set(taken)
    for name, param in named:
        if name in seen:
            raise ModelError(f"two parameters are named {name!r}; give every parameter its own name")
        seen.add(name)
        if param.is_complex():
            raise ModelError(
                f"parameter {name!r} is complex ({param.dtype}); AutoOptimizer takes real parameters only: "
                "store it as torch.view_as_real(...) and view it as complex in forward()"
            )
        if not param.is_floating_point():
            raise ModelError(f"parameter {name!r} has dtype {param.dtype}; only floating-point tensors can be trained")


def check_distinct(named: Sequence[tuple[str, Tensor]]) -> None:
    """Check that no tensor has two names.

    Raises:
        ModelError: If one has: a plan would say twice, and maybe differently, what is done to it.
    """
    names: dict[Tensor, str] = {}
    for name, param in named:
        first = names.setdefault(param, name)
        if first != name:
            raise ModelError(
                f"parameters {first!r} and {name!r} are one tensor, which would be stepped twice; give it once, as "
                "model.named_parameters() does"
            )


def check_fits(name: str, param: Tensor, config: OptimizerConfig, layer: LayerInfo | None) -> None:
    """Check that a parameter's shape and role allow its optimizer.

    Args:
        name: The parameter's name.
        param: The parameter.
        config: Its configuration.
        layer: Its description, where a model was described.

    Raises:
        PlanError: If they do not.
    """
    info = get(config.optimizer)
    shape = tuple(param.shape)
    if param.ndim < info.min_ndim and param.numel() > 0:
        raise PlanError(
            f"parameter {name!r} of shape {shape} cannot take {info.title}, which needs at least "
            f"{info.min_ndim} dimensions; give it 'adamw' or 'sgd'"
        )
    if layer is not None and layer.group not in info.groups:
        raise PlanError(
            f"parameter {name!r} is of role {layer.role!r} and cannot take {info.title}, which is for "
            f"{', '.join(info.groups)}; give it 'adamw' or 'sgd'"
        )
    splits = config.complete.get("splits", 1)
    rows = shape[-1 if config.complete.get("transposed") else 0] if shape else 1
    if splits > 1 and (splits != int(splits) or rows % splits):
        raise PlanError(f"parameter {name!r} of shape {shape} cannot be split into {splits} equal blocks of outputs")


def check_gradients(info: OptimizerInfo, values: Mapping[str, Any], named: Sequence[tuple[str, Tensor]]) -> None:
    """Check that an optimizer takes the layout of the gradients: called where they may not fit.

    Raises:
        PlanError: If a gradient is sparse and the optimizer takes dense ones, or the reverse.
    """
    for name, param in named:
        grad = param.grad
        if grad is None:
            continue
        if grad.is_sparse and info.gradients == "dense":
            raise PlanError(
                f"parameter {name!r} has a sparse gradient, which {info.title} does not take; plan 'sparseadam', "
                "'adagrad' or 'sgd' for it, or make its embedding with sparse=False"
            )
        if not grad.is_sparse and info.gradients == "sparse":
            raise PlanError(
                f"parameter {name!r} has a dense gradient, which {info.title} does not take; plan 'adamw' for it"
            )
        if grad.is_sparse and values.get("weight_decay"):
            raise PlanError(
                f"parameter {name!r} has a sparse gradient, for which {info.title} has no weight decay: set it to 0"
            )


def layers_of(named: Sequence[tuple[str, Tensor]], known: Mapping[str, LayerInfo]) -> list[LayerInfo]:
    """The description of every parameter: the known one, or what its shape alone tells, frozen or not."""
    unknown = [(name, param.detach().requires_grad_()) for name, param in named if name not in known]
    guessed = {layer.name: layer for layer in describe_parameters(unknown).layers} if unknown else {}
    return [known.get(name) or guessed[name] for name, _ in named]
