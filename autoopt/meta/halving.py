"""Successive halving of short runs: which candidates run, for how long, and when the answer is clear.

Source: Jamieson & Talwalkar 2016 (arXiv 1502.07943) for the rungs; a candidate is dropped by its
posterior (`autoopt.meta.extrapolation`), never by its short loss alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from autoopt.meta.extrapolation import SHARES, Extrapolation, Measurement, is_contrary, num_steps

LOOK_STEPS = 2
"""Training steps that looking at the batches held back costs: four forward passes, a third of a step each, and
the look at the start, which all runs share."""

SHORTEST = 2
"""Place in `SHARES` of the shortest runs that may decide: shorter ones ranked nothing."""

MIN_VALUE = 5e-4
"""Expected gain (log loss) of a run below which it is not worth its steps."""


@dataclass(frozen=True)
class Contestant:
    """A change of one role group that may run, with what is expected of it.

    Attributes:
        group: Role group.
        config: Canonical JSON of its configuration.
        way: Its `direction`: 1 for a higher rate than the default's, -1 for a lower one.
        prior: Mean and standard deviation that the selector predicts (log ratio to the default).
        caution: Standard deviations that the decision looks to the bad side.
        surprise: Least standard deviation of its effect once its run is contrary.
        posterior: Mean and standard deviation after its latest run; the prior before.
        shorts: Log ratio to the default of each of its short runs, by rung.
    """

    group: str
    config: str
    way: int
    prior: tuple[float, float]
    caution: float
    surprise: float = 0.0
    posterior: tuple[float, float] = (0.0, 0.0)
    shorts: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Start from the prior."""
        if not self.shorts:
            object.__setattr__(self, "posterior", self.prior)

    @property
    def is_moved(self) -> bool:
        """Whether a run has shifted the prediction."""
        return self.posterior != self.prior

    def pessimistic(self, before: float) -> float:
        """The upper end that the decision looks at.

        Args:
            before: The same without a race. A result in favour never moves it up, one against never down.
        """
        if not self.is_moved:
            return before
        mean, std = self.posterior
        return (min if self.shorts[-1] < 0 else max)(before, mean + self.caution * std)

    def after(self, short: float, measurement: Measurement) -> Contestant:
        """The contestant after a run; the latest and longest counts, since runs of one start are alike."""
        mean, std = self.prior
        posterior = self.prior
        if is_contrary(self.way, short):
            found = measurement.posterior(short, mean, max(std, self.surprise))
            # A result in favour says nothing against a prediction that was better still, and the reverse.
            posterior = found if (found[0] - mean) * short > 0 else self.prior
        return replace(self, posterior=posterior, shorts=(*self.shorts, short))

    def value(self, measurement: Measurement, margin: float) -> float:
        """What a run is expected to gain (log loss) by changing the decision, before it is made."""
        mean, std = self.posterior
        std = max(std, self.surprise)
        shift = measurement.shift(std)
        if shift <= 0.0:
            return 0.0
        left = math.sqrt(max(0.0, std**2 - shift**2))
        z = (-margin - self.caution * left - mean) / shift
        density, below = math.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi), 0.5 * math.erfc(-z / math.sqrt(2.0))
        decided = -mean if mean + self.caution * std < -margin else 0.0
        return shift * density - mean * below - decided


@dataclass(frozen=True)
class Rung:
    """One round of short runs.

    Attributes:
        share: Which of `SHARES` a run takes.
        num_steps: Training steps of a run.
        num_contestants: Contestants at most; the default runs beside them.
    """

    share: float
    num_steps: int
    num_contestants: int


@dataclass(frozen=True)
class RaceResult:
    """What a race found.

    Attributes:
        contestants: All that ran, each with its runs and its posterior.
        rungs: The rungs that were run.
        num_steps: Training steps spent, looks at the batches held back included.
        reason: Why it ended, one sentence.
    """

    contestants: tuple[Contestant, ...] = ()
    rungs: tuple[Rung, ...] = ()
    num_steps: int = 0
    reason: str = ""


Measure = Callable[[Sequence[Contestant], Rung], Sequence[float]]
"""The short log ratios to the default's run of some contestants in a rung."""


def rungs(total_steps: int, race_steps: int) -> tuple[Rung, ...]:
    """The rungs of a race; none where its steps are too few for two runs of a length that says anything.

    The last rung has the longest runs that the steps allow, one of a candidate and one of the default. What
    is left goes to a rung before it, of half that length, that decides who the candidate is; where that is too
    little for two, to further candidates in the last one.

    Args:
        total_steps: Steps of the training run.
        race_steps: Steps that the race may take.

    >>> [[(rung.num_steps, rung.num_contestants) for rung in rungs(2000, steps)] for steps in (50, 100, 200, 400)]
    [[], [(40, 1)], [(80, 1)], [(40, 4), (80, 1)]]
    """
    for index in range(len(SHARES) - 1, SHORTEST - 1, -1):
        share, before = SHARES[index], SHARES[index - 1]
        steps, earlier = num_steps(share, total_steps), num_steps(before, total_steps)
        final = 2 * (steps + LOOK_STEPS)
        if race_steps < final:
            continue
        places = (race_steps - final) // (earlier + LOOK_STEPS) - 1
        if places >= 2 and earlier < steps:
            return Rung(before, earlier, places), Rung(share, steps, 1)
        return (Rung(share, steps, race_steps // (steps + LOOK_STEPS) - 1),)
    return ()


def run(
    contestants: Sequence[Contestant],
    ladder: Sequence[Rung],
    extrapolation: Extrapolation,
    margin: float,
    measure: Measure,
) -> RaceResult:
    """Race: in each rung the contestants whose run is worth most are run, until the answer is clear.

    It is clear where no further run is expected to change the decision by more than `MIN_VALUE`.

    Args:
        contestants: Who may run.
        ladder: What `rungs` returned.
        extrapolation: What short runs say of long ones.
        margin: Pessimistic gain that a change must promise.
        measure: Makes the runs of a rung, the default's included.
    """
    eligible = {(item.group, item.config): item for item in contestants}
    ran: dict[tuple[str, str], Contestant] = {}
    done: list[Rung] = []
    spent = 0
    if not ladder:
        return RaceResult(reason="The race would have too few steps for a single short run.")
    for rung in ladder:
        values = {
            key: item.value(measurement, margin)
            for key, item in eligible.items()
            if (measurement := extrapolation.measurements.get(rung.share)) is not None
        }
        worth = sorted((key for key in values if values[key] > MIN_VALUE), key=lambda key: -values[key])
        chosen = worth[: rung.num_contestants]
        if not chosen:
            reason = "No short run was expected to change the choice." if not done else "The answer was clear."
            return RaceResult(tuple(ran.values()), tuple(done), spent, reason)
        shorts = measure([eligible[key] for key in chosen], rung)
        for key, short in zip(chosen, shorts, strict=True):
            measurement = extrapolation.measurements.get(rung.share)
            assert measurement is not None  # it has a value
            ran[key] = eligible[key].after(short, measurement)
        done.append(rung)
        spent += (len(chosen) + 1) * (rung.num_steps + LOOK_STEPS)
        eligible = {key: ran[key] for key in chosen}
    return RaceResult(tuple(ran.values()), tuple(done), spent, "Its steps were spent.")
