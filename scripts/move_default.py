"""Move the calibrated default to where recorded single changes gain on average, for the next round.

    python scripts/move_default.py --round 1            # show what coordinate-1 found
    python scripts/move_default.py --round 1 --apply    # write default 2 to defaults.json
    python scripts/move_default.py --ship 2             # make default 2 the one the package ships

After `--apply`, record `coordinate-2`; ship a default only once its own runs are recorded.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from autoopt.errors import AutoOptError


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code, after showing (and applying) the moves."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", default="meta_data", help="recorded trials (default meta_data)")
    parser.add_argument("--round", help="coordinate round whose default is to be moved")
    parser.add_argument("--apply", action="store_true", help="write the moved default as the next one")
    parser.add_argument("--ship", metavar="K", help="make default K the calibrated default of the package")
    options = parser.parse_args(arguments)
    if (options.round is None) == (options.ship is None):
        parser.error("give either --round K or --ship K")
    try:
        return _ship(options.folder, options.ship) if options.ship else _move(options)
    except AutoOptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _move(options: argparse.Namespace) -> int:
    from autoopt.meta.coordinate import moved_default, moves
    from autoopt.meta.dataset import MetaDataset
    from autoopt.optimizers.recipe import Recipe
    from autoopt.rounds import get_default, load_defaults

    defaults = load_defaults(options.folder)
    default = get_default(defaults, options.round).to_json()
    trials = MetaDataset.load(options.folder).trials
    found = moves(trials, default)
    print(f"{'mean':>7} {'95 % interval':>16} {'better':>7} {'worse':>6} {'tasks':>6}  change")
    for move in found:
        interval = f"{move.low:+.3f} {move.high:+.3f}"
        shares = f"{100 * move.better:6.0f}% {100 * move.worse:5.0f}%"
        print(f"{move.mean:+7.3f} {interval:>16} {shares} {move.num_tasks:6d}  {move.group}: {_short(move.config)}")
    _print_progress(trials, defaults, options.round)
    text, made = moved_default(default, found)
    for move in made:
        print(f"moves {move.group} to {_short(move.config)}")
    if not made:
        print("no change gains for certain: the coordinate search has converged")
    if options.apply and made:
        following = str(int(options.round) + 1)
        values = {key: json.loads(recipe.to_json()) for key, recipe in defaults.items()}
        values[following] = json.loads(Recipe.from_json(text).to_json())
        path = Path(options.folder) / "defaults.json"
        path.write_text(json.dumps(values, indent=1) + "\n")
        print(f"default {following} written to {path}; record it with --rounds coordinate-{following}")
    return 0


def _print_progress(trials: Any, defaults: dict[str, Any], index: str) -> None:
    from autoopt.meta.coordinate import progress

    print(f"default {index}: {_words(defaults[index].to_json())}")
    before = str(int(index) - 1)
    if before not in defaults:
        return
    found = progress(trials, defaults[index].to_json(), defaults[before].to_json())
    print(
        f"default {index} against {before}: mean log loss {found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f}) on "
        f"{found.num_tasks} tasks; seed noise {100 * found.seed_noise:.1f} %"
    )
    for family, (mean, count) in found.by_family.items():
        print(f"  {family:22} {mean:+.3f}  {count} tasks")


def _words(recipe: str) -> str:
    value = json.loads(recipe)
    parts = [f"{group} {_short(json.dumps(config))}" for group, config in value["groups"].items()]
    return "; ".join([*parts, f"warm-up {value['warmup_share']:g}, {value['shape']} decay"])


def _ship(folder: str, index: str) -> int:
    from autoopt.rounds import get_default, load_defaults

    recipe = get_default(load_defaults(folder), index)
    path = Path(str(resources.files("autoopt.optimizers"))) / "calibrated_default.json"
    path.write_text(json.dumps(json.loads(recipe.to_json()), indent=1) + "\n")
    print(f"default {index} written to {path}; refit with scripts/train_selector.py")
    return 0


def _short(config: str) -> str:
    value = json.loads(config)
    if "optimizer" not in value:
        return ", ".join(f"{key}={item}" for key, item in value.items())
    extra = "".join(f" {key}={item}" for key, item in value["hyperparameters"].items())
    return f"{value['optimizer']} {value['lr']:g}{extra}"


if __name__ == "__main__":
    sys.exit(main())
