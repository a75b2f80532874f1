"""Made-up trials for the tests of the journal, the data set and the recorder."""

import json
import math
import os
import signal
import time

from autoopt.meta.trial import FeatureRequest, Trial, TrialRequest, TrialStatus


def requests(num_tasks=3, num_plans=4, seeds=(0,), round="portfolio"):
    return [
        TrialRequest(f"task-{t}", json.dumps({"plan": p}), f"plan {p}", round, seed=seed)
        for t in range(num_tasks)
        for p in range(num_plans)
        for seed in seeds
    ]


def run(request, **changes):
    """The trial of a request, the same every time; some diverge."""
    plan = json.loads(request.plan)["plan"]
    diverged = plan == 3
    values = {
        "trial_id": request.trial_id,
        "task": request.task,
        "family": f"family-{request.task[-1]}",
        "source": "source",
        "batch_size": 8,
        "budget_steps": 100,
        "width": 16,
        "num_parameters": 1000,
        "plan": request.plan,
        "plan_name": request.plan_name,
        "round": request.round,
        "group": request.group,
        "change": request.change,
        "paired_with": request.paired_with,
        "seed": request.seed,
        "status": TrialStatus.DIVERGED if diverged else TrialStatus.COMPLETED,
        "best_val_loss": math.inf if diverged else 1.0 / 3 + plan + request.seed,
        "final_val_loss": math.nan if diverged else 2.5,
        "best_step": -1 if diverged else 100,
        "diverged_step": 60 if diverged else -1,
        "val_steps": [50, 100],
        "val_losses": [0.5, math.inf if diverged else 0.25],
        "train_losses": [0.5, math.nan if diverged else 0.125],
        "step_seconds": 1e-4 * (1 + int(request.task[-1])),
        "versions": '{"torch": "2.13.0"}',
        "recorded_at": "2026-01-01T00:00:00+00:00",
    }
    return Trial(**values | changes)


def run_or_raise(request):
    """Like `run`, but plan 2 raises."""
    if request.plan_name == "plan 2":
        raise ValueError(f"no data for {request.task}")
    return run(request)


def run_slowly(request):
    time.sleep(0.05)
    return run(request)


def run_or_die(request):
    """Like `run`, but plan 2 of task 1 kills its process as the kernel does when memory is short."""
    if request.plan_name == "plan 2" and request.task == "task-1":
        os.kill(os.getpid(), signal.SIGKILL)
    return run(request)


def features(request: FeatureRequest):
    return [
        {
            "task": request.task,
            "seed": request.seed,
            "group": group,
            "family": "f",
            "source": "s",
            "depth": 1.5,
        }
        for group in ("matrix", "head")
    ]
