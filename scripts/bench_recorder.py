"""Prints how many trials a second the recorder makes, against a bare hand-written training loop.

    python scripts/bench_recorder.py [--jobs 2] [--repeats 5]

Both train the same plans of the same tasks in as many processes, one thread each, and both validate
at the same steps. The bare loop builds the task, steps the optimizer and keeps the losses: no
identity, no journal, no measurement. The two take turns; the median of the paired ratios is shown.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence

from joblib import Parallel, delayed

from autoopt.meta.trial import TrialRequest
from autoopt.optimizers.recipe import Recipe, calibrated_default
from autoopt.recorder import record

TASKS = (
    "digits-mlp-w32-b16-s400",
    "leaf-mlp-w64-b32-s500",
    "mnist-5k-mlp-w64-b64-s400",
    "digits-cnn-w16-b16-s400",
    "hotel-rates-mlp-embedding-w64-b64-s500",
    "umls-kge-complex-w32-b64-s600",
)


def requests() -> list[TrialRequest]:
    """Four plans of each task."""
    plans = [Recipe.uniform("adamw", lr, width_free=False) for lr in (1e-3, 3e-3, 1e-2)] + [calibrated_default()]
    return [TrialRequest(task, plan.to_json()) for task in TASKS for plan in plans]


def bare_loop(request: TrialRequest) -> list[float]:
    """The validation losses of one run, trained as a notebook would train it."""
    import torch

    from autoopt.architecture import describe
    from autoopt.optimizers.auto_optimizer import AutoOptimizer
    from autoopt.training import build_instance, find_task, validate, validation_steps

    torch.set_num_threads(1)
    task = find_task(request.task)
    instance = build_instance(task, request.seed)
    model = instance.model
    plan = Recipe.from_json(request.plan).resolve(describe(model).layers, task.budget_steps)
    optimizer = AutoOptimizer.from_plan(model, plan)
    points = set(validation_steps(task.budget_steps))
    losses = []
    for step, batch in zip(range(1, task.budget_steps + 1), instance.batches(), strict=False):
        optimizer.zero_grad()
        loss = instance.loss_fn(model, batch)
        loss.backward()
        optimizer.step()
        if step in points:
            losses.append(validate(instance, model))
    return losses


def recorded_seconds(work: Sequence[TrialRequest], jobs: int) -> float:
    """Seconds of recording the runs into a new folder."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        summary = record(work, folder, jobs=jobs, progress=False)
        seconds = time.perf_counter() - start
    if summary.recorded != len(work):
        raise SystemExit(f"only {summary.recorded} of {len(work)} runs were recorded: {summary}")
    return seconds


def bare_seconds(work: Sequence[TrialRequest], jobs: int) -> float:
    """Seconds of the bare loops over the runs."""
    start = time.perf_counter()
    Parallel(n_jobs=jobs)(delayed(bare_loop)(request) for request in work)
    return time.perf_counter() - start


def main() -> None:
    """Measure, and print one line a repeat and the medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of measurements (default 5)")
    options = parser.parse_args()
    work = requests()
    recorded_seconds(work, options.jobs)  # the first pass starts the workers and loads the data
    bare_seconds(work, options.jobs)
    ratios = []
    for repeat in range(options.repeats):
        order = (recorded_seconds, bare_seconds) if repeat % 2 else (bare_seconds, recorded_seconds)
        seconds = {measure: measure(work, options.jobs) for measure in order}
        mine, bare = (len(work) / seconds[measure] for measure in (recorded_seconds, bare_seconds))
        ratios.append(mine / bare)
        print(f"recorder {mine:.2f} trials/s, bare loop {bare:.2f} trials/s, ratio {ratios[-1]:.3f}", flush=True)
    low, high = min(ratios), max(ratios)
    print(f"median ratio {statistics.median(ratios):.3f} (from {low:.3f} to {high:.3f}), {options.jobs} jobs")


if __name__ == "__main__":
    main()
