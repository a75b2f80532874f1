"""How far the guard goes: a pure function of the verdicts so far, the same on every rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

PATIENCE = 4
"""Suspicious steps in a row that are skipped as bad batches; that many mean that the model is broken. Also
the steps without an update after a rollback, which tell whether the model is sound again."""
TOLERANCE = 32
"""The same where gradients are not finite but the loss is: that is an overflow, and the model is sound."""

GO, SKIP, CLIMB, DEEPER, RESTORE = "go", "skip", "climb", "deeper", "restore"
"""What is to be done with a step."""

ROLL_BACK, HALVE, RUNNER_UP, DEFAULT, EVERYWHERE, LAST = 1, 2, 3, 4, 5, 6
"""The rungs: back to a snapshot, where nobody is suspected; rates of the suspects halved for a while; their
runner-up; the calibrated default for them; the default everywhere; half of the rates for good."""


@dataclass(frozen=True)
class Sight:
    """What a step looks like.

    Attributes:
        suspicious: Whether any channel is beyond its limit, or not finite.
        overflow: Whether gradients are not finite although the loss is known to be.
        risen: Whether the loss has risen slowly, up to now.
        high: Whether this step's loss is where it would count as risen.
    """

    suspicious: bool = False
    overflow: bool = False
    risen: bool = False
    high: bool = False


@dataclass
class Ladder:
    """Where a run stands on the ladder.

    Attributes:
        window: Steps without a climb after which a new fault starts on the first rung.
        rung: The last rung taken, 0 for none.
        last: Step of the last climb or restoration, or None.
        streak: Suspicious steps in a row, up to now.
        climbed: Whether the streak has led to a climb.
        probes: Steps still to be looked at without an update, after a rollback.
        num_high: Those looked at that were no better than before it.
        suspects: Role groups that the present episode acts on; empty for the whole model.
        halved: Whether rates are halved for the time being.
    """

    window: int
    rung: int = 0
    last: int | None = None
    streak: int = 0
    climbed: bool = False
    probes: int = 0
    num_high: int = 0
    suspects: tuple[str, ...] = ()
    halved: bool = False

    def see(self, step: int, sight: Sight) -> str:
        """What is to be done with a step: `GO`, `SKIP`, `CLIMB`, `DEEPER` or `RESTORE`.

        `DEEPER` says that a snapshot was no better: it is unsound itself, or the data have changed.

        Args:
            step: 0-based step.
            sight: What it looks like.
        """
        self.streak = self.streak + 1 if sight.suspicious else 0
        self.climbed = self.climbed and sight.suspicious
        if self.probes:
            self.probes -= 1
            self.num_high += sight.suspicious or sight.high
            if not self.probes and 2 * self.num_high > PATIENCE:
                return DEEPER
            return SKIP
        if sight.suspicious:
            if not self.climbed and self.streak >= (TOLERANCE if sight.overflow else PATIENCE):
                self.climbed = True
                return CLIMB
            return SKIP
        if sight.risen:
            return CLIMB
        if self.halved and self.last is not None and step - self.last >= self.window // 2:
            return RESTORE
        return GO

    def climb(self, step: int) -> int | None:
        """The rung that a climb starts from, None where all have been tried in vain.

        The caller takes the first rung from there that changes anything.

        Args:
            step: 0-based step.
        """
        if self.last is None or step - self.last > self.window:
            self.rung, self.suspects = 0, ()
        if self.rung == LAST:
            return None
        self.last = step
        return self.rung + 1

    def probe(self) -> None:
        """Nothing; the next steps are looked at without an update, since the model was just rolled back."""
        self.probes, self.num_high = PATIENCE, 0

    def to_dict(self) -> dict[str, Any]:
        """Where the run stands, as JSON-compatible values."""
        return {**asdict(self), "suspects": list(self.suspects)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Ladder:
        """The state that `to_dict` wrote."""
        return cls(**{**value, "suspects": tuple(value["suspects"])})
