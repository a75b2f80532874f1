"""The plan in a checkpoint as a recommendation, so that it can be reported in any format.

A checkpoint holds the plan in force and the optimizer's state. It holds no model, so roles are read
off names and shapes, and no reasons: those are in the recommendation that was saved beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any

import torch

from autoopt.architecture import LayerInfo, describe_parameters
from autoopt.errors import CheckpointError
from autoopt.optimizers.averaging import averages_in
from autoopt.optimizers.catalog import get
from autoopt.optimizers.plan import OptimizerConfig, OptimizerPlan
from autoopt.optimizers.program import parse
from autoopt.optimizers.state_bytes import adamw_state_bytes, predicted_state_bytes
from autoopt.report.content import LayerRecommendation
from autoopt.report.recommendation import Recommendation

_LIKE_PARAMETER = ("exp_avg", "momentum_buffer", "square_avg", "sum", "variance")
_REASON = "Read from a checkpoint, which holds no reasons."


def recommendation_of(state_dict: Mapping[str, Any], content: Any = None) -> Recommendation:
    """The plan in force when a checkpoint was taken, as a recommendation without reasons.

    Args:
        state_dict: What `AutoOptimizer.state_dict` returned.
        content: The whole checkpoint, in which the model's tensors are looked for by name.

    Raises:
        CheckpointError: If the state_dict is damaged.
    """
    configs: dict[str, OptimizerConfig] = {}
    tensors: dict[str, torch.Tensor] = {}
    try:
        groups = list(state_dict["param_groups"])
        programs = [parse(group["plan"]) for group in groups]
        for group, program in zip(groups, programs, strict=True):
            configs.update(program.configs())
            for name, key in zip(program.names, group["params"], strict=True):
                tensor = _tensor_of(content, name)
                tensor = _buffer_like(state_dict["state"].get(key, {})) if tensor is None else tensor
                if tensor is not None:
                    tensors[name] = tensor
        step, phase = int(groups[0]["step"]), str(groups[0]["phase"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"the optimizer's state_dict is damaged: {error!r}") from error
    known = _described(tensors)
    plan = OptimizerPlan(configs, programs[0].schedule)
    return Recommendation(
        plan=plan,
        layers=tuple(_layer(name, config, known.get(name)) for name, config in configs.items()),
        warnings=tuple(_warnings(phase, len(configs) - len(tensors))),
        # A tensor of unknown shape counts as empty.
        memory_bytes=predicted_state_bytes(known.values(), plan) + _bytes_of_averages(state_dict["state"]),
        adamw_memory_bytes=adamw_state_bytes(known.values()),
        profile={"mode": "checkpoint", "step": step, "phase": phase},
        provenance={"autoopt": metadata.version("autoopt"), "torch": torch.__version__},
    )


def _bytes_of_averages(state: Mapping[Any, Mapping[str, Any]]) -> int:
    kept = (value for own in state.values() for value in averages_in(own).values())
    return sum(value.numel() * value.element_size() for value in kept if isinstance(value, torch.Tensor))


def _warnings(phase: str, num_unknown: int) -> list[str]:
    warnings = ["A checkpoint holds no model: roles are read off names and shapes."]
    if phase == "warmup":
        warnings.append("Taken in warm-up, before the decision: this is the calibrated default, not the choice.")
    if num_unknown:
        warnings.append(f"The checkpoint does not tell the shape of {num_unknown} tensors: they count as empty.")
    return warnings


def _tensor_of(content: Any, name: str) -> torch.Tensor | None:
    """The model's tensor of a name, looked for at the top of a checkpoint and one level down."""
    if not isinstance(content, Mapping):
        return None
    for place in (content, *content.values()):
        if isinstance(place, Mapping) and isinstance(place.get(name), torch.Tensor):
            return place[name]
    return None


def _buffer_like(state: Mapping[str, Any]) -> torch.Tensor | None:
    """A buffer of a parameter's optimizer that has its shape and type, where there is one."""
    return next((state[key] for key in _LIKE_PARAMETER if isinstance(state.get(key), torch.Tensor)), None)


def _described(tensors: Mapping[str, torch.Tensor]) -> dict[str, LayerInfo]:
    named = [
        (name, torch.empty(tensor.shape, dtype=tensor.dtype, device="meta", requires_grad=True))
        for name, tensor in tensors.items()
    ]
    return {layer.name: layer for layer in describe_parameters(named).layers} if named else {}


def _layer(name: str, config: OptimizerConfig, layer: LayerInfo | None) -> LayerRecommendation:
    return LayerRecommendation(
        name=name,
        role="bare" if layer is None else layer.role,
        group="vector" if layer is None else layer.group,
        shape=() if layer is None else layer.shape,
        num_parameters=0 if layer is None else layer.numel,
        config=config,
        reason=_REASON,
        # A rule for sparse gradients alone says so by itself.
        sparse=get(config.optimizer).gradients == "sparse",
    )
