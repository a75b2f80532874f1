"""The best combination of one option for each item: for whole role groups exactly, for tensors near to it.

Both are multiple-choice knapsacks (Kellerer, Pferschy & Pisinger 2004, Knapsack Problems, chapter 11).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MAX_STATES = 2000
"""Partial combinations kept from one tensor to the next; above, neighbours in memory are thinned out."""


@dataclass(frozen=True, eq=False)
class Combinations:
    """Every combination of one option for each role group.

    Attributes:
        picks: Index of the option of each group, `(num_combinations, num_groups)`.
        loss: Expected change of the log loss of each, `(num_combinations,)`.
        cautious: The same on the pessimistic side.
        bytes: Bytes of state.
        seconds: Seconds of a training step, NaN where no times were measured.
    """

    picks: np.ndarray
    loss: np.ndarray
    cautious: np.ndarray
    bytes: np.ndarray
    seconds: np.ndarray

    def index_of(self, picks: Sequence[int]) -> int:
        """The combination of these options."""
        return int(np.flatnonzero((self.picks == np.asarray(picks)).all(axis=1))[0])

    def best(self, value: np.ndarray, allowed: np.ndarray) -> int:
        """The allowed combination with the lowest value; among equals the lower loss, then the leaner, then the first.

        Args:
            value: `(num_combinations,)`.
            allowed: Which may be taken; at least one.
        """
        indices = np.flatnonzero(allowed)
        order = np.lexsort((indices, self.bytes[indices], self.loss[indices], value[indices]))
        return int(indices[order[0]])

    def front(self, allowed: np.ndarray, *columns: np.ndarray) -> list[int]:
        """The allowed combinations that no other one is better than in one column and no worse in the rest."""
        indices = np.flatnonzero(allowed)
        table = np.stack([column[indices] for column in columns], axis=1)
        kept: list[int] = []
        for row in np.lexsort(table.T[::-1]):
            # In this order a later row never beats an earlier one: it is enough to compare with those kept.
            if not (table[kept] <= table[row]).all(axis=1).any():
                kept.append(int(row))
        return [int(index) for index in indices[kept]]


def combinations(
    loss: Sequence[Sequence[float]],
    cautious: Sequence[Sequence[float]],
    state_bytes: Sequence[Sequence[int]],
    seconds: Sequence[Sequence[float]] | None,
    base_seconds: float = 0.0,
) -> Combinations:
    """All combinations of options.

    An option that is no better than another of its group in anything is left out; the first of each
    group stays.

    Args:
        loss: Of every option of every group.
        cautious: Likewise.
        state_bytes: Likewise.
        seconds: Seconds of the group's update, likewise, or None where they were not measured.
        base_seconds: Seconds of a step beside the updates.
    """
    times = [[0.0] * len(row) for row in loss] if seconds is None else seconds
    kept = [_worth_keeping(*rows) for rows in zip(loss, cautious, state_bytes, times, strict=True)]
    picks = np.array(list(itertools.product(*kept)), dtype=np.int64).reshape(-1, len(loss))

    def total(rows: Sequence[Sequence[float]]) -> np.ndarray:
        columns = [np.asarray(row)[picks[:, group]] for group, row in enumerate(rows)]
        return np.sum(columns, axis=0)

    whole = total(times) + base_seconds if seconds is not None else np.full(len(picks), np.nan)
    return Combinations(picks, total(loss), total(cautious), total(state_bytes), whole)


def _worth_keeping(*columns: Sequence[float]) -> list[int]:
    rows = list(zip(*columns, strict=True))
    return [index for index in range(len(rows)) if index == 0 or not _is_beaten(index, rows)]


def _is_beaten(index: int, rows: Sequence[Sequence[float]]) -> bool:
    """Whether another row is no worse anywhere, and better somewhere or an equal that comes first."""
    row = rows[index]
    return any(
        all(a <= b for a, b in zip(other, row, strict=True)) and (other != row or position < index)
        for position, other in enumerate(rows)
        if position != index
    )


def split(loss: Sequence[Sequence[float]], state_bytes: Sequence[Sequence[int]], limit: int) -> list[int] | None:
    """One option for every item with the least total loss whose bytes fit, or None where nothing fits.

    Partial sums that another one beats in both are dropped (Nemhauser & Ullmann 1969). That is exact
    until `MAX_STATES` remain; above, sums that are close in bytes are thinned out, so that what
    is returned always fits but may miss the optimum by little.

    Args:
        loss: Of every option of every item.
        state_bytes: Likewise.
        limit: Bytes that may be taken.
    """
    least = np.array([min(row) for row in state_bytes], dtype=np.int64)
    ahead = np.append(np.cumsum(least[::-1])[::-1][1:], 0)
    total_loss, total_bytes = np.zeros(1), np.zeros(1, dtype=np.int64)
    trail: list[tuple[np.ndarray, np.ndarray]] = []
    for losses, sizes, rest in zip(loss, state_bytes, ahead, strict=True):
        new_loss = (total_loss[:, None] + np.asarray(losses)).ravel()
        new_bytes = (total_bytes[:, None] + np.asarray(sizes, dtype=np.int64)).ravel()
        fits = np.flatnonzero(new_bytes + rest <= limit)
        if not len(fits):
            return None
        order = fits[np.lexsort((new_loss[fits], new_bytes[fits]))]
        lowest = np.minimum.accumulate(new_loss[order])
        order = order[np.append(True, new_loss[order][1:] < lowest[:-1])]
        if len(order) > MAX_STATES:
            order = order[np.unique(np.linspace(0, len(order) - 1, MAX_STATES).round().astype(np.int64))]
        trail.append((order // len(losses), order % len(losses)))
        total_loss, total_bytes = new_loss[order], new_bytes[order]
    state = len(total_loss) - 1  # the last of a front takes most and loses least
    picks = []
    for parents, options in reversed(trail):
        picks.append(int(options[state]))
        state = int(parents[state])
    return picks[::-1]
