"""Evaluate the selector, the calibrated default and the baselines on the recorded trials.

    python scripts/evaluate.py                 # from meta_data to evaluation.json, docs and a table
    python scripts/evaluate.py --propose       # fit a selector for every fold and keep what it chooses
    python scripts/evaluate.py --output -      # the table only

Nothing is trained: what needs training is recorded once by scripts/build_meta_dataset.py, and
docs/evaluation.md says by which rounds. Contenders without recorded runs are listed as missing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from autoopt.errors import AutoOptError


def parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    result = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    result.add_argument("--folder", default="meta_data", help="recorded trials (default meta_data)")
    result.add_argument(
        "--output", metavar="FILE", help="JSON to write (default evaluation.json in the folder; - for none)"
    )
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code, after evaluating."""
    options = parser().parse_args(arguments)
    try:
        from autoopt.meta.dataset import MetaDataset
        from autoopt.meta.evaluation_tables import results_table
        from autoopt.meta.scoreboard import evaluate
        from autoopt.meta.selections import load_selections
        from autoopt.optimizers.recipe import calibrated_default
        from autoopt.tasks import all_tasks

        result, _ = evaluate(
            MetaDataset.load(options.folder),
            selections=load_selections(options.folder),
            default=calibrated_default().to_json(),
            evaluation_only=[task.name for task in all_tasks() if task.evaluation_only],
        )
        print(results_table(result))
        if options.output != "-":
            path = Path(options.output or Path(options.folder) / "evaluation.json")
            path.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
            print(f"\nwritten to {path}")
    except AutoOptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
