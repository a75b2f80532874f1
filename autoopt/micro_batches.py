"""The gradient noise scale where gradients are accumulated: one micro-batch's gradient against a whole step's.

A step of `K` accumulated micro-batches shows a gradient at two batch sizes, after the first backward pass and
after the last, and squared norms at both give the noise scale (McCandlish et al. 2018, arXiv 1812.06162,
appendix A.1) at no extra pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from autoopt.distributed.noise_scale import NoiseSums, squared_norm


class MicroBatchNoise:
    """Hooks on parameters that take both squared norms in every further step of warm-up, then remove themselves.

    Costs two norms of every gradient a step, whatever the number of micro-batches. Steps with another number of
    backward passes (the last of an epoch, say) are passed over, and so is a parameter that a micro-batch does
    not reach. Whether the loss is divided by the number of micro-batches makes no difference: the ratio is the
    same.

    Args:
        params: The parameters by name.
        num_micro_batches: Backward passes a step.
        step: The optimizer steps taken so far, or None once warm-up is over.

    Attributes:
        sums: The sums so far.
    """

    def __init__(self, params: Mapping[str, Tensor], num_micro_batches: int, step: Callable[[], int | None]) -> None:
        self.sums = NoiseSums(num_micro_batches)
        self._step = step
        self._first = (step() or 0) + 1  # hooks that are attached within a backward pass do not see all of it
        self._seen: dict[str, tuple[int, int, Tensor]] = {}
        self._handles = [
            param.register_post_accumulate_grad_hook(partial(self._see, name))
            for name, param in params.items()
            if param.requires_grad
        ]

    def _see(self, name: str, param: Tensor) -> None:
        step = self._step()
        if step is None:
            self.remove()
            return
        if step < self._first or param.grad is None or torch.compiler.is_compiling():
            return
        before, count, small = self._seen.get(name, (-1, 0, param))
        count = count + 1 if before == step else 1
        if count == 1:
            small = squared_norm(param.grad)
        self._seen[name] = step, count, small
        if count == self.sums.num_ranks:
            # The sum over micro-batches is compared with one of them: their mean is the larger batch's gradient.
            self.sums.add(name, small, squared_norm(param.grad) / count**2)

    def remove(self) -> None:
        """Stop measuring."""
        while self._handles:
            self._handles.pop().remove()
