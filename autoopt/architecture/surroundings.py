"""What surrounds a module: fused attention projections, norms beside it."""

from __future__ import annotations

from torch import nn

from autoopt.architecture.ownership import Use
from autoopt.architecture.roles import is_norm

_CONTAINERS = (nn.ModuleList, nn.ModuleDict)


def fused_qkv(parent: nn.Module) -> set[int]:
    """The `id` of each child of a module that projects to query, key and value at once.

    A linear layer from `d` to `3 n` features counts as fused if, in the same module, a later linear layer
    takes `n` features back to `d`, and no other takes all `3 n`. That is the shape of self-attention
    with equal heads (GPT-2's `c_attn` and `c_proj`, a ViT's `qkv` and `proj`), whatever the attributes
    are called; the second condition leaves feed-forward blocks of ratio 3 out. Grouped-query
    projections, whose blocks differ in size, stay plain matrices.
    """
    if isinstance(parent, (nn.Sequential, *_CONTAINERS)):
        return set()
    linears: list[tuple[nn.Module, int, int]] = []
    for child in parent._modules.values():
        size = _linear_size(child)
        if child is not None and size is not None:
            linears.append((child, *size))
    found: set[int] = set()
    for position, (child, inputs, outputs) in enumerate(linears):
        inner, rest = divmod(outputs, 3)
        if rest or any(taken == outputs for _, taken, _ in linears):
            continue
        if any((taken, given) == (inner, inputs) for _, taken, given in linears[position + 1 :]):
            found.add(id(child))
    return found


def _linear_size(module: nn.Module | None) -> tuple[int, int] | None:
    """Inputs and outputs of a linear layer, or of the first one in an `nn.Sequential`."""
    if isinstance(module, nn.Sequential):
        for child in module._modules.values():
            size = _linear_size(child)
            if size is not None:
                return size
        return None
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if is_transposed_linear(module):
        assert module is not None
        inputs, outputs = module._parameters["weight"].shape  # type: ignore[union-attr]
        return inputs, outputs
    return None


def is_transposed_linear(module: nn.Module | None) -> bool:
    """Whether a module is the `Conv1D` of `transformers`: a linear layer stored as (inputs, outputs)."""
    if module is None or type(module).__name__ != "Conv1D":
        return False
    weight = module._parameters.get("weight")
    return weight is not None and weight.ndim == 2


class NormFinder:
    """Answers whether a layer works next to a norm."""

    def __init__(self) -> None:
        self._is_adjacent: dict[int, bool] = {}
        self._has_beside: dict[int, bool] = {}
        self._has_inside: dict[int, bool] = {}

    def is_adjacent(self, use: Use) -> bool:
        """Whether a norm is beside the layer or its parent, or in the block around it.

        Lists and dicts are looked through. The block is the nearest module above that is itself an
        element of an `nn.ModuleList` or `nn.Sequential`, such as one layer of a transformer.
        """
        if id(use.module) not in self._is_adjacent:
            self._is_adjacent[id(use.module)] = self._find(use.ancestors)
        return self._is_adjacent[id(use.module)]

    def _find(self, ancestors: tuple[nn.Module, ...]) -> bool:
        above = [module for module in ancestors if not isinstance(module, _CONTAINERS)]
        if any(self._beside(module) for module in above[:2]):
            return True
        for module, parent in zip(ancestors, ancestors[1:], strict=False):
            if isinstance(parent, nn.ModuleList | nn.Sequential):
                return self._inside(module)
        return False

    def _beside(self, module: nn.Module) -> bool:
        if id(module) not in self._has_beside:
            self._has_beside[id(module)] = any(map(is_norm, self._children(module)))
        return self._has_beside[id(module)]

    def _inside(self, module: nn.Module) -> bool:
        if id(module) not in self._has_inside:
            self._has_inside[id(module)] = any(map(is_norm, module.modules()))
        return self._has_inside[id(module)]

    def _children(self, module: nn.Module) -> list[nn.Module]:
        children: list[nn.Module] = []
        for child in module._modules.values():
            if isinstance(child, _CONTAINERS):
                children.extend(c for c in child._modules.values() if c is not None)
            elif child is not None:
                children.append(child)
        return children
