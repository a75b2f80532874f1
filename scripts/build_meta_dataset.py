"""Record the meta-dataset: run the missing trials of some rounds, then compact them into Parquet.

    python scripts/build_meta_dataset.py --rounds features,adamw-sweep,portfolio --jobs 2 --budget-minutes 30
    python scripts/build_meta_dataset.py --rounds portfolio --tasks mypkg.mytasks --only 'mine-*'
    python scripts/build_meta_dataset.py --rounds coordinate-1 --list

The rounds are those of `autoopt.rounds`, and `features`: the meta-features of each task and seed. Run
again, the same command adds only what is missing. Ctrl-C keeps what was recorded. The exit code is 0
when everything asked for is recorded, 3 when something is missing still (the budget ended first, or
features could not be extracted), 130 after Ctrl-C, 1 on an error.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from autoopt.backends import BACKENDS
from autoopt.errors import AutoOptError, MetaDatasetError

if TYPE_CHECKING:
    from autoopt.worker import Request

EXIT_INCOMPLETE = 3
EXIT_INTERRUPTED = 130


def parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    result = argparse.ArgumentParser(
        description="Record training runs for the meta-dataset; what is recorded already is skipped."
    )
    result.add_argument(
        "--rounds", "--round", required=True, type=_words, metavar="NAME[,NAME...]",
        help="rounds to record, one after the other: features, and those of autoopt.rounds",
    )  # fmt: skip
    result.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each (default 1)")
    result.add_argument(
        "--backend", choices=BACKENDS, default="loky",
        help="loky: this machine; dask, ray: a cluster (DASK_SCHEDULER_ADDRESS, RAY_ADDRESS) or a local one",
    )  # fmt: skip
    result.add_argument("--budget-minutes", type=float, help="start no run that would end after this")
    result.add_argument("--folder", default="meta_data", help="where trials are recorded (default meta_data)")
    result.add_argument(
        "--tasks", type=_words, default=[], metavar="MODULE[,MODULE...]",
        help="modules with a function tasks(), recorded beside the suite",
    )  # fmt: skip
    result.add_argument("--seeds", type=_seeds, default=[0], metavar="N[,N...]", help="seeds (default 0)")
    result.add_argument("--only", metavar="PATTERN", help="only tasks whose name matches, such as 'mnist-*'")
    result.add_argument("--retry-failed", action="store_true", help="run again what failed before")
    result.add_argument(
        "--compact", action=argparse.BooleanOptionalAction, default=True,
        help="move the journal into Parquet files after each round",
    )  # fmt: skip
    result.add_argument("--list", action="store_true", help="only show what would be run")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code, after recording the rounds of the command line."""
    options = parser().parse_args(arguments)
    # A script has its own folder on the path; modules of `--tasks` lie below the current one.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return _record(options)
    except AutoOptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _record(options: argparse.Namespace) -> int:
    """The exit code, after recording; errors are raised."""
    from autoopt.meta.dataset import MetaDataset
    from autoopt.recorder import record

    deadline = None if options.budget_minutes is None else time.monotonic() + 60 * options.budget_minutes
    for name in options.rounds:
        requests = _requests(name, options)
        if options.list:
            _list(name, requests, options.folder)
            continue
        left = None if deadline is None else (deadline - time.monotonic()) / 60
        if left is not None and left <= 0:
            print(f"the time budget is used up before round {name}", file=sys.stderr)
            return EXIT_INCOMPLETE
        print(f"round {name}: {len(requests)} runs asked for", file=sys.stderr)
        try:
            summary = record(
                requests,
                options.folder,
                jobs=options.jobs,
                backend=options.backend,
                budget_minutes=left,
                task_modules=tuple(options.tasks),
                retry_failed=options.retry_failed,
            )
        finally:
            if options.compact:
                count = MetaDataset.compact(options.folder)
                print(f"{count} journal records compacted into Parquet in {options.folder}", file=sys.stderr)
        if summary.stopped == "interrupted":
            return EXIT_INTERRUPTED
        if summary.remaining:
            return EXIT_INCOMPLETE
    return 0


def _requests(name: str, options: argparse.Namespace) -> Sequence[Request]:
    """The runs of a round on the chosen tasks, given what is recorded up to now."""
    from autoopt.meta.dataset import MetaDataset
    from autoopt.meta.trial import FeatureRequest
    from autoopt.rounds import requests
    from autoopt.tasks import DOMAINS, load_tasks

    tasks = load_tasks((*DOMAINS, *options.tasks))
    if options.only:
        tasks = tuple(task for task in tasks if fnmatch.fnmatchcase(task.name, options.only))
    if not tasks:
        raise MetaDatasetError(f"no task matches --only {options.only!r}; --list shows the names")
    if name == "features":
        return [FeatureRequest(task.name, seed) for task in tasks if not task.demo for seed in options.seeds]
    return requests(name, tasks, options.seeds, MetaDataset.read(options.folder), options.folder)


def _list(name: str, requests: Sequence[Request], folder: str) -> None:
    """Nothing; prints the runs of a round by task, and how many of them are missing."""
    from autoopt.recorder import missing_requests

    missing = Counter(request.task for request in missing_requests(requests, folder))
    wanted = Counter(request.task for request in dict.fromkeys(requests))
    print(f"round {name}: {missing.total()} of {wanted.total()} runs on {len(wanted)} tasks are missing")
    for task, count in wanted.items():
        print(f"  {task}: {missing[task]} of {count}")


def _words(text: str) -> list[str]:
    """The non-empty words between commas."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise argparse.ArgumentTypeError("expected one or more names, separated by commas")
    return words


def _seeds(text: str) -> list[int]:
    """The integers between commas."""
    try:
        return [int(word) for word in _words(text)]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected integers separated by commas, got {text!r}") from error


if __name__ == "__main__":
    sys.exit(main())
