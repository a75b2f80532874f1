"""What holds for all parameters alike: the factor on their rates over a run, averaging of weights, clipping."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from autoopt.errors import PlanError

SHAPES = ("constant", "linear", "concave", "quadratic", "cosine")


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then a constant, linear, concave, quadratic or cosine course to the end of the run.

    With `t` the 0-based step, `w = warmup_steps` and `T = total_steps`, the factor is `(t + 1) / w`
    before step `w`; afterwards, with `u = (t - w) / (T - w)` clipped to [0, 1], it is 1 (constant),
    `1 - (1 - end) u` (linear), `1 - (1 - end) u^2` (concave), `end + (1 - end) (1 - u)^2` (quadratic)
    or `end + (1 - end) (1 + cos(pi u)) / 2` (cosine), where `end` is `end_factor`. The last step of the
    run is `T - 1`, so the factor is still above `end` there and no step is wasted; later steps keep
    `end`.

    Attributes:
        shape: One of `SHAPES`.
        warmup_steps: Steps of linear warm-up, 0 for none.
        total_steps: Steps of the whole run; needed unless the shape is `"constant"`.
        end_factor: Factor that the decay ends at.
        averaging: Power of the weights' average that is kept for evaluation (see
            `autoopt.optimizers.averaging`), None to keep none.
        clip_norm: Largest norm of all gradients together, to which longer ones are scaled down before each step
            (see `autoopt.optimizers.clipping`), None for no clipping.
    """

    shape: str = "constant"
    warmup_steps: int = 0
    total_steps: int | None = None
    end_factor: float = 0.0
    averaging: float | None = None
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        """Check the shape and the number of steps.

        Raises:
            PlanError: If the shape is unknown or the steps do not fit together.
        """
        if self.shape not in SHAPES:
            raise PlanError(f"schedule shape {self.shape!r} is unknown; choose one of {', '.join(SHAPES)}")
        if self.warmup_steps < 0:
            raise PlanError(f"schedule warmup_steps must be >= 0, got {self.warmup_steps}")
        if self.shape != "constant" and self.total_steps is None:
            raise PlanError(f"a {self.shape} schedule needs total_steps")
        if self.total_steps is not None and self.total_steps <= self.warmup_steps:
            raise PlanError(
                f"schedule total_steps ({self.total_steps}) must be above warmup_steps ({self.warmup_steps})"
            )
        if self.averaging is not None and not 0.0 <= self.averaging < math.inf:
            raise PlanError(f"schedule averaging must be a power of at least 0, or None, got {self.averaging!r}")
        if self.clip_norm is not None and not 0.0 < self.clip_norm < math.inf:
            raise PlanError(f"schedule clip_norm must be a finite norm above 0, or None, got {self.clip_norm!r}")

    def to_dict(self) -> dict[str, Any]:
        """The schedule as JSON-compatible values; a plan without clipping is written as before there was any."""
        return {key: value for key, value in asdict(self).items() if key != "clip_norm" or value is not None}

    @property
    def is_constant(self) -> bool:
        """Whether the factor is 1 at every step."""
        return self.shape == "constant" and self.warmup_steps == 0

    def factor(self, step: int) -> float:
        """The factor at a 0-based step.

        >>> [round(Schedule("linear", 2, 6).factor(t), 2) for t in range(7)]
        [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
        """
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.shape == "constant" or self.total_steps is None:
            return 1.0
        progress = min(1.0, (step - self.warmup_steps) / (self.total_steps - self.warmup_steps))
        if self.shape == "linear":
            return 1.0 - (1.0 - self.end_factor) * progress
        if self.shape == "concave":
            return 1.0 - (1.0 - self.end_factor) * progress**2
        if self.shape == "quadratic":
            return self.end_factor + (1.0 - self.end_factor) * (1.0 - progress) ** 2
        return self.end_factor + (1.0 - self.end_factor) * 0.5 * (1.0 + math.cos(math.pi * progress))
