"""Short training runs of whole plans from one start, on the same batches: what a race compares."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autoopt.distributed.ranks import Ranks
from autoopt.distributed.shards import is_sharded
from autoopt.distributed.wrappers import unwrapped
from autoopt.optimizers.auto_optimizer import AutoOptimizer
from autoopt.optimizers.plan import OptimizerPlan
from autoopt.optimizers.schedule import Schedule
from autoopt.profiling import restored

LossFn = Callable[[nn.Module, Any], Tensor]

NUM_HELD_BACK = 4
"""Batches that no short run trains on, and that all are judged by."""

_WHERE = "the race of short runs"


def short_schedule(num_steps: int) -> Schedule:
    """The schedule of the recorded short runs: warm-up over 15 % of the steps, then a linear decay to 0.

    It stays what it is where the calibrated default moves to another: what was learned, was learned with it.
    """
    if num_steps < 2:
        return Schedule()
    return Schedule("linear", round(0.15 * num_steps), num_steps)


@dataclass(frozen=True)
class ShortRun:
    """How one short run ended.

    Attributes:
        num_steps: Training steps.
        train_loss: Mean training loss over the later half of its steps; infinite where any was not finite.
        held_back_loss: Mean loss on the batches held back, after the last step; infinite likewise.
    """

    num_steps: int
    train_loss: float
    held_back_loss: float


def short_run(
    model: nn.Module,
    loss_fn: LossFn,
    plan: OptimizerPlan,
    batches: Sequence[Any],
    held_back: Sequence[Any],
    ranks: Ranks | None = None,
) -> ShortRun:
    """Train on `batches` once with a plan, look at the loss on `held_back`, and leave no trace.

    Parameters, buffers, gradients, modes and random generators are as before, bit by bit, also where
    `loss_fn` raises. So runs of several plans share their start, their batches and their random
    numbers, and their losses differ by the plans alone. The batches held back are looked at in train mode:
    after few steps the running statistics of a normalisation say nothing yet.

    Args:
        model: The model.
        loss_fn: `loss_fn(model, batch)`, a scalar tensor.
        plan: The plan; its schedule should end with the run.
        batches: Training batches, one a step; none to look at the start.
        held_back: Further batches.
        ranks: The ranks that train together: gradients and losses are averaged over them.
    """
    ranks = ranks or Ranks(alone=True)
    inside = unwrapped(model)
    named = [(name, param) for name, param in inside.named_parameters() if param.requires_grad]
    params = [param for _, param in named]
    averages = ranks.size > 1 and inside is model and not any(is_sharded(param) for param in params)
    with restored(model):
        model.train()
        losses = []
        optimizer = AutoOptimizer(named, plan=plan)
        for batch in batches:
            optimizer.zero_grad()
            loss = loss_fn(model, batch)
            loss.backward()
            if averages:
                ranks.average_gradients(params)
            optimizer.step()
            losses.append(loss.detach())
        # With gradients on: a physics-informed loss differentiates the model itself.
        judged = [loss_fn(model, batch).detach() for batch in held_back]
    later = losses[len(losses) // 2 :]
    finite = [bool(torch.isfinite(torch.stack(part)).all()) if part else True for part in (losses, judged)]
    means = [_mean(later) if finite[0] else math.inf, _mean(judged) if all(finite) else math.inf]
    if ranks.size > 1:
        total = ranks.sum(torch.tensor(means, dtype=torch.float64), _WHERE)
        means = (total / ranks.size).tolist()
    return ShortRun(len(losses), *means)


def _mean(losses: Sequence[Tensor]) -> float:
    return float(torch.stack([loss.double().reshape(()) for loss in losses]).mean()) if losses else math.nan
