"""`describe`: from a model to its `Architecture`."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from autoopt.architecture.code import CodeReader
from autoopt.architecture.heads import find_heads
from autoopt.architecture.layer import LayerInfo
from autoopt.architecture.ownership import (
    Use,
    check_any,
    check_trainable,
    count_elements,
    first_names,
    uses_of_parameters,
)
from autoopt.architecture.roles import Role, role_of
from autoopt.architecture.scale import with_scales
from autoopt.architecture.summary import Architecture
from autoopt.architecture.surroundings import NormFinder, fused_qkv
from autoopt.errors import ModelError

_HEAD_ROLES = frozenset({"matrix", "qkv", "conv"})


def describe(model: nn.Module) -> Architecture:
    """The role, fans and depth of every trainable parameter of a model.

    Roles follow from the classes of the owning modules and from how modules are nested, not from
    names or sizes; `autoopt.architecture.roles`, `.heads`, `.code` and `.surroundings` state the
    rules. Of the elements only their root mean square is read, and not where they are on the meta
    device, so that such a model is described as well. Frozen parameters are left out, and counted in
    `num_frozen_parameters`.

    A head is found with certainty where the model declares it (Hugging Face, timm), else from the
    code of `forward`, and by registration order where that cannot be read. A tensor shared between
    an embedding and another layer has the role `tied` and appears once. What the description does
    not tell: how often `forward` calls a module, and which of its branches are taken.

    Raises:
        ModelError: If nothing is trainable, a trainable parameter is uninitialised, complex, quantised,
            or flattened by a wrapper, or the model was compiled by `torch.jit`.

    Example:
        >>> model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> [(name, layer.role) for name, layer in describe(model).items()]
        [('0.weight', 'embedding'), ('1.weight', 'matrix'), ('1.bias', 'bias'), \
('3.weight', 'head'), ('3.bias', 'bias')]
    """
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"expected a torch.nn.Module, got {type(model).__name__}; "
            "for parameters without a model use describe_parameters(named_parameters)"
        )
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise ModelError(
            "the model was compiled by torch.jit, which hides the classes of its modules; "
            "call autoopt on the model before torch.jit.script or torch.jit.trace"
        )
    parameters = first_names(model)
    trainable = {key: pair for key, pair in parameters.items() if pair[1].requires_grad}
    check_any(len(trainable))
    uses = uses_of_parameters(model)
    context = _Context(model)
    depths: dict[int, int] = {}
    layers = []
    for key, (name, parameter) in trainable.items():
        # A wrapper may show parameters that no module holds; they stay bare, at the root.
        where = uses.get(key) or [Use(name, model, "", ())]
        check_trainable(name, parameter, where[0].class_name)
        depth = depths.setdefault(id(where[0].module), len(depths))
        layers.append(context.layer(name, parameter, depth, where))
    frozen = (parameter for _, parameter in parameters.values() if not parameter.requires_grad)
    scaled = with_scales(layers, [parameter for _, parameter in trainable.values()])
    return Architecture(scaled, count_elements(frozen))


def frozen_layers(model: nn.Module) -> tuple[LayerInfo, ...]:
    """The frozen parameters that `describe` leaves out, described as if they were trainable.

    Depth counts from the model's first parameter. Parameters that cannot be trained as they are, such
    as quantised ones, are left out.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8).requires_grad_(False), nn.Linear(8, 3))
        >>> [(layer.name, layer.role) for layer in frozen_layers(model)]
        [('0.weight', 'matrix'), ('0.bias', 'bias')]
    """
    parameters = first_names(model)
    if all(parameter.requires_grad for _, parameter in parameters.values()):
        return ()
    uses = uses_of_parameters(model)
    context = _Context(model)
    depths: dict[int, int] = {}
    layers, described = [], []
    for key, (name, parameter) in parameters.items():
        where = uses.get(key) or [Use(name, model, "", ())]
        depth = depths.setdefault(id(where[0].module), len(depths))
        if parameter.requires_grad:
            continue
        try:
            check_trainable(name, parameter, where[0].class_name)
        except ModelError:
            continue
        layers.append(context.layer(name, parameter, depth, where))
        described.append(parameter)
    return with_scales(layers, described)


def describe_parameters(named_parameters: Iterable[tuple[str, Tensor]]) -> Architecture:
    """The architecture of parameters that come without a model, by shape alone.

    2-D tensors are `matrix` with PyTorch's (outputs, inputs) layout, larger ones `conv`, scalars and 1-D
    ones `bare`; the depth counts distinct names up to the last dot. Without modules nobody can know
    which tensors are embeddings or heads: none is called so, and `describe(model)` is to be
    preferred wherever there is a model.

    Args:
        named_parameters: Pairs of name and parameter, such as `model.named_parameters()`. Frozen
            ones are left out; the same tensor under several names is listed once.

    Raises:
        ModelError: If a name occurs twice, nothing is trainable, or a trainable parameter is
            uninitialised, complex or quantised.
    """
    named: dict[str, Tensor] = {}
    names_of: dict[int, list[str]] = {}
    for name, parameter in named_parameters:
        if name in named:
            raise ModelError(f"two parameters are named {name!r}; give every parameter its own name")
        named[name] = parameter
        names_of.setdefault(id(parameter), []).append(name)
    first = {names[0]: tuple(names[1:]) for names in names_of.values()}
    trainable = {name: named[name] for name in first if named[name].requires_grad}
    check_any(len(trainable))
    depths: dict[str, int] = {}
    layers = []
    for name, parameter in trainable.items():
        check_trainable(name, parameter)
        prefix, _, leaf = name.rpartition(".")
        depth = depths.setdefault(prefix or leaf, len(depths))
        layers.append(_layer(name, parameter, depth, first[name]))
    frozen = (named[name] for name in first if not named[name].requires_grad)
    return Architecture(tuple(layers), count_elements(frozen))


def _role_by_shape(shape: tuple[int, ...]) -> Role:
    if len(shape) < 2:
        return Role("bare")
    taps = math.prod(shape[2:])
    return Role("matrix" if len(shape) == 2 else "conv", shape[1] * taps, shape[0] * taps)


class _Context:
    """What the description of single parameters needs to know about the whole model."""

    def __init__(self, model: nn.Module) -> None:
        self._code = CodeReader()
        self._heads = find_heads(model, self._code)
        self._norms = NormFinder()
        self._fused: dict[int, set[int]] = {}

    def layer(self, name: str, parameter: Tensor, depth: int, uses: list[Use]) -> LayerInfo:
        owner, shape = uses[0], tuple(parameter.shape)
        role = self._role(owner, shape)
        if len(uses) > 1:
            role = _shared([role, *(self._role(use, shape) for use in uses[1:])])
        return LayerInfo(
            name=name,
            role=role.role,
            shape=shape,
            fan_in=role.fan_in,
            fan_out=role.fan_out,
            depth=depth,
            tied=tuple(use.name for use in uses if use.name != name),
            sparse=role.role == "embedding" and any(getattr(use.module, "sparse", False) for use in uses),
            groups=role.groups,
            splits=role.splits,
            module=owner.class_name,
            transposed=role.transposed,
            norm_adjacent=role.role != "norm" and self._norms.is_adjacent(owner),
            residual=self._code.is_residual(owner),
            itemsize=parameter.element_size(),
        )

    def _role(self, use: Use, shape: tuple[int, ...]) -> Role:
        if not use.attribute:
            return Role("bare")
        role = role_of(use, shape)
        if role.role in _HEAD_ROLES and id(use.module) in self._heads:
            return role._replace(role="head")
        if role.role == "matrix" and use.ancestors and self._is_fused_qkv(use):
            return role._replace(role="qkv", splits=3)
        return role

    def _is_fused_qkv(self, use: Use) -> bool:
        parent = use.ancestors[0]
        if id(parent) not in self._fused:
            self._fused[id(parent)] = fused_qkv(parent)
        return id(use.module) in self._fused[id(parent)]


def _shared(roles: list[Role]) -> Role:
    """The role of a tensor with several uses: an embedding that is a matrix elsewhere is tied."""
    embeddings = [role for role in roles if role.role == "embedding"]
    if embeddings and len(embeddings) < len(roles):
        return embeddings[0]._replace(role="tied")
    return next((role for role in roles if role.role == "head"), roles[0])


def _layer(name: str, parameter: Tensor, depth: int, tied: tuple[str, ...]) -> LayerInfo:
    shape = tuple(parameter.shape)
    role = _role_by_shape(shape)
    itemsize = parameter.element_size()
    return LayerInfo(name, role.role, shape, role.fan_in, role.fan_out, depth, tied, itemsize=itemsize)
