"""Print whether a round of proposals raises the best known plans more than as many random plans do.

python scripts/evaluate_proposals.py --round propose-4
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from autoopt.errors import AutoOptError
from autoopt.meta.dataset import MetaDataset
from autoopt.meta.proposal_worth import compare


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code, after comparing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", default="meta_data", help="recorded trials (default meta_data)")
    parser.add_argument("--round", default="propose-4", help="round of proposals (default propose-4)")
    parser.add_argument("--against", default="random", help="round to compare with (default random)")
    options = parser.parse_args(arguments)
    try:
        trials = MetaDataset.load(options.folder).trials
    except AutoOptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("| round | tasks | plans | best known plan raised | log loss of the best known plan |")
    print("| --- | --- | --- | --- | --- |")
    for row in compare(trials, options.round, options.against):
        low, high = row.interval
        print(
            f"| {row.round} | {row.num_tasks} | {row.num_plans} | {100 * row.raised:.0f} % | "
            f"{row.gain:+.4f} ({low:+.4f} to {high:+.4f}) |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
