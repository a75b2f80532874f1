"""The recorder on a real local Dask cluster and a real local Ray, with two workers each."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from trial_rows import requests, run_or_raise

from autoopt.meta.dataset import MetaDataset
from autoopt.recorder import record

TESTS = Path(__file__).parent

# In a process of its own: clusters leave threads and sockets behind that are none of ours.
CODE = """
import sys
from trial_rows import requests, run, run_or_die, run_or_raise
from autoopt.backends import parallel_backend
from autoopt.errors import MetaDatasetError
from autoopt.recorder import record

def main(folder, backend):
    with parallel_backend(backend, 2):  # started once; the recorder uses the cluster that is there
        for _ in range(2):
            print("@", record(requests(3, 6), folder, jobs=2, backend=backend, runner=run_or_raise).recorded)
        work = requests(3, 6, seeds=(5,))
        try:
            record(work, folder, jobs=2, backend=backend, runner=run_or_die)
        except MetaDatasetError as error:
            print("@", error)
    print("@", record(work, folder, runner=run).remaining)

if __name__ == "__main__":
    main(*sys.argv[1:])
"""


@pytest.mark.parametrize("backend", ["dask", "ray"])
def test_a_cluster_records_what_one_process_records_and_survives_a_killed_worker(tmp_path, backend):
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "disabled",
        "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0",
    }
    script = tmp_path / "script.py"
    script.write_text(CODE)
    result = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "there"), backend],
        capture_output=True, text=True, timeout=240, env=environment,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    lines = [line[2:] for line in result.stdout.splitlines() if line.startswith("@ ")]
    first, again, error, remaining = lines
    assert (first, again, remaining) == ("18", "0", "0")
    assert "a worker process was lost" in error and "task-1" in error and "run again" in error
    record(requests(3, 6), tmp_path / "here", runner=run_or_raise, progress=False)

    def rows(folder):
        trials = MetaDataset.load(folder).trials.query("seed == 0").set_index("trial_id").sort_index()
        return trials.drop(columns=["val_steps", "val_losses", "train_losses", "recorded_at"])

    there, here = rows(tmp_path / "there"), rows(tmp_path / "here")
    assert len(here) == 18 and there.equals(here)
