"""Whether a checkpoint fits an optimizer, and what torch's way of loading one leaves undone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from autoopt.errors import CheckpointError
from autoopt.optimizers import averaging
from autoopt.optimizers.catalog import get
from autoopt.optimizers.kernels import Options, choose_implementation
from autoopt.optimizers.plan import OptimizerConfig, OptimizerPlan
from autoopt.optimizers.program import Program, encode, parse
from autoopt.statistics import warmup

_LIKE_PARAMETER = ("exp_avg", "exp_avg_sq", "momentum_buffer", "square_avg", "sum")
_REBUILD = "rebuild the optimizer from the saved plan with AutoOptimizer.from_plan(model, plan), then load"

Group = Mapping[str, Any]


def check_checkpoint(
    state_dict: Mapping[str, Any], groups: Sequence[Group], takes_over: Callable[[Mapping[str, Any]], bool]
) -> None:
    """Check that a checkpoint can be loaded; looks only, so that a refusal changes nothing.

    Args:
        state_dict: What `AutoOptimizer.state_dict` returned.
        groups: Parameter groups of the optimizer that is to take it.
        takes_over: Whether that optimizer lets the checkpoint bring another plan, as one made by `select` does.

    Raises:
        CheckpointError: If the checkpoint is of another model, plan, phase or schema.
    """
    try:
        saved_groups, state = state_dict["param_groups"], state_dict["state"]
    except (KeyError, TypeError) as error:
        raise CheckpointError("this is no optimizer state_dict: it needs 'state' and 'param_groups'") from error
    if len(saved_groups) != len(groups):
        raise CheckpointError(
            f"the checkpoint has a different number of parameter groups ({len(saved_groups)}) than this "
            f"optimizer ({len(groups)})"
        )
    any_plan = takes_over(state_dict)
    for index, (saved, group) in enumerate(zip(saved_groups, groups, strict=True)):
        if "plan" not in saved or "phase" not in saved:
            raise CheckpointError("the checkpoint was not written by AutoOptimizer: its parameter groups hold no plan")
        theirs, ours = parse(saved["plan"]), parse(group["plan"])
        _check_same_parameters(index, saved, group, theirs, ours)
        if not any_plan:
            _check_same_plan(saved, theirs, ours)
        for name, config, saved_id, param in zip(
            ours.names, theirs.configs().values(), saved["params"], group["params"], strict=True
        ):
            _check_state(name, config, state.get(saved_id, {}), param)


def _check_same_parameters(index: int, saved: Group, group: Group, theirs: Program, ours: Program) -> None:
    if len(saved["params"]) != len(group["params"]):
        raise CheckpointError(
            "the checkpoint contains a parameter group that doesn't match the size of optimizer's group "
            f"{index}: {len(saved['params'])} parameters there, {len(group['params'])} here"
        )
    if "param_names" not in saved or "param_names" not in group:
        return  # matched by order, as torch does
    for saved_name, name in zip(theirs.names, ours.names, strict=True):
        if saved_name != name:
            raise CheckpointError(
                f"the checkpoint has parameter {saved_name!r} where this optimizer has {name!r} (group {index}): "
                "it is of another model, or the parameters are in another order"
            )


def _check_same_plan(saved: Group, theirs: Program, ours: Program) -> None:
    if saved["phase"] == "warmup":
        raise CheckpointError(
            "the checkpoint was taken before the decision, and this optimizer has nothing to decide: make it with "
            "autoopt.select(model, ...) as the saved one was, then load"
        )
    for name, rule, other in zip(ours.names, ours.rules().values(), theirs.rules().values(), strict=True):
        if rule != other:
            raise CheckpointError(
                f"the checkpoint's plan has another setting for parameter {name!r} ({other}) than this optimizer "
                f"({rule}); {_REBUILD}"
            )
    if theirs.schedule != ours.schedule:
        raise CheckpointError(
            f"the checkpoint's plan has another schedule ({theirs.schedule}) than this optimizer ({ours.schedule}); "
            f"{_REBUILD}"
        )


def _check_state(name: str, config: OptimizerConfig, state: Mapping[str, Any], param: Tensor) -> None:
    keys = {key for key in state if not key.startswith((warmup.STATE_PREFIX, averaging.KEY))}
    info = get(config.optimizer)
    known = info.state_keys + info.optional_state_keys
    missing = [key for key in info.state_keys if key not in keys]
    foreign = [key for key in keys if not key.startswith(known)]
    if keys and (missing or foreign):
        raise CheckpointError(
            f"the checkpoint's state of parameter {name!r} ({', '.join(sorted(keys))}) is not that of {info.title}, "
            f"which its plan names: it was read into an optimizer of another plan; {_REBUILD}"
        )
    for key in _LIKE_PARAMETER:
        value = state.get(key)
        if isinstance(value, Tensor) and value.shape != param.shape:
            raise CheckpointError(
                f"the checkpoint's state {key!r} of parameter {name!r} has shape {tuple(value.shape)}, the parameter "
                f"has {tuple(param.shape)}: it is of another model"
            )


def restore_state(optimizer: Optimizer, state_dict: Mapping[str, Any]) -> None:
    """Give loaded state the types and devices that torch's loading took from it.

    torch casts all state but `step` to the parameter's dtype, where sums over a warm-up and scalars
    must keep theirs, and leaves `step` on the device that the file was read to.
    """
    for saved, group in zip(state_dict["param_groups"], optimizer.param_groups, strict=True):
        configs = parse(group["plan"]).configs().values()
        options = Options(group["fused"], group["foreach"], group["maximize"], group["capturable"])
        for saved_id, param, config in zip(saved["params"], group["params"], configs, strict=True):
            for key, value in state_dict["state"].get(saved_id, {}).items():
                if not isinstance(value, Tensor):
                    continue
                if key == "step":
                    chosen = choose_implementation(
                        get(config.optimizer), config.complete, param.device.type, False, options
                    )
                    on_device = chosen.fused or chosen.capturable
                    step = optimizer.state[param][key]
                    optimizer.state[param][key] = step.to(param.device if on_device else "cpu")
                elif value.dim() == 0 or key.startswith((warmup.STATE_PREFIX, averaging.KEY)):
                    optimizer.state[param][key] = value.detach().clone().to(param.device)


def plan_under_own_names(saved: Group, group: Group) -> str:
    """The saved group plan, under this optimizer's names where the checkpoint has none."""
    if "param_names" in saved or "param_names" not in group:
        return saved["plan"]
    program = parse(saved["plan"])
    layers = dict(zip(group["param_names"], program.configs().values(), strict=True))
    return encode(OptimizerPlan(layers, program.schedule), list(layers))
