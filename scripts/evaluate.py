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
        "--propose", action="store_true", help="fit a selector for every fold and write selections.json first"
    )
    result.add_argument(
        "--protocols", default="strict,larger", help="protocols that --propose fits for (default strict,larger)"
    )
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

        if options.propose:
            _propose(options)
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


def _propose(options: argparse.Namespace) -> None:
    """Nothing; writes what the folds' selectors choose, to be recorded and then scored."""
    from autoopt.fold_selection import propose, summary
    from autoopt.meta.dataset import MetaDataset
    from autoopt.meta.selections import save_selections
    from autoopt.optimizers.recipe import calibrated_default
    from autoopt.rounds import load_defaults
    from autoopt.tasks import all_tasks

    defaults = [recipe.to_json() for recipe in load_defaults(options.folder).values()]
    selections = propose(
        MetaDataset.load(options.folder),
        list(dict.fromkeys([*defaults, calibrated_default().to_json()])),
        protocols=[name.strip() for name in options.protocols.split(",") if name.strip()],
        evaluation_only=[task.name for task in all_tasks() if task.evaluation_only],
        say=lambda text: print(text, file=sys.stderr),
    )
    path = save_selections(selections, options.folder)
    for protocol, words in summary(selections).items():
        print(f"{protocol}: {words}")
    print(f"{path} written; record what it asks for with --rounds strict-selection,select,aside")


if __name__ == "__main__":
    sys.exit(main())
