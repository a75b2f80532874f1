"""Print on which quantities of a task the best rates depend, and what it would be worth to follow them.

    python scripts/find_rate_laws.py                                    # around the calibrated default
    python scripts/find_rate_laws.py --default 5 --groups matrix        # as it was before default 6
    python scripts/find_rate_laws.py --default 5 --groups matrix --where norm_adjacent=0

Each line is one law, `rate * 2 ** (power * z)` with `z` the standardised meta-feature: the power, and the mean
log ratio of losses on architecture families that the power was not fitted on. Of so many laws a few gain by
chance: one is worth building in where its interval stays below 0 by far and theory has a reason for it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from autoopt.errors import AutoOptError, MetaDatasetError
from autoopt.features import FEATURES
from autoopt.meta.dataset import MetaDataset
from autoopt.meta.rate_laws import LEAST_TASKS, laws, response
from autoopt.optimizers.catalog import ALL_GROUPS
from autoopt.optimizers.recipe import calibrated_default
from autoopt.rounds import get_default, load_defaults


def parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    result = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    result.add_argument("--folder", default="meta_data", help="recorded trials (default meta_data)")
    result.add_argument("--default", metavar="K", help="default in defaults.json (default: the calibrated one)")
    result.add_argument("--groups", default=",".join(ALL_GROUPS), help="role groups, separated by commas")
    result.add_argument("--where", metavar="FEATURE=VALUE", help="only tasks whose meta-feature has this value")
    result.add_argument("--top", type=int, default=8, help="laws to print for a role group (default 8)")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code, after printing."""
    options = parser().parse_args(arguments)
    try:
        _print(options)
    except AutoOptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _print(options: argparse.Namespace) -> None:
    dataset = MetaDataset.load(options.folder)
    defaults = load_defaults(options.folder)
    default = calibrated_default() if options.default is None else get_default(defaults, options.default)
    groups = options.groups.split(",")
    unknown = sorted(set(groups) - set(ALL_GROUPS))
    if unknown:
        raise MetaDatasetError(f"there is no role group {unknown[0]!r}; they are {', '.join(ALL_GROUPS)}")
    features = dataset.features
    trials = dataset.trials
    if options.where:
        name, _, value = options.where.partition("=")
        if name not in features.columns or not _is_number(value):
            raise MetaDatasetError(f"--where {options.where!r} is not FEATURE=VALUE with a recorded meta-feature")
        features = features[features[name] == float(value)]
    for group in groups:
        known = set(features.loc[features["group"] == group, "task"])
        found = response(trials[trials["task"].isin(known)], default.to_json(), group)
        print(f"{group}: {len(found.tasks)} tasks")
        if len(found.tasks) < LEAST_TASKS:
            print(f"  fewer than {LEAST_TASKS}: nothing is said")
        for law in laws(found, features, group, [feature.name for feature in FEATURES])[: options.top]:
            print(f"  {law.gain:+.4f} ({law.low:+.4f} to {law.high:+.4f})  power {law.power:+.2f}  {law.feature}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
