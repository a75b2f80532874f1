"""The role and the fans of one parameter, from the class of the module that owns it.

Known classes come first (`_RULES`). What no rule knows is decided from what the owning module holds
(`_by_structure`):

1. In a class whose name contains "Norm", tensors with one extended dimension are `norm`.
2. Scalars and 1-D tensors are `bias` where the attribute is called so, else `bare`.
3. A `weight` of at least four dimensions, or of three in a class named "...Conv1d...", is `conv`.
4. Another 3-D tensor, each of whose dimensions exceeds 1, is a stack of matrices over dimension 0:
   `matrix` with `groups` the number of matrices, as in a mixture of experts. A tensor with a leading
   1, such as a class token or a positional embedding, is `bare`.
5. A 2-D tensor is `matrix` if it is the module's `weight` (PyTorch's name for what a module multiplies
   by) or its only tensor beside a bias that fits one of its sides; else `bare`: a positional table and
   a LoRA factor cannot be told from a matrix, and `bare` is the safe side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from autoopt.architecture.ownership import Use
from autoopt.errors import ModelError

Shape = tuple[int, ...]


class Role(NamedTuple):
    """The role of a parameter and the numbers that follow from it; see `LayerInfo`."""

    role: str
    fan_in: int = 1
    fan_out: int = 1
    groups: int = 1
    splits: int = 1
    transposed: bool = False


def role_of(use: Use, shape: Shape) -> Role:
    """The role of a parameter at one of its uses, before heads and fused projections are known.

    Raises:
        ModelError: If a matrix of a known class no longer has its dimensions, because a wrapper
            flattened or sharded it.
    """
    if use.is_gain:
        return Role("norm")
    attribute = _without_reparametrization(use)
    if attribute is None:
        return Role("norm")
    for classes, rule in _RULES:
        if isinstance(use.module, classes):
            role = rule(use, attribute, shape)
            return role if role is not None else Role("bare")
    return _by_structure(use.module, attribute, shape)


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises: a norm of PyTorch, or a class named so that owns no matrix."""
    if isinstance(module, _NORMS):
        return True
    if not _named(module, "norm"):
        return False
    return not module._modules and all(_is_vector(tuple(p.shape)) for p in module._parameters.values() if p is not None)


def _require_ndim(use: Use, shape: Shape, expected: int) -> None:
    if len(shape) != expected:
        raise ModelError(
            f"parameter {use.name!r} of {use.class_name} has shape {shape}, expected {expected} "
            "dimensions: a wrapper flattened or sharded it (FSDP1, DeepSpeed ZeRO); call autoopt before "
            "wrapping, or shard with FSDP2 (torch.distributed.fsdp.fully_shard)"
        )


def _without_reparametrization(use: Use) -> str | None:
    """The attribute that hook-based `weight_norm` and `spectral_norm` renamed; None for a magnitude."""
    attribute = use.attribute
    if attribute.endswith("_g") and attribute[:-2] + "_v" in use.module._parameters:
        return None
    for suffix, partner in (("_v", "_g"), ("_orig", "")):
        base = attribute.removesuffix(suffix)
        if base != attribute and (partner == "" or base + partner in use.module._parameters):
            return base
    return attribute


# --- Known classes. Each rule returns None for attributes that are not the class's own, such as the
# --- bare LoRA factors that a subclass adds.


def _embedding(use: Use, attribute: str, shape: Shape) -> Role | None:
    if attribute != "weight":
        return None
    _require_ndim(use, shape, 2)
    return Role("embedding", 1, shape[1])


def _linear(use: Use, attribute: str, shape: Shape) -> Role | None:
    if attribute == "bias":
        return Role("bias")
    if attribute != "weight":
        return None
    _require_ndim(use, shape, 2)
    return Role("matrix", shape[1], shape[0])


def _bilinear(use: Use, attribute: str, shape: Shape) -> Role | None:
    if attribute == "bias":
        return Role("bias")
    if attribute != "weight":
        return None
    _require_ndim(use, shape, 3)
    return Role("matrix", shape[1] * shape[2], shape[0])


def _attention(use: Use, attribute: str, shape: Shape) -> Role | None:
    if attribute in ("in_proj_bias", "bias_k", "bias_v"):
        return Role("bias")
    if attribute == "in_proj_weight":
        _require_ndim(use, shape, 2)
        return Role("qkv", shape[1], shape[0], splits=3)
    if attribute in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
        _require_ndim(use, shape, 2)
        return Role("matrix", shape[1], shape[0])
    return None


def _recurrent(use: Use, attribute: str, shape: Shape) -> Role | None:
    if attribute.startswith("bias"):
        return Role("bias")
    if not attribute.startswith("weight_"):
        return None
    _require_ndim(use, shape, 2)
    splits = 1
    if not attribute.startswith("weight_hr"):  # the projection of an LSTM has no gates
        splits = 4 if _is_kind(use.module, "LSTM") else 3 if _is_kind(use.module, "GRU") else 1
    return Role("recurrent", shape[1], shape[0], splits=splits)


def _is_kind(module: nn.Module, kind: str) -> bool:
    return getattr(module, "mode", "") == kind or isinstance(module, getattr(nn, f"{kind}Cell"))


def _conv(use: Use, attribute: str, shape: Shape) -> Role | None:
    """Fans of a convolution; with stride, an input reaches only every stride-th output (on average)."""
    module = use.module
    assert isinstance(module, _ConvNd)
    if attribute == "bias":
        return Role("bias")
    if attribute != "weight":
        return None
    _require_ndim(use, shape, 2 + len(module.kernel_size))
    taps, stride, groups = math.prod(shape[2:]), math.prod(module.stride), module.groups
    role = "depthwise" if groups > 1 and groups == module.in_channels else "conv"
    strided = max(1, round(taps / stride))
    if isinstance(module, _ConvTransposeNd):  # weight is (in, out / groups, *kernel)
        return Role(role, shape[0] // groups * strided, shape[1] * taps, groups, transposed=True)
    return Role(role, shape[1] * taps, shape[0] // groups * strided, groups)


def _norm(use: Use, attribute: str, shape: Shape) -> Role | None:
    return Role("norm") if attribute in ("weight", "bias") else None


_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)

_RULES: tuple[tuple[tuple[type[nn.Module], ...], Callable[[Use, str, Shape], Role | None]], ...] = (
    ((nn.Embedding, nn.EmbeddingBag), _embedding),
    ((nn.MultiheadAttention,), _attention),
    ((nn.RNNBase, nn.RNNCellBase), _recurrent),
    ((_ConvNd,), _conv),
    ((nn.Bilinear,), _bilinear),
    ((nn.Linear,), _linear),
    (_NORMS, _norm),
)


# --- Classes that are not PyTorch's own.


def _by_structure(module: nn.Module, attribute: str, shape: Shape) -> Role:
    if is_norm(module):
        return Role("norm")
    if len(shape) <= 1:
        return Role("bias" if attribute.startswith("bias") else "bare")
    is_weight = attribute == "weight" or attribute.startswith("weight_")
    if "bias" in attribute:
        # The biases of stacked matrices, or a table of attention biases.
        return Role("bias" if len(shape) == 2 and _own_stack(module) else "bare")
    if len(shape) >= 4 or (len(shape) == 3 and is_weight and _named(module, "conv1d")):
        return _foreign_conv(module, shape) if is_weight else Role("bare")
    if len(shape) == 3:
        return _stacked(module, shape) if min(shape) > 1 else Role("bare")
    if is_weight and _named(module, "embedding"):
        return Role("embedding", 1, shape[1])
    bias = module._parameters.get("bias")
    fits = bias is not None and bias.ndim == 1 and bias.shape[0] in shape
    if is_weight or (fits and _num_own_tensors(module) == 1):
        transposed = _holds_inputs_first(module, shape)
        fan_out, fan_in = reversed(shape) if transposed else shape
        return Role("matrix", fan_in, fan_out, transposed=transposed)
    return Role("bare")


def _holds_inputs_first(module: nn.Module, shape: Shape) -> bool:
    """Whether a foreign 2-D weight is (inputs, outputs), told by its bias or its declared sizes."""
    if _named(module, "conv1d"):  # the only class of that name with a 2-D weight is GPT-2's
        return True
    bias = module._parameters.get("bias")
    if bias is not None and bias.ndim == 1 and shape[0] != shape[1]:
        return bias.shape[0] == shape[1]
    for key in ("in_features", "in_channels"):
        size = getattr(module, key, None)
        if isinstance(size, int) and shape[0] != shape[1]:
            return size == shape[0]
    return False


def _foreign_conv(module: nn.Module, shape: Shape) -> Role:
    taps_from = 2
    if shape[0] == 1 and len(shape) == 5:  # modulated convolutions keep a leading batch dimension
        taps_from, shape = 3, shape
    fan_out, fan_in = shape[taps_from - 2 : taps_from]
    taps = math.prod(shape[taps_from:])
    return Role("conv", fan_in * taps, fan_out * taps)


def _stacked(module: nn.Module, shape: Shape) -> Role:
    """Fans of `(matrices, inputs, outputs)`, or of `(matrices, outputs, inputs)` where that must be so.

    The stacks of one module form a block that maps a width to the same width: the layout under which
    the first stack takes what the last one gives is the right one.
    """
    stacks = _own_stack(module)
    first, last = stacks[0], stacks[-1]
    inputs_first, outputs_first = first[1] == last[2], first[2] == last[1]
    transposed = len(stacks) < 2 or inputs_first or not outputs_first
    fan_in, fan_out = shape[1:] if transposed else reversed(shape[1:])
    return Role("matrix", fan_in, fan_out, groups=shape[0], transposed=transposed)


def _own_stack(module: nn.Module) -> list[Shape]:
    shapes = [tuple(p.shape) for p in module._parameters.values() if p is not None]
    return [shape for shape in shapes if len(shape) == 3 and min(shape) > 1]


def _num_own_tensors(module: nn.Module) -> int:
    return sum(p is not None and p.ndim >= 2 for p in module._parameters.values())


def _is_vector(shape: Shape) -> bool:
    return sum(size > 1 for size in shape) <= 1


def _named(module: nn.Module, word: str) -> bool:
    """Whether the class, or a class it inherits from, is named after the word."""
    for cls in type(module).__mro__:
        if cls is nn.Module:
            return False
        if word in cls.__name__.lower():
            return True
    return False
