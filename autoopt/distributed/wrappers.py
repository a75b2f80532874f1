"""What wraps a model for training on many devices: seen through, or refused where layers are lost."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from autoopt.errors import ModelError


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside `DistributedDataParallel` or `DataParallel`; others are returned as they are.

    Parameters are called by the names they have here, so that a plan or a checkpoint made for the
    model fits before and after wrapping.
    """
    while isinstance(model, DistributedDataParallel | nn.DataParallel):
        model = model.module
    return model


def group_of(model: nn.Module) -> Any:
    """The process group that a `DistributedDataParallel` averages gradients over, or None."""
    return model.process_group if isinstance(model, DistributedDataParallel) else None


def check_layers_apart(model: nn.Module) -> None:
    """Check that the model's parameters are still one tensor a layer, and stepped together.

    Wrappers are told by the marks that they leave, without importing any of them.

    Raises:
        ModelError: If they were flattened (FSDP1, DeepSpeed ZeRO), or have optimizers that step
            within backward.
    """
    for module in model.modules():
        kinds = {f"{kind.__module__}.{kind.__name__}" for kind in type(module).__mro__}
        if "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel" in kinds:
            raise ModelError(_FSDP1)
        if any(kind.startswith("deepspeed.") and kind.endswith("Engine") for kind in kinds):
            raise ModelError(_ZERO)
    for name, param in model.named_parameters():
        if hasattr(param, "ds_id"):
            raise ModelError(f"parameter {name!r} is partitioned by DeepSpeed ZeRO. {_ZERO}")
        if getattr(param, "_in_backward_optimizers", None):
            raise ModelError(
                f"parameter {name!r} has an optimizer of its own that steps within backward. {IN_BACKWARD}"
            )


def check_group_shape(names: tuple[str, ...], params: list[Tensor]) -> None:
    """Check that a parameter group still holds the parameters that it was made with.

    Raises:
        ModelError: If something (DeepSpeed ZeRO 1 and 2) has put flattened ones in their place.
    """
    if len(names) != len(params):
        raise ModelError(
            f"the optimizer was made for {len(names)} parameters, but its group holds {len(params)} now: they were "
            f"flattened into one. {_ZERO}"
        )


def is_within_backward() -> bool:
    """Whether this thread is inside a backward pass, as hooks on parameters are."""
    return torch._C._current_graph_task_id() != -1


_FSDP1 = (
    "the model is wrapped by FSDP1 (FullyShardedDataParallel), which flattens parameters, so that layers cannot be "
    "told apart: use FSDP2 (torch.distributed.fsdp.fully_shard), or train with the same element-wise rule everywhere: "
    'AutoOptimizer.from_plan(model, OptimizerPlan.uniform(model, "adamw", lr=...))'
)
_ZERO = (
    "DeepSpeed ZeRO flattens parameters, so that layers cannot be told apart: shard with FSDP2 "
    "(torch.distributed.fsdp.fully_shard) instead, or set the ZeRO stage to 0"
)
IN_BACKWARD = (
    "The profile needs all gradients of a step at once. Decide first, with "
    "plan = autoopt.recommend(model, batches=..., loss_fn=..., clip_norm=None).plan, then give every parameter "
    "a fixed one: "
    "AutoOptimizer([(name, param)], plan=OptimizerPlan({name: plan.layers[name]}, plan.schedule))"
)
