"""Which modules produce the model's output.

The rule, from the root downwards:

1. A module that says so is believed: `get_output_embeddings()` (Hugging Face) and `get_classifier()`
   (timm). Where the rules below find the same module, those it has beside it are heads too.
2. Otherwise the output comes from the children that feed no other child, as far as the code of `forward`
   can be read completely (`autoopt.architecture.code`): policy and value, both towers of a two-tower
   model, every element of a list that does not feed itself. Below the root, a branch that is added to
   its own input is hidden. Embeddings, norms and bare parameters are passed over.
3. Where the code does not tell (an `nn.Sequential`, a list, a method of a parent class, a child that is not
   called), it comes from the last child in order of registration, and from siblings before it that
   take as many inputs or give as many outputs but cannot feed it.
4. Where the last child continues a stack of blocks of its own class (equal shapes, or as many outputs as
   inputs), or is a recurrent, attention or transformer layer, or stacks several matrices in one
   tensor, the model ends in a hidden layer and has no head there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple

from torch import nn
from torch.nn.modules.conv import _ConvNd

from autoopt.architecture.code import CodeReader
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
    registration is no proof of what comes out, in an `nn.Sequential` or up to a declared head it is.
    """

    inputs: int
    outputs: int
    possible: frozenset[int]
    is_declared: bool = False


def find_heads(model: nn.Module, code: CodeReader) -> set[int]:
    """The `id` of every module whose weight produces the model's output; frozen ones included."""
    return {id(module) for module in _Search(model, code).heads(model)}


class _Search:
    """One search over one model; remembers the ends of subtrees, which are asked for repeatedly."""

    def __init__(self, model: nn.Module, code: CodeReader) -> None:
        self._model = model
        self._code = code
        self._ends: dict[int, _Ends | None] = {}
        self._declared: set[int] = set()

    def heads(self, module: nn.Module) -> list[nn.Module]:
        named = _named_output(module)
        if named is None:
            return self._found(module)
        declared = _unique(head for output in named for head in self._found(output))
        self._declared.update(map(id, declared))
        self._ends.clear()
        found = self._found(module) if declared else []
        agrees = any(one is other for one in declared for other in found)
        return _unique([*declared, *found]) if agrees else declared

    def _found(self, module: nn.Module) -> list[nn.Module]:
        if isinstance(module, _HIDDEN):
            return []
        by_code = self._by_code(module)
        return self._by_order(module) if by_code is None else by_code

    def _by_code(self, module: nn.Module) -> list[nn.Module] | None:
        """Heads among the children that feed no other child; None where the code does not tell."""
        code = self._code.read(module)
        children = {name: c for name, c in module._modules.items() if c is not None and self._end(c)}
        if not children or not code.is_complete or not code.used.issuperset(children):
            return None
        ends = {
            name: child
            for name, child in children.items()
            if not any(fed != name and fed in children for fed in code.feeds.get(name, ()))
        }
        if not ends:  # an output that is fed back
            return None
        found: list[nn.Module] = []
        for name, child in ends.items():
            if name in code.residual and module is not self._model:
                continue
            is_chain = name in code.feeds.get(name, ())
            if isinstance(child, nn.ModuleList | nn.ModuleDict) and not is_chain:
                found += [head for element in _elements(child) if self._end(element) for head in self.heads(element)]
            elif isinstance(child, nn.ModuleList):
                found += self._by_order(child, is_chain=True)
            else:
                found += self.heads(child)
        return _unique(found)

    def _by_order(self, module: nn.Module, is_chain: bool = False) -> list[nn.Module]:
        """Heads among the last children in order of registration."""
        children = self._children_from_last(module)
        last = next(children, None)
        if last is None:
            return [module] if len(_own_widths(module)) == 1 else []
        before = next(children, None)
        parallel: list[nn.Module] = []
        if before is not None and not is_chain and not isinstance(module, nn.Sequential):
            parallel = self._parallel(module, last, chain([before], children))
        if not parallel and before is not None and self._continues_stack(before, last):
            return []
        return [head for child in (*reversed(parallel), last) for head in self.heads(child)]

    def _children_from_last(self, module: nn.Module) -> Iterator[nn.Module]:
        """The children that transform features, in reversed order of registration."""
        seen: set[int] = set()
        for child in reversed(module._modules.values()):
            if child is not None and id(child) not in seen and self._end(child) is not None:
                seen.add(id(child))
                yield child

    def _end(self, module: nn.Module) -> _Ends | None:
        """The ends of a subtree, None where it holds no matrix."""
        if id(module) not in self._ends:
            self._ends[id(module)] = None  # a module that contains itself ends here
            self._ends[id(module)] = self._find_end(module)
        return self._ends[id(module)]

    def _find_end(self, module: nn.Module) -> _Ends | None:
        is_declared = id(module) in self._declared
        own = [_Ends(inputs, out, frozenset({out}), is_declared) for inputs, out in _own_widths(module)]
        parts = own or [end for c in module._modules.values() if c is not None and (end := self._end(c))]
        if not parts:
            return None
        last = next((part for part in parts if part.is_declared), parts[-1])
        if isinstance(module, nn.Sequential) or last.is_declared:
            possible = last.possible
        else:
            possible = frozenset[int]().union(*(part.possible for part in parts))
        return _Ends(parts[0].inputs, last.outputs, possible, last.is_declared)

    def _parallel(self, module: nn.Module, last: nn.Module, earlier: Iterable[nn.Module]) -> list[nn.Module]:
        """The siblings that work beside the last child, nearest first."""
        end = self._end(last)
        heads: list[nn.Module] = []
        for child in earlier:
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
        return heads

    def _continues_stack(self, before: nn.Module, last: nn.Module) -> bool:
        """Whether two siblings are hidden blocks of one kind."""
        if _is_leaf(last) or type(before) is not type(last):
            return False
        end = self._end(last)
        if not isinstance(last, _CONTAINERS) and end is not None and end.inputs == end.outputs:
            return True
        return [p.shape for p in before.parameters()] == [p.shape for p in last.parameters()]


def _named_output(module: nn.Module) -> list[nn.Module] | None:
    """The output modules that a model names itself, empty where it says it has none, else None."""
    get_classifier = getattr(type(module), "get_classifier", None)
    if callable(get_classifier):
        found = get_classifier(module)
        found = list(found) if isinstance(found, tuple | list | nn.ModuleList) else [found]
        return [output for output in found if isinstance(output, nn.Module)]
    get_output_embeddings = getattr(type(module), "get_output_embeddings", None)
    if callable(get_output_embeddings):
        found = get_output_embeddings(module)
        # None is no statement here: Hugging Face's classifiers return it too.
        return [found] if isinstance(found, nn.Module) else None
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


def _elements(container: nn.ModuleList | nn.ModuleDict) -> list[nn.Module]:
    return [child for child in container._modules.values() if child is not None]


def _is_leaf(module: nn.Module) -> bool:
    return bool(_own_widths(module))


def _unique(modules: Iterable[nn.Module]) -> list[nn.Module]:
    return list({id(module): module for module in modules}.values())
