"""Layers that repeat, told once: `blocks.0-11.attn.qkv.weight` instead of twelve lines.

Two layers belong together when their names differ only in integer path components and their role,
configuration and deviation from the default agree. A group's `NamePattern` is exact: it expands to
the names of its members and to no other name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from autoopt.optimizers.plan import OptimizerConfig
from autoopt.report.content import Evidence, LayerRecommendation

_MAX_DIGITS = 9  # longer digit strings are names, not indices


def _is_index(component: str) -> bool:
    """Whether a path component is an integer that prints back as itself (no `007`, no `٣`)."""
    if not (component.isascii() and component.isdigit() and len(component) <= _MAX_DIGITS):
        return False
    return component == "0" or not component.startswith("0")


def _ranges(indices: Sequence[int]) -> str:
    """Sorted integers as text, runs joined: `0-3,7`."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


@dataclass(frozen=True)
class NamePattern:
    """A set of parameter names that differ only in integer path components.

    Attributes:
        parts: Path components: a str stands for itself, a tuple of sorted integers for each of them.
    """

    parts: tuple[str | tuple[int, ...], ...]

    @property
    def components(self) -> tuple[str, ...]:
        """The path components as text, indices as ranges."""
        return tuple(part if isinstance(part, str) else _ranges(part) for part in self.parts)

    @property
    def label(self) -> str:
        """The pattern as one dotted name.

        >>> NamePattern(("blocks", (0, 1, 2, 5), "norm", "weight")).label
        'blocks.0-2,5.norm.weight'
        """
        return ".".join(self.components)

    def expand(self) -> Iterator[str]:
        """Every name that the pattern stands for, each once.

        >>> list(NamePattern(("a", (0, 2), "b")).expand())
        ['a.0.b', 'a.2.b']
        """
        choices = [(part,) if isinstance(part, str) else tuple(map(str, part)) for part in self.parts]
        for names in product(*choices):
            yield ".".join(names)


@dataclass(frozen=True)
class LayerGroup:
    """Layers that share a role, a configuration and a name up to integers.

    Attributes:
        pattern: The names of the members.
        members: The layers, in the order of the recommendation.
    """

    pattern: NamePattern
    members: tuple[LayerRecommendation, ...]

    @property
    def label(self) -> str:
        """The pattern as one dotted name."""
        return self.pattern.label

    @property
    def role(self) -> str:
        """The members' role."""
        return self.members[0].role

    @property
    def group(self) -> str:
        """The members' role group."""
        return self.members[0].group

    @property
    def sparse(self) -> bool:
        """Whether the members ask for sparse gradients."""
        return self.members[0].sparse

    @property
    def config(self) -> OptimizerConfig:
        """The members' configuration."""
        return self.members[0].config

    @property
    def deviates(self) -> bool:
        """Whether the members differ from the calibrated default."""
        return self.members[0].deviates

    @property
    def num_parameters(self) -> int:
        """Elements of all members together."""
        return sum(member.num_parameters for member in self.members)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The members' distinct shapes, in order of appearance."""
        return tuple(dict.fromkeys(member.shape for member in self.members))

    @property
    def reasons(self) -> tuple[str, ...]:
        """The members' distinct reasons, in order of appearance."""
        return tuple(dict.fromkeys(member.reason for member in self.members if member.reason))

    @property
    def predicted_gain(self) -> float | None:
        """Mean predicted change of log loss of the members that have one."""
        gains = [member.predicted_gain for member in self.members if member.predicted_gain is not None]
        return sum(gains) / len(gains) if gains else None

    @property
    def predicted_gain_interval(self) -> tuple[float, float] | None:
        """The smallest interval that holds every member's."""
        ends = [member.predicted_gain_interval for member in self.members if member.predicted_gain_interval]
        return (min(low for low, _ in ends), max(high for _, high in ends)) if ends else None

    @property
    def confidence(self) -> float | None:
        """The least confidence among the members."""
        known = [member.confidence for member in self.members if member.confidence is not None]
        return min(known) if known else None

    @property
    def runner_up(self) -> tuple[OptimizerConfig, float | None] | None:
        """The closest runner-up among the members, with its predicted change of log loss."""
        pairs = [(m.runner_up, m.runner_up_gain) for m in self.members if m.runner_up is not None]
        if not pairs:
            return None
        return min(pairs, key=lambda pair: float("inf") if pair[1] is None else pair[1])

    def evidence(self) -> tuple[tuple[Evidence, ...], ...]:
        """The members' evidence by feature, the feature with the strongest contribution first."""
        by_feature: dict[str, list[Evidence]] = {}
        for member in self.members:
            for item in member.evidence:
                by_feature.setdefault(item.feature, []).append(item)
        # A stable sort: features without a contribution keep the order they were given in.
        ranked = sorted(by_feature.values(), key=lambda items: -max(abs(i.contribution or 0) for i in items))
        return tuple(tuple(items) for items in ranked)


def _patterns(indices: list[tuple[int, ...]]) -> list[tuple[tuple[int, ...], ...]]:
    """Disjoint products of index sets that together cover the given index tuples exactly.

    The last position's sets are found first, then the prefixes that share one are split in turn.
    """
    if not indices[0]:
        return [()]
    last: dict[tuple[int, ...], set[int]] = {}
    for index in indices:
        last.setdefault(index[:-1], set()).add(index[-1])
    prefixes: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for prefix, ends in last.items():
        prefixes.setdefault(tuple(sorted(ends)), []).append(prefix)
    return [(*head, ends) for ends, shared in prefixes.items() for head in _patterns(shared)]


def group_layers(layers: Iterable[LayerRecommendation]) -> tuple[LayerGroup, ...]:
    """Groups of the layers, in order of first appearance; every layer is in exactly one.

    Args:
        layers: Layers with distinct names.
    """
    alike: dict[tuple[object, ...], dict[tuple[int, ...], LayerRecommendation]] = {}
    order: dict[str, int] = {}
    for position, layer in enumerate(layers):
        order[layer.name] = position
        components = layer.name.split(".")
        index = tuple(int(c) for c in components if _is_index(c))
        template = tuple(None if _is_index(c) else c for c in components)
        config = (
            layer.config.optimizer,
            repr(sorted(layer.config.hyperparameters.items())),
            layer.config.relative_lr,
        )
        key = (template, layer.role, layer.group, layer.sparse, layer.deviates, config)
        alike.setdefault(key, {})[index] = layer
    groups: list[LayerGroup] = []
    for key, members in alike.items():
        template = key[0]
        assert isinstance(template, tuple)
        for index_sets in _patterns(list(members)):
            sets = iter(index_sets)
            parts = tuple(next(sets) if component is None else component for component in template)
            found = [members[index] for index in product(*index_sets)]
            found.sort(key=lambda layer: order[layer.name])
            groups.append(LayerGroup(NamePattern(parts), tuple(found)))
    groups.sort(key=lambda group: order[group.members[0].name])
    return tuple(groups)
