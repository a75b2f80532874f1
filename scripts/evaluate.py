"""Evaluate the selector, the calibrated default and the baselines on the recorded trials.

    python scripts/evaluate.py                 # from meta_data to evaluation.json, docs and a table
    python scripts/evaluate.py --propose       # first fit a selector for every fold and keep what it chooses
    python scripts/evaluate.py --ablate        # first score the ablations anew
    python scripts/evaluate.py --output - --docs -    # the table only

Nothing is trained: what needs training is recorded once by scripts/build_meta_dataset.py, and
docs/evaluation.md says by which rounds. Contenders without recorded runs are listed as missing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from autoopt.errors import AutoOptError, MetaDatasetError

ABLATIONS_FILE = "ablations.json"


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
    result.add_argument("--jobs", type=int, default=1, help="fits of --propose at a time (default 1)")
    result.add_argument("--ablate", action="store_true", help=f"write {ABLATIONS_FILE} first")
    result.add_argument(
        "--output", metavar="FILE", help="JSON to write (default evaluation.json in the folder; - for none)"
    )
    result.add_argument(
        "--docs",
        default="docs",
        metavar="FOLDER",
        help="where evaluation.md and pictures go (default docs; - for none)",
    )
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code, after evaluating."""
    options = parser().parse_args(arguments)
    try:
        if options.propose:
            _propose(options)
        if options.ablate:
            _ablate(options.folder)
        _evaluate(options)
    except AutoOptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _evaluate(options: argparse.Namespace) -> None:
    """Nothing; prints the tables, and writes the results, the pictures and the page."""
    from autoopt.meta.dataset import MetaDataset
    from autoopt.meta.evaluation_tables import results_table
    from autoopt.meta.scoreboard import evaluate
    from autoopt.meta.selections import load_selections
    from autoopt.optimizers.recipe import calibrated_default

    selections = load_selections(options.folder)
    result, scores = evaluate(
        MetaDataset.load(options.folder),
        selections=selections,
        default=calibrated_default().to_json(),
        evaluation_only=_evaluation_only(),
    )
    ablations = Path(options.folder) / ABLATIONS_FILE
    if ablations.exists():
        result["ablations"] = json.loads(ablations.read_text())
    print(results_table(result))
    if options.output != "-":
        path = Path(options.output or Path(options.folder) / "evaluation.json")
        path.write_text(json.dumps(result, indent=1, sort_keys=True, allow_nan=False) + "\n")
        print(f"\nwritten to {path}")
    if options.docs != "-":
        from autoopt.meta.evaluation_page import updated_page
        from autoopt.meta.evaluation_pictures import write_pictures

        page = Path(options.docs) / "evaluation.md"
        if not page.exists():
            raise MetaDatasetError(f"there is no page {page} to update; pass --docs - to leave it")
        positions = selections.predictions if selections else None
        pictures = write_pictures(scores["strict"], page.parent / "evaluation", positions)
        page.write_text(updated_page(page.read_text(), result, pictures))
        print(f"{page} and {len(pictures)} pictures written")


def _propose(options: argparse.Namespace) -> None:
    """Nothing; writes what the folds' selectors choose, to be recorded and then scored."""
    from autoopt.fold_selection import propose, summary
    from autoopt.meta.dataset import MetaDataset
    from autoopt.meta.selections import save_selections
    from autoopt.optimizers.recipe import calibrated_default
    from autoopt.rounds import load_defaults

    defaults = [recipe.to_json() for recipe in load_defaults(options.folder).values()]
    selections = propose(
        MetaDataset.load(options.folder),
        list(dict.fromkeys([*defaults, calibrated_default().to_json()])),
        protocols=[name.strip() for name in options.protocols.split(",") if name.strip()],
        evaluation_only=_evaluation_only(),
        jobs=options.jobs,
        say=_say,
    )
    path = save_selections(selections, options.folder)
    for protocol, words in summary(selections).items():
        print(f"{protocol}: {words}")
    print(f"{path} written; record what it asks for with --rounds strict-selection,select,aside")


def _ablate(folder: str) -> None:
    """Nothing; writes what the selector's choices are worth without its parts."""
    from autoopt.features import FEATURES, STATISTICS
    from autoopt.meta.ablations import ablations
    from autoopt.meta.dataset import MetaDataset
    from autoopt.meta.fitting import Settings, learning_tables
    from autoopt.meta.fold_fitting import restricted
    from autoopt.optimizers.recipe import calibrated_default

    dataset, held_out = MetaDataset.load(folder), set(_evaluation_only())
    dataset = restricted(dataset, set(dataset.trials["task"]) - held_out)
    default, settings = calibrated_default().to_json(), Settings()
    measured = [feature.name for feature in FEATURES if feature.kind == STATISTICS]
    tables = learning_tables(dataset, default, settings.features)
    rows = ablations(tables, default, settings, measured, say=_say)
    path = Path(folder) / ABLATIONS_FILE
    path.write_text(json.dumps(rows, indent=1) + "\n")


def _evaluation_only() -> list[str]:
    from autoopt.tasks import all_tasks

    return [task.name for task in all_tasks() if task.evaluation_only]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
