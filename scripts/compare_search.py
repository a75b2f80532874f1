"""Compare methods that search for a plan, on the same number of predictions.

    python scripts/compare_search.py
    python scripts/compare_search.py --tasks 60 --budgets 50 200 1000

For each recorded task (its meta-features), every method minimises the predicted effect of a whole plan: the
pessimistic effects of all role groups, at a caution of at most `--caution`, and interactions. Three sets of
interactions: the recorded ones, and two that are drawn, to show how strong they would have to be for the choice of
the method to matter. The optimum is found exactly, by asking for everything. Seconds are those of the search
alone: predictions are looked up, and what one costs is printed below the table.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path

import numpy as np

from autoopt.errors import AutoOptError
from autoopt.meta.artifact import Predictor, load
from autoopt.meta.dataset import MetaDataset
from autoopt.meta.pairs import canonical
from autoopt.meta.proposals import RATE_STEPS
from autoopt.search import METHODS
from autoopt.search.coordinate import optimum
from autoopt.search.interactions import KINDS, Interaction, interactions
from autoopt.search.objective import Objective, Plan, objective_of

DRAWN = (0.02, 0.1)
"""Standard deviations of interactions that are drawn, in log loss."""

SAME = 1e-9
"""Difference of log loss below which two plans count as equally good."""


@dataclass(frozen=True)
class Asked:
    """A task's predictions, all asked for once, and what that took."""

    objective: Objective
    seconds: float

    def again(self, terms: Sequence[Interaction], budget: int) -> Objective:
        """A fresh objective over the same predictions."""
        known = {group: self.objective.known(i) for i, group in enumerate(self.objective.groups)}
        width = len(RATE_STEPS)
        grids = {
            group: [configs[start : start + width] for start in range(0, len(configs), width)]
            for group, configs in zip(self.objective.groups, self.objective.configs, strict=True)
        }
        return Objective(grids, lambda group, indices: np.array([known[group][i] for i in indices]), terms, budget)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code, after printing the recorded interactions and the comparison as Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", default="meta_data", help="recorded trials and selector (default meta_data)")
    parser.add_argument("--extra", action="append", default=[], metavar="FOLDER", help="further recordings")
    parser.add_argument("--budgets", type=int, nargs="+", default=[50, 200, 1000], help="predictions for each plan")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--tasks", type=int, help="tasks, spread over the sorted names (default all)")
    parser.add_argument("--caution", type=float, default=1.0, help="of every role group, trusted or not (default 1)")
    parser.add_argument("--trusted", action="store_true", help="only what select() may change, at its own caution")
    parser.add_argument("--seed", type=int, default=0, help="of drawn interactions and of the methods")
    options = parser.parse_args(arguments)
    try:
        dataset = MetaDataset.load(options.folder)
        for folder in options.extra:
            dataset = dataset.joined(MetaDataset.load(folder))
        predictor = load(Path(options.folder) / "selector.npz")
        terms = interactions(dataset.trials, _defaults(predictor, options.folder))
        print("\n".join(_interaction_table(terms)), end="\n\n")
        values = _values(dataset, predictor, options.tasks)
        caution = None if options.trusted else options.caution
        asked = {task: _asked(predictor, rows, caution) for task, rows in values.items()}
        scenarios: dict[str, Sequence[Interaction]] = {"recorded": terms}
        for spread in DRAWN:
            scenarios[f"drawn, {spread:g}"] = _drawn(tuple(predictor.groups), spread, options.seed)
        print("| interactions | predictions | method | regret | at the optimum | worst | milliseconds |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for name, scenario in scenarios.items():
            best = {task: _least(one, scenario) for task, one in asked.items()}
            for budget, method in product(options.budgets, options.methods):
                print(_row(name, budget, method, scenario, asked, best, options.seed), flush=True)
    except AutoOptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    counts = [one.objective.num_predictions for one in asked.values()]
    changed = [-_least(one, terms) for one in asked.values()]
    each = 1e3 * sum(one.seconds for one in asked.values()) / max(1, sum(counts))
    print(
        f"\n{len(asked)} tasks with {np.mean(counts):.0f} configurations each on average; the optimum gains "
        f"{np.mean(changed):.4f} log loss on average. One prediction takes {each:.2f} ms when asked for in bulk."
    )
    return 0


def _defaults(predictor: Predictor, folder: str) -> list[str]:
    """The selector's default, then those of the recording rounds, the latest first."""
    path = Path(folder) / "defaults.json"
    earlier = [canonical(value) for value in json.loads(path.read_text()).values()] if path.exists() else []
    return list(dict.fromkeys([predictor.default, *reversed(earlier)]))


def _values(dataset: MetaDataset, predictor: Predictor, count: int | None) -> dict[str, dict[str, dict[str, float]]]:
    """Task -> role group -> meta-features, the mean over seeds."""
    columns = list(predictor.features)
    means = dataset.features.set_index(["task", "group"])[columns].groupby(level=[0, 1], sort=True).mean()
    found: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    for (task, group), row in means.iterrows():
        found[task][group] = row.to_dict()
    names = sorted(found)
    if count is not None:
        names = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, count).astype(int))]
    return {name: found[name] for name in names}


def _asked(predictor: Predictor, values: Mapping[str, Mapping[str, float]], caution: float | None) -> Asked:
    objective = objective_of(predictor, values, budget=sys.maxsize, caution=caution)
    start = time.perf_counter()
    for group, configs in enumerate(objective.configs):
        objective.effects(group, range(len(configs)))
    return Asked(objective, time.perf_counter() - start)


def _drawn(groups: Sequence[str], spread: float, seed: int) -> list[Interaction]:
    """Normal interactions of all kinds of change of all pairs of role groups."""
    generator = np.random.default_rng(seed)
    found = []
    for first, second in combinations(sorted(groups), 2):
        for one, other in product(KINDS, KINDS):
            value = float(spread * generator.standard_normal())
            found.append(Interaction((first, one), (second, other), value, 0.0, value, 0))
    return found


def _least(asked: Asked, terms: Sequence[Interaction]) -> float:
    objective = asked.again(terms, sys.maxsize)
    return objective.value(optimum(objective))


def _row(
    name: str,
    budget: int,
    method: str,
    terms: Sequence[Interaction],
    asked: Mapping[str, Asked],
    best: Mapping[str, float],
    seed: int,
) -> str:
    regrets, seconds = [], []
    for task, one in asked.items():
        objective = one.again(terms, budget)
        start = time.perf_counter()
        plan: Plan = METHODS[method](objective, seed)
        seconds.append(time.perf_counter() - start)
        regrets.append(objective.value(plan) - best[task])
        assert objective.num_predictions <= budget
    share = np.mean(np.array(regrets) < SAME)
    return (
        f"| {name} | {budget} | {method} | {np.mean(regrets):.4f} | {100 * share:.0f} % | {max(regrets):.4f} "
        f"| {1e3 * np.mean(seconds):.1f} |"
    )


def _interaction_table(terms: Sequence[Interaction]) -> list[str]:
    lines = ["| first change | second change | tasks | interaction | shrunk |", "| --- | --- | --- | --- | --- |"]
    for row in terms:
        sides = [f"{side[0]}, {side[1]}" for side in (row.first, row.second)]
        numbers = f"{row.mean:+.4f} +- {row.error:.4f} | {row.shrunk:+.4f}"
        lines.append(f"| {sides[0]} | {sides[1]} | {row.num_tasks} | {numbers} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
