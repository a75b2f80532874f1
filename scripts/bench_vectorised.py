"""Prints what training several plans of one task together would gain, and how far results drift apart.

    python scripts/bench_vectorised.py [--plans 12] [--steps 60] [--task NAME ...]

The parameters of all plans are stacked, `torch.func.vmap` evaluates the task's loss for every plan at
once, and one `AutoOptimizer` steps all copies. Beside it the first plan is trained as the recorder
trains it. Shown are milliseconds a plan and step, their ratio (above 1: together is faster), and the
largest difference of the training losses. The recorder does not do this: the gain is below 1.5.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from autoopt.architecture import describe
from autoopt.optimizers.auto_optimizer import AutoOptimizer
from autoopt.optimizers.plan import OptimizerPlan
from autoopt.optimizers.recipe import Recipe, calibrated_default
from autoopt.rounds import LATER_CHANGES, applicable
from autoopt.tasks.base import Task, TaskInstance
from autoopt.training import build_instance, find_task

TASKS = (
    "mnist-5k-mlp-w64-b64-s400",
    "hotel-rates-ft-transformer-w16-b32-s250",
    "digits-convnext-w32-b32-s300",
    "digits-resnet-w16-b32-s300",
)


class TaskLoss(nn.Module):
    """A task's loss as a module, so that `functional_call` can replace the model's parameters."""

    def __init__(self, instance: TaskInstance) -> None:
        """Hold the instance's model."""
        super().__init__()
        self.model = instance.model
        self.loss_fn = instance.loss_fn

    def forward(self, batch) -> Tensor:
        """The mean loss of a batch."""
        return self.loss_fn(self.model, batch)


def alone(task: Task, recipe: Recipe, num_steps: int) -> tuple[list[float], float]:
    """Training losses of one plan, and seconds a step."""
    instance = build_instance(task, 0)
    plan = recipe.resolve(describe(instance.model).layers, task.budget_steps)
    optimizer = AutoOptimizer.from_plan(instance.model, plan)
    losses, start = [], time.perf_counter()
    for _, batch in zip(range(num_steps), instance.batches(), strict=False):
        optimizer.zero_grad()
        loss = instance.loss_fn(instance.model, batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, (time.perf_counter() - start) / num_steps


def together(task: Task, recipes: Sequence[Recipe], num_steps: int) -> tuple[Tensor, float]:
    """Training losses `(num_steps, num_plans)`, and seconds a plan and step."""
    instance = build_instance(task, 0)
    module, count = TaskLoss(instance), len(recipes)
    layers = describe(instance.model).layers
    plans = [recipe.resolve(layers, task.budget_steps) for recipe in recipes]
    stacked = {
        name: torch.stack([param.detach()] * count).requires_grad_() for name, param in module.named_parameters()
    }
    buffers = {name: torch.stack([buffer] * count) for name, buffer in module.named_buffers()}
    copies = {f"{k}.{name}": nn.Parameter(stacked[name].data[k]) for name in stacked for k in range(count)}
    configs = {f"{k}.{name}": plans[k].layers[name.removeprefix("model.")] for name in stacked for k in range(count)}
    optimizer = AutoOptimizer(copies.items(), plan=OptimizerPlan(configs, plans[0].schedule))
    loss_of = vmap(
        lambda params, buffers, batch: functional_call(module, {**params, **buffers}, (batch,)),
        in_dims=(0, 0, None),
        randomness="same",
    )
    losses, start = [], time.perf_counter()
    for _, batch in zip(range(num_steps), instance.batches(), strict=False):
        each = loss_of(stacked, buffers, batch)
        grads = torch.autograd.grad(each.sum(), list(stacked.values()))
        for name, grad in zip(stacked, grads, strict=True):
            for k in range(count):
                copies[f"{k}.{name}"].grad = grad[k]
        optimizer.step()
        losses.append(each.detach())
    return torch.stack(losses), (time.perf_counter() - start) / num_steps / count


def main() -> None:
    """Measure every task and print a line each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--plans", type=int, default=12, help="plans trained together (default 12)")
    parser.add_argument("--steps", type=int, default=60, help="training steps (default 60)")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of measurements (default 5)")
    parser.add_argument("--task", action="append", help="task to train (default: four of them)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.task or TASKS:
        task = find_task(name)
        groups = {layer.group for layer in describe(task.build(0).model).layers}
        changes = [change for change in applicable(LATER_CHANGES, groups) if change.group != "*"]
        default = calibrated_default()
        recipes = [default.with_change(change.group, change.values) for change in changes][: options.plans]
        ratios, drift, ours = [], 0.0, 0.0
        for _ in range(options.repeats + 1):
            losses, single = alone(task, recipes[0], options.steps)
            both, ours = together(task, recipes, options.steps)
            ratios.append(single / ours)
            drift = float((both[:, 0] - torch.tensor(losses)).abs().max())
        median = statistics.median(ratios[1:])  # the first pair warms up
        print(
            f"{name}: {len(recipes)} plans, {1e3 * ours:.2f} ms a plan and step together, gain {median:.2f}, "
            f"largest difference of a training loss {drift:.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
