"""Meta-features of a recorded task: the same profile that `select` takes of a user's run."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from autoopt.architecture import describe
from autoopt.arguments import default_warmup_steps
from autoopt.features import Features
from autoopt.meta.trial import FeatureRequest
from autoopt.optimizers.auto_optimizer import AutoOptimizer
from autoopt.optimizers.recipe import calibrated_default
from autoopt.selection import OnlineSelection
from autoopt.start_profile import DEFAULT_PASSES, batches_wanted, measure_start
from autoopt.training import build_instance, find_task, train


@dataclass
class _RecordingSelection(OnlineSelection):
    """Keeps the features that a decision would have been made from, and changes nothing."""

    found: Features | None = None

    def decide(self, optimizer: AutoOptimizer) -> Any:
        self.found = self.features(self.measure(optimizer))
        return SimpleNamespace(plan=optimizer.plan)


def extract_features(request: FeatureRequest, task_modules: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """One row a role group: `task`, `seed`, `group`, `family`, `source` and the meta-features.

    What profiling aside measures at the start comes first; then the task is trained with the calibrated
    default for as many steps as `select` would profile.

    Args:
        request: Task and seed.
        task_modules: Import names of user modules that define further tasks.

    Raises:
        TaskError: If the task is unknown or its data is not installed.
    """
    task = find_task(request.task, task_modules)
    instance = build_instance(task, request.seed)
    architecture = describe(instance.model)
    default = calibrated_default().over(task.budget_steps)
    steps = default_warmup_steps(task.budget_steps)
    facts = {"batch_size": float(task.batch_size)}
    if instance.num_examples is not None:
        facts["num_examples"] = float(instance.num_examples)
    selection = _RecordingSelection(
        architecture=architecture,
        warmup_steps=steps,
        default=default,
        schedule=default.schedule(task.budget_steps),
        total_steps=task.budget_steps,
        facts=facts,
        seed=request.seed,
    )
    stream = instance.batches()
    first = [next(stream) for _ in range(min(steps, batches_wanted(DEFAULT_PASSES, architecture)))]
    instance.model.train()
    selection.start_profile = measure_start(instance.model, instance.loss_fn, first, architecture, seed=request.seed)
    selection.watch_first_batch(instance.model)
    named = [(name, param) for name, param in instance.model.named_parameters() if param.requires_grad]
    plan = default.resolve(architecture.layers).with_schedule(selection.schedule)
    optimizer = AutoOptimizer(named, plan=plan, selection=selection)
    train(instance, optimizer, steps, num_validations=0)
    if selection.found is None:
        return []
    place = {"task": task.name, "seed": request.seed, "family": task.family, "source": task.source}
    return [place | row for row in selection.found.to_rows()]
