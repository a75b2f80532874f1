"""Fit the selector on the recorded trials and write the artifact that ships.

    python scripts/train_selector.py
    python scripts/train_selector.py --folder meta_data --output my_selector.npz --extra runs/

The same data and library versions give the same bytes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from autoopt.errors import AutoOptError


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code, after writing the artifact."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", default="meta_data", help="recorded trials (default meta_data)")
    parser.add_argument("--output", default="meta_data/selector.npz", help="artifact to write")
    parser.add_argument("--extra", action="append", default=[], metavar="FOLDER", help="further recordings")
    options = parser.parse_args(arguments)
    try:
        from autoopt.meta import artifact
        from autoopt.meta.dataset import MetaDataset
        from autoopt.meta.fitting import fit_predictor
        from autoopt.optimizers.recipe import calibrated_default

        dataset = MetaDataset.load(options.folder)
        for folder in options.extra:
            dataset = dataset.joined(MetaDataset.read(folder))
        predictor = fit_predictor(dataset, calibrated_default().to_json())
        digest = artifact.save(predictor, options.output)
    except AutoOptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    info = predictor.info
    print(f"{options.output}: {info['num_tasks']} tasks, {info['num_pairs']} pairs, SHA-256 {digest}")
    for group, model in predictor.groups.items():
        print(
            f"  {group}: {len(model.candidates)} candidates, {len(model.tasks)} tasks, {len(model.forest.value)} nodes"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
