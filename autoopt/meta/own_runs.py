"""A user's own runs as evidence: read from their journal, told apart by task, turned into trials.

Two own runs are comparable where they carry the same task label, the same role groups of the same
sizes, the same number of steps, the same kind of loss and, where both are known, the same batch size.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from autoopt.errors import MetaDatasetError
from autoopt.meta.journal import journal_paths, read_journal
from autoopt.meta.trial import Trial, TrialStatus, trial_id

if TYPE_CHECKING:
    from autoopt.meta.dataset import MetaDataset

OWN_RUNS_SCHEMA_VERSION = 1
JOURNAL_NAME = "runs"
OWN = "own"
"""Family and source of own runs, and their task's name where no label was given."""

SMOOTHED_SHARE = 0.1
"""Share of a run whose mean training loss stands in for a validation loss that was not reported."""


def runs_folder(folder: str | os.PathLike[str]) -> Path:
    """Where a folder keeps own runs, apart from trials that were recorded into the same folder."""
    return Path(folder) / "own_runs"


@dataclass(frozen=True, eq=False)
class OwnRun:
    """One remembered run.

    Attributes:
        run: Its identity.
        task: The label that the user gave, `""` without one.
        total_steps: Horizon as it was told, or None.
        step: Optimizer steps taken.
        ended: Whether its end was written, by `finish()` or as the process ended.
        groups: Role group -> number of tensors and of elements.
        batch_size: Examples in a batch, NaN where it was not seen.
        recipe: Canonical JSON of the recipe it trained with, `""` where no recipe says it or the guard changed it.
        features: One row of meta-features a role group.
        mode: `"online"`, `"aside"`, or `"plan"` where nothing was decided.
        losses: `(step, mean training loss since the point before)`.
        validations: `(step, validation loss)`.
        step_seconds: Median seconds of a step, with all that the loop does between two.
        selection_seconds: Seconds of the profile and the decision.
        state_bytes: Bytes of optimizer state at the last point.
        recorded_at: UTC time of its start.
        versions: Library versions.
        names: Class name of the model and names of its parameters, where the user asked to keep them.
    """

    run: str
    task: str
    total_steps: int | None
    step: int
    ended: bool
    groups: dict[str, tuple[int, int]]
    batch_size: float
    recipe: str
    features: list[dict[str, Any]]
    mode: str
    losses: list[tuple[int, float]]
    validations: list[tuple[int, float]]
    step_seconds: float
    selection_seconds: float
    state_bytes: int
    recorded_at: str
    versions: dict[str, str] = field(default_factory=dict)
    names: dict[str, Any] = field(default_factory=dict)

    @property
    def num_parameters(self) -> int:
        """Trainable elements of the model."""
        return sum(elements for _, elements in self.groups.values())

    @property
    def measure(self) -> str:
        """`"validation"`, or `"training"` where no validation loss was reported."""
        return "validation" if self.validations else "training"

    @property
    def diverged(self) -> bool:
        """Whether its last losses were no longer finite."""
        return any(not math.isfinite(loss) for _, loss in (*self.validations[-1:], *self.losses[-1:]))

    @property
    def status(self) -> str:
        """`"finished"`, `"diverged"` or `"interrupted"`: derived, since a killed process says nothing."""
        if self.diverged:
            return "diverged"
        over = self.ended if self.total_steps is None else self.step >= self.total_steps
        return "finished" if over else "interrupted"

    @property
    def outcome(self) -> float:
        """The best validation loss, else the mean training loss of the run's last tenth; infinite if it diverged.

        NaN where it was told no loss at all.
        """
        if self.diverged:
            return math.inf
        if not self.losses and not self.validations:
            return math.nan
        if self.validations:
            return min(loss for _, loss in self.validations if not math.isnan(loss))
        late = [loss for step, loss in self.losses if step > (1 - SMOOTHED_SHARE) * self.step]
        return sum(late) / len(late)

    @property
    def is_evidence(self) -> bool:
        """Whether it can be compared with others: over, with an outcome, of a recipe."""
        return self.status != "interrupted" and not math.isnan(self.outcome) and bool(self.recipe)


def read_own_runs(folder: str | os.PathLike[str]) -> list[OwnRun]:
    """The remembered runs of a folder in the order of their start; empty where there are none.

    Raises:
        MetaDatasetError: If a journal is damaged or of a newer version.
    """
    by_run: dict[str, list[Mapping[str, Any]]] = {}
    for path in journal_paths(runs_folder(folder)):
        for record in read_journal(path):
            if record.get("schema_version", OWN_RUNS_SCHEMA_VERSION) > OWN_RUNS_SCHEMA_VERSION:
                raise MetaDatasetError(f"{path} was written by a newer autoopt; upgrade to read it")
            try:
                by_run.setdefault(record["run"], []).append(record)
            except KeyError as error:
                raise MetaDatasetError(
                    f"{path} holds a record that is of no run; is it a journal of own runs?"
                ) from error
    try:
        runs = [_assembled(records) for records in by_run.values()]
    except (KeyError, TypeError, ValueError) as error:
        raise MetaDatasetError(f"{folder} holds a remembered run that cannot be read: {error!r}") from error
    return sorted(runs, key=lambda run: run.recorded_at)


def _assembled(records: Sequence[Mapping[str, Any]]) -> OwnRun:
    start = next(record for record in records if record["kind"] == "start")
    decision: Mapping[str, Any] = {}
    blocks: list[Mapping[str, Any]] = []
    validations: list[tuple[int, float]] = []
    ended = False
    replanned = math.inf
    for record in records:
        kind = record["kind"]
        if kind == "decision":
            decision = record
        elif kind == "losses":
            blocks.append(record)
        elif kind == "validation":
            validations.append((int(record["step"]), float(record["loss"])))
        elif kind == "resume":
            # What came after the checkpoint is trained again.
            blocks = [block for block in blocks if block["step"] <= record["step"]]
            validations = [point for point in validations if point[0] <= record["step"]]
            ended = False
            replanned = replanned if replanned <= record["step"] else math.inf
        elif kind == "replanned":
            replanned = min(replanned, record["step"])
        elif kind == "end":
            ended = True
    features = list(decision.get("features", ()))
    return OwnRun(
        run=start["run"],
        task=start["task"],
        total_steps=start["total_steps"],
        step=max((int(block["step"]) for block in blocks), default=0),
        ended=ended,
        groups={group: (int(count), int(size)) for group, (count, size) in start["groups"].items()},
        batch_size=_batch_size(features),
        recipe=decision.get("recipe", "") if math.isinf(replanned) else "",
        features=features,
        mode=decision.get("mode", "plan"),
        losses=[(int(block["step"]), float(block["loss"])) for block in blocks if block["num"]],
        validations=validations,
        step_seconds=median([float(block["step_seconds"]) for block in blocks]) if blocks else 0.0,
        selection_seconds=float(decision.get("selection_seconds", 0.0)),
        state_bytes=int(blocks[-1]["state_bytes"]) if blocks else 0,
        recorded_at=start["recorded_at"],
        versions=dict(start["versions"]),
        names=dict(start.get("names", {})),
    )


def _batch_size(features: Sequence[Mapping[str, Any]]) -> float:
    logs = [float(row.get("log_batch_size", math.nan)) for row in features]
    return next((float(round(math.exp(value))) for value in logs if not math.isnan(value)), math.nan)


def comparable_runs(runs: Iterable[OwnRun], start: Mapping[str, Any], batch_size: float) -> list[OwnRun]:
    """The runs that a run which is about to begin can be compared with.

    Args:
        runs: Remembered runs.
        start: What the beginning run wrote as its start.
        batch_size: Examples in its batches, NaN where unknown.
    """
    groups = {group: (int(count), int(size)) for group, (count, size) in start["groups"].items()}
    return [
        run
        for run in runs
        if run.task == start["task"]
        and run.groups == groups
        and run.total_steps == start["total_steps"]
        and not (run.batch_size != batch_size and math.isfinite(run.batch_size) and math.isfinite(batch_size))
        and run.run != start["run"]
    ]


def tasks_of(runs: Iterable[OwnRun]) -> list[list[OwnRun]]:
    """Runs that are over, those of one task together, in the order of the first of each.

    A run whose batch size was not seen joins the task it would otherwise be of, if there is only one.
    """
    found: dict[tuple[Any, ...], dict[float, list[OwnRun]]] = {}
    for run in runs:
        if run.is_evidence:
            key = (run.task, tuple(sorted(run.groups.items())), run.total_steps or run.step, run.measure)
            size = run.batch_size if math.isfinite(run.batch_size) else 0.0
            found.setdefault(key, {}).setdefault(size, []).append(run)
    tasks = []
    for by_size in found.values():
        unknown = by_size.pop(0.0, [])
        if len(by_size) == 1:
            unknown = next(iter(by_size.values())).extend(unknown) or []
        tasks += [*by_size.values(), *([unknown] if unknown else [])]
    return tasks


def own_dataset(runs: Iterable[OwnRun]) -> MetaDataset:
    """The own runs as trials and meta-features, ready to be learned from.

    One trial a task and recipe: where a recipe was run several times its outcome is the median. Tasks are
    numbered, `"own 1"`, under their label where there is one; family and source are `"own"`. The mode is
    `"plan"` although the first steps of a run that decided online were trained with the default.

    Args:
        runs: Remembered runs; those that were interrupted are left out.
    """
    import pandas as pd

    from autoopt.meta.dataset import MetaDataset
    from autoopt.meta.parquet import FEATURE_KEYS, TRIAL_COLUMNS

    trials, features = [], []
    for number, task_runs in enumerate(tasks_of(runs), 1):
        task = f"{task_runs[0].task or OWN} {number}"
        by_recipe: dict[str, list[OwnRun]] = {}
        for run in task_runs:
            by_recipe.setdefault(run.recipe, []).append(run)
        trials += [_trial(task, recipe, same).to_row() for recipe, same in by_recipe.items()]
        for seed, run in enumerate(run for run in task_runs if run.features):
            place = {"task": task, "seed": seed, "family": OWN, "source": OWN}
            features += [place | row for row in run.features]
    columns = list(dict.fromkeys([*FEATURE_KEYS, *(name for row in features for name in row)]))
    return MetaDataset(
        pd.DataFrame(trials, columns=pd.Index([name for name, _ in TRIAL_COLUMNS])),
        pd.DataFrame(features, columns=pd.Index(columns)),
    )


def _trial(task: str, recipe: str, runs: Sequence[OwnRun]) -> Trial:
    outcome = median(run.outcome for run in runs)
    shown = min(runs, key=lambda run: abs(run.outcome - outcome) if math.isfinite(run.outcome) else math.inf)
    points = shown.validations or shown.losses
    finite = [point for point in points if math.isfinite(point[1])]
    diverged = not math.isfinite(outcome)
    return Trial(
        trial_id=trial_id(task, recipe, 0),
        task=task,
        family=OWN,
        source=OWN,
        batch_size=int(shown.batch_size) if math.isfinite(shown.batch_size) else 0,
        budget_steps=shown.step,
        width=0,
        num_parameters=shown.num_parameters,
        plan=recipe,
        plan_name=f"own run ({shown.measure} loss)",
        round=f"own-{shown.measure}",
        group="",
        change="",
        paired_with="",
        seed=0,
        status=TrialStatus.DIVERGED if diverged else TrialStatus.COMPLETED,
        best_val_loss=outcome,
        final_val_loss=points[-1][1],
        best_step=min(finite, key=lambda point: point[1])[0] if finite else -1,
        diverged_step=next((step for step, loss in points if not math.isfinite(loss)), -1) if diverged else -1,
        val_steps=[step for step, _ in points],
        val_losses=[loss for _, loss in points],
        train_losses=[loss for _, loss in shown.losses],
        step_seconds=median(run.step_seconds for run in runs),
        state_bytes=shown.state_bytes,
        recorded_at=shown.recorded_at,
        selection_seconds=shown.selection_seconds,
    )
