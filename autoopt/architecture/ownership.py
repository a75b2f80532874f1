"""Which module owns which parameter, and whether autoopt can train it at all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import ParametrizationList, type_before_parametrizations

from autoopt.errors import ModelError

TRAINABLE_DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})


class Use(NamedTuple):
    """One place at which a parameter is registered.

    Attributes:
        name: Dotted name of the parameter at this place.
        module: The module that works with the tensor. For the tensors inside a
            `ParametrizationList` it is the parametrized module, not the list.
        attribute: The tensor's name on that module (`"weight"`).
        ancestors: The modules above `module`, nearest first.
        is_gain: Whether the tensor is only one factor of a parametrized weight, such as the
            magnitude of `weight_norm`, rather than the one of the weight's own size.
    """

    name: str
    module: nn.Module
    attribute: str
    ancestors: tuple[nn.Module, ...]
    is_gain: bool = False

    @property
    def class_name(self) -> str:
        """Name of the owning module's class, as written by its author."""
        if "parametrizations" in self.module._modules:
            return type_before_parametrizations(self.module).__name__
        return type(self.module).__name__


def uses_of_parameters(model: nn.Module) -> dict[int, list[Use]]:
    """All uses of every parameter, by the parameter's `id`, in registration order.

    A module registered at several places is visited at each, so that every name of a shared tensor
    is found; a module that contains itself is not entered again.
    """
    uses: dict[int, list[Use]] = {}
    _visit(model, "", (), uses)
    return uses


def _visit(module: nn.Module, prefix: str, ancestors: tuple[nn.Module, ...], uses: dict[int, list[Use]]) -> None:
    if isinstance(module, ParametrizationList) and len(ancestors) >= 2:
        _visit_parametrization(module, prefix, ancestors, uses)
    else:
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                use = Use(prefix + attribute, module, attribute, ancestors)
                uses.setdefault(id(parameter), []).append(use)
    below = (module, *ancestors)
    for key, child in module._modules.items():
        if child is not None and not any(child is above for above in below):
            _visit(child, f"{prefix}{key}.", below, uses)


def _visit_parametrization(
    originals: ParametrizationList, prefix: str, ancestors: tuple[nn.Module, ...], uses: dict[int, list[Use]]
) -> None:
    """Attribute the originals of a parametrized tensor to the module whose tensor they make up."""
    container, module = ancestors[0], ancestors[1]
    attribute = next(key for key, child in container._modules.items() if child is originals)
    largest = max((p.numel() for p in originals._parameters.values() if p is not None), default=0)
    for key, parameter in originals._parameters.items():
        if parameter is not None:
            is_gain = parameter.numel() < largest
            use = Use(prefix + key, module, attribute, ancestors[2:], is_gain)
            uses.setdefault(id(parameter), []).append(use)


def check_trainable(name: str, parameter: Tensor, owner: str = "") -> None:
    """Return if the parameter is one that a real-valued optimizer can update.

    Raises:
        ModelError: If it is uninitialised, complex, quantised, or a flattened shard of several
            parameters; the message names it and says what to do.
    """
    kind = type(parameter)
    is_lazy = issubclass(kind, UninitializedParameter)
    if not is_lazy and parameter.dtype in TRAINABLE_DTYPES and kind.__name__ != "FlatParameter":
        return
    where = f"parameter {name!r}" + (f" of {owner}" if owner else "")
    if is_lazy:
        raise ModelError(
            f"{where} has no shape yet: it belongs to a lazy module; run one forward pass on a real "
            "batch first, then call autoopt"
        )
    if parameter.is_complex():
        raise ModelError(
            f"{where} is complex ({parameter.dtype}); autoopt trains real parameters only: store "
            "torch.view_as_real(parameter) and build the complex tensor in forward(), or freeze it "
            "with requires_grad_(False) and train it with an optimizer of its own"
        )
    if parameter.dtype not in TRAINABLE_DTYPES:
        raise ModelError(
            f"{where} is quantised or of a type that optimizers cannot update ({parameter.dtype}); "
            "expected float16, bfloat16, float32 or float64: freeze it with requires_grad_(False) and "
            "train adapters (LoRA), or load the model unquantised"
        )
    raise ModelError(
        f"{where} is a flattened bundle of parameters (FSDP1), in which layers cannot be told apart; "
        "shard with FSDP2 (torch.distributed.fsdp.fully_shard) instead"
    )


def check_any(count: int) -> None:
    """Return if there is at least one trainable parameter.

    Raises:
        ModelError: If there is none.
    """
    if count == 0:
        raise ModelError(
            "the model has no trainable parameter: every parameter is frozen, or the layers were "
            "quantised and hold none; call requires_grad_(True) on what should be trained"
        )


def first_names(model: nn.Module) -> dict[int, tuple[str, Tensor]]:
    """The parameters under the names that users see, by `id`, in the model's own order."""
    return {id(parameter): (name, parameter) for name, parameter in model.named_parameters()}


def count_elements(parameters: Iterable[Tensor]) -> int:
    """Elements of the parameters together; lazy ones, which have none yet, count 0."""
    return sum(0 if isinstance(p, UninitializedParameter) else p.numel() for p in parameters)
