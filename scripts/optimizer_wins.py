"""Show when each optimizer of the catalog wins, from the recorded controlled changes.

    python scripts/optimizer_wins.py
    python scripts/optimizer_wins.py --optimizer lion --json lion.json

A comparison is a recorded change of one role group from one optimizer to another, everything else (task,
seed, batches, the other role groups) the same. It is won where the best validation loss is over 2 % lower,
lost where it is over 2 % higher; smaller differences are within seed noise. Seeds of a task count together.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autoopt.errors import AutoOptError

MARGIN = 0.02
"""Change of the log loss that counts: above the noise between seeds, which is about 1 %."""


@dataclass(frozen=True)
class Comparison:
    """How one configuration of a role group did against another, over the tasks it was recorded on.

    Attributes:
        group: Role group.
        optimizer: Catalog name of the optimizer that is judged.
        config: Its configuration: `"lr"` (relative), `"hyperparameters"`, `"optimizer"`.
        against: The other configuration.
        round: Coordinate round around whose default it was first recorded.
        is_default: Whether `config`, and not `against`, is the calibrated default of its time.
        num_tasks: Tasks that both were recorded on.
        better: Tasks it won by over 2 %.
        worse: Tasks it lost by over 2 %.
        median: Median change of the log loss, negative where it is better.
        families: Architecture family -> (tasks won, tasks), only where some were won.
    """

    group: str
    optimizer: str
    config: dict[str, Any]
    against: dict[str, Any]
    round: str
    is_default: bool
    num_tasks: int
    better: int
    worse: int
    median: float
    families: dict[str, tuple[int, int]]


def comparisons(folder: Path) -> list[Comparison]:
    """All comparisons of different optimizers, those with the most wins first.

    Every recorded default counts, each with the changes made around it: a change is judged against the
    configuration that its role group had then.

    Args:
        folder: The recorded trials, with `defaults.json`.

    Raises:
        MetaDatasetError: If there are no trials, or they cannot be read.
    """
    from autoopt.meta.dataset import MetaDataset
    from autoopt.meta.pairs import canonical, paired_outcomes
    from autoopt.rounds import load_defaults

    trials = MetaDataset.load(folder).trials
    found: list[Comparison] = []
    seen: set[tuple[str, str]] = set()
    for number, recipe in load_defaults(folder).items():
        default = recipe.to_json()
        groups: dict[str, Any] = json.loads(default)["groups"]
        new = {group for group in groups if (group, canonical(groups[group])) not in seen}
        seen |= {(group, canonical(groups[group])) for group in new}
        pairs: Any = paired_outcomes(trials, default)
        pairs = pairs[pairs["group"].isin(sorted(new))].assign(config=lambda rows: rows["config"].map(_plain))
        for (group, text), rows in pairs.groupby(["group", "config"], observed=True, sort=True):
            config = json.loads(str(text))
            if config["optimizer"] != groups[group]["optimizer"]:
                found += _both_sides(str(group), config, groups[group], rows, number)
    return sorted(found, key=lambda c: (-c.better / c.num_tasks, c.group, canonical(c.config)))


def _plain(text: str) -> str:
    """A role group's configuration without what the optimizer does by itself."""
    from autoopt.meta.pairs import canonical
    from autoopt.optimizers.catalog import get

    config = json.loads(text)
    usual = get(config["optimizer"]).hyperparameters if "optimizer" in config else {}
    if config.get("hyperparameters"):
        kept = {key: value for key, value in config["hyperparameters"].items() if value != usual.get(key)}
        config |= {"hyperparameters": kept}
    return canonical(config)


def strongest(found: Sequence[Comparison]) -> list[Comparison]:
    """For each role group and pair of optimizers, the comparison with the strongest challenger.

    The challenger is the side that is not the default. Where it was recorded against several defaults, the
    latest counts that has at least half of the tasks; where it was recorded at several settings, that with
    the lowest median.
    """
    kinds: dict[tuple[str, str, str, bool], list[Comparison]] = {}
    for c in found:
        kinds.setdefault((c.group, c.optimizer, c.against["optimizer"], c.is_default), []).append(c)
    chosen = []
    for rows in kinds.values():
        enough = [c for c in rows if 2 * c.num_tasks >= max(other.num_tasks for other in rows)]
        latest = max(enough, key=lambda c: int(c.round)).round
        enough = [c for c in enough if c.round == latest]
        chosen.append(min(enough, key=lambda c: -c.median if c.is_default else c.median))
    return chosen


def _both_sides(
    group: str, config: dict[str, Any], default: dict[str, Any], rows: Any, number: str
) -> list[Comparison]:
    """The comparison as the changed configuration sees it, and as the default does."""
    outcomes = rows.groupby(["family", "task"], observed=True)["outcome"].mean()
    return [
        _comparison(group, config, default, outcomes, number, is_default=False),
        _comparison(group, default, config, -outcomes, number, is_default=True),
    ]


def _comparison(
    group: str, config: dict[str, Any], against: dict[str, Any], outcomes: Any, number: str, *, is_default: bool
) -> Comparison:
    won = outcomes < -MARGIN
    by_family = {
        str(family): (int(values.sum()), len(values)) for family, values in won.groupby(level="family", observed=True)
    }
    return Comparison(
        group=group,
        optimizer=config["optimizer"],
        config=config,
        against=against,
        round=number,
        is_default=is_default,
        num_tasks=len(outcomes),
        better=int(won.sum()),
        worse=int((outcomes > MARGIN).sum()),
        median=float(outcomes.median()),
        families={
            name: counts
            for name, counts in sorted(by_family.items(), key=lambda item: (-item[1][0] / item[1][1], -item[1][0]))
            if counts[0]
        },
    )


def config_words(config: dict[str, Any]) -> str:
    """A configuration in a few words, such as `"adamw 0.064, betas (0.9, 0.99)"`.

    >>> config_words({"optimizer": "muon", "lr": 0.02, "hyperparameters": {"momentum": 0.8}})
    'muon 0.02, momentum 0.8'
    """
    words = [f"{config['optimizer']} {config['lr']:g}"]
    for key, value in config["hyperparameters"].items():
        words.append(f"{key} {tuple(value) if isinstance(value, list) else value}")
    return ", ".join(words)


def change_words(log_change: float) -> str:
    """A change of the log loss as a change of the loss in percent.

    >>> change_words(-0.05)
    '-4.9 %'
    """
    text = f"{100 * math.expm1(log_change):+.1f} %"
    return "0.0 %" if text in ("-0.0 %", "+0.0 %") else text


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code, after printing the comparisons."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", default="meta_data", help="recorded trials (default meta_data)")
    parser.add_argument("--optimizer", help="only this one, by its name in the catalog")
    parser.add_argument("--json", metavar="FILE", help="write the comparisons to FILE as well")
    options = parser.parse_args(arguments)
    try:
        from autoopt.optimizers.catalog import get

        wanted = get(options.optimizer).name if options.optimizer else None
        found = [c for c in comparisons(Path(options.folder)) if wanted in (None, c.optimizer)]
    except AutoOptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{'group':10} {'better':>6} {'worse':>6} {'tasks':>6} {'median':>8}  configuration against another")
    for c in found:
        print(
            f"{c.group:10} {c.better:6d} {c.worse:6d} {c.num_tasks:6d} {change_words(c.median):>8}  "
            f"{config_words(c.config)} against {config_words(c.against)}"
        )
    if options.json:
        Path(options.json).write_text(json.dumps([asdict(c) for c in found], indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
