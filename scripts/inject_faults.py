"""Injects faults into training runs, without and with the guard, and counts which runs recover.

    python scripts/inject_faults.py [--only TASK ...] [--count 10] [--healthy 10] [--faults rate poison ...]
                                    [--seeds 0] [--jobs 1] [--budget-minutes 30] [--output meta_data/guard.json]

The faults, all after the decision of `select`:

- rate: one role group's rate is 30 times the calibrated default's, from the decision on;
- poison: the inputs of one batch are multiplied by 10,000 (the loss, where inputs are no numbers);
- labels: in a twentieth of the run, labels belong to other examples;
- overflow: in 5 steps, gradients are scaled and go through float16 without a scaler: what is too large is Inf;
- dying: the weights of one layer become 0 and its biases -10, which no ReLU lets pass.

A run without the guard has diverged if its final validation loss is not finite, or has given back more
than half of what the calibrated default gains over the start. It is recovered if with the guard the final
loss is within 5 % of the calibrated default's, or below it. A false alarm is any event of the guard in a run of the
shipped selector without a fault, of which `--healthy` tasks have one. A task counts where the default gains at all.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, delayed
from torch import Tensor, nn

from autoopt.api import select
from autoopt.architecture import describe
from autoopt.arguments import default_warmup_steps
from autoopt.fixed_choice import FixedChoice
from autoopt.optimizers.recipe import calibrated_default
from autoopt.tasks import Task, TaskInstance, all_tasks, get_task
from autoopt.training import build_instance, train, validate

FAULTS = ("rate", "poison", "labels", "overflow", "dying")
RATE_FACTOR, POISON_FACTOR, OVERFLOW_STEPS = 30.0, 1e4, 5
GIVEN_BACK, CLOSE = 0.5, 0.05


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        task: Name of the task.
        seed: Seed.
        fault: One of `FAULTS`, `"default"` or `"healthy"`.
        target: What the fault was put into, such as a role group or a layer.
        guard: Whether the guard was on.
        start: Validation loss before training.
        final: Validation loss at the end, None where it is not finite.
        events: What the guard did.
        seconds: Seconds of the run.
    """

    task: str
    seed: int
    fault: str
    target: str
    guard: bool
    start: float
    final: float | None
    events: tuple[str, ...]
    seconds: float


def run(task: Task, seed: int, fault: str, guard: bool) -> Run:
    """Train a task with a fault."""
    begun = time.perf_counter()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    instance = build_instance(task, seed)
    chance = random.Random(f"{task.name} {seed} {fault}")
    selector: Any = None if fault == "healthy" else "default"
    target = ""
    if fault == "rate":
        target = chance.choice(sorted({layer.group for layer in describe(instance.model).layers}))
        default = calibrated_default()
        faulty = default.with_change(target, {"lr_factor": RATE_FACTOR})
        selector = FixedChoice.between(default.to_json(), faulty.to_json())
    start = validate(instance, instance.model)
    optimizer = select(instance.model, total_steps=task.budget_steps, selector=selector, guard=guard)
    first = max(default_warmup_steps(task.budget_steps) + 5, round(0.4 * task.budget_steps))
    if fault in ("poison", "labels"):
        last = first + (1 if fault == "poison" else max(8, task.budget_steps // 20))
        instance = _spoiled(instance, poisoned if fault == "poison" else mislabelled, first, last)
    if fault in ("overflow", "dying"):
        target, hook = (overflow if fault == "overflow" else dying)(instance.model, first, chance)
        optimizer.register_step_pre_hook(hook)
    curve = train(
        instance,
        optimizer,
        task.budget_steps,
        num_validations=1,
        validating=optimizer.averaged,
        stop_at_nonfinite=not guard,
    )
    final = curve.val_losses[-1] if curve.val_losses else math.nan
    events = tuple(f"step {event.step}: {event.message}" for event in optimizer.guard_events)
    seconds = time.perf_counter() - begun
    return Run(task.name, seed, fault, target, guard, start, final if math.isfinite(final) else None, events, seconds)


# ---- faults -------------------------------------------------------------------------------------


def _spoiled(instance: TaskInstance, spoil: Callable[[Any], tuple[Any, float]], first: int, last: int) -> TaskInstance:
    """The task with batches `first` to `last` (exclusive) spoiled: other values, and a factor on the loss."""
    factors = {"now": 1.0}

    def batches() -> Iterator[Any]:
        for step, batch in enumerate(instance.batches()):
            factors["now"] = 1.0
            if first <= step < last:
                batch, factors["now"] = spoil(batch)
            yield batch

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        return instance.loss_fn(model, batch) * factors["now"]

    own = instance.validation_loss_fn or instance.loss_fn
    return replace(instance, batches=batches, loss_fn=loss_fn, validation_loss_fn=own)


def poisoned(batch: Any) -> tuple[Any, float]:
    """A batch whose first tensor of real numbers is multiplied, or that counts as much more."""
    parts = list(batch) if isinstance(batch, tuple | list) else [batch]
    if isinstance(parts[0], Tensor) and parts[0].is_floating_point():
        parts[0] = parts[0] * POISON_FACTOR
        return (tuple(parts) if isinstance(batch, tuple | list) else parts[0]), 1.0
    return batch, POISON_FACTOR


def mislabelled(batch: Any) -> tuple[Any, float]:
    """A batch whose last tensor is shuffled along its first dimension, or all over where it is the only one."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(batch, Tensor):
        return batch.flatten()[torch.randperm(batch.numel(), generator=generator)].view_as(batch), 1.0
    if isinstance(batch, dict):
        *_, name = batch
        return {**batch, name: _shuffled(batch[name], generator)}, 1.0
    *inputs, labels = batch
    return (*inputs, _shuffled(labels, generator)), 1.0


def _shuffled(labels: Any, generator: torch.Generator) -> Any:
    return labels[torch.randperm(len(labels), generator=generator)] if isinstance(labels, Tensor) else labels


def overflow(model: nn.Module, first: int, chance: random.Random) -> tuple[str, Callable[..., None]]:
    """A hook that passes gradients through float16 at a scale at which the largest are Inf."""
    count = {"step": 0}

    def hook(optimizer: Any, args: Any, kwargs: Any) -> None:
        if first <= count["step"] < first + OVERFLOW_STEPS:
            grads = [param.grad for param in model.parameters() if param.grad is not None]
            values = [grad._values() if grad.is_sparse else grad for grad in grads]
            top = max((float(value.abs().max()) for value in values if value.numel()), default=1.0)
            scale = 2.0 * torch.finfo(torch.float16).max / max(top, 1e-30)
            for value in values:
                value.copy_((value * scale).half().to(value.dtype) / scale)
        count["step"] += 1

    return "", hook


def dying(model: nn.Module, first: int, chance: random.Random) -> tuple[str, Callable[..., None]]:
    """A hook that kills one layer with a weight of at least two dimensions."""
    modules = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(getattr(module, "weight", None), Tensor) and module.weight.dim() >= 2
    ]
    name, module = chance.choice(modules) if modules else ("", None)
    weight = next(model.parameters()) if module is None else module.weight
    bias = getattr(module, "bias", None)
    count = {"step": 0}

    @torch.no_grad()
    def hook(optimizer: Any, args: Any, kwargs: Any) -> None:
        if count["step"] == first:
            weight.zero_()
            if isinstance(bias, Tensor):
                bias.fill_(-10.0)
        count["step"] += 1

    return name, hook


# ---- what came of it ----------------------------------------------------------------------------


def diverged(run: Run, default: Run) -> bool:
    """Whether a run has given back more than half of what the default gains, or is not finite."""
    assert default.final is not None
    return run.final is None or run.final > default.final + GIVEN_BACK * (run.start - default.final)


def recovered(run: Run, default: Run) -> bool:
    """Whether a run ends within 5 % of the default's loss."""
    assert default.final is not None
    return run.final is not None and run.final <= default.final + CLOSE * abs(default.final)


def table(runs: list[Run]) -> str:
    """Markdown: a row for each fault, and the share of false alarms."""
    by_key = {(run.task, run.seed, run.fault, run.guard): run for run in runs}
    defaults = {
        (run.task, run.seed): run
        for run in runs
        if run.fault == "default" and run.final is not None and run.final < run.start
    }
    lines = [
        "| fault | runs | diverged without the guard | recovered with it | close without it | close with it |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    total = [0, 0]
    for fault in FAULTS:
        pairs = []
        for (task, seed), default in defaults.items():
            off, on = (by_key.get((task, seed, fault, guard)) for guard in (False, True))
            if off is not None and on is not None:
                pairs.append((off, on, default))
        lost = [(on, default) for off, on, default in pairs if diverged(off, default)]
        back = sum(recovered(on, default) for on, default in lost)
        close = [sum(recovered(pair[side], pair[2]) for pair in pairs) for side in (0, 1)]
        total = [total[0] + len(lost), total[1] + back]
        share = f"{back} ({back / len(lost):.0%})" if lost else "-"
        lines.append(f"| {fault} | {len(pairs)} | {len(lost)} | {share} | {close[0]} | {close[1]} |")
    share = f"{total[1]} ({total[1] / total[0]:.0%})" if total[0] else "-"
    lines.append(f"| all | | {total[0]} | {share} | | |")
    healthy = [run for run in runs if run.fault == "healthy"]
    alarms = [run for run in healthy if run.events]
    lines += ["", f"False alarms: {len(alarms)} of {len(healthy)} healthy runs."]
    lines += [f"- {run.task}, seed {run.seed}: {run.events[0]}" for run in alarms]
    return "\n".join(lines)


def chosen(only: list[str] | None, count: int) -> list[Task]:
    """The named tasks, or some that differ: the smallest of as many families as possible."""
    if only:
        return [get_task(name) for name in only]
    families: dict[str, list[Task]] = {}
    for task in (task for task in all_tasks() if not task.evaluation_only):
        families.setdefault(task.family, []).append(task)
    cheapest = [
        sorted(tasks, key=lambda t: t.budget_steps * t.batch_size * max(t.width, 1)) for tasks in families.values()
    ]
    rounds = [tasks[turn] for turn in range(max(map(len, cheapest))) for tasks in cheapest if turn < len(tasks)]
    return rounds[:count]


def _work(task: Task) -> int:
    return task.budget_steps * task.batch_size * max(task.width, 1)


def main() -> None:
    """Run, print the table, and write the runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="TASK")
    parser.add_argument("--count", type=int, default=10, help="tasks where --only names none")
    parser.add_argument("--healthy", type=int, help="tasks with a run without a fault (default: all of them)")
    parser.add_argument("--faults", nargs="+", default=list(FAULTS), choices=FAULTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--budget-minutes", type=float, default=math.inf)
    parser.add_argument("--output", type=Path, help="JSON file for the runs; those that it holds are not run again")
    arguments = parser.parse_args()
    deadline = time.monotonic() + 60.0 * arguments.budget_minutes
    runs = [Run(**value) for value in json.loads(arguments.output.read_text())] if _exists(arguments.output) else []
    done = {(run.task, run.seed, run.fault, run.guard) for run in runs}
    kinds = [("default", False), *((fault, guard) for fault in arguments.faults for guard in (False, True))]
    tasks = chosen(arguments.only, arguments.count)
    healthy = tasks if arguments.healthy is None else chosen(arguments.only, arguments.healthy)
    wanted = [(task, seed, *kind) for task in tasks for seed in arguments.seeds for kind in kinds]
    wanted += [(task, seed, "healthy", True) for task in healthy for seed in arguments.seeds]
    wanted = [key for key in wanted if (key[0].name, *key[1:]) not in done]
    for position in range(0, len(wanted), 12 * arguments.jobs):
        if time.monotonic() > deadline:
            break
        part = wanted[position : position + 12 * arguments.jobs]
        runs += Parallel(n_jobs=arguments.jobs)(delayed(run)(*key) for key in part)
        if arguments.output is not None:
            arguments.output.write_text(json.dumps([asdict(each) for each in runs], indent=0) + "\n")
        print(f"{len(runs)} of {len(wanted) + len(done)} runs", flush=True)
    print(table(runs))


def _exists(path: Path | None) -> bool:
    return path is not None and path.exists()


if __name__ == "__main__":
    main()
