"""Recorders that are killed with SIGKILL at random moments: `crashing_recorder.py FOLDER SEED`.

A child process records trial after trial, and compacts now and then. Before each run it writes the trial's
id into a pipe. One process records one run after the other, so a run was acknowledged when the next one is
announced. After its death, a new child on the same folder first reports what it finds there; whatever was
acknowledged must be among it, and no run that was found may be announced again.
"""

import gc
import os
import random
import signal
import sys
import time

import joblib  # noqa: F401  imported here so that the children need not
import pandas  # noqa: F401
import pyarrow.compute  # noqa: F401
import pyarrow.pandas_compat  # noqa: F401
import pyarrow.parquet  # noqa: F401
from trial_rows import requests, run

from autoopt.meta.dataset import MetaDataset
from autoopt.recorder import record

NUM_KILLS = 50
RUNS_BETWEEN_COMPACTIONS = 5


def record_until_killed(folder: str, pipe: int) -> None:
    """Report what is in the folder, then record, announcing each run."""
    found = MetaDataset.read(folder).trials["trial_id"]
    os.write(pipe, "".join(f"found {identity}\n" for identity in found).encode() + b"ready\n")

    def announced(request):
        os.write(pipe, f"run {request.trial_id}\n".encode())
        return run(request)

    work = requests(num_tasks=5, num_plans=400)
    missing = [request for request in work if request.trial_id not in set(found)]
    for start in range(0, len(missing), RUNS_BETWEEN_COMPACTIONS):
        batch = missing[start : start + RUNS_BETWEEN_COMPACTIONS]
        record(work[: len(work) - len(missing)] + batch, folder, runner=announced, progress=False)
        MetaDataset.compact(folder)


def lines_until(pipe: int, count: int, word: str) -> str:
    """What the child reports until `count` lines with that first word have come."""
    text = ""
    while text.count(word) < count or not text.endswith("\n"):
        text += os.read(pipe, 1 << 16).decode()
    return text


def main(folder: str, seed: int) -> None:
    """Kill `NUM_KILLS` recorders, and check after each what is in the folder."""
    moments = random.Random(seed)
    acknowledged: set[str] = set()
    gc.freeze()  # collections in the children would copy all pages
    runs = during_compaction = 0
    for life in range(NUM_KILLS + 1):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            record_until_killed(folder, writing)
            os._exit(0)
        os.close(writing)
        text = lines_until(reading, 1, "ready")
        found = {line.split()[1] for line in text.splitlines() if line.startswith("found")}
        lost = acknowledged - found
        assert not lost, f"life {life} lost {len(lost)} of {len(acknowledged)} acknowledged trials"
        if life % 3:
            # After some runs, up to the middle of the second compaction; else at any moment at all.
            text += lines_until(reading, text.count("run") + moments.randint(1, 8), "run")
            time.sleep(moments.uniform(0.0, 0.01))
        else:
            time.sleep(moments.uniform(0.0, 0.15))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(reading) as rest:
            text += rest.read()
        announced = [line.split()[1] for line in text.splitlines() if line.startswith("run")]
        assert not found & set(announced), "a recorded run was run again"
        assert len(announced) == len(set(announced))
        acknowledged |= found | set(announced[:-1])
        runs += len(announced)
        during_compaction += len(announced) > 0 and len(announced) % RUNS_BETWEEN_COMPACTIONS == 0
    print(f"{runs} runs, {len(acknowledged)} acknowledged, {during_compaction} kills at a compaction")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
