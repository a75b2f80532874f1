"""What would have changed a choice: how far one statistic is from the value at which it flips."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from autoopt.features import FEATURES
from autoopt.meta.artifact import Predictor
from autoopt.optimizers.catalog import get
from autoopt.report.formatting import format_number
from autoopt.report.wording import GROUP_NOUNS

Choice = Callable[[Mapping[str, float]], str | None]
"""From the meta-features of a role group to the configuration that is applied, None for the default."""

_FEATURES = {feature.name: feature for feature in FEATURES}
_SHARES = ("0 to 1", "0 or 1")
_PURE = (*_SHARES, "-1 to 1", "1")
_TAIL = 2.0  # per cent of the recorded tasks left out at each end: beyond them predictions are guesses
_POINTS = 6  # values tried on each side of the measured one
_HALVINGS = 12  # of the interval in which the choice flips
_FARTHEST = 1e6


@dataclass(frozen=True)
class Threshold:
    """The nearest value of one statistic at which another configuration would be chosen.

    Attributes:
        group: Role group.
        feature: Name of the meta-feature.
        value: Its measured value.
        threshold: The value at which the choice flips, all other statistics as measured.
        config: Canonical JSON of what is chosen beyond it, None for the calibrated default.
        distance: How far that is, in per cent of the recorded tasks that lie between.
    """

    group: str
    feature: str
    value: float
    threshold: float
    config: str | None
    distance: float

    @property
    def sentence(self) -> str:
        """The threshold in one sentence, for a person."""
        side = "below" if self.threshold < self.value else "above"
        place = f"'{_FEATURES[self.feature].description}' {side} {_shown(self.feature, self.threshold)}"
        nouns = GROUP_NOUNS.get(self.group, ("", self.group))[1]
        what = (
            "the calibrated default would be kept"
            if self.config is None
            else f"{describe_change(self.config)} would be"
        )
        what += "" if self.config is None else " preferred"
        return f"With {place} (here {_shown(self.feature, self.value)}), {what} for {nouns}."


def thresholds(
    predictor: Predictor,
    group: str,
    values: Mapping[str, float],
    choice: Choice,
    names: Iterable[str],
    count: int = 2,
) -> list[Threshold]:
    """The nearest thresholds of a role group's choice, one a statistic, the nearest first.

    One statistic is moved at a time through the range in which recorded tasks lie, the others stay as
    they were measured. Statistics do not move alone in truth, so this tells what the selector looks at
    and not what would happen.

    Args:
        predictor: The selector.
        group: Role group.
        values: Its meta-features.
        choice: What is chosen for given meta-features.
        names: Statistics to try.
        count: How many thresholds to return at most.
    """
    now = choice(values)
    found = []
    for name in names:
        value = float(values.get(name, math.nan))
        if name not in _FEATURES or not math.isfinite(value):
            continue
        sides = [_nearest_flip(predictor, group, values, choice, now, name, end) for end in (_TAIL, 100.0 - _TAIL)]
        flips = [flip for flip in sides if flip is not None]
        if flips:
            found.append(min(flips, key=lambda flip: flip.distance))
    return sorted(found, key=lambda flip: flip.distance)[:count]


def _nearest_flip(
    predictor: Predictor,
    group: str,
    values: Mapping[str, float],
    choice: Choice,
    now: str | None,
    name: str,
    percentile: float,
) -> Threshold | None:
    """The first flip between the measured value and a percentile of the recorded tasks."""
    value = float(values[name])
    end = _value_at(predictor, group, name, value, percentile)
    if end is None or end == value:
        return None
    inside = value
    for point in range(1, _POINTS + 1):
        outside = value + (end - value) * point / _POINTS
        if choice({**values, name: outside}) != now:
            break
        inside = outside
    else:
        return None
    for _ in range(_HALVINGS):
        middle = 0.5 * (inside + outside)
        if choice({**values, name: middle}) == now:
            inside = middle
        else:
            outside = middle
    moved = {**values, name: outside}
    if predictor.is_far(group, moved):
        return None
    own, other = (predictor.percentile(group, name, x) or 0.0 for x in (value, outside))
    return Threshold(group, name, value, outside, choice(moved), abs(other - own))


def _value_at(predictor: Predictor, group: str, name: str, value: float, percentile: float) -> float | None:
    """The value at a percentile of the recorded tasks, None where the measured one lies beyond it."""
    own = predictor.percentile(group, name, value)
    if own is None:
        return None
    up = percentile > 50.0
    if (own >= percentile) if up else (own <= percentile):
        return None
    step = 1.0 if up else -1.0

    def beyond(x: float) -> bool:
        rank = predictor.percentile(group, name, x) or 0.0
        return rank >= percentile if up else rank <= percentile

    inside, outside = value, value + step
    while not beyond(outside):
        step *= 2.0
        inside, outside = outside, value + step
        if abs(step) > _FARTHEST:
            return None
    for _ in range(_HALVINGS):
        middle = 0.5 * (inside + outside)
        inside, outside = (inside, middle) if beyond(middle) else (middle, outside)
    return inside


def key_of(name: str) -> str:
    """The name of a meta-feature without its logarithm: `log_fan_in` is `fan_in`."""
    feature = _FEATURES[name]
    return name if feature.floor is None else name.removeprefix("log_")


def original(name: str, value: float) -> tuple[float, str]:
    """A meta-feature's value before the logarithm, and its unit, `""` for a pure number.

    >>> original("log_total_steps", math.log(1000.0))[1]
    ''
    """
    feature = _FEATURES[name]
    if feature.floor is not None:
        return math.exp(min(value, 700.0)), ""
    return value, "" if feature.unit in _PURE else feature.unit


def describe_change(config: str) -> str:
    """A role group's configuration, given as canonical JSON, in words: `Muon at 0.04 x reference`."""
    value = json.loads(config)
    extra = ", ".join(
        f"{key} {tuple(item) if isinstance(item, list) else item}" for key, item in value["hyperparameters"].items()
    )
    words = f"{get(value['optimizer']).title} at {format_number(value['lr'])} x reference"
    return f"{words} ({extra})" if extra else words


def _shown(name: str, value: float) -> str:
    if _FEATURES[name].unit in _SHARES:
        return f"{100.0 * value:.0f} %"
    return format_number(*original(name, value))
