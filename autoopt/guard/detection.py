"""Whether a step's gradients and loss are like those before it: arithmetic on the device alone.

Two tests. A *spike* is one step far above everything recent: the norm of a role group's gradient, or
the loss, beyond the maximum of the last `WINDOW` accepted steps by a multiple of their spread. A *rise*
is slower: the mean loss of `BLOCK` steps has given back half of all that training had gained, beyond
the noise. The rise is in units of the run itself, so that no scale of losses has to be known, and an
ordinary bump of the loss is none. Both are distribution-free up to a margin; the margins come from
`scripts/inject_faults.py` (no false alarm on healthy runs of the recorded tasks, small delay on faults).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

WINDOW = 64
"""Accepted steps that a step is compared with."""
BLOCK = 8
"""Steps between two tests for a rise, and between two updates of the limits."""
LEAST_SEEN = 16
"""Steps without which a channel is only tested for NaN and Inf."""
NORM_MARGIN = math.log(30.0)
"""A gradient norm may exceed the recent maximum by this much at least, in nats."""
NORM_SPREADS = 1.0
"""... and by this many times the distance of the recent maximum from the mean, of log norms."""
LOSS_SPREADS, LOSS_MEANS = 8.0, 1.0
"""The same for losses, in their own unit; the least margin is the recent mean, so that a loss must double."""
GIVEN_BACK = 0.5
"""Share of the progress so far whose loss is a rise."""
NOISE_UNITS = 8.0
"""... and by how many standard errors of the mean of a block, at least."""

OK, SPIKE, NONFINITE = 0, 1, 2
"""Verdicts on a channel."""


class Detector:
    """The recent past of a run, and its verdict on each new step.

    Channels are the role groups, whose signal is the squared norm of the gradient (and what else has the
    squared norm of something as its signal), and last the loss.
    What is absent (no gradient, or zeros alone; no loss) is 0 or minus infinity, below any limit.

    Args:
        num_groups: Number of role groups.
        device: Where the gradients are.
    """

    def __init__(self, num_groups: int, device: torch.device | str = "cpu") -> None:
        self.num_steps = 0
        self.history = torch.full((WINDOW, num_groups + 1), -math.inf, device=device)
        self.limits = torch.full((num_groups + 1,), math.inf, device=device)
        self.start = torch.full((), math.nan, device=device)
        self.best = torch.full((), math.inf, device=device)
        self.level = torch.full((1,), math.inf, device=device)
        self._absent = torch.full((1,), -math.inf, device=device)
        self._zero = torch.zeros(1, device=device)

    def judge(self, squares: Tensor, loss: Tensor | None, reduce: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The verdicts on a step, and notes it where it is accepted; never waits for the device.

        Args:
            squares: Squared gradient norm of every role group, float32, shape `(num_groups,)`.
            loss: 0-d float32 tensor on the same device, or None.
            reduce: Sums a tensor over ranks, where ranks train together and losses differ: then a loss is
                no reason to skip a step, and rises are looked for in the mean loss.

        Returns:
            float32, shape `(num_groups + 3,)`: one of `OK`, `SPIKE`, `NONFINITE` a channel, then `SPIKE` where
            the loss of this step is at the level of a rise (over ranks: of this rank, and `NONFINITE` where it
            is not finite), and 1 where a whole block's is, else 0.
        """
        own = self._absent if loss is None else loss.reshape(1)
        values = torch.cat((squares, own))
        tested = values if reduce is None else torch.cat((squares, self._absent))
        fine = tested < self.limits  # false for NaN, and for infinity where there is no limit yet
        row = self.history.select(0, self.num_steps % WINDOW)
        _write(row, torch.where(fine.all(), values, row))
        self.num_steps += 1
        high = own > self.level
        if reduce is not None:
            high = torch.where((own == self._absent) | torch.isfinite(own), high.float(), float(NONFINITE))
        risen = self._zero if self.num_steps % BLOCK else self._refresh(reduce)
        verdicts = torch.where(fine, 0.0, NONFINITE - torch.isfinite(tested).float())
        return torch.cat((verdicts, high, risen))

    def _refresh(self, reduce: Callable[[Tensor], Tensor] | None) -> Tensor:
        """Set the limits anew; 1 where the loss has risen in the block that has just ended, shape `(1,)`."""
        losses = self.history.select(1, -1)
        if reduce is not None:
            _write(losses, _mean_over_ranks(losses, reduce))
        losses = torch.where(torch.isfinite(losses), losses, math.nan)
        squares = self.history.narrow(1, 0, self.history.size(1) - 1)
        logs = torch.where(squares > 0, squares.log() * 0.5, math.nan)
        top, mean, known = _summary(logs)
        norms = top + torch.clamp(NORM_SPREADS * (top - mean), min=NORM_MARGIN)
        limits = torch.where(known, torch.exp(2.0 * norms), math.inf)
        top, mean, known = _summary(losses.unsqueeze(1))
        largest = top + torch.maximum(LOSS_MEANS * mean.abs(), LOSS_SPREADS * (top - mean))
        self.limits = torch.cat((limits, torch.where(known, largest, math.inf)))
        return self._look_for_a_rise(losses.split(BLOCK))

    def _look_for_a_rise(self, blocks: Sequence[Tensor]) -> Tensor:
        last = (self.num_steps // BLOCK - 1) % len(blocks)
        recent = _mean(blocks[last])
        before = torch.cat((blocks[last - 2], blocks[last - 1]))
        # The mean absolute difference of two normal values is 2 / sqrt(pi) = 1.128 standard deviations; unlike
        # the deviation from a mean it does not take a falling loss for a noisy one.
        noise = _mean(before.diff().abs()) / 1.128
        self.start = torch.where(torch.isnan(self.start), recent, self.start)
        gained = (self.start - self.best).clamp(min=0.0)
        if self.num_steps >= 3 * BLOCK:
            self.level = (self.best + GIVEN_BACK * gained + NOISE_UNITS / math.sqrt(BLOCK) * noise).reshape(1)
        risen = (recent > self.level).float()
        if self.num_steps >= 2 * BLOCK:
            pair = _mean(torch.cat((blocks[last - 1], blocks[last])))
            self.best = torch.where(pair < self.best, pair, self.best)
        return risen

    def forget(self) -> None:
        """Nothing; starts anew, as at a change of the data."""
        fresh = Detector(self.history.size(1) - 1, self.history.device)
        self.__dict__.update(fresh.__dict__)

    def copy(self) -> Detector:
        """A detector with the same past."""
        other = copy.copy(self)
        for name, value in self.__dict__.items():
            if isinstance(value, Tensor):
                setattr(other, name, value.clone())
        return other

    def to_dict(self) -> dict[str, Any]:
        """The past as JSON-compatible values, NaN and infinity as None: waits for the device."""
        return {
            "num_steps": self.num_steps,
            "history": [_plain(row) for row in self.history.tolist()],
            "limits": _plain(self.limits.tolist()),
            "losses": _plain([float(self.start), float(self.best), float(self.level)]),
        }

    def load(self, value: dict[str, Any]) -> None:
        """Nothing; takes over the past that `to_dict` wrote.

        Args:
            value: Of a detector with as many groups.
        """
        device = self.history.device
        rows = [_numbers(row, -math.inf) for row in value["history"]]
        self.history = torch.tensor(rows, dtype=torch.float32, device=device)
        self.limits = torch.tensor(_numbers(value["limits"], math.inf), dtype=torch.float32, device=device)
        start, best, level = value["losses"]
        self.level = torch.full((1,), math.inf if level is None else level, device=device)
        self.start = torch.tensor(math.nan if start is None else start, dtype=torch.float32, device=device)
        self.best = torch.tensor(math.inf if best is None else best, dtype=torch.float32, device=device)
        self.num_steps = value["num_steps"]


def _write(target: Tensor, value: Tensor) -> None:
    # `copy_` would do, but only this form can be shown on fake CUDA tensors not to wait.
    torch._foreach_copy_([target], [value])  # pyright: ignore[reportPrivateImportUsage]


def worst(verdicts: Tensor) -> Tensor:
    """The worst of a step's verdicts on its channels, 0-d."""
    return verdicts.narrow(0, 0, len(verdicts) - 2).amax()


def _summary(signals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Largest value and mean of every column, NaN left out, and whether enough is known."""
    known = torch.isnan(signals).logical_not_()
    count = known.sum(0)
    mean = torch.where(known, signals, 0.0).sum(0) / count
    return torch.where(known, signals, -math.inf).amax(0), mean, count >= LEAST_SEEN


def _mean(signals: Tensor) -> Tensor:
    """Mean with NaN left out, as `nanmean`, which takes several times as long on small tensors."""
    known = torch.isnan(signals).logical_not_()
    return torch.where(known, signals, 0.0).sum() / known.sum()


def _plain(numbers: list[float]) -> list[float | None]:
    return [number if math.isfinite(number) else None for number in numbers]


def _numbers(values: list[float | None], missing: float) -> list[float]:
    return [missing if value is None else value for value in values]


def _mean_over_ranks(losses: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """Mean over the ranks that were told a loss; not finite where none was."""
    known = torch.isfinite(losses)
    total = reduce(torch.stack((torch.where(known, losses, 0.0), known.float())))
    return total.select(0, 0) / total.select(0, 1)  # 0 / 0 is NaN: not known
