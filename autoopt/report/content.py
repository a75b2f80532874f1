"""The parts a recommendation is made of: one frozen record for each kind of statement it makes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from autoopt.errors import AutoOptError
from autoopt.optimizers.plan import OptimizerConfig


class ReportError(AutoOptError, ValueError):
    """A recommendation that contradicts itself, cannot be read, or cannot be written as asked."""


def plain(value: Any) -> Any:
    """The value as JSON would give it back: str keys, lists, Python scalars, None for NaN and infinity.

    A statistic that is not finite carries no information a reader could use, and JSON has no word
    for it; None ("unknown") is what every format shows as a dash.
    """
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:  # NumPy and torch scalars
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def number(value: Any) -> float | None:
    """The value as a float, None where it is None or not finite."""
    if value is None:
        return None
    result = float(value)
    return result if math.isfinite(result) else None


def interval(value: Any) -> tuple[float, float] | None:
    """The two ends of an interval, None where it is None or an end is not finite.

    Raises:
        ValueError: If there are not two ends or they are in the wrong order.
    """
    if value is None:
        return None
    low, high = (number(end) for end in value)
    if low is None or high is None:
        return None
    if low > high:
        raise ValueError(f"an interval must be (low, high), got ({low}, {high})")
    return low, high


@dataclass(frozen=True)
class Evidence:
    """One statistic that moved a choice.

    Attributes:
        feature: Name of the meta-feature, such as `"grad_row_sparsity"`.
        value: Its value on this layer; None where it could not be measured.
        unit: Unit of the value, `""` for a pure number.
        percentile: Where the value lies among the recorded tasks, 0 to 100.
        contribution: What the feature adds to the predicted change of log loss (negative: it speaks
            for the change).
        description: What the feature measures, in words.
    """

    feature: str
    value: float | None
    unit: str = ""
    percentile: float | None = None
    contribution: float | None = None
    description: str = ""

    def __post_init__(self) -> None:
        """Turn what is not finite into None, and check the percentile.

        Raises:
            ReportError: If the percentile is not between 0 and 100.
        """
        for name in ("value", "percentile", "contribution"):
            object.__setattr__(self, name, number(getattr(self, name)))
        if self.percentile is not None and not 0.0 <= self.percentile <= 100.0:
            raise ReportError(f"evidence '{self.feature}': percentile must be between 0 and 100, got {self.percentile}")


@dataclass(frozen=True)
class NearestTask:
    """A recorded task that resembles the model, and what won there.

    Attributes:
        name: Name of the recorded task.
        distance: Distance in the standardised feature space, 0 for identical features.
        winner: The configuration or plan that ended lowest on that task, in words.
    """

    name: str
    distance: float | None
    winner: str

    def __post_init__(self) -> None:
        """Turn a distance that is not finite into None."""
        object.__setattr__(self, "distance", number(self.distance))


@dataclass(frozen=True)
class Event:
    """Something that happened during training and that the reader should see.

    Attributes:
        step: 0-based step.
        kind: Short word, such as `"switch"`, `"guard"` or `"nonfinite"`.
        message: One sentence.
    """

    step: int
    kind: str
    message: str


@dataclass(frozen=True)
class Candidate:
    """A whole plan that was weighed, with its predicted outcome.

    Attributes:
        name: Short name, such as `"calibrated default"` or `"this recommendation"`.
        predicted_gain: Predicted change of log loss against the calibrated default.
        predicted_gain_interval: Its interval, of the recommendation's `interval_coverage`.
        chosen: Whether this is the recommended plan.
    """

    name: str
    predicted_gain: float | None
    predicted_gain_interval: tuple[float, float] | None = None
    chosen: bool = False

    def __post_init__(self) -> None:
        """Turn what is not finite into None.

        Raises:
            ReportError: If the interval is no pair of ordered ends.
        """
        object.__setattr__(self, "predicted_gain", number(self.predicted_gain))
        try:
            object.__setattr__(self, "predicted_gain_interval", interval(self.predicted_gain_interval))
        except (TypeError, ValueError) as error:
            raise ReportError(f"candidate '{self.name}': {error}") from error


@dataclass(frozen=True)
class TradeOff:
    """One plan on the trade-off curve of loss, time and memory.

    Attributes:
        name: What the plan puts on which role group, as far as it deviates from the calibrated default.
        predicted_gain: Expected change of the log loss against the calibrated default; what is not surely
            a gain counts as none.
        state_bytes: Bytes of optimizer state, exactly.
        step_time_ratio: Seconds of a training step over those with the calibrated default on this device,
            None where they were not measured.
        time_ratio: Predicted time to the default's loss over the default's: steps times the time of a
            step; None likewise.
        chosen: Whether this is the recommended plan.
    """

    name: str
    predicted_gain: float | None
    state_bytes: int
    step_time_ratio: float | None = None
    time_ratio: float | None = None
    chosen: bool = False

    def __post_init__(self) -> None:
        """Turn what is not finite into None."""
        for name in ("predicted_gain", "step_time_ratio", "time_ratio"):
            object.__setattr__(self, name, number(getattr(self, name)))


@dataclass(frozen=True)
class RaceRun:
    """A change of the calibrated default that ran in a race of short runs.

    Attributes:
        name: The change in words.
        num_steps: Steps of each of its short runs.
        short_gains: Log ratio of each to the default's short run, negative is better.
        prior_gain: Predicted change of the whole run's log loss before the race.
        predicted_gain: The same after it.
        predicted_gain_interval: Its interval, of the recommendation's `interval_coverage`.
        chosen: Whether it is part of the recommended plan.
    """

    name: str
    num_steps: tuple[int, ...]
    short_gains: tuple[float | None, ...]
    prior_gain: float | None
    predicted_gain: float | None
    predicted_gain_interval: tuple[float, float] | None = None
    chosen: bool = False

    def __post_init__(self) -> None:
        """Turn what is not finite into None.

        Raises:
            ReportError: If the interval is no pair of ordered ends.
        """
        object.__setattr__(self, "num_steps", tuple(int(steps) for steps in self.num_steps))
        object.__setattr__(self, "short_gains", tuple(number(gain) for gain in self.short_gains))
        for name in ("prior_gain", "predicted_gain"):
            object.__setattr__(self, name, number(getattr(self, name)))
        try:
            object.__setattr__(self, "predicted_gain_interval", interval(self.predicted_gain_interval))
        except (TypeError, ValueError) as error:
            raise ReportError(f"short runs of '{self.name}': {error}") from error


@dataclass(frozen=True)
class LayerRecommendation:
    """What is recommended for one parameter, why, how sure, and what else was close.

    Attributes:
        name: The parameter's name in `model.named_parameters()`.
        role: Role of the parameter, a key of `autoopt.architecture.ROLE_GROUPS`.
        group: Role group of the parameter, a value of `ROLE_GROUPS`.
        shape: The parameter's shape.
        num_parameters: Number of elements.
        config: The recommended configuration, the plan's own.
        reason: One sentence, for a person.
        deviates: Whether the configuration differs from the calibrated default.
        predicted_gain: Predicted change of the run's log loss against the default, negative is
            better (-0.10 is a loss about 10 % lower); None where nothing was predicted.
        predicted_gain_interval: Its interval, of the recommendation's `interval_coverage`.
        confidence: Predicted probability that the change helps, 0 to 1.
        runner_up: The configuration that came second.
        runner_up_gain: Predicted change of log loss of the runner-up.
        evidence: The statistics that moved the choice, the strongest first.
        sparse: Whether the module asks for sparse gradients.
    """

    name: str
    role: str
    group: str
    shape: tuple[int, ...]
    num_parameters: int
    config: OptimizerConfig
    reason: str = ""
    deviates: bool = False
    predicted_gain: float | None = None
    predicted_gain_interval: tuple[float, float] | None = None
    confidence: float | None = None
    runner_up: OptimizerConfig | None = None
    runner_up_gain: float | None = None
    evidence: tuple[Evidence, ...] = ()
    sparse: bool = False

    def __post_init__(self) -> None:
        """Turn what is not finite into None, sequences into tuples, and check the ranges.

        Raises:
            ReportError: If the interval or the confidence is out of range.
        """
        for name in ("predicted_gain", "confidence", "runner_up_gain"):
            object.__setattr__(self, name, number(getattr(self, name)))
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
        object.__setattr__(self, "evidence", tuple(self.evidence))
        try:
            object.__setattr__(self, "predicted_gain_interval", interval(self.predicted_gain_interval))
        except (TypeError, ValueError) as error:
            raise ReportError(f"layer '{self.name}': {error}") from error
        if self.confidence is not None and not 0.0 <= self.confidence <= 1.0:
            raise ReportError(
                f"layer '{self.name}': confidence is a probability between 0 and 1, got {self.confidence}"
            )
