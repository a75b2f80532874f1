"""What a recording shows while it runs: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

LINE_SECONDS = 30.0
"""Seconds between two lines where there is no terminal."""


class RecordingProgress:
    """Progress of a recording, with the time left estimated from the seconds of each task's runs.

    Args:
        tasks: The task of every run to come.
        seconds: Expected seconds of a run, by task, where known from earlier recordings.
        jobs: Runs at a time.
        visible: False shows nothing.
        console: Where to show it; standard error by default.
        line_seconds: Seconds between two lines where the console is no terminal.
    """

    def __init__(
        self,
        tasks: Iterable[str],
        seconds: Mapping[str, float],
        jobs: int,
        *,
        visible: bool = True,
        console: Console | None = None,
        line_seconds: float = LINE_SECONDS,
    ) -> None:
        """Count what is to come."""
        self._left = Counter(tasks)
        self._total = self._left.total()
        self._expected = dict(seconds)
        self._measured: dict[str, list[float]] = {}
        self._statuses: Counter[str] = Counter()
        self._jobs = max(1, jobs)
        self._console = console or Console(stderr=True)
        self._line_seconds = line_seconds
        self._visible = visible
        self._bar: Progress | None = None
        if visible and self._console.is_terminal:
            self._bar = bar = Progress(
                TextColumn("recording"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[remark]}"),
                console=self._console,
            )
            self._row = bar.add_task("recording", total=self._total, remark="")

    def __enter__(self) -> RecordingProgress:
        """Itself, with the bar shown."""
        self._started = self._line_at = time.monotonic()
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the bar."""
        if self._bar is not None:
            self._bar.stop()

    def advance(self, task: str, status: str, seconds: float) -> None:
        """Nothing; counts one finished run and shows it.

        Args:
            task: Name of the task.
            status: How the run ended.
            seconds: How long it took.
        """
        self._left[task] -= 1
        self._statuses[status] += 1
        self._measured.setdefault(task, []).append(seconds)
        if not self._visible:
            return
        if self._bar is not None:
            self._bar.update(self._row, advance=1, remark=self._remark())
        elif time.monotonic() - self._line_at >= self._line_seconds:
            self._line_at = time.monotonic()
            done = self._statuses.total()
            rate = done / max(1e-9, self._line_at - self._started)
            self.say(f"recorded {done}/{self._total}, {rate:.2f} runs/s, {self._remark()}")

    def say(self, text: str) -> None:
        """Nothing; shows a line of text."""
        if self._visible:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def seconds_left(self) -> float:
        """The expected seconds until all runs are done, NaN before anything is known."""
        means = self._expected | {task: sum(s) / len(s) for task, s in self._measured.items()}
        if not means:
            return float("nan")
        typical = sum(means.values()) / len(means)
        return sum(count * means.get(task, typical) for task, count in self._left.items()) / self._jobs

    def _remark(self) -> str:
        """The time left, and the runs that did not complete."""
        parts = [f"{_duration(self.seconds_left())} left"]
        parts += [f"{self._statuses[word]} {word}" for word in ("diverged", "failed") if self._statuses[word]]
        return ", ".join(parts)


def _duration(seconds: float) -> str:
    """The duration in its two largest units."""
    if seconds != seconds:
        return "unknown time"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
