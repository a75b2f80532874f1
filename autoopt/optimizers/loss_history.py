"""The losses that a run was told of, thinned so that their number never grows beyond a limit."""

from __future__ import annotations

import torch
from torch import Tensor

LIMIT = 512
"""Losses kept at most: more than a curve in a report has pixels to show."""


class LossHistory:
    """Losses by step, evenly thinned; nothing is synchronised before they are read.

    Every `stride`-th loss is kept. Where there are too many, every other one is dropped and the stride
    doubles, so that the curve stays even over the whole run.

    Args:
        limit: Losses kept at most, the latest one beside them.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self.stride = 1
        self.count = 0
        self.kept: list[tuple[int, Tensor | float]] = []
        self.latest: tuple[int, Tensor | float] | None = None

    def add(self, step: int, loss: Tensor | float) -> None:
        """Nothing; notes the loss of a step.

        Args:
            step: 0-based step.
            loss: A detached scalar tensor, or a number.
        """
        self.latest = (step, loss)
        if self.count % self.stride == 0:
            # A clone: a captured graph writes every loss into the same memory.
            self.kept.append((step, loss.clone() if isinstance(loss, Tensor) else loss))
            if len(self.kept) > self.limit:
                self.kept = self.kept[::2]
                self.stride *= 2
        self.count += 1

    def points(self) -> tuple[tuple[int, float], ...]:
        """`(step, loss)` in order, the first and the latest always among them; synchronises once."""
        pairs = list(self.kept)
        if self.latest is not None and pairs[-1][0] != self.latest[0]:
            pairs.append(self.latest)
        tensors = [loss.reshape(()).float() for _, loss in pairs if isinstance(loss, Tensor)]
        values = iter(torch.stack([t.to(tensors[0].device) for t in tensors]).tolist() if tensors else ())
        return tuple((step, next(values) if isinstance(loss, Tensor) else float(loss)) for step, loss in pairs)
