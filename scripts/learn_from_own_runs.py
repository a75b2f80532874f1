"""What 12 runs of one's own are worth: families held out, some members played as own runs, others judged.

    python scripts/learn_from_own_runs.py
    python scripts/learn_from_own_runs.py --protocol strict --draws 20
    python scripts/learn_from_own_runs.py --compare

Every outcome is a recorded one; nothing is trained. `--compare` adds a line for each other way of learning.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from autoopt.errors import AutoOptError
from autoopt.meta import artifact, own_learning
from autoopt.meta.dataset import MetaDataset
from autoopt.meta.evaluation import bootstrap_interval
from autoopt.meta.fitting import learning_tables
from autoopt.meta.own_simulation import (
    PROTOCOLS,
    Budget,
    FamilyResult,
    Learning,
    held_out_families,
    play,
    summary,
)
from autoopt.optimizers.recipe import calibrated_default

MIN_JUDGED = 2
"""Members that must be left to judge."""

_SHIPPED_NAME = "as shipped"
SHIPPED = Learning(own_learning.OWN_WEIGHT, artifact.OWN_CAUTION)
COMPARED: dict[str, Learning] = {
    _SHIPPED_NAME: SHIPPED,
    "no smaller caution for what gained": Learning(SHIPPED.weight, None),
    "own outcomes count twice": Learning(2.0, SHIPPED.caution),
    "own outcomes count four times": Learning(4.0, SHIPPED.caution),
    "own outcomes count sixteen times": Learning(16.0, SHIPPED.caution),
    "caution 0": Learning(SHIPPED.weight, 0.0),
    "caution 1": Learning(SHIPPED.weight, 1.0),
}
"""Name -> a way of learning from own runs."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code, after printing the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", default="meta_data", help="recorded trials (default meta_data)")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="family", help="what selectors are fitted without")
    parser.add_argument("--runs", type=int, default=12, help="own runs (default 12)")
    parser.add_argument("--members", type=int, default=3, help="members they are spread over (default 3)")
    parser.add_argument("--draws", type=int, default=10, help="random draws of the members (default 10)")
    parser.add_argument("--compare", action="store_true", help="compare ways of learning from own runs")
    options = parser.parse_args(arguments)
    try:
        tables = learning_tables(MetaDataset.load(options.folder), calibrated_default().to_json())
    except AutoOptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    budget = Budget(options.runs, options.members)
    ways = COMPARED if options.compare else {_SHIPPED_NAME: SHIPPED}
    results: dict[str, list[FamilyResult]] = {name: [] for name in ways}
    for family in held_out_families(tables, options.protocol, lambda text: print(text, file=sys.stderr, flush=True)):
        if len(family.members) < budget.num_members + MIN_JUDGED:
            continue
        for name, learning in ways.items():
            judged = play(family, budget, learning, options.draws)
            results[name].append(summary(judged, len(family.members)))
    print(
        f"{budget.num_runs} own runs on {budget.num_members} members of a family that the selector has not seen "
        f"(protocol {options.protocol}); choices for its other members, mean log ratio to the default over "
        f"role groups, members and {options.draws} draws; negative is better"
    )
    _print_families(results[_SHIPPED_NAME])
    for name, found in results.items():
        _print_summary(name, found)
    return 0


def _print_families(results: Sequence[FamilyResult]) -> None:
    print(f"{'family':22} {'members':>7} {'oracle':>8} {'without':>8} {'with':>8} {'change':>8} {'harmed':>12}")
    for row in sorted(results, key=lambda row: row.after - row.before):
        harmed = f"{100 * row.harmed_before:.0f} % -> {100 * row.harmed_after:.0f} %"
        print(
            f"{row.family:22} {row.num_members:7d} {row.oracle:+8.3f} {row.before:+8.3f} {row.after:+8.3f} "
            f"{row.after - row.before:+8.3f} {harmed:>12}"
        )


def _print_summary(name: str, results: Sequence[FamilyResult]) -> None:
    change = np.array([row.after - row.before for row in results])
    low, high = bootstrap_interval(change)
    mean = {key: np.mean([getattr(row, key) for row in results]) for key in ("before", "after", "oracle")}
    harmed = [np.mean([getattr(row, key) for row in results]) for key in ("harmed_before", "harmed_after")]
    print(
        f"{name}: {len(results)} families, oracle {mean['oracle']:+.4f}, without own runs {mean['before']:+.4f}, "
        f"with {mean['after']:+.4f}; change {change.mean():+.4f} ({low:+.4f} to {high:+.4f} over families), "
        f"better in {int((change < -0.001).sum())}, worse in {int((change > 0.001).sum())}; "
        f"harmed {100 * harmed[0]:.1f} % -> {100 * harmed[1]:.1f} %",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
