"""What the code of a module says about its parts: which are residual, and which feed which."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field

from torch import nn

from autoopt.architecture.flow import Flow, member, syntax_of
from autoopt.architecture.ownership import Use

_RESIDUAL_TORCH = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
"""The modules of PyTorch that add their input; the others are not worth the reading."""


@dataclass(frozen=True)
class ModuleCode:
    """What the methods that `forward` reaches do with the parts of a module.

    Attributes:
        is_complete: Whether everything that `forward` reaches within the class could be read.
        residual: Parts on a branch whose outcome is added to the branch's input.
        used: Parts that work on something.
        feeds: Part -> the parts that are given what it computed.
    """

    is_complete: bool = False
    residual: frozenset[str] = frozenset()
    used: frozenset[str] = frozenset()
    feeds: dict[str, frozenset[str]] = field(default_factory=dict)


class CodeReader:
    """Reads modules, each class and set of children once.

    A part is on a residual branch where the code adds a value to what it computed from that same value
    through the part: `x + self.mlp(self.norm(x))` puts `mlp` and `norm` on one. A child that adds two
    of its arguments, such as BERT's `output(attended, input)`, is looked into.
    """

    def __init__(self) -> None:
        self._codes: dict[tuple[object, ...], ModuleCode] = {}
        self._sums: dict[type[nn.Module], frozenset[tuple[int, int]]] = {}
        self._on_branch: dict[int, bool] = {}

    def is_residual(self, use: Use) -> bool:
        """Whether a module above adds what it feeds to the parameter's branch to the outcome."""
        if id(use.module) not in self._on_branch:
            keys = use.name.split(".")[: len(use.ancestors)]
            above = zip(reversed(use.ancestors), keys, strict=True)
            self._on_branch[id(use.module)] = any(key in self.read(module).residual for module, key in above)
        return self._on_branch[id(use.module)] or use.attribute in self.read(use.module).residual

    def read(self, module: nn.Module) -> ModuleCode:
        """The code of a module; empty and incomplete for PyTorch's own and where there is no source."""
        cls = type(module)
        if _is_torch(module) and not isinstance(module, _RESIDUAL_TORCH):
            return _UNREAD
        identities = _identities(module)
        key = (cls, identities, *(type(child) for child in module._modules.values()))
        if key not in self._codes:
            self._codes[key] = self._read(module, identities)
        return self._codes[key]

    def _read(self, module: nn.Module, identities: frozenset[str]) -> ModuleCode:
        cls = type(module)
        flows: dict[str, Flow] = {}
        waiting, is_complete = ["forward"], True
        while waiting:
            name = waiting.pop()
            if name in flows:
                continue
            function = syntax_of(cls, name)
            if function is None:
                is_complete = False
                continue
            flow = flows[name] = Flow(function, identities, lambda key: self._sums_of(module._modules.get(key)))
            is_complete &= not flow.calls_super
            waiting += sorted(part for part in flow.mentioned if inspect.isfunction(member(cls, part)))

        def expand(parts: set[str]) -> frozenset[str]:
            """The parts, together with what those among them that are methods use."""
            expanded: set[str] = set()
            left = list(parts)
            while left:
                part = left.pop()
                if part not in expanded:
                    expanded.add(part)
                    left += flows[part].mentioned if part in flows else ()
            return frozenset(expanded)

        feeds: dict[str, set[str]] = {}
        for flow in flows.values():
            for part, fed in flow.feeds.items():
                for source in expand({part}):
                    feeds.setdefault(source, set()).update(expand(fed))
        return ModuleCode(
            is_complete,
            expand({part for flow in flows.values() for part in flow.residual}),
            expand({part for flow in flows.values() for part in flow.used}),
            {part: frozenset(fed) for part, fed in feeds.items()},
        )

    def _sums_of(self, module: nn.Module | None) -> frozenset[tuple[int, int]]:
        """The pairs of positional arguments that a module's `forward` adds to each other."""
        if module is None or _is_torch(module):
            return frozenset()
        cls = type(module)
        if cls not in self._sums:
            function = syntax_of(cls, "forward")
            self._sums[cls] = frozenset(Flow(function).argument_sums) if function else frozenset()
        return self._sums[cls]


_UNREAD = ModuleCode()


def _is_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith(("torch.nn.modules", "torch.nn.parallel"))


def _identities(module: nn.Module) -> frozenset[str]:
    """The children that hand their input on: `nn.Identity` and an empty `nn.Sequential`."""
    return frozenset(
        name
        for name, child in module._modules.items()
        if isinstance(child, nn.Identity) or (isinstance(child, nn.Sequential) and not child._modules)
    )
