"""Which parts of a module lie on a residual branch, read from the code of its `forward`.

A part of a module (a child, or a parameter of its own) is on a residual branch where `forward` adds a
value to what it computed from that same value through the part: `x + self.mlp(self.norm(x))` puts `mlp`
and `norm` on one. Nothing is executed: local variables are followed through the syntax tree, line by
line, both arms of an `if` being taken as possible. A child that adds two of its arguments, such as
BERT's `output(attended, input)`, is looked into. What is not seen: additions inside functions, and code
whose source text is not at hand.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from autoopt.architecture.ownership import Use

_RESIDUAL_TORCH = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
"""The modules of PyTorch that add their input; the others are not worth the reading."""

_NOT_DATA = frozenset(
    {"shape", "size", "dim", "ndim", "numel", "device", "dtype", "is_cuda", "requires_grad"}
)
"""Attributes and methods of a tensor that carry none of its values on."""


@dataclass(frozen=True)
class _Path:
    """How a value was reached from an earlier one: perhaps untouched, perhaps through parts of self."""

    is_skip: bool
    parts: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Value:
    """What an expression depends on: earlier values by number, and parts of self it names unapplied."""

    origins: dict[int, _Path] = field(default_factory=dict)
    parts: frozenset[str] = frozenset()

    def applied(self) -> _Value:
        """The value after the parts it names have worked on its origins."""
        if not self.parts:
            return self
        return _Value({key: _Path(False, path.parts | self.parts) for key, path in self.origins.items()})

    def merged(self, other: _Value) -> _Value:
        origins = dict(self.origins)
        for key, path in other.origins.items():
            mine = origins.get(key)
            origins[key] = _Path(path.is_skip or mine.is_skip, path.parts | mine.parts) if mine else path
        return _Value(origins, self.parts | other.parts)


class ResidualFinder:
    """Answers whether a parameter lies on a residual branch of a module above it."""

    def __init__(self) -> None:
        self._parts_of: dict[tuple[object, ...], frozenset[str]] = {}
        self._sums_of: dict[type[nn.Module], frozenset[tuple[int, int]]] = {}
        self._on_branch: dict[int, bool] = {}

    def is_residual(self, use: Use) -> bool:
        """Whether some module above adds what it feeds to the parameter's branch to the outcome."""
        if id(use.module) not in self._on_branch:
            keys = use.name.split(".")[: len(use.ancestors)]
            above = zip(reversed(use.ancestors), keys, strict=True)
            self._on_branch[id(use.module)] = any(key in self.parts(module) for module, key in above)
        return self._on_branch[id(use.module)] or use.attribute in self.parts(use.module)

    def parts(self, module: nn.Module) -> frozenset[str]:
        """The attributes of a module that its `forward` puts on a residual branch."""
        cls = type(module)
        if cls.__module__.startswith("torch.nn.modules") and not isinstance(module, _RESIDUAL_TORCH):
            return frozenset()
        key = (cls, _identities(module), *(type(child) for child in module._modules.values()))
        if key not in self._parts_of:
            self._parts_of[key] = frozenset(_expand(cls, self._find(module)))
        return self._parts_of[key]

    def _find(self, module: nn.Module) -> set[str]:
        cls = type(module)
        seen: set[str] = set()
        found: set[str] = set()
        waiting = ["forward"]
        while waiting:
            name = waiting.pop()
            function = None if name in seen else _syntax(cls, name)
            if function is not None:
                seen.add(name)
                flow = _Flow(
                    function, _identities(module), lambda part: self._sums(module._modules.get(part))
                )
                found |= flow.residual
                # Methods that forward calls may add residuals too.
                waiting += sorted(part for part in flow.mentioned if inspect.isfunction(_member(cls, part)))
        return found

    def _sums(self, module: nn.Module | None) -> frozenset[tuple[int, int]]:
        """The pairs of positional arguments that a module's `forward` adds to each other."""
        if module is None or type(module).__module__.startswith("torch.nn.modules"):
            return frozenset()
        cls = type(module)
        if cls not in self._sums_of:
            function = _syntax(cls, "forward")
            self._sums_of[cls] = frozenset(_Flow(function).argument_sums) if function else frozenset()
        return self._sums_of[cls]


def _expand(cls: type[nn.Module], parts: set[str]) -> set[str]:
    """The parts, together with what those among them that are methods use."""
    expanded: set[str] = set()
    waiting = list(parts)
    while waiting:
        part = waiting.pop()
        if part in expanded:
            continue
        expanded.add(part)
        function = _syntax(cls, part)
        if function is not None:
            waiting += _Flow(function).mentioned
    return expanded


def _identities(module: nn.Module) -> frozenset[str]:
    """The children that hand their input on: `nn.Identity` and an empty `nn.Sequential`."""
    return frozenset(
        name
        for name, child in module._modules.items()
        if isinstance(child, nn.Identity) or (isinstance(child, nn.Sequential) and not child._modules)
    )


def _member(cls: type[nn.Module], name: str) -> object:
    return inspect.getattr_static(cls, name, None)


def _syntax(cls: type[nn.Module], name: str) -> ast.FunctionDef | None:
    function = _member(cls, name)
    if not inspect.isfunction(function):
        return None
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    except (OSError, TypeError, SyntaxError):  # no source, or not in a form that stands alone
        return None
    first = tree.body[0]
    return first if isinstance(first, ast.FunctionDef) else None


class _Flow:
    """The flow of values through one method."""

    def __init__(
        self,
        function: ast.FunctionDef,
        identities: frozenset[str] = frozenset(),
        sums_of: Callable[[str], frozenset[tuple[int, int]]] = lambda part: frozenset(),
    ) -> None:
        self.residual: set[str] = set()
        self.mentioned: set[str] = set()
        self.argument_sums: set[tuple[int, int]] = set()
        self._identities = identities
        self._sums_of = sums_of
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        self._self = arguments[0].arg if arguments else ""
        self._numbers = 0
        self._variables = {argument.arg: self._new() for argument in arguments[1:]}
        self._num_arguments = self._numbers
        self._run(function.body)

    def _new(self, value: _Value | None = None) -> _Value:
        """A numbered value, which later sums can refer to."""
        self._numbers += 1
        own = _Value({self._numbers: _Path(True)})
        return own.merged(value) if value else own

    def _run(self, body: list[ast.stmt]) -> None:
        for statement in body:
            self._step(statement)

    def _step(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            if statement.value is None:
                return
            value = self._value(statement.value)
            if value.origins:  # sizes and constants are nobody's input
                value = self._new(value)
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            for target in targets:
                self._bind(target, value)
        elif isinstance(statement, ast.AugAssign):
            left, right = self._value(statement.target), self._value(statement.value)
            if isinstance(statement.op, ast.Add):
                self._add(left, right)
            self._bind(statement.target, self._new(left.merged(right).applied()))
        elif isinstance(statement, ast.If):
            self._value(statement.test)
            before = dict(self._variables)
            self._run(statement.body)
            after, self._variables = self._variables, before
            self._run(statement.orelse)
            for name, value in after.items():
                mine = self._variables.get(name)
                self._variables[name] = mine.merged(value) if mine else value
        elif isinstance(statement, ast.For):
            self._bind(statement.target, self._value(statement.iter))
            self._run(statement.body + statement.orelse)
        elif isinstance(statement, ast.While | ast.With | ast.Try):
            self._run(statement.body)
        elif isinstance(statement, ast.Return | ast.Expr) and statement.value is not None:
            self._value(statement.value)

    def _bind(self, target: ast.expr, value: _Value) -> None:
        if isinstance(target, ast.Name):
            self._variables[target.id] = value
        elif isinstance(target, ast.Tuple | ast.List):
            for element in target.elts:
                self._bind(element, value)

    def _value(self, node: ast.expr) -> _Value:
        if isinstance(node, ast.Name):
            return self._variables.get(node.id, _Value())
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name) and node.value.id == self._self:
                self.mentioned.add(node.attr)
                return _Value(parts=frozenset({node.attr}) - self._identities)
            if node.attr in _NOT_DATA:
                return _Value()
        if isinstance(node, ast.Call):
            return self._call(node)
        inner = [self._value(child) for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
        if isinstance(node, ast.BinOp):
            if isinstance(node.op, ast.Add):
                self._add(*inner)
            return _merge(inner).applied()
        return _merge(inner)

    def _call(self, node: ast.Call) -> _Value:
        function = self._value(node.func)
        arguments = [self._value(argument) for argument in node.args]
        keywords = [self._value(keyword.value) for keyword in node.keywords]
        if isinstance(node.func, ast.Attribute):
            if node.func.attr in _NOT_DATA:
                return _Value()
            if node.func.attr in ("add", "add_"):  # torch.add(a, b) or a.add(b)
                sides = arguments[:2] if len(arguments) > 1 else [function, *arguments]
                if len(sides) == 2:
                    self._add(*sides)
            for part in function.parts:
                for one, other in self._sums_of(part):
                    if max(one, other) < len(arguments):
                        self._add(arguments[one], arguments[other])
        return _merge([function, *arguments, *keywords]).applied()

    def _add(self, left: _Value, right: _Value) -> None:
        """Note the parts on one side of a sum whose other side carries an input of theirs untouched."""
        for one, other in ((left.applied(), right.applied()), (right.applied(), left.applied())):
            for key, path in one.origins.items():
                skip = other.origins.get(key)
                if skip is not None and skip.is_skip and path.parts:
                    self.residual |= path.parts - skip.parts
            # An argument that is added as it came may be the input of whoever computed the others.
            skips = [
                key for key, path in other.origins.items() if key <= self._num_arguments and path.is_skip
            ]
            if len(other.origins) == 1 and skips and skips[0] not in one.origins:
                reached = {key: path for key, path in one.origins.items() if key <= self._num_arguments}
                self.argument_sums |= {(key - 1, skips[0] - 1) for key in reached}
                for path in reached.values():
                    self.residual |= path.parts


def _merge(values: list[_Value]) -> _Value:
    merged = _Value()
    for value in values:
        merged = merged.merged(value)
    return merged
