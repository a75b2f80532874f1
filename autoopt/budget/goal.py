"""What a choice is to be good for, and what it may cost."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

OBJECTIVES = ("loss", "time", "memory")


@dataclass(frozen=True)
class Goal:
    """What a choice is to be good for, and what it may cost.

    Attributes:
        objective: `"loss"`, `"time"` or `"memory"`.
        max_state_bytes: Bytes of optimizer state that the plan may take, or None.
    """

    objective: str = "loss"
    max_state_bytes: int | None = None

    def __post_init__(self) -> None:
        """Check both.

        Raises:
            ValueError: If the objective is unknown or the limit is no whole number of bytes.
        """
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(map(repr, OBJECTIVES))}, got {self.objective!r}")
        limit = self.max_state_bytes
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, Integral) or limit < 0):
            raise ValueError(f"max_state_bytes must be a whole number of bytes, 0 or more, or None, got {limit!r}")

    @property
    def is_plain(self) -> bool:
        """Whether the loss alone counts, whatever it costs."""
        return self.objective == "loss" and self.max_state_bytes is None
