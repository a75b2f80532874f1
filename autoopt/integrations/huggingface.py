"""Hugging Face Trainer: the factory form of `optimizer_cls_and_kwargs`, and the length of a run."""

from __future__ import annotations

import math
from collections.abc import Sized
from typing import TYPE_CHECKING, Any

from torch import nn

from autoopt.api import select
from autoopt.integrations.decision_callback import DecisionCallback, when_decided
from autoopt.optimizers.auto_optimizer import AutoOptimizer

if TYPE_CHECKING:
    from transformers import TrainingArguments


class Select:
    """`autoopt.select` in the form in which a Trainer makes its optimizer itself.

    `Trainer(..., optimizer_cls_and_kwargs=(Select, {"total_steps": 1000}))` calls `Select()(model,
    total_steps=1000)`, once for each training, so that it works with `model_init` and hyper-parameter
    search too. The keyword arguments are those of `select`, and `callbacks`.

    Example:
        >>> optimizer = Select()(nn.Linear(4, 2), total_steps=200, schedule=None)
        >>> optimizer.phase
        'warmup'
    """

    def __call__(
        self, model: nn.Module, *, callbacks: tuple[DecisionCallback, ...] = (), **options: Any
    ) -> AutoOptimizer:
        """An optimizer for the model.

        Args:
            model: The model, as the Trainer has placed it.
            callbacks: Each is called with the recommendation once it is made.
            **options: Arguments of `select`.
        """
        optimizer = select(model, **options)
        for callback in callbacks:
            when_decided(optimizer, callback)
        return optimizer


def total_steps(arguments: TrainingArguments, train_dataset: Sized | None = None) -> int:
    """The number of optimizer steps that a Trainer takes with these arguments.

    Args:
        arguments: `max_steps` where it is set, else as many epochs as `num_train_epochs` says.
        train_dataset: The training set; needed where epochs are counted.

    Raises:
        ValueError: If the run has no known length.
    """
    if arguments.max_steps > 0:
        return arguments.max_steps
    if train_dataset is None:
        raise ValueError("the length of the run is unknown: set max_steps in TrainingArguments, or pass train_dataset")
    examples_per_batch = arguments.train_batch_size * arguments.world_size
    divide = math.floor if arguments.dataloader_drop_last else math.ceil
    batches = divide(len(train_dataset) / examples_per_batch)
    steps_per_epoch = max(math.ceil(batches / arguments.gradient_accumulation_steps), 1)
    return math.ceil(arguments.num_train_epochs * steps_per_epoch)
