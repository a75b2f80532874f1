"""Measure what `max_state_bytes` and the objectives "memory" and "time" weigh, from the recorded trials.

    python scripts/measure_effects.py
    python scripts/measure_effects.py --extra runs/ --output autoopt/budget/effects.json

Two things are measured and written to a small file that ships with the package. For each role group and each
kind of optimizer recorded on it: the mean change of the log loss against the calibrated default. And what a
difference of the final loss is worth in steps. The round that records most of the first is `lean`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoopt.errors import AutoOptError

if TYPE_CHECKING:
    from autoopt.optimizers.recipe import Recipe


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code, after printing what was measured and writing it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", default="meta_data", help="recorded trials (default meta_data)")
    parser.add_argument("--output", default="autoopt/budget/effects.json", help="file to write")
    parser.add_argument("--extra", action="append", default=[], metavar="FOLDER", help="further recordings")
    options = parser.parse_args(arguments)
    try:
        from autoopt.meta.dataset import MetaDataset
        from autoopt.meta.effects import mean_effects, steps_of_loss
        from autoopt.optimizers.recipe import calibrated_default

        dataset = MetaDataset.load(options.folder)
        for folder in options.extra:
            dataset = dataset.joined(MetaDataset.load(folder))
        default, *earlier = _latest_first(options.folder, calibrated_default())
        effects = mean_effects(dataset.trials, default, earlier=earlier)
        knots = steps_of_loss(dataset.trials)
    except AutoOptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    content = {
        "groups": {group: [_rounded(asdict(row)) for row in rows] for group, rows in effects.items()},
        "steps": [_rounded(asdict(knot)) for knot in knots],
    }
    Path(options.output).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for group, rows in effects.items():
        for row in rows:
            settings = "".join(f", {key} {value}" for key, value in row.config["hyperparameters"].items())
            print(
                f"{group:10} {row.config['optimizer']:10} {row.config['lr']:<7g} {row.mean:+.3f} "
                f"spread {row.spread:.3f} on {row.num_tasks} tasks in {row.num_families} families{settings}"
            )
    for knot in knots:
        print(f"log loss {knot.log_loss:.3f} is worth log steps {knot.log_steps:.3f} ({knot.num_pairs} pairs)")
    return 0


def _latest_first(folder: str, shipped: Recipe) -> list[str]:
    """The shipped default, and what it was before, as far as it averages the weights alike."""
    from autoopt.rounds import load_defaults

    averages = shipped.averaging is not None
    others = sorted(load_defaults(folder).items(), key=lambda item: -int(item[0]))
    recipes = [shipped, *(recipe for _, recipe in others if (recipe.averaging is not None) == averages)]
    return list(dict.fromkeys(recipe.to_json() for recipe in recipes))


def _rounded(value: dict[str, Any]) -> dict[str, Any]:
    return {key: float(f"{item:.4g}") if isinstance(item, float) else item for key, item in value.items()}


if __name__ == "__main__":
    sys.exit(main())
