"""The configurations that a role group may get under a budget, and what each costs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from autoopt.architecture import LayerInfo
from autoopt.budget.effects import Effects
from autoopt.choice import GroupChoice
from autoopt.meta.artifact import CandidatePrediction, Predictor
from autoopt.meta.effects import structure
from autoopt.optimizers.alike import by_kind
from autoopt.optimizers.catalog import get
from autoopt.optimizers.plan import OptimizerConfig
from autoopt.optimizers.recipe import Recipe
from autoopt.optimizers.state_bytes import layer_state_bytes

DOUBT = 0.005
"""Log loss that a deviation counts as costing at least, where it is not surely a gain: none without a need."""


@dataclass(frozen=True)
class Option:
    """One configuration that the tensors of a role group may get.

    Attributes:
        config: Canonical JSON of the role group's configuration, None for the default's own.
        prediction: What is expected of it; None for the default.
        loss: Change of the log loss that is counted on: `DOUBT` at least, but for the default (0) and the
            selector's choice.
        cautious: The same on the pessimistic side.
        num_tasks: Recorded tasks that the expectation is the mean of, None where the selector predicted it.
    """

    config: str | None
    prediction: CandidatePrediction | None = None
    loss: float = 0.0
    cautious: float = 0.0
    num_tasks: int | None = None


@dataclass(frozen=True, eq=False)
class GroupOptions:
    """What a role group may get.

    Attributes:
        group: Role group.
        layers: Its tensors.
        options: The default first, then the selector's choice if it made one, then the others.
        resolved: For each option, the configuration of every tensor, in the order of `layers`; a tensor that
            cannot take the option keeps the default.
    """

    group: str
    layers: tuple[LayerInfo, ...]
    options: tuple[Option, ...]
    resolved: tuple[tuple[OptimizerConfig, ...], ...]

    def state_bytes(self, index: int) -> int:
        """Bytes of state of the whole group under an option."""
        return sum(row[index] for row in self.bytes_by_layer)

    @cached_property
    def bytes_by_layer(self) -> list[list[int]]:
        """For each tensor, bytes of its state under every option."""
        known: dict[tuple[int, ...], list[int]] = {}
        found = []
        for layer, *configs in zip(self.layers, *self.resolved, strict=True):
            # Tensors of one kind share their configurations.
            key = (*layer.shape, layer.itemsize, *map(id, configs))
            if key not in known:
                known[key] = [layer_state_bytes(layer, config) for config in configs]
            found.append(known[key])
        return found

    @cached_property
    def shares(self) -> list[float]:
        """Each tensor's share of the group's elements, which is taken for its share of an effect."""
        total = max(1, sum(layer.numel for layer in self.layers))
        return [layer.numel / total for layer in self.layers]


def group_options(
    layers: Sequence[LayerInfo],
    default: Recipe,
    choices: Mapping[str, GroupChoice],
    predictor: Predictor | None,
    effects: Effects,
    candidates: Sequence[str] | None,
) -> list[GroupOptions]:
    """What every role group of a model may get.

    Beside the default and the selector's choice there is one option for each kind of optimizer
    (`autoopt.meta.effects.structure`), the one with the lowest expected loss. The selector's
    prediction counts where it is trusted and the model is like what was recorded, the mean over the
    recorded tasks elsewhere.

    Args:
        layers: The model's parameters.
        default: The calibrated default.
        choices: The selector's word on every role group.
        predictor: The selector, or None.
        effects: Means over the recorded tasks.
        candidates: Catalog names that may be used, or None for all.
    """
    found = []
    for group, choice in choices.items():
        own = tuple(layer for layer in layers if layer.group == group)
        options = [Option(None)]
        if choice.chosen is not None:
            chosen = choice.chosen
            options.append(Option(chosen.config, chosen, chosen.mean, chosen.pessimistic))
        kept = default.groups[group]
        options += [
            option
            for key, option in _others(group, choice, predictor, effects, candidates).items()
            if key != structure({"optimizer": kept.optimizer, "hyperparameters": kept.hyperparameters})
        ]
        resolved = [_resolved(own, default, group, option, option.prediction is choice.chosen) for option in options]
        found.append(_worth_weighing(GroupOptions(group, own, tuple(options), tuple(resolved)), choice))
    return found


def _worth_weighing(group: GroupOptions, choice: GroupChoice) -> GroupOptions:
    """Without rules that multiply matrices and save no memory: nothing speaks for them over the default."""
    kept = [
        index
        for index, option in enumerate(group.options)
        if option.config is None
        or option.prediction is choice.chosen
        or get(json.loads(option.config)["optimizer"]).min_ndim < 2
        or group.state_bytes(index) < group.state_bytes(0)
    ]
    options, resolved = (tuple(row[index] for index in kept) for row in (group.options, group.resolved))
    return replace(group, options=options, resolved=resolved)


def _others(
    group: str,
    choice: GroupChoice,
    predictor: Predictor | None,
    effects: Effects,
    candidates: Sequence[str] | None,
) -> dict[tuple[str, bool], Option]:
    best: dict[tuple[str, bool], Option] = {}
    for option in (*_predicted(group, choice, predictor), *_recorded(group, effects)):
        assert option.config is not None
        config = json.loads(option.config)
        key = structure(config)
        allowed = candidates is None or config["optimizer"] in candidates
        if not allowed or group not in get(config["optimizer"]).groups:
            continue
        known = best.get(key)
        # A prediction for this model before a mean over others.
        if known is None or (known.num_tasks is None) == (option.num_tasks is None) and option.loss < known.loss:
            best[key] = option
    return best


def _predicted(group: str, choice: GroupChoice, predictor: Predictor | None) -> list[Option]:
    if predictor is None or choice.far or not choice.ranked or not predictor.is_trusted(group):
        return []
    return [
        Option(item.config, item, max(DOUBT, item.mean), max(DOUBT, item.pessimistic))
        for item in choice.ranked
        if item is not choice.chosen
    ]


def _recorded(group: str, effects: Effects) -> list[Option]:
    options = []
    for effect in effects.groups.get(group, ()):
        cautious = effect.mean + effect.spread
        prediction = CandidatePrediction(effect.config, effect.mean, effect.spread, cautious)
        # The rarer it was recorded, the less its mean is worth.
        loss = max(DOUBT, effect.mean + effect.error)
        options.append(Option(effect.config, prediction, loss, max(DOUBT, cautious), effect.num_tasks))
    return options


def _resolved(
    own: Sequence[LayerInfo], default: Recipe, group: str, option: Option, is_choice: bool
) -> tuple[OptimizerConfig, ...]:
    before = by_kind(default.config_of, own)
    if option.config is None:
        return tuple(before)
    changed = default.with_config(group, option.config)
    role = changed.groups[group]
    after = by_kind(changed.config_of, own)
    if is_choice or role.optimizer == default.groups[group].optimizer:
        return tuple(after)
    # Where the shape or sparse gradients of a tensor turn it into another rule, nothing is known of it.
    return tuple(new if new.optimizer == role.optimizer else old for old, new in zip(before, after, strict=True))
