"""The table of a race of short runs, the same in every format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autoopt.report.formatting import format_interval, format_loss_change, plural, visible

if TYPE_CHECKING:
    from autoopt.report.recommendation import Recommendation

RACE_HEADINGS: tuple[str, ...] = ("Change", "Short runs", "Before", "After", "Interval")
"""Headings of `race_rows`."""


def race_rows(recommendation: Recommendation) -> list[tuple[str, ...]]:
    """A row for each change that ran: its short runs, and the predicted loss change before and after."""
    rows = []
    for item in recommendation.race:
        runs = ", ".join(
            f"{format_loss_change(gain)} after {plural(steps, 'step')}"
            for steps, gain in zip(item.num_steps, item.short_gains, strict=True)
        )
        rows.append(
            (
                visible(item.name) + (" (chosen)" if item.chosen else ""),
                runs,
                format_loss_change(item.prior_gain),
                format_loss_change(item.predicted_gain),
                format_interval(item.predicted_gain_interval),
            )
        )
    return rows


def race_sentence(recommendation: Recommendation) -> str:
    """What the race cost and why it ended; `""` where there was none."""
    profile = recommendation.profile
    if profile.get("race_share") is None:
        return ""
    allowed = f"{100 * profile['race_share']:g} % of the budget allowed"
    return f"The race took {plural(profile['race_steps'], 'step')} ({allowed}). {visible(profile['race_reason'])}"
