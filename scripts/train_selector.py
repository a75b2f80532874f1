"""Fit the selector on the recorded trials and write the artifact that ships.

    python scripts/train_selector.py
    python scripts/train_selector.py --folder meta_data --output my_selector.npz --extra runs/

The same data and library versions give the same bytes: linear algebra runs in one thread, since the order of its
sums, and with it the last digits, depend on how many there are. `--extra` takes recordings and remembered runs
(`select(..., remember="runs/")`) alike: the first join the recorded trials, the second are learned from last.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoopt.errors import AutoOptError

_REPORTED = ("time_to_target", "time_to_target_ci", "step_seconds_ratio")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code, after writing the artifact."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", default="meta_data", help="recorded trials (default meta_data)")
    parser.add_argument("--output", default="meta_data/selector.npz", help="artifact to write")
    parser.add_argument("--extra", action="append", default=[], metavar="FOLDER", help="further recordings or own runs")
    options = parser.parse_args(arguments)
    try:
        from threadpoolctl import threadpool_limits

        from autoopt.meta import artifact
        from autoopt.meta.calibration import calibrated
        from autoopt.meta.dataset import MetaDataset
        from autoopt.meta.fitting import fit_predictor, learning_tables
        from autoopt.meta.own_learning import learned_from
        from autoopt.meta.own_runs import own_dataset, read_own_runs
        from autoopt.optimizers.recipe import calibrated_default

        dataset = MetaDataset.load(options.folder)
        runs = []
        for folder in options.extra:
            own = read_own_runs(folder)
            # A folder of own runs need not hold recordings, any other must.
            dataset = dataset.joined(MetaDataset.read(folder) if own else MetaDataset.load(folder))
            runs += own
        default = calibrated_default().to_json()
        with threadpool_limits(1):
            settings, cautions, held_out = calibrated(learning_tables(dataset, default))
            predictor = fit_predictor(dataset, default, settings, cautions)
            extra = {"held_out": held_out} | _evaluated(Path(options.folder) / "evaluation.json")
            predictor = replace(predictor, info=predictor.info | extra)
            if runs:
                predictor = learned_from(predictor, own_dataset(runs))
            digest = artifact.save(predictor, options.output)
    except AutoOptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    info = predictor.info
    print(f"{options.output}: {info['num_tasks']} tasks, {info['num_pairs']} pairs, SHA-256 {digest}")
    if runs:
        print(f"own runs: {len(runs)}, {info['num_own_pairs']} pairs of {info['num_own_tasks']} tasks")
    print(f"standard deviations times {settings.spread:.2f} cover 80 % of held-out outcomes")
    print("held out (neither family nor source seen), mean log ratio to the default:")
    for group, row in held_out.items():
        print(
            f"  {group:10} {row['num_tasks']:4d} tasks  oracle {row['oracle']:+.3f}  selector {row['chosen']:+.3f} "
            f"({row['low']:+.3f} to {row['high']:+.3f})  changed {100 * row['applied']:.0f} %  "
            f"harmed {100 * row['harmed']:.0f} %  caution {row['caution']:g}"
        )
    return 0


def _evaluated(path: Path) -> dict[str, Any]:
    """What `scripts/evaluate.py` found for selection as it ships, for the headline of reports."""
    if not path.is_file():
        return {}
    result = json.loads(path.read_text(encoding="utf-8"))
    row = result["strict"].get(result["main"]) or {}
    known = {key: row[key] for key in _REPORTED if row.get(key) is not None}
    return {"evaluation": known} if known else {}


if __name__ == "__main__":
    sys.exit(main())
