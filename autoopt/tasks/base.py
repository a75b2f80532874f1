"""What a training task is: a model, a loss and seeded data, under a batch size and a step budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

Batch = Any
"""A tensor, or a tuple or dict of tensors: whatever the task's own loss function takes."""


@dataclass
class TaskInstance:
    """A task made concrete by a seed.

    Attributes:
        model: The freshly initialised model, in train mode.
        loss_fn: `loss_fn(model, batch) -> Tensor`, the scalar mean loss that is minimised.
        batches: `batches() -> Iterator[Batch]`, an endless iterator over training batches; each
            call starts the same sequence again.
        validation: Fixed validation batches, the same for every seed of the task.
        validation_loss_fn: Like `loss_fn`; used in eval mode under `no_grad`. Defaults to `loss_fn`.
        batch_weights: Weight of each validation batch in the mean; defaults to equal weights.
        num_examples: Distinct training examples, in the unit that `batch_size` counts (a stream of
            symbols has its length over that of a window). None for endless data.
    """

    model: nn.Module
    loss_fn: Callable[[nn.Module, Batch], Tensor]
    batches: Callable[[], Iterator[Batch]]
    validation: tuple[Batch, ...]
    validation_loss_fn: Callable[[nn.Module, Batch], Tensor] | None = None
    batch_weights: tuple[float, ...] | None = None
    num_examples: int | None = None


@dataclass(frozen=True)
class Task:
    """A training problem that trials are recorded on.

    `build(seed)` must be deterministic: the same seed gives bit-identical parameters and the same
    sequence of batches. The seed changes the initialisation and the order of the training batches,
    never the split into training and validation data.

    Attributes:
        name: Unique name, such as `"mnist-cnn-w16-b64-s400"`.
        family: Architecture family, such as `"cnn"`.
        source: Data source, such as `"mnist-5k"`; one source is one data set.
        batch_size: Examples (or sequences) in a training batch.
        budget_steps: Training steps of a trial.
        build: `build(seed) -> TaskInstance`; a module-level function or a `functools.partial` of
            one, so that a task can be pickled to a worker.
        width: The hidden width, for transfer studies.
        domain: `"vision"`, `"text"`, `"tabular"`, `"recsys"`, `"series"`, `"graph"`, `"synthetic"`...
        evaluation_only: True for tasks that the selector is never trained on.
        demo: True for the three tasks of `make demo`, never recorded for training.
        requires: Import names of the packages that carry the data.
    """

    name: str
    family: str
    source: str
    batch_size: int
    budget_steps: int
    build: Callable[[int], TaskInstance]
    width: int = 0
    domain: str = ""
    evaluation_only: bool = False
    demo: bool = False
    requires: tuple[str, ...] = field(default=())
