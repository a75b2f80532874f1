"""What a race of short runs is worth: closed gap and time to target with and without it, on unseen families.

    python scripts/evaluate_race.py                        # the tables
    python scripts/evaluate_race.py --cache held_out.npz   # keep the held-out predictions, which take minutes
    python scripts/evaluate_race.py --write                # and write what ships, extrapolation.json

Nothing is trained: short runs are recorded by scripts/record_races.py, long ones by
scripts/build_meta_dataset.py. Every task is judged by a selector and an extrapolation that know neither its
architecture family nor its data source. A choice is the best single change, whose long run is recorded.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from autoopt.errors import AutoOptError, MetaDatasetError

RACES = (0.05, 0.1, 0.15, 0.2)
"""Shares of the step budget that are compared."""

GROUPS = (("matrix",), ("matrix", "conv"), ("matrix", "conv", "embedding", "head", "vector"))
"""Role groups that are raced together; the first are those that ship."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code, after printing the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", default="meta_data", help="recorded trials (default meta_data)")
    parser.add_argument("--races", help="recorded short runs (default races.parquet in the folder)")
    parser.add_argument(
        "--cache", metavar="FILE", help="held-out predictions to read, or to write where there are none"
    )
    parser.add_argument("--default", default="3", metavar="K", help="default of defaults.json that changes are around")
    parser.add_argument("--write", action="store_true", help="write extrapolation.json into the folder")
    options = parser.parse_args(arguments)
    try:
        return _evaluate(options)
    except AutoOptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _evaluate(options: argparse.Namespace) -> int:
    import pandas as pd

    from autoopt.meta.calibration import calibrated_by
    from autoopt.meta.dataset import MetaDataset
    from autoopt.meta.extrapolation import FILE_NAME
    from autoopt.meta.fitting import Settings
    from autoopt.meta.race_evaluation import SURPRISES, boldest, learned, race_held_out, race_task, raced_tasks, summary
    from autoopt.rounds import load_defaults

    path = Path(options.races or Path(options.folder) / "races.parquet")
    if not path.exists():
        raise MetaDatasetError(f"there are no short runs at {path}; record some with scripts/record_races.py")
    dataset, short_runs = MetaDataset.load(options.folder), pd.read_parquet(path)
    default = load_defaults(options.folder)[options.default].to_json()
    predictions = _predictions(dataset, default, set(short_runs["task"]), options.cache)
    settings, cautions, _ = calibrated_by(predictions, Settings())
    tasks = raced_tasks(short_runs, predictions, default, settings.spread)
    families = {task.family for task in tasks}
    print(f"{len(short_runs)} short runs; {len(tasks)} tasks in {len(families)} families have long runs too")
    _print_correlations(tasks)
    times = Times(dataset, default)
    shipped: dict[str, Any] = {}
    for groups in GROUPS:
        print(f"\nraced: {', '.join(groups)}")
        print("share  gap without              gap with                 gain                     changed raced harmed")
        for share in RACES:
            outcomes = race_held_out(tasks, share, cautions, settings.margin, groups)
            row = summary(outcomes)
            gaps = "  ".join(_interval(row, name) for name in ("gap_without", "gap_raced", "gap_gain"))
            harmed = f"{100 * row['harmed_without']:.1f} -> {100 * row['harmed']:.1f} %"
            print(f"{share:5.2f}  {gaps}  {row['num_changed']:6d} {row['num_raced']:5d} {harmed}")
            row |= times.compared(outcomes)
            print(
                f"       time to target {row['time_without']:.3f} -> {row['time_raced']:.3f} with the race's steps, "
                f"ratio {row['time_ratio']:.3f} ({row['time_ratio_ci'][0]:.3f} to {row['time_ratio_ci'][1]:.3f}) on "
                f"{row['num_timed']} tasks; {100 * row['share_spent']:.1f} % of the budget spent"
            )
            for item in outcomes:
                if item.choice != item.choice_without:
                    print(f"         {item.task}: {item.without:+.3f} -> {item.raced:+.3f} (best {item.oracle:+.3f})")
            if groups == GROUPS[0]:
                shipped[f"{share:g}"] = {key: _rounded(value) for key, value in row.items()}
    if options.write:
        found = learned(tasks, GROUPS[0])
        tried = {
            s: [race_task(task, replace(found, surprise=s), max(RACES), cautions, settings.margin) for task in tasks]
            for s in SURPRISES
        }
        found = replace(found, surprise=boldest(tried), info=found.info | {"held_out": shipped})
        target = Path(options.folder) / FILE_NAME
        target.write_text(found.to_json(), encoding="utf-8")
        print(f"\n{target} written: surprise {found.surprise:g}")
    return 0


def _predictions(dataset: Any, default: str, raced: set[str], cache: str | None) -> dict[str, Any]:
    """Held-out predictions of every role group, for the folds that hold a raced task."""
    from autoopt.meta.evaluation import HeldOut, predict_held_out, strict_folds
    from autoopt.meta.fitting import Settings, learning_tables

    names = [field.name for field in fields(HeldOut)]
    if cache is not None and Path(cache).exists():
        with np.load(cache, allow_pickle=False) as known:
            groups = sorted({key.split("/")[0] for key in known.files})
            return {group: HeldOut(**{name: known[f"{group}/{name}"] for name in names}) for group in groups}
    found = {}
    for group, table in learning_tables(dataset, default).items():
        print(f"fitting the folds of {group}", file=sys.stderr, flush=True)
        folds = [fold for fold in strict_folds(table.families, table.sources) if raced & set(table.tasks[fold[1]])]
        found[group] = predict_held_out(table, Settings(), folds=folds)
    if cache is not None:
        np.savez(cache, **{f"{g}/{name}": getattr(held, name) for g, held in found.items() for name in names})
    return found


def _print_correlations(tasks: Sequence[Any]) -> None:
    """Nothing; prints how short and long effects agree, for each role group, direction and length."""
    from scipy.stats import spearmanr

    from autoopt.meta.extrapolation import SHARES, is_contrary, num_steps

    print("rank correlation of short with long effects; mean long effect where a result is contrary, and of all")
    for group in GROUPS[-1]:
        for way, word in ((1, "higher rate"), (-1, "lower rate"), (0, "other rule")):
            cells = []
            for share in SHARES:
                pairs = [
                    (item.shorts[steps], item.actual)
                    for task in tasks
                    for item in task.candidates
                    if item.group == group
                    and item.way == way
                    and (steps := num_steps(share, task.budget_steps)) in item.shorts
                ]
                if len(pairs) < 10:
                    continue
                s, y = np.array(pairs).T
                contrary = [long for short, long in pairs if is_contrary(way, short)]
                mean = f"{np.mean(contrary):+.3f} ({len(contrary)})" if contrary else "-"
                cells.append(f"{100 * share:g} %: {spearmanr(s, y)[0]:+.2f}, {mean} of {y.mean():+.3f} ({len(y)})")
            if cells:
                print(f"  {group:9} {word:11} " + "; ".join(cells))


class Times:
    """Times to target of the default with single changes, from the recorded runs.

    Args:
        dataset: Recorded trials and meta-features.
        default: Canonical JSON of the default recipe.
    """

    def __init__(self, dataset: Any, default: str) -> None:
        from autoopt.meta.runs import Recordings
        from autoopt.meta.targets import find_targets

        self.recordings, self.default = Recordings.of(dataset), default
        self.targets = find_targets(self.recordings)

    def of(self, task: str, choice: tuple[str, str] | None) -> float | None:
        """Median over seeds of the time to target in tuned AdamW's own steps; None where nothing is recorded."""
        from autoopt.meta.targets import time_to_target, upper_median
        from autoopt.optimizers.recipe import Recipe

        if task not in self.targets:
            return None
        recipe = Recipe.from_json(self.default)
        plan = recipe.to_json() if choice is None else recipe.with_config(*choice).to_json()
        runs = self.recordings.get(task, plan)
        target = self.targets[task]
        times = [time_to_target(run, target.loss) / target.steps for run in runs.values()]
        return upper_median(times) if times else None

    def compared(self, outcomes: Sequence[Any]) -> dict[str, Any]:
        """Geometric mean time to target without and with the race, whose steps count; a miss counts 4."""
        from autoopt.meta.evaluation import bootstrap_interval
        from autoopt.meta.profiles import R_MAX

        logs, spent = [], []
        for item in outcomes:
            before, after = self.of(item.task, item.choice_without), self.of(item.task, item.choice)
            spent.append(item.num_steps / self.recordings.tasks[item.task].budget_steps)
            if before is None or after is None:
                continue
            after += item.num_steps / self.targets[item.task].steps
            logs.append([math.log(min(time, R_MAX)) for time in (before, after)])
        table = np.array(logs)
        low, high = bootstrap_interval(table[:, 1] - table[:, 0])
        return {
            "time_without": math.exp(table[:, 0].mean()),
            "time_raced": math.exp(table[:, 1].mean()),
            "time_ratio": math.exp((table[:, 1] - table[:, 0]).mean()),
            "time_ratio_ci": [math.exp(low), math.exp(high)],
            "num_timed": len(table),
            "share_spent": float(np.mean(spent)),
        }


def _interval(row: dict[str, Any], name: str) -> str:
    low, high = row[f"{name}_ci"]
    return f"{row[name]:+.3f} ({low:+.3f} to {high:+.3f})"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    return [round(item, 4) for item in value] if isinstance(value, list) else value


if __name__ == "__main__":
    sys.exit(main())
