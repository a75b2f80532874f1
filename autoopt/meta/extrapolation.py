"""What a short run says of a long one, learned from recorded runs of both: it shifts a prior, no more.

Short runs favour rates that are too high for long ones: the best rate falls with the horizon. On the
recorded tasks a higher rate that wins a short run, or a lower one that loses it, says nothing about the
end (`docs/racing.md` has the correlations). A lower rate that wins although it should lose, or a
higher one that loses although it should win, does. So only such contrary results are measurements of the
long run's effect `y` of a candidate (log ratio of losses to the default's), which has the prior
`N(mean, std^2)` that the selector predicts: the short runs' log ratio is

    `s = slope y + e`,  `e ~ N(0, noise^2)`

with a slope and a noise of each length. All other results, and runs of another optimizer, leave the
prior as it is.

Source: conjugate Bayesian linear regression, Bishop 2006, section 3.3; the value of a measurement before
it is made, Frazier, Powell & Dayanik 2009 (knowledge gradient).
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from autoopt.errors import ArtifactError

EXTRAPOLATION_SCHEMA_VERSION = 1
FILE_NAME = "extrapolation.json"

SHARES: tuple[float, ...] = (0.005, 0.01, 0.02, 0.04)
"""Lengths of short runs that something was learned of, as shares of the step budget."""

MIN_STEPS = 3
"""Steps of the shortest run, whatever its share."""

CLIP = 0.5
"""Largest log ratio of short runs kept in size, as for long ones (`autoopt.meta.pairs.CLIP`)."""


MIN_CONTRARY = 0.02
"""Log ratio up to which a contrary result is the noise of short runs."""


def num_steps(share: float, total_steps: int) -> int:
    """Steps of a short run of a share of a budget.

    >>> [num_steps(0.005, steps) for steps in (100, 1000, 10_000)]
    [3, 5, 50]
    """
    return max(MIN_STEPS, round(share * total_steps))


def short_log_ratio(loss: float, reference: float, start: float) -> float:
    """The log ratio of two short runs' losses, clipped to +-0.5; positive where `loss` is worse.

    Args:
        loss: Loss of the candidate's run; one that is not finite is as bad as can be.
        reference: Loss of the default's run.
        start: Loss before the first step: where a loss is not positive, its difference over the
            larger of what the default's run gained and the reference's size takes the log ratio's place.
    """
    if not math.isfinite(loss):
        return CLIP
    if not math.isfinite(reference):
        return -CLIP
    if loss > 0 and reference > 0:
        value = math.log(loss / reference)
    else:
        value = (loss - reference) / max(abs(start - reference), abs(reference), 1e-12)
    return max(-CLIP, min(CLIP, value))


def direction(config: str, default: str) -> int:
    """1 for a candidate that only raises the default's rate, -1 for one that only lowers it, else 0.

    >>> low, high = ('{"hyperparameters":{},"lr":%s,"optimizer":"adamw"}' % lr for lr in (0.01, 0.04))
    >>> direction(low, high), direction(high, low), direction(high, high.replace("adamw", "sgd"))
    (-1, 1, 0)
    """
    new, old = json.loads(config), json.loads(default)
    if {**new, "lr": 0.0} != {**old, "lr": 0.0}:
        return 0
    return (new["lr"] > old["lr"]) - (new["lr"] < old["lr"])


def is_contrary(way: int, short: float) -> bool:
    """Whether a short run's log ratio goes against what short runs favour, by more than their noise.

    Args:
        way: The candidate's `direction`.
        short: Log ratio of the short runs, negative where the candidate's is better.
    """
    return way * short > MIN_CONTRARY


@dataclass(frozen=True)
class Measurement:
    """How contrary results of short runs of one length measure the long runs' effects.

    Attributes:
        slope: What of the long run's effect the short run shows.
        noise: Standard deviation of the rest.
        num_results: Contrary results that it was learned from.
    """

    slope: float
    noise: float
    num_results: int = 0

    def posterior(self, short: float, mean: float, std: float) -> tuple[float, float]:
        """Mean and standard deviation of the long run's effect, once a contrary result is known.

        Args:
            short: Log ratio of the short runs.
            mean: Mean of the prior.
            std: Its standard deviation.
        """
        gain = self._gain(std)
        return mean + gain * (short - self.slope * mean), std * math.sqrt(max(0.0, 1.0 - gain * self.slope))

    def shift(self, std: float) -> float:
        """Standard deviation of the posterior mean around the prior mean, before the run is made."""
        return math.sqrt(self._gain(std) * self.slope) * std

    def _gain(self, std: float) -> float:
        return self.slope * std**2 / (self.slope**2 * std**2 + self.noise**2)


@dataclass(frozen=True)
class Extrapolation:
    """What was learned of short runs.

    Attributes:
        measurements: Share of the budget -> how runs of that length measure.
        groups: Role groups that are raced.
        caution: Standard deviations that a decision after a contrary result looks to the bad side.
        surprise: Least standard deviation of an effect where the short run is contrary: the selector is
            surer of itself than it may be on a kind of task that it has never seen.
        info: Facts about the training.
    """

    measurements: dict[float, Measurement]
    groups: tuple[str, ...]
    caution: float = 1.0
    surprise: float = 0.0
    info: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The extrapolation as JSON text."""
        value = {
            "schema_version": EXTRAPOLATION_SCHEMA_VERSION,
            "measurements": {repr(share): asdict(found) for share, found in sorted(self.measurements.items())},
            "groups": list(self.groups),
            "caution": self.caution,
            "surprise": self.surprise,
            "info": self.info,
        }
        return json.dumps(value, indent=1, sort_keys=True) + "\n"


def fit_measurement(
    shorts: ArrayLike,
    effects: ArrayLike,
    *,
    slope: tuple[float, float] = (1.0, 0.3),
    noise: tuple[float, float] = (0.15, 4.0),
) -> Measurement:
    """The measurement of the highest posterior given contrary results, which are few.

    The prior on the slope says that a short run's log ratio persists: where a lower rate wins already,
    the longer run can only favour it more.

    Args:
        shorts: Log ratios of short runs with a contrary result, `(num_results,)`.
        effects: Log ratios of the long runs, `(num_results,)`.
        slope: Mean and standard deviation of the prior on the slope.
        noise: The noise before anything is known, and how many results that is worth.
    """
    s, y = np.asarray(shorts, dtype=np.float64), np.asarray(effects, dtype=np.float64)
    (center, spread), (sigma, worth) = slope, noise
    found, start = center, sigma
    for _ in range(20):
        precision = float(y @ y) / sigma**2 + spread**-2
        found = (float(y @ s) / sigma**2 + center * spread**-2) / precision
        sigma = math.sqrt((worth * start**2 + float(((s - found * y) ** 2).sum())) / (worth + len(y)))
    return Measurement(float(found), sigma, len(y))


def load(path: str | os.PathLike[str] | None = None) -> Extrapolation:
    """The extrapolation in a JSON file; the shipped one without a path.

    Raises:
        ArtifactError: If the file is missing, damaged or of another schema.
    """
    target = _shipped_path() if path is None else Path(path)
    way_out = "leave race= out, or make it anew with scripts/evaluate_race.py --write"
    try:
        value = json.loads(target.read_text(encoding="utf-8"))
        if value["schema_version"] != EXTRAPOLATION_SCHEMA_VERSION:
            raise ValueError(f"schema version {value['schema_version']}, not {EXTRAPOLATION_SCHEMA_VERSION}")
        measurements = {float(share): Measurement(**found) for share, found in value["measurements"].items()}
        return Extrapolation(
            measurements, tuple(value["groups"]), float(value["caution"]), float(value["surprise"]), value["info"]
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"what was learned of short runs cannot be read from {target} ({error}); {way_out}"
        ) from error


def _shipped_path() -> Path:
    root = Path(str(resources.files("autoopt")))
    packaged = root / "data" / FILE_NAME
    return packaged if packaged.exists() else root.parent / "meta_data" / FILE_NAME
