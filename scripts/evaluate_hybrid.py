"""Train with plans that change optimizer on the way: the calibrated default first, momentum SGD at the end.

    python scripts/evaluate_hybrid.py --every 5 --jobs 2      # every fifth task; adds to hybrid.json
    python scripts/evaluate_hybrid.py --show                  # the table of what was trained so far

The switch is that of `select`: profile and decision lie at the given share of the run, and moments are handed
over. What is printed is the log ratio of the best validation loss to that of the default kept throughout,
same seed, same batches. (Averaging at the end, the other classic, is part of the default.)
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

VARIANTS: dict[str, tuple[str, ...]] = {
    "matrix": ("matrix",),
    "matrix, conv": ("matrix", "conv"),
    "everything": ("embedding", "matrix", "conv", "head", "vector"),
}
"""Name -> role groups that go over to SGD."""

SHARES = (0.5, 0.8)
"""Shares of the run after which they do."""

SGD_RATES = {"embedding": 1.0, "matrix": 0.1, "conv": 0.1, "head": 0.1, "vector": 0.1}
"""Relative rates: the best recorded ones of SGD throughout."""


def parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    result = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    result.add_argument("--folder", default="meta_data", help="where hybrid.json lies (default meta_data)")
    result.add_argument("--every", type=int, default=5, help="train every n-th task (default 5)")
    result.add_argument("--jobs", type=int, default=1, help="tasks at a time (default 1)")
    result.add_argument("--budget-minutes", type=float, default=15.0, help="start no task after this (default 15)")
    result.add_argument("--show", action="store_true", help="train nothing")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code, after training what is missing."""
    options = parser().parse_args(arguments)
    path = Path(options.folder) / "hybrid.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if not options.show:
        from joblib import Parallel, delayed

        from autoopt.tasks import all_tasks

        names = [task.name for task in all_tasks() if not (task.demo or task.evaluation_only)][:: options.every]
        end = time.time() + 60.0 * options.budget_minutes
        missing = [name for name in names if name not in known]
        found: Any = Parallel(n_jobs=options.jobs, return_as="generator_unordered")(
            delayed(losses_of)(name, end) for name in missing
        )
        for name, losses in found:
            if losses:
                known[name] = losses
                path.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
                print(f"{len(known)} tasks: {name}", file=sys.stderr, flush=True)
    print(table(known))
    return 0


def losses_of(name: str, end: float) -> tuple[str, dict[str, float]]:
    """A task's name and the best validation loss of every variant, the default's under `"default"`."""
    if time.time() > end:
        return name, {}
    import torch

    import autoopt
    from autoopt.architecture import describe
    from autoopt.fixed_choice import FixedChoice
    from autoopt.optimizers.recipe import calibrated_default
    from autoopt.training import build_instance, find_task, train

    torch.set_num_threads(1)
    task, default = find_task(name), calibrated_default()
    found = {}
    for label, groups, share in [("default", (), SHARES[0])] + [
        (f"{variant} at {share:g}", groups, share) for variant, groups in VARIANTS.items() for share in SHARES
    ]:
        recipe = default
        for group in groups:
            recipe = recipe.with_change(group, {"optimizer": "sgd", "lr": SGD_RATES[group]})
        instance = build_instance(task, 0)
        present = {layer.group for layer in describe(instance.model).layers}
        if groups and not present & set(groups):
            continue
        optimizer = autoopt.select(
            instance.model,
            total_steps=task.budget_steps,
            warmup_steps=round(share * task.budget_steps),
            selector=FixedChoice.between(default.to_json(), recipe.to_json()),
        )
        curve = train(instance, optimizer, task.budget_steps, validating=optimizer.averaged)
        found[label] = curve.best_val_loss if math.isfinite(curve.best_val_loss) else 1e30
    return name, found


def table(known: dict[str, dict[str, float]]) -> str:
    """What each variant did, as Markdown."""
    from autoopt.meta.evaluation import bootstrap_interval
    from autoopt.meta.pairs import log_ratio

    lines = [
        "| to momentum SGD | tasks | mean log ratio | better by over 2 % | worse by over 2 % |",
        "| --- | --- | --- | --- | --- |",
    ]
    labels = [f"{variant} at {share:g}" for variant in VARIANTS for share in SHARES]
    for label in labels:
        ratios = np.array([log_ratio(row[label], row["default"]) for _, row in sorted(known.items()) if label in row])
        if not len(ratios):
            continue
        low, high = bootstrap_interval(ratios)
        shares = [f"{100 * np.mean(part):.0f} %" for part in (ratios < -0.02, ratios > 0.02)]
        cells = [label, str(len(ratios)), f"{ratios.mean():+.3f} ({low:+.3f} to {high:+.3f})", *shares]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
