"""How values flow through the methods of a module, read from their code.

Nothing is executed: local variables are followed through the syntax tree line by line, both arms of an
`if` being taken as possible and the body of a loop being read twice. A *part* is an attribute of the
module: a child, a parameter or a method. What is not seen: what functions outside of the module do, and
code whose source text is not at hand.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

_NOT_DATA = frozenset({"shape", "size", "dim", "ndim", "numel", "device", "dtype", "requires_grad"})
"""Attributes and methods of a tensor that carry none of its values on."""

_LAYOUT = frozenset(
    {
        *("chunk", "clone", "contiguous", "expand", "flatten", "float", "movedim", "permute", "reshape"),
        *("squeeze", "swapaxes", "to", "transpose", "type_as", "unflatten", "unsqueeze", "view"),
    }
)
"""Methods of a tensor after which it still is the same data."""

_ANYTHING = 0
"""The origin of values that depend on no argument."""


@dataclass(frozen=True)
class Path:
    """How a value was reached from an earlier one: perhaps as it was, perhaps through parts."""

    is_skip: bool
    parts: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Value:
    """What an expression depends on: earlier values by number, and parts it names but has not applied."""

    origins: dict[int, Path] = field(default_factory=dict)
    parts: frozenset[str] = frozenset()

    @property
    def history(self) -> frozenset[str]:
        """All parts that have worked on the value."""
        return frozenset[str]().union(*(path.parts for path in self.origins.values()))

    def applied(self) -> Value:
        """The value after the parts it names have worked on its origins."""
        if not self.parts:
            return self
        if not self.origins:
            return Value({_ANYTHING: Path(False, self.parts)})
        return Value({key: Path(False, path.parts | self.parts) for key, path in self.origins.items()})

    def computed(self) -> Value:
        """The value after an operation that is no part's, so that it is nobody's input as it was."""
        return Value({key: Path(False, path.parts) for key, path in self.origins.items()}, self.parts)

    def merged(self, other: Value) -> Value:
        """A value that may be either, or depends on both."""
        origins = dict(self.origins)
        for key, path in other.origins.items():
            mine = origins.get(key)
            origins[key] = Path(path.is_skip or mine.is_skip, path.parts | mine.parts) if mine else path
        return Value(origins, self.parts | other.parts)


def member(cls: type[nn.Module], name: str) -> object:
    """What a class has under a name, as it stands in the class; None where it has nothing."""
    return inspect.getattr_static(cls, name, None)


def syntax_of(cls: type[nn.Module], name: str) -> ast.FunctionDef | None:
    """The syntax tree of a method, None where there is no method or no source text."""
    function = member(cls, name)
    if not inspect.isfunction(function):
        return None
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    except (OSError, TypeError, SyntaxError):  # no source, or not in a form that stands alone
        return None
    first = tree.body[0]
    return first if isinstance(first, ast.FunctionDef) else None


class Flow:
    """The flow of values through one method.

    Attributes:
        residual: Parts whose outcome is added to what they were given.
        argument_sums: Pairs of positional arguments of which the second is added, as it came, to what
            the first has become.
        feeds: Part -> the parts that were given what it computed.
        mentioned: All parts that occur.
        used: The parts that worked on something.
        calls_super: Whether a method of a parent class, which is not read, is called.
    """

    def __init__(
        self,
        function: ast.FunctionDef,
        identities: frozenset[str] = frozenset(),
        sums_of: Callable[[str], frozenset[tuple[int, int]]] = lambda part: frozenset(),
    ) -> None:
        self.residual: set[str] = set()
        self.argument_sums: set[tuple[int, int]] = set()
        self.feeds: dict[str, set[str]] = {}
        self.mentioned: set[str] = set()
        self.used: set[str] = set()
        self.calls_super = False
        self._identities = identities
        self._sums_of = sums_of
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        arguments += [star for star in (function.args.vararg, function.args.kwarg) if star is not None]
        self._self = arguments[0].arg if arguments else ""
        self._numbers = _ANYTHING
        self._variables = {argument.arg: self._new(Value()) for argument in arguments[1:]}
        self._num_arguments = self._numbers
        self._run(function.body)

    def _new(self, value: Value) -> Value:
        """The value under a number of its own, by which later sums can refer to it."""
        self._numbers += 1
        return Value({self._numbers: Path(True)}).merged(value)

    # --- Statements

    def _run(self, body: list[ast.stmt]) -> None:
        for statement in body:
            self._step(statement)

    def _step(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.Assign):
            value = self._value(statement.value)
            for target in statement.targets:
                self._bind(target, self._named(value))
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            self._bind(statement.target, self._named(self._value(statement.value)))
        elif isinstance(statement, ast.AugAssign):
            left, right = self._value(statement.target), self._value(statement.value)
            self._bind(statement.target, self._named(self._operate(statement.op, left, right)))
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
            for _ in range(2):
                self._bind(statement.target, self._value(statement.iter))
                self._run(statement.body)
            self._run(statement.orelse)
        elif isinstance(statement, ast.While):
            self._run(statement.body * 2)
        elif isinstance(statement, ast.With | ast.Try):
            self._run(statement.body)
        elif isinstance(statement, ast.Return | ast.Expr) and statement.value is not None:
            self._value(statement.value)

    def _named(self, value: Value) -> Value:
        """A number for a value that depends on data; sizes and constants are nobody's input."""
        return self._new(value) if value.origins else value

    def _bind(self, target: ast.expr, value: Value) -> None:
        if isinstance(target, ast.Name):
            self._variables[target.id] = value
        elif isinstance(target, ast.Tuple | ast.List):
            for element in target.elts:
                self._bind(element, value)
        elif isinstance(target, ast.Starred):
            self._bind(target.value, value)
        elif isinstance(target, ast.Subscript) and isinstance(target.value, ast.Name):
            mine = self._variables.get(target.value.id, Value())
            self._variables[target.value.id] = mine.merged(value)

    # --- Expressions

    def _value(self, node: ast.expr) -> Value:
        if isinstance(node, ast.Name):
            return self._variables.get(node.id, Value())
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name) and node.value.id == self._self:
                self.mentioned.add(node.attr)
                return Value(parts=frozenset({node.attr}) - self._identities)
            return Value() if node.attr in _NOT_DATA else self._value(node.value)
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.BinOp):
            return self._operate(node.op, self._value(node.left), self._value(node.right))
        if isinstance(node, ast.Subscript):  # a slice of a value is still that value; the index is no data
            return self._value(node.value)
        if isinstance(node, ast.IfExp):
            return self._value(node.body).merged(self._value(node.orelse))
        if isinstance(node, ast.ListComp | ast.GeneratorExp | ast.SetComp):
            for generator in node.generators:
                self._bind(generator.target, self._value(generator.iter))
            return self._value(node.elt)
        return _merge([self._value(child) for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)])

    def _operate(self, operator: ast.operator, left: Value, right: Value) -> Value:
        if isinstance(operator, ast.Add):
            self._add(left, right)
        elif left.origins and right.origins:
            # A product with a constant or a learned scale leaves a skip a skip; one with data does not.
            left, right = left.computed(), right.computed()
        value = left.merged(right)
        self.used |= value.parts
        return value.applied()

    def _call(self, node: ast.Call) -> Value:
        function = self._value(node.func)
        arguments = [self._value(argument) for argument in node.args]
        keywords = [self._value(keyword.value) for keyword in node.keywords]
        everything = _merge([function, *arguments, *keywords])
        self.used |= everything.parts
        if self._is_identity(node.func):
            return everything.applied()
        if isinstance(node.func, ast.Name):
            self.calls_super |= node.func.id == "super"
        elif isinstance(node.func, ast.Attribute):
            if node.func.attr in _NOT_DATA:
                return Value()
            if node.func.attr in ("append", "extend") and isinstance(node.func.value, ast.Name):
                self._bind(node.func.value, everything)
            if node.func.attr in ("add", "add_"):  # torch.add(a, b) or a.add(b)
                sides = arguments[:2] if len(arguments) > 1 else [function, *arguments]
                if len(sides) == 2:
                    self._add(*sides)
            if node.func.attr in _LAYOUT:
                return everything.applied()
            for part in function.parts:
                for one, other in self._sums_of(part):
                    if max(one, other) < len(arguments):
                        self._add(arguments[one], arguments[other])
        for part in everything.history:
            self.feeds.setdefault(part, set()).update(everything.parts)
        return everything.applied().computed()

    def _add(self, left: Value, right: Value) -> None:
        """Note the parts on one side of a sum whose other side carries an input of theirs as it was."""
        for one, other in ((left.applied(), right.applied()), (right.applied(), left.applied())):
            for key, path in one.origins.items():
                skip = other.origins.get(key)
                if skip is not None and skip.is_skip and path.parts:
                    self.residual |= path.parts - skip.parts
            # An argument that is added as it came may be the input of whoever computed the others.
            skips = [key for key, path in other.origins.items() if self._is_argument(key) and path.is_skip]
            if len(other.origins) == 1 and skips and skips[0] not in one.origins:
                reached = {key: path for key, path in one.origins.items() if self._is_argument(key)}
                self.argument_sums |= {(key - 1, skips[0] - 1) for key in reached}
                for path in reached.values():
                    self.residual |= path.parts

    def _is_identity(self, function: ast.expr) -> bool:
        return (
            isinstance(function, ast.Attribute)
            and isinstance(function.value, ast.Name)
            and function.value.id == self._self
            and function.attr in self._identities
        )

    def _is_argument(self, number: int) -> bool:
        return _ANYTHING < number <= self._num_arguments


def _merge(values: list[Value]) -> Value:
    merged = Value()
    for value in values:
        merged = merged.merged(value)
    return merged
