"""Print how well choices carry over width and horizon, and how well best rates are predicted.

    python scripts/evaluate_transfer.py            # writes transfer.json to meta_data
    python scripts/evaluate_transfer.py --output - # the tables only

Everything is judged on architecture families that were not learned from, on recorded single changes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from autoopt.errors import AutoOptError
from autoopt.meta.dataset import MetaDataset
from autoopt.meta.fitting import Settings, learning_tables
from autoopt.meta.fold_fitting import restricted
from autoopt.meta.pairs import canonical
from autoopt.meta.rate_prediction import RateScore, group_scores, interpolated_best, sweep_score
from autoopt.meta.runs import Recordings
from autoopt.meta.targets import NUM_RATES, sweep
from autoopt.meta.transfer import Size, transfers
from autoopt.optimizers.recipe import calibrated_default


def parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    result = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    result.add_argument("--folder", default="meta_data", help="recorded trials (default meta_data)")
    result.add_argument("--output", metavar="FILE", help="JSON to write (default transfer.json in the folder; - none)")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code, after evaluating."""
    options = parser().parse_args(arguments)
    try:
        result = evaluated(options.folder)
    except AutoOptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(transfer_table(result["transfer"]))
    print()
    print(rate_table(result["rates"]))
    if options.output != "-":
        path = Path(options.output or Path(options.folder) / "transfer.json")
        path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
        print(f"\nwritten to {path}")
    return 0


def evaluated(folder: str) -> dict[str, Any]:
    """Both results, as JSON-compatible values."""
    from autoopt.tasks import all_tasks

    dataset = MetaDataset.load(folder)
    hidden = {task.name for task in all_tasks() if task.evaluation_only or task.demo}
    dataset = restricted(dataset, set(dataset.trials["task"]) - hidden)
    frame: Any = dataset.trials
    features: Any = dataset.features
    settings, recipe = Settings(), json.loads(calibrated_default().to_json())
    tables = learning_tables(dataset, canonical(recipe), settings.features)
    first = frame.drop_duplicates("task").set_index("task")
    sizes = {str(task): Size(int(row["width"]), int(row["budget_steps"])) for task, row in first.iterrows()}
    scores = group_scores(tables, {group: canonical(config) for group, config in recipe["groups"].items()}, settings)
    recordings = Recordings.of(dataset)
    best = {}
    for task in recordings.tasks:
        losses = {rate: runs[0].loss for rate, (_, runs) in sweep(recordings, task).items() if 0 in runs}
        if len(losses) >= NUM_RATES:
            best[task] = interpolated_best(np.log2(list(losses)), np.array(list(losses.values())))
    numbers = features.drop(columns=["seed", "group", "family", "source"]).groupby("task").mean()
    values = {str(task): row.to_numpy(dtype=np.float64) for task, row in numbers.iterrows()}
    scores.append(sweep_score(best, values, {str(task): str(row["family"]) for task, row in first.iterrows()}))
    return {"transfer": transfers(tables, sizes, settings, say=_say), "rates": [asdict(score) for score in scores]}


def transfer_table(rows: Sequence[dict[str, Any]]) -> str:
    """The table of transfer, as Markdown."""
    lines = [
        "| | learned from | judged | log loss, across | with all tasks | closed gap, across | with all tasks | lost |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        across, whole = row["across"], row["all"]
        cells = [row["title"], str(row["num_learned"]), str(row["num_tasks"])]
        cells += [_interval(part, "gain", "+.4f") for part in (across, whole)]
        cells += [_interval(part, "closed", ".2f") for part in (across, whole)]
        cells.append("-" if row["lost"] is None else f"{100 * row['lost']:.0f} %")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def rate_table(rows: Sequence[dict[str, Any]]) -> str:
    """The table of predicted rates, as Markdown."""
    lines = [
        "| role group | optimizer | tasks | within a factor of 2 | one rate for all | median error (factors of 2) "
        "| one rate for all | best at a border |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for value in rows:
        row = RateScore(**value)
        lines.append(
            f"| {row.group} | {row.optimizer} | {row.num_tasks} | {100 * row.predicted:.0f} % | "
            f"{100 * row.constant:.0f} % | {row.error:.2f} | {row.constant_error:.2f} | {100 * row.at_border:.0f} % |"
        )
    return "\n".join(lines)


def _interval(part: dict[str, Any], key: str, form: str) -> str:
    if part[key] is None:
        return "-"
    low, high = part[f"{key}_ci"]
    return f"{part[key]:{form}} ({low:{form}} to {high:{form}})"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
