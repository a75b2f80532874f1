import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import trial_rows
from interrupts import heed_interrupts
from rich.console import Console
from trial_rows import features, requests, run, run_or_die, run_or_raise, run_slowly

from autoopt.errors import MetaDatasetError
from autoopt.meta.dataset import MetaDataset, trial_record
from autoopt.meta.journal import Journal
from autoopt.meta.trial import FeatureRequest, Trial, TrialRequest, trial_id
from autoopt.progress import RecordingProgress
from autoopt.recorder import record

TESTS = Path(__file__).parent
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
    "OMP_NUM_THREADS": "1",
}

quietly = partial(record, progress=False)


def noted(request, log):
    """Like `run`, but notes the request in a file first."""
    with open(log, "a") as file:
        file.write(f"{request.task} {request.trial_id}\n")
    return run(request)


def interrupted_at(request, identity):
    if request.trial_id == identity:
        raise KeyboardInterrupt
    return run(request)


def mistaken(request):
    return run(request, trial_id="another")


def recorded(folder):
    return MetaDataset.read(folder).trials.set_index("trial_id").sort_index()


def run_python(code, *arguments, **options):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, timeout=120, env=ENVIRONMENT, **options,
    )  # fmt: skip


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "this never happened"
        time.sleep(0.05)


def alive(pid):
    """Whether a process runs; one that has ended may wait as a zombie for its new parent."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_the_identity_of_a_request_leaves_out_names_and_rounds():
    request = TrialRequest("task", "{}", "name", "round", "head", "{}", "pair", 3, "select")
    assert request.trial_id == trial_id("task", "{}", 3, "select")
    assert request.trial_id == TrialRequest("task", "{}", seed=3, mode="select").trial_id
    others = [("task", "{}", 4, "select"), ("task", "{}", 3, "plan"), ("t", "{}", 3, "select")]
    assert len({request.trial_id, *(trial_id(*other) for other in others)}) == 4


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_request_is_recorded_once_and_a_second_run_adds_only_what_is_missing(tmp_path, jobs):
    work = requests(num_tasks=3, num_plans=4)
    log = tmp_path / "log"
    runner = partial(noted, log=log)
    summary = quietly([*work, *work], tmp_path, jobs=jobs, runner=runner)
    assert (summary.requested, summary.recorded, summary.skipped, summary.remaining) == (12, 12, 0, 0)
    assert summary.statuses == {"completed": 9, "diverged": 3} and summary.stopped == "finished"
    MetaDataset.compact(tmp_path)
    more = requests(num_tasks=4, num_plans=4)
    summary = quietly(more, tmp_path, jobs=jobs, runner=runner)
    assert (summary.recorded, summary.skipped) == (4, 12)
    lines = log.read_text().splitlines()
    assert sorted(line.split()[1] for line in lines) == sorted(request.trial_id for request in more)
    for row in recorded(tmp_path).itertuples():
        expected = run(next(request for request in more if request.trial_id == row.Index))
        assert (row.task, row.plan, row.best_val_loss) == (
            expected.task,
            expected.plan,
            expected.best_val_loss,
        )


def test_each_run_is_on_the_disk_before_the_next_one_starts(tmp_path):
    counts = []

    def runner(request):
        counts.append(len(Journal(tmp_path).read()))
        return run(request)

    quietly(requests(), tmp_path, runner=runner)
    assert counts == list(range(12))


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_that_raises_is_a_failed_row_and_can_be_tried_again(tmp_path, jobs):
    summary = quietly(requests(), tmp_path, jobs=jobs, runner=run_or_raise)
    assert summary.statuses == {"completed": 6, "diverged": 3, "failed": 3} and summary.remaining == 0
    failed = recorded(tmp_path).query("status == 'failed'")
    assert set(failed["error"]) == {f"ValueError: no data for task-{t}" for t in range(3)}
    assert (failed["best_val_loss"] == math.inf).all() and set(failed["round"]) == {"portfolio"}
    assert quietly(requests(), tmp_path, runner=run).recorded == 0
    again = quietly(requests(), tmp_path, runner=run, retry_failed=True)
    assert again.recorded == 3 and again.statuses == {"completed": 3}
    assert "failed" not in set(recorded(tmp_path)["status"])


def test_the_mode_of_the_request_is_recorded(tmp_path):
    quietly([TrialRequest("task-0", '{"plan": 0}', mode="select")], tmp_path, runner=run)
    assert recorded(tmp_path)["mode"].tolist() == ["select"]


def test_a_runner_that_answers_another_request_is_an_error(tmp_path):
    with pytest.raises(MetaDatasetError, match="runner gave another for the request .* of task 'task-0'"):
        quietly(requests(), tmp_path, runner=mistaken)


def test_a_killed_worker_is_a_clear_error_and_what_was_recorded_stays(tmp_path):
    work = requests(num_tasks=3, num_plans=6)
    with pytest.raises(MetaDatasetError, match=r"worker process was lost.*memory.*task-1.*run again"):
        quietly(work, tmp_path, jobs=2, runner=run_or_die)
    before = set(recorded(tmp_path).index)
    assert before <= {request.trial_id for request in work} and len(before) < len(work)
    summary = quietly(work, tmp_path, jobs=2, runner=run)
    assert summary.skipped == len(before) and summary.recorded == len(work) - len(before)


def test_the_budget_ends_a_recording_and_the_next_one_goes_on(tmp_path):
    work = requests(num_tasks=4, num_plans=20)  # 4 seconds at least
    summary = quietly(work, tmp_path, runner=run_slowly, budget_minutes=1.5 / 60)
    assert summary.stopped == "budget" and 0 < summary.recorded < len(work)
    assert summary.remaining == len(work) - summary.recorded
    assert "time budget is used up" in str(summary)
    assert len(recorded(tmp_path)) == summary.recorded
    assert quietly(work, tmp_path, runner=run).recorded == summary.remaining


def test_no_run_is_started_that_is_expected_to_end_after_the_budget(tmp_path):
    journal = Journal(tmp_path)
    long, short = requests(num_tasks=2, num_plans=1, seeds=(7,))
    journal.append(trial_record(run(long, step_seconds=9.0).to_row()))
    journal.append(trial_record(run(short, step_seconds=1e-5).to_row()))
    summary = quietly(requests(num_tasks=2, num_plans=3), tmp_path, runner=run, budget_minutes=0.5)
    assert summary.recorded == 3 and summary.stopped == "budget"
    assert recorded(tmp_path).query("seed == 0")["task"].unique().tolist() == ["task-1"]


def test_an_interrupt_keeps_what_was_recorded(tmp_path, capsys):
    work = requests(num_tasks=1, num_plans=12)
    summary = record(work, tmp_path, runner=partial(interrupted_at, identity=work[7].trial_id))
    assert summary.stopped == "interrupted" and (summary.recorded, summary.remaining) == (7, 5)
    assert set(recorded(tmp_path).index) == {request.trial_id for request in work[:7]}
    assert "7 of 12 runs recorded" in capsys.readouterr().err


def test_control_c_ends_a_recording_with_workers_and_leaves_no_processes(tmp_path):
    code = """
import os, sys
from trial_rows import requests, run_slowly
from autoopt.recorder import record
summary = record(requests(4, 200), sys.argv[1], jobs=2, runner=run_slowly)
print(summary.stopped, summary.recorded)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, start_new_session=True,
        preexec_fn=heed_interrupts,
    )  # fmt: skip
    wait_for(lambda: Journal(tmp_path).read())
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    output, errors = process.communicate(timeout=60)
    stopped, count = output.split()
    assert process.returncode == 0 and stopped == "interrupted", errors
    assert int(count) == len(recorded(tmp_path)) > 0
    assert "Traceback" not in errors and "remain (interrupted): run again to go on" in errors


def test_tasks_take_turns_the_long_ones_first_and_in_chunks(tmp_path):
    """The expected seconds of earlier trials: task 2 is the longest, task 0 the shortest."""
    journal = Journal(tmp_path)
    for number, seconds in enumerate((0.01, 0.02, 0.05)):
        request = requests(3, 1, seeds=(9,))[number]
        journal.append(trial_record(run(request, step_seconds=seconds).to_row()))
    log = tmp_path / "log"
    quietly(requests(num_tasks=3, num_plans=24), tmp_path, runner=partial(noted, log=log))
    tasks = [line.split()[0] for line in log.read_text().splitlines()]
    # Chunks of about 8 seconds: 1 run of 5 seconds, 4 of 2, 8 of 1. All tasks end together, the
    # longest runs first.
    assert tasks[:4] == ["task-2"] * 4 and tasks[-13:] == ["task-2"] + ["task-1"] * 4 + ["task-0"] * 8
    half = tasks[: len(tasks) // 2]
    assert all(8 <= half.count(f"task-{number}") <= 16 for number in range(3))


def test_features_are_extracted_once_a_task_and_seed(tmp_path, capsys):
    work = [FeatureRequest(f"task-{t}", seed) for t in range(3) for seed in range(2)]
    summary = quietly([*work, *requests(2, 1)], tmp_path, runner=run, extractor=features)
    assert summary.statuses == {"completed": 2, "features": 6} and summary.remaining == 0
    MetaDataset.compact(tmp_path)
    assert quietly(work, tmp_path, extractor=features).recorded == 0
    assert len(MetaDataset.load(tmp_path).features) == 12

    def failing(request):
        if request.seed:
            return []
        raise ValueError("no gradients")

    summary = quietly([FeatureRequest("task-9"), FeatureRequest("task-9", 1)], tmp_path, extractor=failing)
    assert summary.recorded == 0 and summary.remaining == 2
    said = capsys.readouterr().err
    assert "no features of task-9 (seed 0): ValueError: no gradients" in said
    assert "no features of task-9 (seed 1): the extractor gave no rows" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jobs": 0}, "jobs must be at least 1"),
        ({"budget_minutes": 0.0}, "budget_minutes must be above 0"),
        ({"backend": "threads"}, "backend 'threads' is unknown; choose one of loky, dask, ray"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, options, message):
    with pytest.raises(MetaDatasetError, match=message):
        quietly(requests(), tmp_path, runner=run, **options)


def test_a_folder_that_cannot_be_written_is_refused_before_anything_runs(tmp_path):
    (tmp_path / "file").touch()
    ran = []
    with pytest.raises(MetaDatasetError, match="cannot be written"):
        quietly(requests(), tmp_path / "file" / "meta_data", runner=ran.append)
    assert ran == []


def test_a_disk_that_fills_up_stops_the_recording_with_the_reason(tmp_path):
    """A file-size limit stands for the full disk; the workers inherit it."""
    code = """
import resource, sys
from trial_rows import requests, run
from autoopt.errors import MetaDatasetError
from autoopt.recorder import record
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
try:
    record(requests(4, 15), sys.argv[1], jobs=int(sys.argv[2]), runner=run, progress=False)
except MetaDatasetError as error:
    print(error)
"""
    for jobs in (1, 2):
        result = run_python(code, tmp_path / str(jobs), jobs)
        assert "trials.jsonl cannot be written" in result.stdout and "intact" in result.stdout, result.stderr
        count = len(recorded(tmp_path / str(jobs)))
        assert count > 10
        assert quietly(requests(4, 15), tmp_path / str(jobs), runner=run).recorded == 60 - count


def test_fifty_kills_lose_nothing_that_was_acknowledged(tmp_path):
    script = TESTS / "crashing_recorder.py"
    result = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "0"],
        capture_output=True, text=True, env=ENVIRONMENT, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.split()[0]) > 100, result.stdout
    work = requests(num_tasks=5, num_plans=400)
    before = len(recorded(tmp_path))
    summary = quietly(work[: before + 20], tmp_path, runner=run)
    assert summary.remaining == 0 and len(recorded(tmp_path)) >= before + 20 - 1
    assert recorded(tmp_path).index.is_unique


def test_a_killed_recording_loses_nothing_takes_its_workers_along_and_is_completed_by_the_next(tmp_path):
    code = """
import os, sys
from trial_rows import requests, run_slowly
from autoopt.recorder import record

def noted(request):
    open(os.path.join(sys.argv[1], f"worker-{os.getpid()}"), "w").close()
    return run_slowly(request)

record(requests(4, 200), sys.argv[1], jobs=2, runner=noted, progress=False)
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=ENVIRONMENT)
    wait_for(lambda: len(list(tmp_path.glob("worker-*"))) == 2 and len(Journal(tmp_path).read()) > 5)
    acknowledged = set(recorded(tmp_path).index)
    process.kill()
    process.wait()
    workers = [int(path.name.split("-")[1]) for path in tmp_path.glob("worker-*")]
    wait_for(lambda: not any(map(alive, workers)))
    assert acknowledged <= set(recorded(tmp_path).index)
    summary = quietly(requests(4, 200)[:40], tmp_path, runner=run)
    assert summary.remaining == 0 and summary.skipped + summary.recorded == 40


def test_several_recorders_on_one_folder_do_not_corrupt_it(tmp_path):
    code = """
import sys
from trial_rows import requests, run
from autoopt.meta.dataset import MetaDataset
from autoopt.recorder import record
work = requests(4, 30)
number = int(sys.argv[2])
for start in range(0, 120, 20):
    record(work[start:start + 20][::1 - 2 * (number % 2)], sys.argv[1], runner=run, progress=False)
    MetaDataset.compact(sys.argv[1])
"""
    recorders = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(number)], env=ENVIRONMENT)
        for number in range(3)
    ]
    assert [recorder.wait() for recorder in recorders] == [0, 0, 0]
    rows = recorded(tmp_path)
    assert sorted(rows.index) == sorted(request.trial_id for request in requests(4, 30))
    assert Journal(tmp_path).read() == []


def test_lines_of_progress_tell_counts_and_the_time_left():
    text = io.StringIO()
    console = Console(file=text, force_terminal=False, width=200)
    tasks = ["a"] * 10 + ["b"] * 10
    with RecordingProgress(tasks, {"b": 60.0}, jobs=2, console=console, line_seconds=0.0) as shown:
        shown.advance("a", "completed", 20.0)
        assert shown.seconds_left() == (9 * 20 + 10 * 60) / 2
        shown.advance("b", "diverged", 30.0)
        assert shown.seconds_left() == (9 * 20 + 9 * 30) / 2
    first, second = text.getvalue().splitlines()
    assert first.startswith("recorded 1/20,") and first.endswith("6 min 30 s left")
    assert second.startswith("recorded 2/20,") and second.endswith("3 min 45 s left, 1 diverged")


def test_a_terminal_gets_a_bar_and_silence_is_silent():
    for visible in (True, False):
        text = io.StringIO()
        console = Console(file=text, force_terminal=True, width=100)
        with RecordingProgress(["a"] * 3, {}, jobs=1, visible=visible, console=console) as shown:
            for _ in range(3):
                shown.advance("a", "completed", 1.0)
        assert ("3/3" in text.getvalue()) == visible


def test_a_failed_trial_keeps_the_request():
    request = TrialRequest("task", "{}", "name", "round", "head", '{"lr": 2}', "pair", 3, "select")
    row = Trial.failed(request, "boom", "now").to_row()
    for name, value in vars(request).items():
        assert row[name] == value
    assert row["trial_id"] == request.trial_id and row["error"] == "boom" and json.dumps(row)


def test_the_helpers_of_these_tests_are_deterministic():
    assert trial_rows.run(requests()[0]) == trial_rows.run(requests()[0])
