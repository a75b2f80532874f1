"""The trade-off curve of loss, time and memory: the plans that no other one beats, and the chosen one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from autoopt.architecture import LayerInfo
from autoopt.budget.allocation import Combinations
from autoopt.budget.effects import Effects
from autoopt.budget.options import GroupOptions
from autoopt.optimizers.plan import OptimizerConfig
from autoopt.report.content import TradeOff
from autoopt.report.wording import GROUP_NOUNS, title

MAX_POINTS = 12
"""Points that are shown at most, beside the default and the chosen one."""

LOSS_RESOLUTION, TIME_RESOLUTION = 0.002, 0.03
"""Log loss and log time below which two points count as equal."""

Picks = Sequence[Sequence[int]]
"""For each role group, the index of the option of each of its tensors."""


@dataclass(frozen=True, eq=False)
class StepTimes:
    """What was measured of the time of a step.

    Attributes:
        base_seconds: A step without its update.
        update_seconds: `update_seconds(layers, configs)`, seconds of one update.
    """

    base_seconds: float
    update_seconds: Callable[[Sequence[LayerInfo], Sequence[OptimizerConfig]], float]


@dataclass(frozen=True, eq=False)
class Curve:
    """Places plans on the curve.

    Attributes:
        groups: What every role group may get.
        times: What was measured of the time of a step, or None.
        effects: Tells what a loss is worth in steps.
    """

    groups: Sequence[GroupOptions]
    times: StepTimes | None
    effects: Effects

    def points(self, table: Combinations, chosen: Picks) -> tuple[TradeOff, ...]:
        """The points to be shown, the leanest first.

        Args:
            table: All combinations of options.
            chosen: The plan that was chosen.
        """
        everything = np.ones(len(table.loss), dtype=bool)
        loss = np.round(table.loss / LOSS_RESOLUTION)
        front = set(table.front(everything, loss, table.bytes))
        if self.times is not None:
            front |= set(table.front(everything, loss, np.round(np.log(table.seconds) / TIME_RESOLUTION), table.bytes))
        ordered = sorted(front, key=lambda index: (table.bytes[index], table.loss[index]))
        if len(ordered) > MAX_POINTS:
            places = np.linspace(0, len(ordered) - 1, MAX_POINTS).round().astype(int)
            ordered = [ordered[place] for place in places]
        default = table.index_of([0] * len(self.groups))
        picks = [whole_groups(self.groups, table.picks[index]) for index in dict.fromkeys((*ordered, default))]
        points = [self._point(row) for row in picks if row != chosen]
        points.append(replace(self._point(chosen), chosen=True))
        return tuple(sorted(points, key=lambda point: (point.state_bytes, point.predicted_gain or 0.0)))

    def _point(self, picks: Picks) -> TradeOff:
        state_bytes, loss = 0, 0.0
        for group, row in zip(self.groups, picks, strict=True):
            state_bytes += sum(sizes[pick] for sizes, pick in zip(group.bytes_by_layer, row, strict=True))
            loss += sum(share * group.options[pick].loss for share, pick in zip(group.shares, row, strict=True))
        ratio = time_ratio = None
        if self.times is not None:
            default = [[0] * len(group.layers) for group in self.groups]
            ratio = self._seconds(picks) / self._seconds(default)
            time_ratio = ratio * math.exp(float(self.effects.log_steps(loss)))
        return TradeOff(_name(self.groups, picks), loss, state_bytes, ratio, time_ratio)

    def _seconds(self, picks: Picks) -> float:
        assert self.times is not None
        pairs = zip(self.groups, picks, strict=True)
        updates = (self.times.update_seconds(group.layers, _configs(group, row)) for group, row in pairs)
        return self.times.base_seconds + sum(updates)


def whole_groups(groups: Sequence[GroupOptions], row: Sequence[int]) -> list[list[int]]:
    """One option for all tensors of each role group."""
    return [[int(pick)] * len(group.layers) for pick, group in zip(row, groups, strict=True)]


def expected_outcome(groups: Sequence[GroupOptions], picks: Picks) -> tuple[float, float]:
    """Expected change of the log loss and its standard deviation, effects being independent and adding up."""
    mean = variance = 0.0
    for group, row in zip(groups, picks, strict=True):
        shares: dict[int, float] = {}
        for share, pick in zip(group.shares, row, strict=True):
            shares[pick] = shares.get(pick, 0.0) + share
        for pick, share in shares.items():
            prediction = group.options[pick].prediction
            if prediction is not None:
                mean += share * prediction.mean
                variance += (share * prediction.std) ** 2
    return mean, math.sqrt(variance)


def _configs(group: GroupOptions, row: Sequence[int]) -> list[OptimizerConfig]:
    return [group.resolved[pick][position] for position, pick in enumerate(row)]


def _name(groups: Sequence[GroupOptions], picks: Picks) -> str:
    words = []
    for group, row in zip(groups, picks, strict=True):
        for pick in dict.fromkeys(row):
            config, share = group.options[pick].config, list(row).count(pick)
            if config is None:
                continue
            noun = GROUP_NOUNS[group.group][len(row) != 1]
            count = "" if share == len(row) else f"{share} of {len(row)} "
            words.append(f"{_in_words(config)} on {count}{noun}")
    return ", ".join(words) or "calibrated default"


def _in_words(config: str) -> str:
    value = json.loads(config)
    text = f"{title(OptimizerConfig(value['optimizer']))} at {value['lr']:g}"
    return f"{text} without momentum" if value["hyperparameters"].get("momentum") == 0 else text
