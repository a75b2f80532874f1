"""What the guard sees and does, in words."""

from __future__ import annotations

from collections.abc import Sequence

from autoopt.guard import ladder as rungs
from autoopt.guard.detection import NONFINITE, OK

STATISTICS = "running statistics"
"""Name of the channel that is no role group."""

DONE = {
    rungs.ROLL_BACK: ("roll back", ""),
    rungs.HALVE: ("roll back", "half the rates of {} for a while"),
    rungs.RUNNER_UP: ("runner-up", "the runner-up for {}"),
    rungs.DEFAULT: ("default", "the calibrated default for {}"),
    rungs.EVERYWHERE: ("default everywhere", "the calibrated default everywhere"),
    rungs.LAST: ("halve", "half of all rates for good"),
}
"""Rung -> the action's short name, and what is done to the suspects."""


def seen(names: Sequence[str], row: Sequence[int]) -> str:
    """What a detector's verdicts say, `""` where they say nothing.

    Args:
        names: Role groups, in the detector's order, and `STATISTICS` where they are looked at.
        row: Its verdicts on a step.
    """
    *channels, loss, _, risen = row
    verdicts = dict(zip(names, channels, strict=True))
    statistics = verdicts.pop(STATISTICS, OK)
    broken = [name for name, verdict in verdicts.items() if verdict == NONFINITE]
    high = [name for name, verdict in verdicts.items() if verdict != OK]
    parts = []
    if broken:
        parts.append(f"gradients that are not finite ({', '.join(broken)})")
    elif high:
        parts.append(f"gradients far above all recent ones ({', '.join(high)})")
    if statistics != OK:
        way = "that are not finite" if statistics == NONFINITE else "far above all recent ones"
        parts.append(f"{STATISTICS} {way}")
    if loss != OK:
        parts.append("a loss that is not finite" if loss == NONFINITE else "a loss far above all recent ones")
    if risen and not parts:
        parts.append("the loss has given back half of what training had gained")
    return " and ".join(parts)
