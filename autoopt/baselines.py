"""Optimizers and procedures from elsewhere, made ready to be trained and compared on equal terms.

Each gets the task's budget of steps, and linear warm-up over 5 % of it and linear decay to zero, as
plain AdamW does; Schedule-Free has a warm-up alone, since it takes the place of the decay. What a
procedure spends before training, a range test, comes out of the budget.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from autoopt.errors import PlanError
from autoopt.optimizers.schedule import Schedule
from autoopt.profiling import restored
from autoopt.tasks.base import TaskInstance

WARMUP_SHARE = 0.05
NUM_STATISTICS_BATCHES = 8


@dataclass
class Prepared:
    """An optimizer that is ready to train a task, and what it took to get there.

    Attributes:
        optimizer: The optimizer.
        scheduler: Stepped after every training step, or None.
        spent_steps: Training steps spent before the run, which come out of its budget.
        selection_seconds: Seconds that they took.
        validating: Makes the context in which the model is validated.
    """

    optimizer: Optimizer
    scheduler: Any = None
    spent_steps: int = 0
    selection_seconds: float = 0.0
    validating: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext


@dataclass(frozen=True)
class Baseline:
    """One row of the table of baselines.

    Attributes:
        name: The word in a trial's plan.
        title: Name for people.
        paper: Where it was published.
        prepare: `prepare(instance, budget_steps, **setting) -> Prepared`.
        settings: Settings that are recorded, the published default first.
    """

    name: str
    title: str
    paper: str
    prepare: Callable[..., Prepared]
    settings: tuple[dict[str, float], ...]


def schedule_free(instance: TaskInstance, budget_steps: int, *, lr: float) -> Prepared:
    """Schedule-Free AdamW; validated at its averaged weights, BatchNorm's statistics taken anew for them.

    Args:
        instance: The task.
        budget_steps: Training steps.
        lr: Rate after warm-up.
    """
    from pytorch_optimizer import ScheduleFreeAdamW

    warmup = round(WARMUP_SHARE * budget_steps)
    optimizer: Any = ScheduleFreeAdamW(_trainable(instance.model), lr=lr, warmup_steps=warmup)
    _make_dense(optimizer)

    @contextlib.contextmanager
    def averaged() -> Iterator[None]:
        optimizer.eval()
        try:
            with _statistics_anew(instance):
                yield
        finally:
            optimizer.train()

    return Prepared(optimizer, validating=averaged)


def prodigy(instance: TaskInstance, budget_steps: int, *, d_coef: float) -> Prepared:
    """Prodigy with bias correction and safeguarded warm-up, as its authors advise with a schedule.

    Args:
        instance: The task.
        budget_steps: Training steps.
        d_coef: Factor on the estimated distance.
    """
    from pytorch_optimizer import Prodigy

    optimizer: Any = Prodigy(
        _trainable(instance.model), lr=1.0, d_coef=d_coef, bias_correction=True, safeguard_warmup=True
    )
    _make_dense(optimizer)
    return Prepared(optimizer, _decay(optimizer, budget_steps))


def sgd_sai(instance: TaskInstance, budget_steps: int, *, lr: float) -> Prepared:
    """SGD with momentum, scaled tensor by tensor by the first gradient's signal-to-noise ratio.

    Args:
        instance: The task.
        budget_steps: Training steps.
        lr: Rate.
    """
    from pytorch_optimizer import SGDSaI

    optimizer: Any = SGDSaI(_trainable(instance.model), lr=lr)
    _make_dense(optimizer)
    return Prepared(optimizer, _decay(optimizer, budget_steps))


def range_test(instance: TaskInstance, budget_steps: int, *, position: float) -> Prepared:
    """Adam at a rate on the long descent of a range test.

    The test trains a fifth of the budget, between 20 and 100 steps, at rates rising from 1e-6 to 1, and
    puts the model back; training gets the steps that are left. The steepest point of the descent, the
    other usual rule, was found to be mostly noise on tests of this length.

    Args:
        instance: The task.
        budget_steps: Training steps, those of the test included.
        position: Where on the descent, from its start (0) to its end (1); fastai takes the middle.
    """
    begun = time.perf_counter()
    num_steps = max(20, min(100, budget_steps // 5))
    rates, losses = _rising_rates(instance, num_steps)
    seconds = time.perf_counter() - begun
    optimizer = torch.optim.Adam(_trainable(instance.model), lr=valley_rate(rates, losses, position))
    _make_dense(optimizer)
    return Prepared(optimizer, _decay(optimizer, budget_steps - len(rates)), len(rates), seconds)


def valley_rate(rates: list[float], losses: list[float], position: float = 0.5) -> float:
    """The rate at a position on the longest descent of the smoothed loss.

    The descent is the longest series of ever lower losses, which need not be neighbours: noise on the
    way down does not end it. fastai's learning-rate finder ("valley") suggests the middle of it.

    Args:
        rates: Rates of the test, rising by a constant factor.
        losses: Smoothed losses there.
        position: From 0, where the descent starts, to 1, where it ends.

    >>> valley_rate([1e-4, 1e-3, 1e-2, 1e-1, 1.0], [3.0, 2.5, 2.6, 1.0, 9.0])
    0.01
    """
    length = np.ones(len(losses), dtype=int)
    start = np.arange(len(losses))
    for i in range(1, len(losses)):
        higher = np.flatnonzero(np.array(losses[:i]) > losses[i])
        if len(higher):
            before = higher[np.argmax(length[higher])]
            length[i], start[i] = length[before] + 1, start[before]
    if not len(losses):
        return rates[0]
    end = int(np.argmax(length))
    return rates[int(np.ceil(start[end] + position * (end - start[end])))]


BASELINES: tuple[Baseline, ...] = (
    Baseline(
        name="schedule-free",
        title="Schedule-Free AdamW",
        paper="Defazio et al. 2024, The Road Less Scheduled (arXiv 2405.15682)",
        prepare=schedule_free,
        settings=({"lr": 2.5e-3}, {"lr": 1e-2}, {"lr": 4e-2}, {"lr": 0.16}),
    ),
    Baseline(
        name="prodigy",
        title="Prodigy",
        paper="Mishchenko & Defazio 2023, Prodigy (arXiv 2306.06101)",
        prepare=prodigy,
        settings=({"d_coef": 1.0}, {"d_coef": 4.0}, {"d_coef": 16.0}),
    ),
    Baseline(
        name="sgd-sai",
        title="SGD-SaI",
        paper="Xu et al. 2024, No More Adam (arXiv 2412.11768)",
        prepare=sgd_sai,
        settings=({"lr": 1e-2}, {"lr": 1e-1}, {"lr": 1.0}),
    ),
    Baseline(
        name="range-test",
        title="LR range test + Adam",
        paper="Smith 2015, Cyclical Learning Rates (arXiv 1506.01186)",
        prepare=range_test,
        settings=({"position": 0.5}, {"position": 0.75}, {"position": 0.9}),
    ),
)
"""The baselines that a plan cannot express."""


def baseline_text(name: str, setting: dict[str, float]) -> str:
    """The plan text of a baseline's trial: canonical JSON.

    >>> baseline_text("prodigy", {"d_coef": 1.0})
    '{"baseline":"prodigy","d_coef":1.0}'
    """
    return json.dumps({"baseline": name, **setting}, sort_keys=True, separators=(",", ":"))


def prepare(text: str, instance: TaskInstance, budget_steps: int) -> Prepared:
    """The baseline that a plan text names, ready to train.

    Args:
        text: What `baseline_text` gave.
        instance: The task.
        budget_steps: Training steps.

    Raises:
        PlanError: If there is no such baseline, or its settings are not those that it takes.
    """
    rows = {row.name: row for row in BASELINES}
    try:
        setting = dict(json.loads(text))
        row = rows[setting.pop("baseline")]
    except (ValueError, KeyError, TypeError) as error:
        raise PlanError(f"{text!r} names no baseline; there are {', '.join(rows)}") from error
    if set(setting) != set(row.settings[0]):
        raise PlanError(f"baseline {row.name!r} takes {sorted(row.settings[0])}, got {sorted(setting)}")
    return row.prepare(instance, budget_steps, **setting)


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [param for param in model.parameters() if param.requires_grad]


def _decay(optimizer: Optimizer, num_steps: int) -> LambdaLR:
    warmup = min(num_steps - 1, round(WARMUP_SHARE * num_steps))
    return LambdaLR(optimizer, Schedule("linear", warmup, num_steps).factor)


def _make_dense(optimizer: Optimizer) -> None:
    """Nothing; sparse gradients, which these rules refuse, reach them as dense ones."""

    def hook(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            for param in group["params"]:
                if param.grad is not None and param.grad.is_sparse:
                    param.grad = param.grad.to_dense()

    optimizer.register_step_pre_hook(hook)


def _rising_rates(instance: TaskInstance, num_steps: int) -> tuple[list[float], list[float]]:
    """Rates and smoothed losses of a range test, which ends once the loss is four times its best."""
    rates = [float(rate) for rate in np.geomspace(1e-6, 1.0, num_steps)]
    losses: list[float] = []
    model, mean, best = instance.model, 0.0, math.inf
    with restored(model):
        optimizer = torch.optim.Adam(_trainable(model), lr=rates[0])
        _make_dense(optimizer)
        model.train()
        for step, (rate, batch) in enumerate(zip(rates, instance.batches(), strict=False)):
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            loss = instance.loss_fn(model, batch)
            value = float(loss.detach())
            mean = 0.98 * mean + 0.02 * value
            smooth = mean / (1.0 - 0.98 ** (step + 1))
            if not math.isfinite(value) or (step > 10 and smooth > best + 3.0 * abs(best)):
                break
            best = min(best, smooth)
            losses.append(smooth)
            loss.backward()
            optimizer.step()
    return rates[: max(1, len(losses))], losses


@contextlib.contextmanager
def _statistics_anew(instance: TaskInstance) -> Iterator[None]:
    """A context in which BatchNorm's running statistics are those of the present weights."""
    norms = [m for m in instance.model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        yield
        return
    buffers = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
    momenta = [norm.momentum for norm in norms]
    generator = torch.get_rng_state()
    was_training = instance.model.training
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    instance.model.train()
    with torch.no_grad():
        for _, batch in zip(range(NUM_STATISTICS_BATCHES), instance.batches(), strict=False):
            instance.loss_fn(instance.model, batch)
    instance.model.train(was_training)
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        torch.set_rng_state(generator)
