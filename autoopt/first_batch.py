"""What the first training batch tells of the task: its size, its outputs and their entropy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, Self

import torch
from torch import Tensor, nn


class FirstBatchProbe:
    """Hooks that read the first training batch and its outputs, and then remove themselves.

    It fills in `facts`:

    - `batch_size`: the leading size of the first tensor among the model's inputs.
    - `batch_outputs`: the number of predictions, such as the tokens of a language model's batch.
    - `micro_batches`: where `attach` was given an optimizer, the backward passes before its first step,
      more than one where gradients are accumulated. How often the model is called says nothing of it.
    - `output_entropy`: the mean entropy of the softmax over the outputs, over its largest value
      `log(num_outputs)`: 1 where the model starts undecided. It says nothing where outputs are no
      logits, and is left out where there are fewer than two.

    Inside a graph that torch.compile traces the hooks do nothing, so that they neither break nor
    recompile it: a module that is compiled after it was selected for tells nothing of its batches.
    The entropy stays a tensor on its device, so that nothing waits for it. The probe is a plain object:
    a model that is saved whole before its first forward still pickles.

    Args:
        facts: Where the values are put.
        num_outputs: Outputs of a prediction (the widest head), or None to leave outputs alone.
        clock: An object whose `start()` is called when the first training batch comes, or None: what
            lies before it, such as loading data, is no profiling.
    """

    def __init__(self, facts: MutableMapping[str, Any], num_outputs: int | None = None, clock: Any = None) -> None:
        self.facts = facts
        self.num_outputs = num_outputs
        self.clock = clock
        self.handles: list[Any] = []

    def attach(
        self,
        model: nn.Module,
        param: Tensor | None = None,
        steps: Callable[[], int] | None = None,
        accumulates: Callable[[int], None] | None = None,
    ) -> Self:
        """This probe, waiting for the model's first training batch.

        Args:
            model: The model.
            param: A parameter whose gradients tell the backward passes, or None not to count them.
            steps: The number of optimizer steps so far; at the first backward pass after a step the
                counting ends.
            accumulates: Called then with their number, where there was more than one.
        """
        self.handles = [
            model.register_forward_pre_hook(self.read_inputs, with_kwargs=True),
            model.register_forward_hook(self.read_outputs),
        ]
        if param is not None and steps is not None:
            _BackwardCount(self.facts, steps, param, accumulates)
        return self

    def remove(self) -> None:
        """Stop waiting."""
        while self.handles:
            self.handles.pop().remove()

    def read_inputs(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Read the batch size; what follows an evaluation that came first is left for later."""
        if module.training and not torch.compiler.is_compiling():
            size = leading_size((args, kwargs))
            if size is not None:
                self.facts["batch_size"] = float(size)
            if self.clock is not None:
                self.clock.start()

    def read_outputs(self, module: nn.Module, args: tuple[Any, ...], outputs: Any) -> None:
        """Read the outputs and stop waiting."""
        if not module.training or torch.compiler.is_compiling():
            return
        self.remove()
        found = _predictions(outputs, self.num_outputs) if self.num_outputs else None
        if found is not None:
            self.facts["batch_outputs"] = float(found.numel() // found.size(-1))
            if found.size(-1) > 1:
                self.facts["output_entropy"] = relative_entropy(found)


class _BackwardCount:
    """Counts the backward passes that reach a parameter before the first optimizer step."""

    def __init__(
        self,
        facts: MutableMapping[str, Any],
        steps: Callable[[], int],
        param: Tensor,
        accumulates: Callable[[int], None] | None,
    ) -> None:
        self.facts, self.steps, self.accumulates = facts, steps, accumulates
        self.handle = param.register_post_accumulate_grad_hook(self)

    def __call__(self, param: Tensor) -> None:
        if self.steps() > 0:
            self.handle.remove()
            number = int(self.facts.get("micro_batches", 1))
            if number > 1 and self.accumulates is not None:
                self.accumulates(number)
        else:
            self.facts["micro_batches"] = self.facts.get("micro_batches", 0.0) + 1.0


@torch.no_grad()
def relative_entropy(logits: Tensor) -> Tensor:
    """The mean entropy of the softmax over the last dimension, over its largest value; 0-d float32.

    >>> relative_entropy(torch.zeros(3, 10))
    tensor(1.)
    """
    log_shares = torch.log_softmax(logits.detach().float(), dim=-1)
    entropy = -(log_shares.exp() * log_shares).sum(-1).mean()
    return entropy / math.log(logits.size(-1))


def leading_size(value: Any) -> int | None:
    """The size of dimension 0 of the first tensor with dimensions in nested inputs, or None."""
    return next((int(tensor.shape[0]) for tensor in _tensors(value) if tensor.ndim > 0), None)


def _predictions(outputs: Any, num_outputs: int) -> Tensor | None:
    """The first floating tensor with a dimension of `num_outputs` (the last, else the second), which comes last."""
    for tensor in _tensors(outputs):
        if not tensor.is_floating_point() or tensor.numel() == 0:
            continue
        if tensor.ndim > 0 and tensor.size(-1) == num_outputs:
            return tensor
        if tensor.ndim > 2 and tensor.size(1) == num_outputs:
            return tensor.movedim(1, -1)
        if num_outputs == 1 and tensor.ndim == 1:
            return tensor.unsqueeze(-1)
    return None


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
        return
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    for part in parts:
        yield from _tensors(part)
