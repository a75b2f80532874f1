"""Whether a task keeps the contract that recording and evaluation rely on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from autoopt.errors import TaskError
from autoopt.tasks.base import Task, TaskInstance


def check_task(task: Task, num_batches: int = 3, max_draws: int = 300) -> None:
    """Return None for a task that keeps the contract of `Task`; raise for one that does not.

    The task is built three times, twice with one seed and once with another, and checked for:
    bit-identical parameters and first batches under equal seeds and different ones under different
    seeds; validation batches that do not depend on the seed; a scalar, finite loss with a finite
    gradient; `batches()` that starts again at each call and does not end within the budget.

    Args:
        task: The task.
        num_batches: Batches that are compared between builds.
        max_draws: Batches drawn (at most the task's budget) to see that the iterator does not end.

    Raises:
        TaskError: For the first rule that the task breaks; the message names the task and the rule.
    """
    if task.budget_steps < 1 or task.batch_size < 1:
        raise _broken(task, "budget_steps and batch_size must be at least 1")
    if not task.family or not task.source:
        raise _broken(task, "family and source must be named, since evaluation leaves them out by name")
    first, again, other = task.build(0), task.build(0), task.build(1)
    _check_parameters(task, first, again, other)
    _check_batches(task, first, again, other, num_batches, max_draws)
    _check_validation(task, first, other)
    _check_loss(task, first)


def _broken(task: Task, rule: str) -> TaskError:
    return TaskError(f"task {task.name!r}: {rule}")


def _flatten(batch: Any) -> Iterator[Any]:
    """The leaves of a batch: tensors, and whatever else a loss function may take."""
    if isinstance(batch, dict):
        for key in batch:
            yield from _flatten(batch[key])
    elif isinstance(batch, (tuple, list)):
        for item in batch:
            yield from _flatten(item)
    else:
        yield batch


def _equal(left: Any, right: Any) -> bool:
    """Whether two batches, or sequences of them, are bit-identical."""
    pairs = list(itertools.zip_longest(_flatten(left), _flatten(right)))
    return all(torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b for a, b in pairs)


def _check_parameters(task: Task, first: TaskInstance, again: TaskInstance, other: TaskInstance) -> None:
    if not any(parameter.requires_grad for parameter in first.model.parameters()):
        raise _broken(task, "the model has no trainable parameter")
    if not first.model.training:
        raise _broken(task, "the model must come in train mode")
    if not _equal(first.model.state_dict(), again.model.state_dict()):
        raise _broken(task, "build(seed) must give bit-identical parameters for the same seed")
    if _equal(list(first.model.parameters()), list(other.model.parameters())):
        raise _broken(task, "build(seed) must give different parameters for different seeds")


def _check_batches(
    task: Task,
    first: TaskInstance,
    again: TaskInstance,
    other: TaskInstance,
    num_batches: int,
    max_draws: int,
) -> None:
    taken = [list(itertools.islice(instance.batches(), num_batches)) for instance in (first, again, other)]
    if not _equal(taken[0], taken[1]):
        raise _broken(task, "build(seed) must give the same sequence of batches for the same seed")
    if _equal(taken[0], taken[2]):
        raise _broken(task, "different seeds must give different sequences of batches")
    if not _equal(taken[0], list(itertools.islice(first.batches(), num_batches))):
        raise _broken(task, "each call of batches() must start the same sequence again")
    wanted = min(task.budget_steps, max_draws)
    drawn = sum(1 for _ in itertools.islice(first.batches(), wanted))
    if drawn < wanted:
        raise _broken(task, f"batches() must be endless, it ended after {drawn} of {wanted} batches")


def _check_validation(task: Task, first: TaskInstance, other: TaskInstance) -> None:
    if not first.validation:
        raise _broken(task, "there must be at least one validation batch")
    if not _equal(first.validation, other.validation):
        raise _broken(task, "the validation batches must not depend on the seed")
    weights = first.batch_weights
    if weights is not None and len(weights) != len(first.validation):
        raise _broken(task, f"{len(weights)} batch_weights for {len(first.validation)} validation batches")


def _check_loss(task: Task, instance: TaskInstance) -> None:
    batch = next(instance.batches())
    loss = instance.loss_fn(instance.model, batch)
    if not isinstance(loss, Tensor) or loss.shape != ():
        raise _broken(task, "loss_fn must return a scalar tensor, of shape ()")
    if not torch.isfinite(loss):
        raise _broken(task, f"the loss of a fresh model must be finite, got {loss.item()}")
    if not loss.requires_grad:
        raise _broken(task, "the loss must depend on the parameters by gradient")
    loss.backward()
    for name, parameter in instance.model.named_parameters():
        grad = parameter.grad
        if grad is not None:
            values = grad.coalesce().values() if grad.is_sparse else grad
            if not torch.isfinite(values).all():
                raise _broken(task, f"the gradient of {name!r} is not finite at initialisation")
    instance.model.eval()
    validate = instance.validation_loss_fn or instance.loss_fn
    with torch.no_grad():
        value = validate(instance.model, instance.validation[0])
    if not isinstance(value, Tensor) or value.shape != () or not torch.isfinite(value):
        raise _broken(task, "the validation loss of a fresh model must be a finite scalar tensor")
