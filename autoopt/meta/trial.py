"""What one recorded training run is: a flat row, and the identity by which it is recorded once."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any

TRIAL_SCHEMA_VERSION = 2


MODES: dict[str, str] = {
    "plan": "a fixed plan from step 0",
    "select": "through select(), which profiles in the run's own first steps",
    "aside": "through select(), which profiles aside before the run",
    "baseline": "an optimizer or procedure from elsewhere (autoopt.baselines)",
}
"""How a run was trained: the word in `Trial.mode`, and what it means."""


class TrialStatus:
    """How a recorded run ended."""

    COMPLETED = "completed"
    DIVERGED = "diverged"
    FAILED = "failed"


@dataclass(frozen=True)
class Trial:
    """One recorded training run.

    Attributes:
        trial_id: `trial_id(task, plan, seed, mode)`: the same run always has the same id.
        task: Name of the task.
        family: Architecture family of the task.
        source: Data source of the task.
        batch_size: Examples in a training batch.
        budget_steps: Training steps.
        width: Hidden width of the task's model, 0 where it has none.
        num_parameters: Trainable elements of the model.
        plan: Canonical JSON of the `Recipe` that was trained (or of the selection's settings).
        plan_name: Short readable name of the plan.
        round: Recording round, such as `"portfolio"` or `"coordinate-1"`.
        group: Role group that was changed against `paired_with`, `"*"` for a plan-wide change,
            `""` for a run that is no paired change.
        change: The change as JSON, such as `{"lr": 2.0}`; `""` where there is none.
        paired_with: `trial_id` of the run that this one is the controlled change of, or `""`.
        seed: Seed of initialisation and batch order.
        status: One of `TrialStatus`.
        best_val_loss: Lowest validation loss within the budget (nats or the task's unit);
            `inf` for a run that diverged before its first validation.
        final_val_loss: Validation loss at the end of the budget.
        best_step: Step of the lowest validation loss.
        diverged_step: Step at which the loss was no longer finite, or -1.
        val_steps: Steps at which validation was run.
        val_losses: Validation loss at `val_steps`.
        train_losses: Mean training loss between consecutive `val_steps`.
        step_seconds: Median seconds of one training step (forward, backward, optimizer).
        optimizer_seconds: Median seconds of one `optimizer.step()`.
        state_bytes: Bytes of optimizer state at the end.
        error: Message of a failed run.
        versions: JSON of library versions and host facts.
        recorded_at: UTC time in ISO 8601.
        schema_version: Version of this layout.
        mode: One of `MODES`.
        selection_seconds: Seconds that choosing took beyond plain training: collecting statistics and
            deciding, profiling aside, or a range test.
    """

    trial_id: str
    task: str
    family: str
    source: str
    batch_size: int
    budget_steps: int
    width: int
    num_parameters: int
    plan: str
    plan_name: str
    round: str
    group: str
    change: str
    paired_with: str
    seed: int
    status: str
    best_val_loss: float
    final_val_loss: float
    best_step: int
    diverged_step: int
    val_steps: list[int] = field(default_factory=list)
    val_losses: list[float] = field(default_factory=list)
    train_losses: list[float] = field(default_factory=list)
    step_seconds: float = 0.0
    optimizer_seconds: float = 0.0
    state_bytes: int = 0
    error: str = ""
    versions: str = "{}"
    recorded_at: str = ""
    schema_version: int = TRIAL_SCHEMA_VERSION
    mode: str = "plan"
    selection_seconds: float = 0.0

    def to_row(self) -> dict[str, Any]:
        """The trial as a flat dict of JSON-compatible values."""
        return asdict(self)

    @classmethod
    def failed(cls, request: TrialRequest, error: str, recorded_at: str = "") -> Trial:
        """The row of a requested run that raised an error; what only the run could tell is empty."""
        return cls(
            trial_id=request.trial_id,
            task=request.task,
            family="",
            source="",
            batch_size=0,
            budget_steps=0,
            width=0,
            num_parameters=0,
            plan=request.plan,
            plan_name=request.plan_name,
            round=request.round,
            group=request.group,
            change=request.change,
            paired_with=request.paired_with,
            seed=request.seed,
            status=TrialStatus.FAILED,
            best_val_loss=math.inf,
            final_val_loss=math.inf,
            best_step=-1,
            diverged_step=-1,
            error=error,
            recorded_at=recorded_at,
            mode=request.mode,
        )


@dataclass(frozen=True)
class TrialRequest:
    """A run that is to be recorded; its fields are those of the `Trial` it becomes.

    Attributes:
        task: Name of the task.
        plan: Canonical JSON of the `Recipe` to train with.
        plan_name: Short readable name of the plan.
        round: Recording round.
        group: Role group that is changed against `paired_with`, `"*"` or `""`.
        change: The change as JSON, or `""`.
        paired_with: `trial_id` of the run that this one is the controlled change of, or `""`.
        seed: Seed of initialisation and batch order.
        mode: One of `MODES`.
    """

    task: str
    plan: str
    plan_name: str = ""
    round: str = ""
    group: str = ""
    change: str = ""
    paired_with: str = ""
    seed: int = 0
    mode: str = "plan"

    @property
    def trial_id(self) -> str:
        """The id of the trial that this request becomes; it leaves out the round and the names."""
        return trial_id(self.task, self.plan, self.seed, self.mode)


@dataclass(frozen=True)
class FeatureRequest:
    """Meta-features that are to be extracted once, for a task at a seed.

    Attributes:
        task: Name of the task.
        seed: Seed of initialisation and batch order.
    """

    task: str
    seed: int = 0


def trial_id(task: str, plan: str, seed: int, mode: str = "plan") -> str:
    """The deterministic identity of a run, 20 hex digits.

    Args:
        task: Name of the task.
        plan: Canonical JSON of the plan.
        seed: Seed of the run.
        mode: One of `MODES`.
    """
    text = json.dumps([task, plan, seed, mode], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:20]
