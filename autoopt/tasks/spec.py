"""One literal row of a domain's table of tasks, and how it becomes a `Task` and a `TaskInstance`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from autoopt.tasks.base import Batch, Task, TaskInstance
from autoopt.tasks.data import chunks, minibatches, sampled, transformed

VALIDATION_SEED = 2**31 - 1
"""Seed of validation noise and samples; trials use small seeds, so the two never meet."""


@dataclass(frozen=True)
class Spec:
    """What distinguishes one task of a domain from another.

    Attributes:
        family: Architecture family.
        source: Data source.
        width: Hidden width.
        batch_size: Examples in a training batch.
        budget_steps: Training steps of a trial.
        depth: Number of hidden layers or blocks.
        variant: Which form of the family it is, part of the task's name.
        evaluation_only: Whether the selector is never trained on it.
    """

    family: str
    source: str
    width: int
    batch_size: int
    budget_steps: int
    depth: int = 2
    variant: str = ""
    evaluation_only: bool = False

    @property
    def name(self) -> str:
        """The task's name, from everything but the depth."""
        variant = f"-{self.variant}" if self.variant else ""
        size = f"w{self.width}-b{self.batch_size}-s{self.budget_steps}"
        return f"{self.source}-{self.family}{variant}-{size}"

    def task(self, build: Callable[[Spec, int], TaskInstance], domain: str, requires: tuple[str, ...] = ()) -> Task:
        """The task whose instance is `build(spec, seed)`; `build` must be a module-level function."""
        return Task(
            name=self.name,
            family=self.family,
            source=self.source,
            batch_size=self.batch_size,
            budget_steps=self.budget_steps,
            build=functools.partial(build, self),
            width=self.width,
            domain=domain,
            evaluation_only=self.evaluation_only,
            requires=requires,
        )


def from_rows(
    model: nn.Module,
    loss_fn: Callable[[nn.Module, Batch], Tensor],
    train: Sequence[Tensor],
    validation: Sequence[Tensor],
    batch_size: int,
    seed: int,
    transform: Callable[..., tuple[Tensor, ...]] | None = None,
    validation_size: int = 512,
) -> TaskInstance:
    """An instance whose batches are rows of `train`, and whose validation is all of `validation`.

    Args:
        model: The model.
        loss_fn: Its loss.
        train: Tensors that share their first dimension.
        validation: The same for validation, complete with any noise.
        batch_size: Rows in a training batch.
        seed: Seed of the order and of the transform.
        transform: `transform(generator, *batch)`, applied to training batches.
        validation_size: Most rows in a validation batch; batches are weighted by their rows.
    """
    batches: Callable[[], Iterator[tuple[Tensor, ...]]]
    batches = functools.partial(minibatches, tuple(train), batch_size, seed)
    if transform is not None:
        batches = functools.partial(transformed, batches, transform, seed)
    fixed = chunks(validation, validation_size)
    return TaskInstance(
        model=model,
        loss_fn=loss_fn,
        batches=batches,
        validation=fixed,
        batch_weights=tuple(len(batch[0]) / len(validation[0]) for batch in fixed),
        num_examples=len(train[0]),
    )


def from_samples(
    model: nn.Module,
    loss_fn: Callable[[nn.Module, Batch], Tensor],
    draw: Callable[..., tuple[Tensor, ...]],
    batch_size: int,
    seed: int,
    num_validation: int = 1024,
) -> TaskInstance:
    """An instance of endless synthetic data from `draw(generator, num_rows)`."""
    return TaskInstance(
        model=model,
        loss_fn=loss_fn,
        batches=functools.partial(sampled, draw, batch_size, seed),
        validation=(next(sampled(draw, num_validation, VALIDATION_SEED)),),
    )


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """The mean negative log-likelihood in nats; `batch` ends with the labels."""
    *inputs, labels = batch
    return functional.cross_entropy(model(*inputs), labels)


def smoothed_cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy in nats against labels smoothed by 0.1, whose least value is above zero."""
    *inputs, labels = batch
    return functional.cross_entropy(model(*inputs), labels, label_smoothing=0.1)


def mean_squared_error(model: nn.Module, batch: Batch) -> Tensor:
    """The mean squared error; in units of the targets' variance where they are standardised."""
    *inputs, targets = batch
    return functional.mse_loss(model(*inputs), targets)


def poisson_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The mean negative log-likelihood of counts in nats, the model giving the log of the rate.

    Stirling's term is left out: it does not depend on the model and is wrong for counts below 2.
    """
    *inputs, targets = batch
    return functional.poisson_nll_loss(model(*inputs), targets, log_input=True)
