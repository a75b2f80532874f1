"""How far the guard goes: a pure function of the verdicts so far, the same on every rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

PATIENCE = 4
"""Suspicious steps in a row that are skipped as bad batches; that many mean that the model is broken."""
TOLERANCE = 32
"""Suspicious steps in a row after a rollback, where the model is known to be sound, that mean new data."""

GO, SKIP, CLIMB, ACCEPT, RESTORE = "go", "skip", "climb", "accept", "restore"
"""What is to be done with a step."""

HALVE, RUNNER_UP, DEFAULT, EVERYWHERE, LAST = 1, 2, 3, 4, 5
"""The rungs: rates of the suspects halved for a while, their runner-up, the calibrated default for them, the
default everywhere, and then half of the rates for good."""


@dataclass
class Ladder:
    """Where a run stands on the ladder.

    Attributes:
        window: Steps without a climb after which a new fault starts on the first rung.
        rung: The last rung taken, 0 for none.
        last: Step of the last climb or restoration, or None.
        streak: Suspicious steps in a row, up to now.
        rolled: Whether the model was rolled back within the streak.
        suspects: Role groups that the present episode acts on.
        halved: Whether rates are halved for the time being.
    """

    window: int
    rung: int = 0
    last: int | None = None
    streak: int = 0
    rolled: bool = False
    suspects: tuple[str, ...] = ()
    halved: bool = False

    def see(self, step: int, suspicious: bool, nonfinite: bool, risen: bool) -> str:
        """What is to be done with a step: `GO`, `SKIP`, `CLIMB`, `ACCEPT` or `RESTORE`.

        Args:
            step: 0-based step.
            suspicious: Whether any channel is beyond its limit, or not finite.
            nonfinite: Whether any is not finite: no such step is ever taken.
            risen: Whether the loss has risen slowly.
        """
        if suspicious:
            self.streak += 1
            if not self.rolled and self.streak == PATIENCE:
                return CLIMB
            if self.rolled and self.streak >= TOLERANCE and not nonfinite:
                self.streak, self.rolled = 0, False
                return ACCEPT
            return SKIP
        self.streak, self.rolled = 0, False
        if risen:
            return CLIMB
        if self.halved and self.last is not None and step - self.last >= self.window // 2:
            return RESTORE
        return GO

    def climb(self, step: int) -> int:
        """The rung that a climb starts from; the caller takes the first from there that changes the plan.

        Args:
            step: 0-based step.
        """
        within = self.last is not None and step - self.last <= self.window
        if not within:
            self.rung, self.suspects = 0, ()
        self.last, self.rolled = step, self.streak > 0
        return min(self.rung + 1, LAST)

    def to_dict(self) -> dict[str, Any]:
        """Where the run stands, as JSON-compatible values."""
        return {**asdict(self), "suspects": list(self.suspects)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Ladder:
        """The state that `to_dict` wrote."""
        return cls(**{**value, "suspects": tuple(value["suspects"])})
