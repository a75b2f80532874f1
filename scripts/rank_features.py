"""Print what each meta-feature is worth, as a Markdown table.

    python scripts/rank_features.py                      # the features that the selector sees
    python scripts/rank_features.py --features all       # a selector that sees all of them
    python scripts/rank_features.py --groups embedding --output table.md

Two columns of evidence: the importance of the feature in the selector on architecture families left out
of the fit (how much of the outcomes' mean square is mispredicted once it is shuffled, by role group), and
its strongest rank correlations with the best recorded rate of an optimizer on a role group. A feature
with neither is marked: it carries nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from autoopt.errors import AutoOptError
from autoopt.features import FEATURES
from autoopt.meta.dataset import MetaDataset
from autoopt.meta.feature_ranking import RateCorrelation, permutation_importance, rate_correlations
from autoopt.meta.fitting import SELECTED_FEATURES, Settings, learning_tables
from autoopt.meta.pairs import canonical
from autoopt.optimizers.recipe import calibrated_default

LEAST_IMPORTANCE = 0.002
"""Below this share of the mean square an importance is noise of the draws."""

LEAST_CORRELATION = 0.3
"""Below this a correlation over some tens of tasks is chance."""


def parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    result = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    result.add_argument("--folder", default="meta_data", help="recorded trials (default meta_data)")
    result.add_argument("--features", choices=("selected", "all"), default="selected", help="what the selector sees")
    result.add_argument("--groups", help="role groups to rank for, separated by commas (default all)")
    result.add_argument("--folds", type=int, default=8, help="folds over architecture families (default 8)")
    result.add_argument("--repeats", type=int, default=5, help="draws of shuffled values (default 5)")
    result.add_argument("--output", metavar="FILE", help="file to write (default: print)")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code, after ranking."""
    options = parser().parse_args(arguments)
    try:
        text = ranking(options)
    except AutoOptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.output:
        Path(options.output).write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    return 0


def ranking(options: argparse.Namespace) -> str:
    """The table of all features that were recorded."""
    dataset = MetaDataset.load(options.folder)
    default = calibrated_default().to_json()
    recorded = [f.name for f in FEATURES if f.name in dataset.features.columns]
    wanted = options.groups.split(",") if options.groups else None
    seen = tuple(recorded) if options.features == "all" else tuple(n for n in SELECTED_FEATURES if n in recorded)
    settings = replace(Settings(), features=seen)
    importance: dict[str, dict[str, float]] = {}
    for group, table in learning_tables(dataset, default, seen).items():
        if wanted is None or group in wanted:
            print(f"{group}: {len(table.y)} outcomes of {len(set(table.tasks))} tasks", file=sys.stderr)
            importance[group] = permutation_importance(
                table, settings, most_folds=options.folds, repeats=options.repeats
            )
    tables = {g: t for g, t in learning_tables(dataset, default, recorded).items() if g in importance}
    bases = {group: canonical(config) for group, config in json.loads(default)["groups"].items()}
    correlations = rate_correlations(tables, bases, recorded)
    known = {name: float(dataset.features[name].notna().mean()) for name in recorded}
    missing = [f.name for f in FEATURES if f.name not in recorded]
    return _markdown(importance, correlations, known, seen, missing)


def _markdown(
    importance: Mapping[str, Mapping[str, float]],
    correlations: Mapping[str, Sequence[RateCorrelation]],
    known: Mapping[str, float],
    seen: Sequence[str],
    missing: Sequence[str],
) -> str:
    groups = list(importance)
    head = ["feature", "known", *groups, "strongest correlations with the best rate", ""]
    lines = [_row(head), _row(["---"] * len(head))]

    def worth(name: str) -> tuple[float, float]:
        found = correlations[name]
        return max((importance[g].get(name, 0.0) for g in groups), default=0.0), abs(found[0].rho) if found else 0.0

    for name in sorted(correlations, key=worth, reverse=True):
        shares = [f"{100 * importance[g][name]:+.1f} %" if name in importance[g] else "" for g in groups]
        best = ", ".join(f"{c.group} {c.optimizer} {c.rho:+.2f} ({c.num_tasks})" for c in correlations[name][:2])
        most, rho = worth(name)
        verdict = "" if name in seen else "not in the selector"
        if rho < LEAST_CORRELATION and (name not in seen or most < LEAST_IMPORTANCE):
            verdict = "carries nothing" if correlations[name] else "too few tasks to tell"
        lines.append(_row([f"`{name}`", f"{100 * known[name]:.0f} %", *shares, best, verdict]))
    if missing:
        lines += ["", f"Not recorded yet: {', '.join(f'`{name}`' for name in missing)}."]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
