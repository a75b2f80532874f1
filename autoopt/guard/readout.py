"""How verdicts reach the host: at once where they are on it, else an interval late and without waiting."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

INTERVAL = 16
"""Steps between two looks at what a device has found."""


class Readout:
    """Rows that a device computes step by step, as lists of numbers on the host.

    With an interval, rows are collected on the device and copied to pinned memory when it is full; they
    are read when the next one is, by when the copy has long been made. So the host never waits for
    steps that it has only just launched, and reads at the same step in every run and on every rank.

    Args:
        interval: Steps between two copies, 0 to read each row at once (on a CPU).
    """

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self._rows: list[Tensor] = []
        self._first_step = 0
        self._sent: tuple[int, Tensor, Any] | None = None

    def add(self, step: int, row: Tensor) -> list[tuple[int, list[int]]]:
        """The `(step, row)` pairs that have become known, the oldest first.

        Args:
            step: Step of the new row.
            row: 1-d tensor of small whole numbers.
        """
        if self.interval == 0:
            return [(step, [int(value) for value in row.tolist()])]
        if not self._rows:
            self._first_step = step
        self._rows.append(row)
        if len(self._rows) < self.interval:
            return []
        known = self._read()
        self._send()
        return known

    def clear(self) -> None:
        """Nothing; drops what was not read, as after a rollback."""
        self._rows, self._sent = [], None

    def _send(self) -> None:
        rows = torch.stack(self._rows)
        device = rows.device.type
        host = torch.empty(rows.shape, dtype=rows.dtype, device="cpu", pin_memory=device == "cuda")
        host.copy_(rows, non_blocking=True)
        event = None
        if device != "cpu":
            event = torch.Event(device)
            event.record()
        self._sent, self._rows = (self._first_step, host, event), []

    def _read(self) -> list[tuple[int, list[int]]]:
        if self._sent is None:
            return []
        first, host, event = self._sent
        self._sent = None
        if event is not None:
            event.synchronize()  # recorded an interval ago
        return [(first + i, [int(value) for value in row]) for i, row in enumerate(host.tolist())]
