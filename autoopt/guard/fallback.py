"""Which plan a rung of the ladder means, and which role groups are suspected."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from autoopt.distributed.shards import is_sharded, local, sum_over_shards
from autoopt.guard.ladder import DEFAULT, EVERYWHERE, HALVE, LAST, ROLL_BACK, RUNNER_UP
from autoopt.guard.snapshot import Snapshot
from autoopt.optimizers.plan import OptimizerConfig, OptimizerPlan

CLEAR_FACTOR = 3.0
"""A role group is the one that went wrong if it moves so many times faster than before, and than all others."""


@dataclass(frozen=True)
class Fallbacks:
    """What parameters can fall back to.

    Attributes:
        groups: Parameter name -> role group, in the optimizer's order.
        default: Parameter name -> the calibrated default's configuration.
        runner_ups: Parameter name -> the configuration that came second, where there is one.
    """

    groups: Mapping[str, str]
    default: Mapping[str, OptimizerConfig] = field(default_factory=dict)
    runner_ups: Mapping[str, OptimizerConfig] = field(default_factory=dict)

    def deviating(self, plan: OptimizerPlan) -> tuple[str, ...]:
        """Role groups in which a parameter has another rule than the default's, in order."""
        changed = (name for name, config in plan.layers.items() if not same(config, self.default.get(name, config)))
        return tuple(dict.fromkeys(self.groups[name] for name in changed))

    def plan(self, rung: int, plan: OptimizerPlan, suspects: Collection[str]) -> OptimizerPlan:
        """The plan of a rung.

        Args:
            rung: One of the ladder's.
            plan: The plan in force.
            suspects: Role groups that are acted on below `EVERYWHERE`; all where there are none.
        """
        everywhere = rung in (EVERYWHERE, LAST) or not suspects
        choose: dict[int, Callable[[str, OptimizerConfig], OptimizerConfig]] = {
            ROLL_BACK: lambda name, config: config,
            HALVE: lambda name, config: halved(config),
            RUNNER_UP: lambda name, config: self.runner_ups.get(name, config),
            DEFAULT: lambda name, config: self.default.get(name, config),
            EVERYWHERE: lambda name, config: self.default.get(name, config),
            LAST: lambda name, config: halved(config),
        }
        layers = {
            name: choose[rung](name, config) if everywhere or self.groups[name] in suspects else config
            for name, config in plan.layers.items()
        }
        return OptimizerPlan(layers, plan.schedule)

    def to_dict(self) -> dict[str, Any]:
        """The runner-ups as JSON-compatible values: the rest is known from the model."""
        return OptimizerPlan(dict(self.runner_ups)).to_dict()

    def with_runner_ups(self, value: Mapping[str, Any]) -> Fallbacks:
        """A copy with the runner-ups that `to_dict` wrote."""
        return replace(self, runner_ups=OptimizerPlan.from_dict(value).layers)


def same(config: OptimizerConfig, other: OptimizerConfig) -> bool:
    """Whether two configurations make the same update."""
    return config.optimizer == other.optimizer and config.complete == other.complete


def equal(plan: OptimizerPlan, other: OptimizerPlan) -> bool:
    """Whether two plans for the same parameters make the same updates."""
    return all(same(config, other.layers[name]) for name, config in plan.layers.items())


def halved(config: OptimizerConfig) -> OptimizerConfig:
    """The configuration at half of its rate."""
    relative = None if config.relative_lr is None else 0.5 * config.relative_lr
    values = {**config.hyperparameters, "lr": 0.5 * config.lr}
    return OptimizerConfig(config.optimizer, values, relative)


def suspects(
    params: Sequence[Tensor],
    groups: Sequence[str],
    step: int,
    newer: Snapshot,
    older: Snapshot | None,
    deviating: Sequence[str],
) -> tuple[str, ...]:
    """Role groups that are to blame, empty where nothing speaks against one; waits for the device.

    Not those whose gradients exploded: a layer that goes too far shows in the gradients of the layers
    around it. The one is named that moves fastest against its own past; where none stands out, those
    that deviate from the default.

    Args:
        params: Parameters in the groups' order.
        groups: Their role groups.
        step: 0-based step that is about to be taken.
        newer: A snapshot before the fault.
        older: One before that, or None.
        deviating: Role groups that deviate from the default.
    """
    if older is None or newer.step == older.step or step == newer.step:
        return tuple(deviating)
    everything = tuple(dict.fromkeys(groups))
    names = {name: index for index, name in enumerate(everything)}
    parts = [local(param.detach()) for param in params]
    now = _lengths(parts, newer.params, params, groups, names) / (step - newer.step)
    before = _lengths(newer.params, older.params, params, groups, names) / (newer.step - older.step)
    ratios = {name: _known(value) for name, value in zip(everything, (now / before).tolist(), strict=True)}
    first, *_ = sorted(deviating or everything, key=lambda name: -ratios[name])
    typical = max((ratios[name] for name in everything if name != first), default=1.0)
    stands_out = ratios[first] >= CLEAR_FACTOR * max(1.0, typical)
    return (first,) if stands_out else tuple(deviating)


def _known(ratio: float) -> float:
    """The ratio, with one that is not a number as 1: nothing moves, or a parameter is none any more."""
    return 1.0 if ratio != ratio else ratio


def _lengths(
    new: Sequence[Tensor], old: Sequence[Tensor], params: Sequence[Tensor], groups: Sequence[str], names: dict[str, int]
) -> Tensor:
    """Euclidean distance that each role group has moved, float64 on the host."""
    squares = torch.zeros(len(names), dtype=torch.float64)
    for a, b, group in zip(new, old, groups, strict=True):
        squares[names[group]] += (a - b.to(a.device)).double().square().sum().cpu()
    sharded = [param for param in params if is_sharded(param)]
    if sharded:
        squares = sum_over_shards(squares.to(local(sharded[0]).device), sharded).cpu()
    return squares.sqrt()
