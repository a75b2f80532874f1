"""Recording of trials: resumable, safe against crashes, on one machine or on a cluster."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
import warnings
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from autoopt.backends import parallel_backend
from autoopt.errors import MetaDatasetError
from autoopt.meta.dataset import MetaDataset
from autoopt.meta.journal import Journal
from autoopt.meta.trial import FeatureRequest, TrialRequest, TrialStatus
from autoopt.progress import RecordingProgress
from autoopt.worker import Chunk, Extractor, Outcome, Request, Runner, Settings, run_chunk

CHUNK_SECONDS = 8.0
"""Expected seconds of the runs of one task that a worker takes at a time."""

LOST_WORKER_ERRORS = frozenset({"BrokenProcessPool", "KilledWorker", "RayError"})
"""Names, at any level of inheritance, of what loky, Dask and Ray raise when a worker process dies."""

MAX_CHUNK_RUNS = 32
UNKNOWN_CHUNK_RUNS = 4


@dataclass(frozen=True)
class RecordingSummary:
    """What a recording did.

    Attributes:
        requested: Distinct runs asked for.
        skipped: Of these, recorded before.
        recorded: Recorded now, failed ones included.
        statuses: Recorded runs by status; extracted features count as `"features"`.
        remaining: Still missing.
        seconds: Wall-clock seconds.
        stopped: `"finished"`, `"budget"` or `"interrupted"`.
    """

    requested: int
    skipped: int
    recorded: int
    statuses: dict[str, int]
    remaining: int
    seconds: float
    stopped: str

    def __str__(self) -> str:
        """One line for people."""
        by_status = ", ".join(f"{count} {status}" for status, count in sorted(self.statuses.items()))
        text = (
            f"{self.recorded} of {self.requested} runs recorded in {self.seconds:.0f} s"
            f"{f' ({by_status})' if by_status else ''}, {self.skipped} were there before"
        )
        ends = {"budget": "the time budget is used up", "interrupted": "interrupted"}
        if self.remaining:
            text += f", {self.remaining} remain ({ends.get(self.stopped, 'failed')}): run again to go on"
        return text


def record(
    work: Iterable[Request],
    folder: str | os.PathLike[str] = "meta_data",
    *,
    jobs: int = 1,
    backend: str = "loky",
    budget_minutes: float | None = None,
    progress: bool = True,
    runner: Runner | None = None,
    extractor: Extractor | None = None,
    task_modules: tuple[str, ...] = (),
    retry_failed: bool = False,
) -> RecordingSummary:
    """A summary, after recording every requested run that the folder does not have yet.

    Each finished run is a line in the folder's journal, fsynced before the next one starts: a crash
    loses the runs in flight, and running again records what is missing. With loky the workers
    write the journal themselves; on a cluster, where they may not see the folder, finished runs come
    back in chunks of a few seconds and are journaled here, so a crash loses a chunk a worker.
    `MetaDataset.load` reads journals; `MetaDataset.compact` moves them into Parquet.

    The runs of one task go to a worker some at a time, so that it loads the task's data once. The
    chunks of all tasks take turns, so that stopping early leaves all tasks covered alike, and the
    longest runs do not come last.

    A run that raises is recorded as `TrialStatus.FAILED` with its message. Ctrl-C ends the recording
    with a summary, and so does the budget: no run is started that is expected to end after it.

    Args:
        work: Runs and meta-features to record; repeated ones count once.
        folder: Folder of the recorded trials.
        jobs: Runs at a time, each in its own process with one thread (1: in this process).
        backend: `"loky"`, `"dask"` or `"ray"` (see `autoopt.backends.parallel_backend`).
        budget_minutes: Wall-clock minutes after which no further run is started.
        progress: Whether to show progress and the summary on standard error.
        runner: What makes a run of a request; `autoopt.training.run_trial` by default.
        extractor: What makes feature rows (with `task`, `seed`, `group`, `family`, `source`) of a
            `FeatureRequest`; `autoopt.extraction.extract_features` by default.
        task_modules: Import names of modules with tasks of your own, for the default runner and
            extractor.
        retry_failed: Whether to run again what was recorded as failed.

    Raises:
        MetaDatasetError: If the folder or the disk does not take what is recorded, a worker process
            was killed, or an argument is wrong. What was recorded stays.
    """
    started = time.monotonic()
    if jobs < 1:
        raise MetaDatasetError(f"jobs must be at least 1, got {jobs}")
    if budget_minutes is not None and not budget_minutes > 0:
        raise MetaDatasetError(f"budget_minutes must be above 0, got {budget_minutes}")
    by_key = {_key(request): request for request in work}
    journal = Journal(folder)
    known, seconds = _known(folder)
    missing = _missing(by_key, known, retry_failed)
    chunks = _chunks(missing, seconds, jobs)
    deadline = None if budget_minutes is None else time.time() + 60 * budget_minutes
    settings = Settings(
        runner=runner,
        extractor=extractor,
        task_modules=tuple(task_modules),
        journal=journal if backend == "loky" else None,
        deadline=deadline,
        parent=os.getpid(),
    )
    stopped = "finished"
    with RecordingProgress((r.task for r in missing), seconds, jobs, visible=progress) as shown:
        try:
            if chunks:
                with contextlib.closing(_outcomes(chunks, settings, jobs, backend)) as outcomes:
                    for outcome in outcomes:
                        if outcome.record is not None:
                            journal.append(outcome.record)
                        shown.advance(outcome.task, outcome.status, outcome.seconds)
        except KeyboardInterrupt:
            stopped = "interrupted"
    # From the folder, not from what came back: runs of a broken-off chunk are recorded too.
    now, _ = _known(folder) if chunks else (known, None)
    added = [key for key in map(_key, missing) if now.get(key, known.get(key)) != known.get(key)]
    remaining = sum(key not in now for key in by_key)
    if remaining and stopped == "finished" and deadline is not None:
        stopped = "budget"
    summary = RecordingSummary(
        requested=len(by_key),
        skipped=len(by_key) - len(missing),
        recorded=len(added),
        statuses=dict(Counter(now[key] for key in added)),
        remaining=remaining,
        seconds=time.monotonic() - started,
        stopped=stopped,
    )
    shown.say(str(summary))
    return summary


def missing_requests(
    work: Iterable[Request], folder: str | os.PathLike[str] = "meta_data", *, retry_failed: bool = False
) -> list[Request]:
    """The distinct requests that `record` would run, since the folder does not have them yet.

    Args:
        work: Runs and meta-features.
        folder: Folder of the recorded trials; it need not exist.
        retry_failed: Whether what was recorded as failed counts as missing.

    Raises:
        MetaDatasetError: If a file in the folder is damaged or of a newer schema.
    """
    return _missing({_key(request): request for request in work}, _known(folder)[0], retry_failed)


def _missing(by_key: Mapping[str, Request], known: Mapping[str, str], retry_failed: bool) -> list[Request]:
    """The requests that are not known, or known as failed where that is asked for."""
    return [
        request
        for key, request in by_key.items()
        if key not in known or (retry_failed and known[key] == TrialStatus.FAILED)
    ]


def _key(request: Request) -> str:
    """The identity under which a request is recorded once."""
    if isinstance(request, TrialRequest):
        return request.trial_id
    return f"features {request.seed} {request.task}"


def _known(folder: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, float]]:
    """The status of every recorded request, and the median seconds of a run by task."""
    data = MetaDataset.read(folder)
    trials, features = data.trials, data.features
    known = dict(zip(trials["trial_id"], trials["status"], strict=True))
    pairs = set(zip(features["task"], features["seed"], strict=True))
    known |= {_key(FeatureRequest(task, int(seed))): "features" for task, seed in pairs}
    ran = trials.assign(seconds=trials["step_seconds"] * trials["budget_steps"]).query("seconds > 0")
    return known, ran.groupby("task")["seconds"].median().to_dict()


def _chunks(requests: list[Request], seconds: Mapping[str, float], jobs: int) -> list[Chunk]:
    """The requests in chunks of one task, ordered so that all tasks advance, and end, together."""
    by_task: dict[str, list[Request]] = {}
    for request in requests:
        by_task.setdefault(request.task, []).append(request)
    most = max(1, math.ceil(len(requests) / (4 * jobs)))
    ordered: list[tuple[float, float, Chunk]] = []
    for task, group in by_task.items():
        expected = seconds.get(task, math.nan)
        unknown = math.isnan(expected)
        runs = UNKNOWN_CHUNK_RUNS if unknown else CHUNK_SECONDS / max(expected, 1e-3)
        size = int(min(max(1, runs), MAX_CHUNK_RUNS, most))
        for start in range(0, len(group), size):
            chunk = Chunk(tuple(group[start : start + size]), expected)
            # By the share of its task's runs done after it, so that every task's last chunk ties; of
            # ties the longest run first (an unknown one may be), so that the end is not one long run.
            share = (start + len(chunk.requests)) / len(group)
            ordered.append((share, -math.inf if unknown else -expected, chunk))
    return [chunk for _, _, chunk in sorted(ordered, key=lambda item: item[:2])]


def _outcomes(chunks: list[Chunk], settings: Settings, jobs: int, backend: str) -> Generator[Outcome, None, None]:
    """The outcomes of all chunks as they finish."""
    import joblib

    pending: dict[int, Chunk] = {}

    def dispatched() -> Iterator[Any]:
        for number, chunk in enumerate(chunks):
            if settings.deadline is not None and time.time() >= settings.deadline:
                return
            pending[number] = chunk
            yield joblib.delayed(run_chunk)(number, chunk, settings)

    with contextlib.ExitStack() as stack:
        with _interrupts_ignored():
            stack.enter_context(parallel_backend(backend, jobs))
            options: dict[str, Any] = {"batch_size": 1, "return_as": "generator_unordered"}
            results: Any = joblib.Parallel(n_jobs=jobs, **options)(dispatched())
        try:
            for number, outcomes in results:
                del pending[number]
                yield from outcomes
        except Exception as error:
            if not LOST_WORKER_ERRORS.intersection(cls.__name__ for cls in type(error).__mro__):
                raise
            tasks = ", ".join(sorted({chunk.requests[0].task for chunk in pending.values()}))
            raise MetaDatasetError(
                f"a worker process was lost ({type(error).__name__}), perhaps killed for lack of memory, "
                f"while runs of these tasks were in flight or next: {tasks}. What was recorded stays; "
                "run again to go on, with fewer jobs if memory is short."
            ) from error
        finally:
            with warnings.catch_warnings():
                # Leaving early is on purpose, and joblib warns that it cancels the rest.
                warnings.simplefilter("ignore")
                results.close()


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """A context in which Ctrl-C is ignored, and for good in the processes that are started in it.

    A terminal sends Ctrl-C to all of them, and only this process should act on it: a worker would
    print a traceback, or die and be taken for one that the system killed. (Blocking the signal would
    lose none here, but multiprocessing's resource tracker unblocks it before the workers start.)
    """
    handler = signal.getsignal(signal.SIGINT)
    if handler is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
