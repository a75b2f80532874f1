"""The only training loop: it trains one task with one optimizer and measures what a trial records."""

from __future__ import annotations

import contextlib
import difflib
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from autoopt import baselines
from autoopt.api import select
from autoopt.architecture import describe
from autoopt.arguments import default_warmup_steps
from autoopt.baselines import Prepared
from autoopt.errors import PlanError, TaskError
from autoopt.fixed_choice import FixedChoice
from autoopt.meta import artifact
from autoopt.meta.trial import MODES, Trial, TrialRequest, TrialStatus, trial_id
from autoopt.optimizers.auto_optimizer import AutoOptimizer
from autoopt.optimizers.recipe import Recipe
from autoopt.tasks import DOMAINS, load_tasks
from autoopt.tasks.base import Task, TaskInstance

NUM_VALIDATIONS = 12


@dataclass
class Curve:
    """What one training run showed.

    Attributes:
        status: One of `TrialStatus`.
        val_steps: Steps at which validation was run.
        val_losses: Mean validation loss there.
        train_losses: Mean training loss since the validation before.
        diverged_step: Step at which the training loss was no longer finite, or -1.
        step_seconds: Median seconds of a training step, validation left out.
        optimizer_seconds: Median seconds of `optimizer.step()`.
        total_seconds: Seconds of the whole run, validation left out.
        step_times: Seconds of every training step.
    """

    status: str = TrialStatus.COMPLETED
    val_steps: list[int] = field(default_factory=list)
    val_losses: list[float] = field(default_factory=list)
    train_losses: list[float] = field(default_factory=list)
    diverged_step: int = -1
    step_seconds: float = 0.0
    optimizer_seconds: float = 0.0
    total_seconds: float = 0.0
    step_times: list[float] = field(default_factory=list)

    @property
    def best_val_loss(self) -> float:
        """The lowest finite validation loss of the run, `inf` for one that diverged."""
        finite = [loss for loss in self.val_losses if math.isfinite(loss)]
        return min(finite) if finite and self.status == TrialStatus.COMPLETED else math.inf

    @property
    def best_step(self) -> int:
        """The step of the lowest validation loss, -1 where there is none."""
        best = self.best_val_loss
        return self.val_steps[self.val_losses.index(best)] if math.isfinite(best) else -1


def validate(instance: TaskInstance, model: nn.Module) -> float:
    """The mean loss over the task's fixed validation batches, in eval mode and without gradients."""
    loss_fn = instance.validation_loss_fn or instance.loss_fn
    weights = instance.batch_weights or (1.0,) * len(instance.validation)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            total = sum(
                weight * float(loss_fn(model, batch))
                for weight, batch in zip(weights, instance.validation, strict=True)
            )
    finally:
        model.train(was_training)
    return total / sum(weights)


def validation_steps(budget_steps: int, count: int = NUM_VALIDATIONS) -> list[int]:
    """Steps after which validation is run: evenly spaced, the last one at the end.

    >>> validation_steps(600, 4)
    [150, 300, 450, 600]
    """
    return sorted({max(1, round(budget_steps * (k + 1) / count)) for k in range(count)})


def train(
    instance: TaskInstance,
    optimizer: Optimizer,
    budget_steps: int,
    *,
    scheduler: Any = None,
    num_validations: int = NUM_VALIDATIONS,
    on_validation: Any = None,
    validating: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
    stop_at_nonfinite: bool = True,
) -> Curve:
    """Train a task for its budget and return the curve; a diverged run is data, not an error.

    Args:
        instance: The task, made by `task.build(seed)`.
        optimizer: Any torch optimizer over the model's parameters.
        budget_steps: Training steps.
        scheduler: A torch scheduler stepped after every training step, or None.
        num_validations: Points at which validation is run.
        on_validation: Called with `(step, val_loss)` after each validation, or None.
        validating: Makes the context in which the model is validated.
        stop_at_nonfinite: Whether a training loss that is not finite ends the run as diverged; False where
            the optimizer is to deal with it.
    """
    curve = Curve()
    model = instance.model
    points = set(validation_steps(budget_steps, num_validations))
    step_times = curve.step_times
    optimizer_times: list[float] = []
    window: list[float] = []
    observe = getattr(optimizer, "observe", None)
    model.train()
    for step, batch in zip(range(1, budget_steps + 1), instance.batches(), strict=False):
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss = instance.loss_fn(model, batch)
        value = float(loss.detach())
        if stop_at_nonfinite and not math.isfinite(value):
            curve.status, curve.diverged_step = TrialStatus.DIVERGED, step
            break
        loss.backward()
        before = time.perf_counter()
        if observe is not None:
            observe(value)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        end = time.perf_counter()
        optimizer_times.append(end - before)
        step_times.append(end - start)
        window.append(value)
        if step in points:
            with validating():
                val_loss = validate(instance, model)
            curve.val_steps.append(step)
            curve.val_losses.append(val_loss)
            curve.train_losses.append(sum(window) / len(window))
            window = []
            if on_validation is not None:
                on_validation(step, val_loss)
            if not math.isfinite(val_loss):
                curve.status, curve.diverged_step = TrialStatus.DIVERGED, step
                break
    if step_times:
        curve.step_seconds = statistics.median(step_times)
        curve.optimizer_seconds = statistics.median(optimizer_times)
        curve.total_seconds = sum(step_times)
    return curve


def state_bytes(optimizer: Optimizer) -> int:
    """Bytes of all tensors in an optimizer's state."""
    return sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )


def build_instance(task: Task, seed: int) -> TaskInstance:
    """The task made by a seed, with torch's global generator left seeded for the training run."""
    torch.manual_seed(seed)
    instance = task.build(seed)
    torch.manual_seed(seed + 1)
    return instance


@cache
def _tasks_by_name(task_modules: tuple[str, ...]) -> dict[str, Task]:
    return {task.name: task for task in load_tasks(dict.fromkeys((*DOMAINS, *task_modules)))}


def find_task(name: str, task_modules: tuple[str, ...] = ()) -> Task:
    """The task of this name in the suite or in the named user modules.

    Raises:
        TaskError: If there is none; close names are suggested.
    """
    known = _tasks_by_name(tuple(task_modules))
    if name not in known:
        close = ", ".join(difflib.get_close_matches(name, known, n=3)) or "see build_meta_dataset.py --list"
        raise TaskError(f"no task is named {name!r}; close names: {close}")
    return known[name]


def run_trial(request: TrialRequest, task_modules: tuple[str, ...] = ()) -> Trial:
    """The recorded trial of one request: builds the task, trains it with the recipe, and measures.

    Args:
        request: Task, plan (canonical JSON), mode and seed.
        task_modules: Import names of user modules that define further tasks.

    Raises:
        TaskError: If the task is unknown or its data is not installed.
        PlanError: If the request's mode is unknown, or its plan is not what the mode takes.
    """
    task = find_task(request.task, task_modules)
    instance = build_instance(task, request.seed)
    prepared = prepare_run(request, task, instance)
    spent = prepared.spent_steps
    curve = train(
        instance,
        prepared.optimizer,
        task.budget_steps - spent,
        scheduler=prepared.scheduler,
        validating=prepared.validating,
    )
    selection_seconds = prepared.selection_seconds
    if request.mode == "select":
        selection_seconds = _seconds_of_warmup(curve, default_warmup_steps(task.budget_steps))
    return Trial(
        trial_id=trial_id(request.task, request.plan, request.seed, request.mode),
        task=task.name,
        family=task.family,
        source=task.source,
        batch_size=task.batch_size,
        budget_steps=task.budget_steps,
        width=task.width,
        num_parameters=sum(p.numel() for p in instance.model.parameters() if p.requires_grad),
        plan=request.plan,
        plan_name=request.plan_name,
        round=request.round,
        group=request.group,
        change=request.change,
        paired_with=request.paired_with,
        seed=request.seed,
        status=curve.status,
        best_val_loss=curve.best_val_loss,
        final_val_loss=curve.val_losses[-1] if curve.status == TrialStatus.COMPLETED else math.inf,
        best_step=curve.best_step + spent if curve.best_step >= 0 else -1,
        diverged_step=curve.diverged_step + spent if curve.diverged_step >= 0 else -1,
        val_steps=[step + spent for step in curve.val_steps],
        val_losses=curve.val_losses,
        train_losses=curve.train_losses,
        step_seconds=curve.step_seconds,
        optimizer_seconds=curve.optimizer_seconds,
        state_bytes=state_bytes(prepared.optimizer),
        versions=_versions(),
        recorded_at=datetime.now(UTC).isoformat(timespec="seconds"),
        mode=request.mode,
        selection_seconds=selection_seconds,
    )


def prepare_run(request: TrialRequest, task: Task, instance: TaskInstance) -> Prepared:
    """What a trial trains with: a recipe resolved on the task's model, `select`, or a baseline.

    Raises:
        PlanError: If the request's mode is unknown, or its plan is not what the mode takes.
    """
    if request.mode == "plan":
        layers = describe(instance.model).layers
        plan = Recipe.from_json(request.plan).resolve(layers, task.budget_steps)
        return _prepared(AutoOptimizer.from_plan(instance.model, plan))
    if request.mode == "baseline":
        return baselines.prepare(request.plan, instance, task.budget_steps)
    if request.mode == "select":
        return _prepared(select(instance.model, total_steps=task.budget_steps, selector=_selector(request.plan)))
    if request.mode != "aside":
        raise PlanError(f"a run of mode {request.mode!r} is unknown; the modes are {', '.join(MODES)}")
    # The steps of the profile come out of the budget, as they would out of a user's.
    spent = default_warmup_steps(task.budget_steps)
    begun = time.perf_counter()
    optimizer = select(
        instance.model,
        total_steps=task.budget_steps - spent,
        warmup_steps=spent,
        batches=instance.batches(),
        loss_fn=instance.loss_fn,
        selector=_selector(request.plan),
    )
    seconds = time.perf_counter() - begun
    return _prepared(optimizer, spent_steps=spent, selection_seconds=seconds)


def _prepared(optimizer: AutoOptimizer, **values: Any) -> Prepared:
    """A run that is validated at the average of its weights, where its plan keeps one."""
    return Prepared(optimizer, validating=optimizer.averaged, **values)


def _selector(plan: str) -> artifact.Predictor:
    """The selector of a run through `select`: a choice made beforehand, or the shipped artifact."""
    try:
        value = json.loads(plan)
        if "artifact" not in value:
            texts = [Recipe.from_json(json.dumps(value[name])).to_json() for name in ("default", "recipe")]
            return FixedChoice.between(*texts)
        wanted = value["artifact"]
    except (ValueError, KeyError, TypeError) as error:
        raise PlanError(f"{plan!r} is no selection: it needs 'default' and 'recipe', or 'artifact'") from error
    shipped = artifact.load()
    if shipped.sha256 != wanted:
        raise PlanError(
            f"this run asks for the selector {wanted}, but {shipped.sha256} is the one that ships; ask for it anew"
        )
    return shipped


def _seconds_of_warmup(curve: Curve, warmup_steps: int) -> float:
    """Seconds by which the steps that profile and decide exceed as many later ones, from their medians."""
    before, after = curve.step_times[: warmup_steps - 1], curve.step_times[warmup_steps:]
    if not before or not after:
        return 0.0
    later = statistics.median(after)
    profile = len(before) * max(0.0, statistics.median(before) - later)
    return profile + max(0.0, curve.step_times[warmup_steps - 1] - later)


@cache
def _versions() -> str:
    names = ("torch", "numpy", "pytorch-optimizer")
    found = {name: metadata.version(name) for name in names}
    return json.dumps({**found, "python": platform.python_version(), "machine": platform.machine()})
