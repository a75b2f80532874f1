"""What happened in a training run, as events that a report marks in its loss curve."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from autoopt.report.content import Event
from autoopt.report.formatting import plural

if TYPE_CHECKING:
    from autoopt.report.recommendation import Recommendation


def training_events(
    recommendation: Recommendation,
    losses: Sequence[tuple[int, float | None]],
    guarded: Sequence[tuple[int, str]] = (),
) -> tuple[Event, ...]:
    """The switch after an online warm-up, what was guarded against, and the first loss that was not finite.

    Args:
        recommendation: What was decided; its profile tells how.
        losses: `(step, training loss)`, in order.
        guarded: `(step, sentence)` for everything that the guard did after the decision.
    """
    events = [*_profile_events(recommendation), *_loss_events(losses)]
    events += [Event(step, "guard", sentence) for step, sentence in guarded]
    return tuple(sorted(events, key=lambda event: event.step))


def _profile_events(recommendation: Recommendation) -> Iterator[Event]:
    profile = recommendation.profile
    if profile.get("mode") != "online":
        return
    step = int(profile.get("warmup_steps") or 0)
    changed = sum(layer.deviates for layer in recommendation.layers)
    words = f"{plural(changed, 'tensor')} left the calibrated default" if changed else "the calibrated default is kept"
    skipped = int(profile.get("num_nonfinite_steps") or 0)
    if skipped:
        yield Event(step, "guard", f"{plural(skipped, 'step')} of warm-up skipped since a gradient held NaN or Inf")
    yield Event(step, "switch", f"the decision after warm-up: {words}")


def _loss_events(losses: Sequence[tuple[int, float | None]]) -> Iterator[Event]:
    for step, loss in losses:
        if loss is None or not math.isfinite(loss):
            yield Event(step, "nonfinite", "the training loss was not finite")
            return
