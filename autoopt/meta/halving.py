"""Successive halving of short runs: which candidates run, for how long, and when the answer is clear.

A probe comes first: the highest rate of every role group, for a hundredth of the run. Lower rates run only in
groups where it failed, since on the recorded tasks they helped nowhere else: near the edge of stability a higher
rate fails within few steps.

Source: Jamieson & Talwalkar 2016 (arXiv 1502.07943) for the rungs; a candidate is dropped by its
posterior (`autoopt.meta.extrapolation`), never by its short loss alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from autoopt.meta.extrapolation import SHARES, Extrapolation, Measurement, is_contrary, num_steps

LOOK_STEPS = 2
"""Training steps that looking at the batches held back costs: four forward passes, a third of a step each, and
the look at the start, which all runs share."""

EDGE = 0.1
"""Log ratio by which a probe must lose for its role group to count as near the edge of stability."""

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
        shorts: Log ratio to the default of each of its short runs.
        lengths: Training steps of each.
    """

    group: str
    config: str
    way: int
    prior: tuple[float, float]
    caution: float
    surprise: float = 0.0
    posterior: tuple[float, float] = (0.0, 0.0)
    shorts: tuple[float, ...] = ()
    lengths: tuple[int, ...] = ()

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

    def after(self, short: float, num_steps: int, measurement: Measurement) -> Contestant:
        """The contestant after a run; the latest and longest counts, since runs of one start are alike."""
        mean, std = self.prior
        posterior = self.prior
        if is_contrary(self.way, short):
            found = measurement.posterior(short, mean, max(std, self.surprise))
            # A result in favour says nothing against a prediction that was better still, and the reverse.
            posterior = found if (found[0] - mean) * short > 0 else self.prior
        shorts, lengths = (*self.shorts, short), (*self.lengths, num_steps)
        return replace(self, posterior=posterior, shorts=shorts, lengths=lengths)

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

    @property
    def num_steps_in_all(self) -> int:
        """Training steps of all its runs, the default's and the looks at the batches held back included."""
        return (self.num_contestants + 1) * (self.num_steps + LOOK_STEPS)


PROBE = 1
"""Place in `SHARES` of the length of probes."""


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
    """The rungs of a race after its probe; none where its steps are too few for two of the longest runs.

    The last rung has the longest of `SHARES`, since shorter runs of lower rates ranked nothing: one of a candidate
    and one of the default. What is left goes to a rung before it, of half that length, that decides who the
    candidate is; where that is too little for two, to further candidates in the last one.

    Args:
        total_steps: Steps of the training run.
        race_steps: Steps that the race may take.

    >>> [[(rung.num_steps, rung.num_contestants) for rung in rungs(2000, steps)] for steps in (100, 200, 400)]
    [[], [(80, 1)], [(40, 4), (80, 1)]]
    """
    steps, earlier = num_steps(SHARES[-1], total_steps), num_steps(SHARES[-2], total_steps)
    left = race_steps - 2 * (steps + LOOK_STEPS)
    if left < 0:
        return ()
    places = left // (earlier + LOOK_STEPS) - 1
    if places >= 2 and earlier < steps:
        return Rung(SHARES[-2], earlier, places), Rung(SHARES[-1], steps, 1)
    return (Rung(SHARES[-1], steps, race_steps // (steps + LOOK_STEPS) - 1),)


def probe(total_steps: int, num_groups: int) -> Rung:
    """The rung of the probes, one for each of so many role groups."""
    return Rung(SHARES[PROBE], num_steps(SHARES[PROBE], total_steps), num_groups)


def longest_run(total_steps: int, race_steps: int) -> int:
    """Training steps of the longest short run that a race of one role group may make."""
    first = probe(total_steps, 1)
    ladder = rungs(total_steps, race_steps - first.num_steps_in_all)
    return max(rung.num_steps for rung in (first, *ladder))


def run(
    contestants: Sequence[Contestant],
    total_steps: int,
    race_steps: int,
    extrapolation: Extrapolation,
    margin: float,
    measure: Measure,
) -> RaceResult:
    """Race: probe, then run the contestants whose run is worth most, and the best of them for longer.

    It ends early where no higher rate fails, or where no run is expected to gain more than `MIN_VALUE`.

    Args:
        contestants: Who may run.
        total_steps: Steps of the training run.
        race_steps: Steps that the race may take.
        extrapolation: What short runs say of long ones.
        margin: Pessimistic gain that a change must promise.
        measure: Makes the runs of a rung, the default's included.
    """
    lower = [item for item in contestants if item.way < 0]
    probes = _probes(contestants, {item.group for item in lower})
    first = probe(total_steps, len(probes))
    ladder = rungs(total_steps, race_steps - first.num_steps_in_all)
    if not probes:
        return RaceResult(reason="There is no rate to try: none of the model's layers are of a kind that is raced.")
    if not ladder:
        return RaceResult(reason="It would have too few steps for runs that say anything of the whole; allow it more.")
    ran = _after(probes, first, extrapolation, measure)
    done, spent = [first], first.num_steps_in_all
    failed = {item.group for item in ran if item.shorts[-1] > EDGE}
    eligible = [item for item in lower if item.group in failed]
    if not eligible:
        return RaceResult(tuple(ran), tuple(done), spent, "No higher rate failed, so lower ones were not tried.")
    eligible = _worth_running(eligible, ladder[0], extrapolation, margin)
    if not eligible:
        return RaceResult(tuple(ran), tuple(done), spent, "No further run was expected to change the choice.")
    for rung in ladder:
        made = replace(rung, num_contestants=min(rung.num_contestants, len(eligible)))
        items = _after(eligible[: made.num_contestants], made, extrapolation, measure)
        again = {(item.group, item.config) for item in items}
        ran = [item for item in ran if (item.group, item.config) not in again] + items
        eligible = sorted(items, key=lambda item: item.posterior[0])
        done.append(made)
        spent += made.num_steps_in_all
    return RaceResult(tuple(ran), tuple(done), spent, "Its steps were spent.")


def _worth_running(
    items: Sequence[Contestant], rung: Rung, extrapolation: Extrapolation, margin: float
) -> list[Contestant]:
    """Those whose run is expected to gain more than `MIN_VALUE`, the most valuable first."""
    measurement = extrapolation.measurements[rung.share]
    values = [(item.value(measurement, margin), item) for item in items]
    return [item for value, item in sorted(values, key=lambda pair: -pair[0]) if value > MIN_VALUE]


def _probes(contestants: Sequence[Contestant], groups: set[str]) -> list[Contestant]:
    """The highest rate of each of these role groups that has a higher one than the default's."""
    found: dict[str, Contestant] = {}
    for item in contestants:
        if (
            item.way > 0
            and item.group in groups
            and (item.group not in found or _rate(item) > _rate(found[item.group]))
        ):
            found[item.group] = item
    return list(found.values())


def _rate(item: Contestant) -> float:
    return float(json.loads(item.config)["lr"])


def _after(items: Sequence[Contestant], rung: Rung, learned: Extrapolation, measure: Measure) -> list[Contestant]:
    shorts = measure(items, rung)
    measurement = learned.measurements[rung.share]
    return [item.after(short, rung.num_steps, measurement) for item, short in zip(items, shorts, strict=True)]
