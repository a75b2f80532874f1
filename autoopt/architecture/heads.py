"""Which modules produce the model's output.

The rule, from the root downwards:

1. A module that says so is believed: `get_output_embeddings()` (Hugging Face) and `get_classifier()`
   (timm). Where the rules below find the same module, those it has beside it are heads too.
2. Otherwise the output comes from the last child, in registration order, that holds a matrix or a
   convolution; embeddings, norms and bare parameters are passed over.
3. Earlier siblings are parallel heads if they take the same number of inputs as that last child, or
   give the same number of outputs, and cannot feed it: policy and value, the towers of a two-tower
   model, an `nn.ModuleDict` of heads, a wide part beside a deep one.
4. Where the last child continues a stack of blocks of its own class (equal shapes, or as many outputs as
   inputs), or is a recurrent, attention or transformer layer, or stacks several matrices in one
   tensor, the model ends in a hidden layer and has no head there.

Registration order is what a module tells about the flow of its data: a model that registers its last
layer first is described wrongly unless it declares it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import nn
from torch.nn.modules.conv import _ConvNd

from autoopt.architecture.ownership import Use
from autoopt.architecture.roles import role_of

_HIDDEN = (
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class _Ends(NamedTuple):
    """Features that a subtree takes and gives.

    `possible` holds every width it might give: in a module with a `forward` of its own the order of
    registration is no proof of what comes out, in an `nn.Sequential` it is.
    """

    inputs: int
    outputs: int
    possible: frozenset[int]


def find_heads(model: nn.Module) -> set[int]:
    """The `id` of every module whose weight produces the model's output; frozen ones included."""
    return {id(module) for module in _Search().heads(model)}


class _Search:
    """One search over one model; remembers the ends of subtrees, which are asked for repeatedly."""

    def __init__(self) -> None:
        self._ends: dict[int, _Ends | None] = {}

    def heads(self, module: nn.Module) -> list[nn.Module]:
        declared = _declared(module)
        if declared is None:
            return self._by_structure(module)
        found = self._by_structure(module) if declared else []
        agrees = any(one is other for one in declared for other in found)
        return _unique([*declared, *found]) if agrees else declared

    def _by_structure(self, module: nn.Module) -> list[nn.Module]:
        if isinstance(module, _HIDDEN):
            return []
        children = self._children(module)
        if not children:
            own = _own_widths(module)
            return [module] if len(own) == 1 else []
        parallel = self._parallel(module, children)
        if len(parallel) == 1 and len(children) > 1 and self._continues_stack(children[-2], children[-1]):
            return []
        return [head for child in parallel for head in self.heads(child)]

    def _children(self, module: nn.Module) -> list[nn.Module]:
        """The children that transform features, in registration order."""
        return _unique(c for c in module._modules.values() if c is not None and self._end(c) is not None)

    def _end(self, module: nn.Module) -> _Ends | None:
        """The ends of a subtree, None where it holds no matrix."""
        if id(module) not in self._ends:
            self._ends[id(module)] = None  # a module that contains itself ends here
            self._ends[id(module)] = self._find_end(module)
        return self._ends[id(module)]

    def _find_end(self, module: nn.Module) -> _Ends | None:
        own = [_Ends(inputs, outputs, frozenset({outputs})) for inputs, outputs in _own_widths(module)]
        parts = own or [end for c in module._modules.values() if c is not None and (end := self._end(c))]
        if not parts:
            return None
        last = parts[-1]
        if isinstance(module, nn.Sequential):
            possible = last.possible
        else:
            possible = frozenset[int]().union(*(part.possible for part in parts))
        return _Ends(parts[0].inputs, last.outputs, possible)

    def _parallel(self, module: nn.Module, children: list[nn.Module]) -> list[nn.Module]:
        """The last child and the siblings that work beside it."""
        last = children[-1]
        end = self._end(last)
        heads = [last]
        for child in reversed(children[:-1]):
            other = self._end(child)
            if end is None or other is None or isinstance(child, _HIDDEN):
                break
            # Square layers in a dict are heads by its nature; elsewhere they form a chain.
            is_chain = not (isinstance(module, nn.ModuleDict) and _is_leaf(child) and _is_leaf(last))
            if is_chain and end.inputs in other.possible:
                break
            if other.inputs != end.inputs and other.outputs != end.outputs:
                break
            heads.append(child)
        return heads[::-1]

    def _continues_stack(self, before: nn.Module, last: nn.Module) -> bool:
        """Whether two siblings are hidden blocks of one kind."""
        if _is_leaf(last) or type(before) is not type(last):
            return False
        end = self._end(last)
        if not isinstance(last, _CONTAINERS) and end is not None and end.inputs == end.outputs:
            return True
        return [p.shape for p in before.parameters()] == [p.shape for p in last.parameters()]


def _declared(module: nn.Module) -> list[nn.Module] | None:
    """The output modules that a model names itself; empty where it says it has none."""
    get_classifier = getattr(type(module), "get_classifier", None)
    if callable(get_classifier):
        found = get_classifier(module)
        found = list(found) if isinstance(found, tuple | list | nn.ModuleList) else [found]
        modules = [m for m in found if isinstance(m, nn.Module)]
        return [leaf for m in modules for leaf in m.modules() if _is_leaf(leaf)]
    get_output = getattr(type(module), "get_output_embeddings", None)
    if callable(get_output):
        found = get_output(module)
        if isinstance(found, nn.Module):
            return [leaf for leaf in found.modules() if _is_leaf(leaf)]
    return None


def _own_widths(module: nn.Module) -> list[tuple[int, int]]:
    """Features that each matrix of the module itself takes and gives."""
    if isinstance(module, nn.Linear):
        return [(module.in_features, module.out_features)]
    if isinstance(module, _ConvNd):
        return [(module.in_channels, module.out_channels)]
    if isinstance(module, nn.Bilinear):
        return [(module.in1_features, module.out_features)]
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        directions = 2 if getattr(module, "bidirectional", False) else 1
        size = getattr(module, "proj_size", 0) or module.hidden_size
        return [(module.input_size, directions * size)] * 2
    if isinstance(module, nn.MultiheadAttention):
        return [(module.embed_dim, module.embed_dim)] * 2
    widths = []
    for attribute, parameter in module._parameters.items():
        if parameter is not None and parameter.ndim >= 2:
            role = role_of(Use(attribute, module, attribute, ()), tuple(parameter.shape))
            if role.role in ("matrix", "conv"):
                # A stack counts as several matrices, which no head is.
                widths += [(role.fan_in, role.fan_out)] * (2 if role.groups > 1 else 1)
    return widths


def _is_leaf(module: nn.Module) -> bool:
    return bool(_own_widths(module))


def _unique(modules: Iterable[nn.Module]) -> list[nn.Module]:
    return list({id(module): module for module in modules}.values())
