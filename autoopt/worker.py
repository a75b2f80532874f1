"""What a recording's worker process does: run a chunk of requests, each acknowledged when done."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from autoopt.errors import MetaDatasetError
from autoopt.meta.dataset import features_record, trial_record
from autoopt.meta.journal import Journal
from autoopt.meta.trial import FeatureRequest, Trial, TrialRequest, TrialStatus

Request = TrialRequest | FeatureRequest
Runner = Callable[[TrialRequest], Trial]
Extractor = Callable[[FeatureRequest], list[dict[str, Any]]]

_WATCH = "autoopt-parent-watch"
_WATCH_SECONDS = 0.5


@dataclass(frozen=True)
class Chunk:
    """Requests of one task for one worker, and the expected seconds of each (NaN: unknown)."""

    requests: tuple[Request, ...]
    seconds: float


@dataclass(frozen=True)
class Settings:
    """What a worker needs beside its chunk."""

    runner: Runner | None
    extractor: Extractor | None
    task_modules: tuple[str, ...]
    journal: Journal | None
    deadline: float | None
    parent: int


@dataclass(frozen=True)
class Outcome:
    """A finished request; its record where the worker has not journaled it."""

    task: str
    status: str
    seconds: float
    record: dict[str, Any] | None


def run_chunk(number: int, chunk: Chunk, settings: Settings) -> tuple[int, list[Outcome]]:
    """The chunk's number and the outcomes of its runs, those left out that the budget has cut."""
    runner = settings.runner
    if runner is None and any(isinstance(request, TrialRequest) for request in chunk.requests):
        from autoopt.training import run_trial

        runner = functools.partial(run_trial, task_modules=settings.task_modules)
    extractor = settings.extractor
    if extractor is None and any(isinstance(request, FeatureRequest) for request in chunk.requests):
        from autoopt.extraction import extract_features

        extractor = functools.partial(extract_features, task_modules=settings.task_modules)
    outcomes: list[Outcome] = []
    if settings.journal is not None and os.getpid() != settings.parent:
        _end_with_parent(settings.parent)
    with _worker_process(settings.parent):
        for request in chunk.requests:
            margin = 0.0 if math.isnan(chunk.seconds) else chunk.seconds
            if settings.deadline is not None and time.time() + margin >= settings.deadline:
                break
            begun = time.perf_counter()
            if isinstance(request, TrialRequest):
                assert runner is not None
                trial = _run(request, runner)
                status, result = trial.status, trial_record(trial.to_row())
            else:
                assert extractor is not None
                result = _extract(request, extractor)
                status = "features" if result is not None else TrialStatus.FAILED
            if settings.journal is not None and result is not None:
                settings.journal.append(result)
                result = None
            outcomes.append(Outcome(request.task, status, time.perf_counter() - begun, result))
    return number, outcomes


def _run(request: TrialRequest, runner: Runner) -> Trial:
    """The trial of a request, a failed one where the runner raised."""
    try:
        trial = runner(request)
    except (Exception, SystemExit) as error:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return Trial.failed(request, f"{type(error).__name__}: {error}", now)
    if not isinstance(trial, Trial) or trial.trial_id != request.trial_id:
        found = trial.trial_id if isinstance(trial, Trial) else repr(trial)
        raise MetaDatasetError(
            f"the runner gave {found} for the request {request.trial_id} of task {request.task!r}; "
            "a runner must return the Trial with the request's trial_id"
        )
    return replace(trial, mode=request.mode)


def _extract(request: FeatureRequest, extractor: Extractor) -> dict[str, Any] | None:
    """The journal record of a task's features, or None where the extractor raised."""
    try:
        rows = extractor(request)
        problem = "" if rows else "the extractor gave no rows"
    except Exception as error:
        rows, problem = [], f"{type(error).__name__}: {error}"
    if problem:
        # Features have no row for a failure: they stay missing and are tried again by the next run.
        print(f"no features of {request.task} (seed {request.seed}): {problem}", file=sys.stderr)
        return None
    return features_record(rows)


def _end_with_parent(parent: int) -> None:
    """Nothing; ends this process soon after its parent's death.

    Loky's workers do not notice it. They would hold their memory for ever, and their runs would
    slow down those of the next recording.
    """
    if any(thread.name == _WATCH for thread in threading.enumerate()):
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name=_WATCH, daemon=True).start()


@contextlib.contextmanager
def _worker_process(parent: int) -> Iterator[None]:
    """A context with one torch thread; in a worker process, Ctrl-C is left to the parent."""
    if os.getpid() != parent:
        with contextlib.suppress(ValueError):  # not the main thread (Dask): it gets no signals
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
