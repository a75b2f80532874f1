"""The recording rounds: which runs each one asks for.

- `adamw-sweep`: plain AdamW over 12 rates, which sets every task's target.
- `adamw-target`: the two best rates of each task's sweep again, on further seeds.
- `portfolio`: whole plans that are shared by all tasks.
- `coordinate-K`: one change of one role group at a time around the K-th default, paired by seed.
- `pairs-K`: two changes at once around the K-th default, to measure interaction.
- `propose-K`: what the selector, fitted on everything recorded, expects to improve on each task most:
  single changes of the K-th default, and the best change of every role group at once.
- `lean`: changes of the calibrated default that save memory or time (`autoopt.lean_round`).
- `random`: random per-role plans.
- The rounds of `autoopt.evaluation_rounds`, which nothing is learned from.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoopt.errors import MetaDatasetError
from autoopt.evaluation_rounds import EVALUATION_ROUNDS, evaluation_requests, plain_adamw
from autoopt.lean_round import lean_requests
from autoopt.meta.pairs import canonical, paired_outcomes
from autoopt.meta.trial import TrialRequest, trial_id
from autoopt.optimizers.catalog import ALL_GROUPS
from autoopt.optimizers.recipe import Recipe, RoleConfig, calibrated_default
from autoopt.proposed_round import proposed_changes
from autoopt.task_layers import layers_of_task, on_task
from autoopt.tasks.base import Task

ADAMW_RATES: tuple[float, ...] = tuple(round(10 ** (-4.5 + 4 * k / 11), 7) for k in range(12))
"""Twelve log-spaced rates over four decades."""


@dataclass(frozen=True)
class Change:
    """A controlled change of one role group (or `"*"`, the plan-wide fields)."""

    group: str
    values: dict[str, Any]

    @property
    def name(self) -> str:
        """A short readable name, such as `"head lr_factor=4"`."""
        return " ".join([self.group, *(f"{key}={value}" for key, value in self.values.items())])

    def to_json(self) -> str:
        """The change as canonical JSON."""
        return json.dumps(self.values, sort_keys=True, separators=(",", ":"))


def _rates(group: str, *factors: float) -> tuple[Change, ...]:
    return tuple(Change(group, {"lr_factor": factor}) for factor in factors)


CHANGES: tuple[Change, ...] = (
    *_rates("embedding", 4.0, 0.25, 2.0, 0.0625, 16.0),
    Change("embedding", {"optimizer": "adagrad", "lr": 0.2}),
    Change("embedding", {"optimizer": "rmsprop", "lr": 0.016}),
    Change("embedding", {"optimizer": "lion", "lr": 0.01}),
    Change("embedding", {"optimizer": "sgd", "lr": 1.0}),
    Change("embedding", {"optimizer": "muon", "lr": 0.05}),
    Change("embedding", {"weight_decay": 0.1}),
    *_rates("matrix", 2.0, 0.5, 4.0, 0.25),
    Change("matrix", {"optimizer": "adamw", "lr": 0.006, "betas": (0.9, 0.99)}),
    Change("matrix", {"optimizer": "adamw", "lr": 0.016, "betas": (0.9, 0.99)}),
    Change("matrix", {"optimizer": "sgd", "lr": 0.1}),
    Change("matrix", {"optimizer": "lion", "lr": 0.001}),
    Change("matrix", {"optimizer": "soap", "lr": 0.01}),
    Change("matrix", {"weight_decay": 0.1}),
    Change("matrix", {"momentum": 0.9}),
    *_rates("conv", 2.0, 0.5, 4.0, 0.25),
    Change("conv", {"optimizer": "adamw", "lr": 0.008, "betas": (0.9, 0.99)}),
    Change("conv", {"optimizer": "sgd", "lr": 0.1}),
    Change("conv", {"weight_decay": 0.1}),
    *_rates("head", 4.0, 0.25, 2.0, 0.5, 16.0),
    Change("head", {"optimizer": "muon", "lr": 0.02}),
    Change("head", {"optimizer": "muon", "lr": 0.08}),
    Change("head", {"optimizer": "sgd", "lr": 0.1}),
    Change("head", {"optimizer": "rmsprop", "lr": 0.004}),
    Change("head", {"weight_decay": 0.1}),
    *_rates("vector", 4.0, 0.25),
    Change("vector", {"optimizer": "sgd", "lr": 0.1}),
    Change("*", {"warmup_share": 0.0}),
    Change("*", {"warmup_share": 0.15}),
    Change("*", {"shape": "cosine"}),
)
"""The changes of the first coordinate round. Those that leave a default as it is are dropped."""

LATER_CHANGES: tuple[Change, ...] = (
    *_rates("embedding", 4.0, 0.25, 2.0, 0.5, 0.0625),
    Change("embedding", {"weight_decay": 0.0}),
    Change("embedding", {"weight_decay": 0.4}),
    Change("embedding", {"betas": (0.9, 0.999)}),
    *_rates("matrix", 2.0, 0.5, 4.0, 0.25),
    Change("matrix", {"optimizer": "adamw", "lr": 0.008, "betas": (0.9, 0.99)}),
    Change("matrix", {"optimizer": "soap", "lr": 0.01}),
    Change("matrix", {"weight_decay": 0.1}),
    Change("matrix", {"momentum": 0.8}),
    Change("matrix", {"momentum": 0.6}),
    *_rates("conv", 2.0, 0.5, 4.0),
    Change("conv", {"optimizer": "adamw", "lr": 0.008, "betas": (0.9, 0.99)}),
    Change("conv", {"weight_decay": 0.1}),
    Change("conv", {"momentum": 0.8}),
    *_rates("head", 4.0, 0.25, 2.0, 0.5),
    Change("head", {"optimizer": "muon", "lr": 0.02}),
    Change("head", {"optimizer": "muon", "lr": 0.08}),
    Change("head", {"optimizer": "sgd", "lr": 0.1}),
    Change("head", {"weight_decay": 0.3}),
    Change("head", {"betas": (0.9, 0.999)}),
    *_rates("vector", 4.0, 0.25),
    Change("vector", {"optimizer": "sgd", "lr": 0.1}),
    Change("*", {"warmup_share": 0.3}),
    Change("*", {"shape": "quadratic"}),
    Change("*", {"shape": "concave"}),
    Change("*", {"averaging": 6.0}),
    Change("*", {"shape": "concave", "averaging": 6.0}),
    Change("*", {"shape": "concave", "averaging": 6.0, "warmup_share": 0.05}),
    Change("*", {"shape": "concave", "averaging": 3.0}),
    Change("*", {"shape": "concave", "averaging": 12.0}),
)
"""The changes of later rounds: what gained over 5 % of the loss on few tasks before is left out."""

AVERAGED_CHANGES: tuple[Change, ...] = (
    *_rates("embedding", 4.0, 0.25, 2.0, 0.5, 0.0625),
    Change("embedding", {"weight_decay": 0.0}),
    Change("embedding", {"weight_decay": 0.4}),
    Change("embedding", {"betas": (0.9, 0.99)}),
    Change("embedding", {"optimizer": "adagrad", "lr": 0.2}),
    *_rates("matrix", 2.0, 0.5, 4.0, 0.25),
    Change("matrix", {"optimizer": "adamw", "lr": 0.008, "betas": (0.9, 0.99)}),
    Change("matrix", {"optimizer": "soap", "lr": 0.01}),
    Change("matrix", {"weight_decay": 0.1}),
    Change("matrix", {"momentum": 0.6}),
    *_rates("conv", 2.0, 0.5, 4.0),
    Change("conv", {"weight_decay": 0.1}),
    Change("conv", {"momentum": 0.95}),
    *_rates("head", 4.0, 0.25, 2.0, 0.5),
    Change("head", {"optimizer": "muon", "lr": 0.02}),
    Change("head", {"optimizer": "muon", "lr": 0.08}),
    Change("head", {"optimizer": "sgd", "lr": 0.1}),
    Change("head", {"weight_decay": 0.3}),
    Change("head", {"betas": (0.9, 0.99)}),
    *_rates("vector", 4.0, 0.25, 2.0, 0.5),
    Change("vector", {"optimizer": "sgd", "lr": 0.1}),
    Change("vector", {"betas": (0.9, 0.99)}),
    Change("*", {"warmup_share": 0.05}),
    Change("*", {"shape": "linear"}),
    Change("*", {"averaging": 12.0}),
    Change("*", {"scale_free": False}),
    Change("*", {"max_relative_update": None}),
)
"""The changes of rounds whose default averages its weights."""

HORIZON_CHANGES: tuple[Change, ...] = (
    *AVERAGED_CHANGES,
    Change("*", {"horizon_free": False}),
    Change("*", {"norm_free": False}),
    Change("*", {"max_relative_update": 0.05}),
    Change("*", {"decay_free": False}),
    Change("*", {"warmup_share": 0.15}),
    Change("*", {"averaging": 6.0}),
    Change("*", {"clip_norm": 1.0}),
    Change("*", {"clip_norm": None}),
)
"""The changes of rounds whose default's rates are also relative to the length of the run and to norms."""


def changes_of(index: str) -> tuple[Change, ...]:
    """The changes that coordinate round `index` records."""
    if index == "1":
        return CHANGES
    number = int(index)
    return LATER_CHANGES if number < 5 else AVERAGED_CHANGES if number < 6 else HORIZON_CHANGES


def applicable(changes: Iterable[Change], groups: Iterable[str]) -> list[Change]:
    """The changes that touch a role group which a model has."""
    present = {*groups, "*"}
    return [change for change in changes if change.group in present]


def _task_changes(task: Task, index: str) -> list[Change]:
    """The changes that do something on a task's model.

    On sparse embeddings, rules without a sparse form fall back to SparseAdam and weight decay is
    dropped: such a change would be recorded under a name that is not what ran.
    """
    layers = layers_of_task(task)
    found = applicable(changes_of(index), {layer.group for layer in layers})
    if any(layer.sparse for layer in layers):
        kept = ("lr_factor",), ("betas",)
        found = [
            change
            for change in found
            if change.group != "embedding"
            or tuple(change.values) in kept
            or change.values.get("optimizer") in ("sgd", "adagrad")
        ]
    return found


def load_defaults(folder: str | Path = "meta_data") -> dict[str, Recipe]:
    """The default around which each coordinate round was recorded, by round.

    Raises:
        MetaDatasetError: If the file is damaged.
    """
    path = Path(folder) / "defaults.json"
    if not path.exists():
        return {"1": calibrated_default()}
    try:
        return {key: Recipe.from_json(json.dumps(value)) for key, value in json.loads(path.read_text()).items()}
    except ValueError as error:
        raise MetaDatasetError(f"{path} is damaged: {error}; restore it from version control") from error


def portfolio() -> list[tuple[str, Recipe]]:
    """Whole plans recorded on every task, with their names."""
    default = calibrated_default()
    betas = (0.9, 0.99)
    plans: list[tuple[str, Recipe]] = []
    for name, rates in (
        ("nadam", (1e-3, 3e-3, 1e-2, 3e-2)),
        ("sgd", (0.01, 0.03, 0.1, 0.3, 1.0)),
        ("lion", (1e-4, 3e-4, 1e-3, 3e-3)),
        ("adagrad", (0.01, 0.03, 0.1, 0.3)),
        ("adafactor", (1e-3, 1e-2, 3e-2, 1e-1)),
        ("rmsprop", (1e-3, 3e-3, 1e-2)),
    ):
        plans += [(f"{name} {lr:g}", Recipe.uniform(name, lr, width_free=False)) for lr in rates]
    plans += [(f"adamw relative {lr:g}", Recipe.uniform("adamw", lr, betas=betas)) for lr in (4e-3, 8e-3, 1.6e-2)]
    adamw = RoleConfig("adamw", 4e-3, {"betas": betas})
    for name, rates in (("muon", (5e-3, 1e-2, 2e-2, 4e-2)), ("soap", (3e-3, 1e-2, 3e-2))):
        for lr in rates:
            groups = {group: adamw for group in ALL_GROUPS}
            groups |= {group: RoleConfig(name, lr) for group in ("matrix", "conv")}
            plans.append((f"{name}+adamw {lr:g}", Recipe(groups)))
    plans.append(("default", default))
    return plans


def _random_recipe(generator: random.Random) -> Recipe:
    rates = {
        "adamw": (1e-3, 1e-1),
        "nadam": (1e-3, 1e-1),
        "sgd": (1e-2, 1.0),
        "lion": (1e-4, 1e-2),
        "rmsprop": (5e-4, 3e-2),
        "adagrad": (1e-2, 5e-1),
        "muon": (4e-3, 1e-1),
    }

    def draw(group: str) -> RoleConfig:
        names = [name for name in rates if name != "muon" or group != "vector"]
        name = generator.choice(names)
        low, high = rates[name]
        lr = low * (high / low) ** generator.random()
        return RoleConfig(name, float(f"{lr:.3g}"))

    return Recipe({group: draw(group) for group in ALL_GROUPS})


def requests(
    round_name: str,
    tasks: Sequence[Task],
    seeds: Sequence[int],
    dataset: Any = None,
    folder: str | Path = "meta_data",
) -> list[TrialRequest]:
    """The runs that a round asks for, on the given tasks and seeds.

    Args:
        round_name: One of the rounds that the module's docstring lists.
        tasks: Tasks; those marked `demo` or `evaluation_only` are left out.
        seeds: Seeds.
        dataset: The `MetaDataset` recorded so far; `adamw-target` needs it.
        folder: Where `defaults.json` lies.

    Raises:
        MetaDatasetError: If the round is unknown.
    """
    if round_name in EVALUATION_ROUNDS:
        sweep = [(f"adamw {lr:g}", plain_adamw(lr)) for lr in ADAMW_RATES]
        return evaluation_requests(round_name, tasks, seeds, dataset, folder, sweep)
    kind, _, index = round_name.rpartition("-") if round_name[-1:].isdigit() else (round_name, "", "")
    found: list[TrialRequest] = []
    known = _known_pairs(round_name, index, dataset, folder) if kind == "coordinate" else frozenset()
    if kind == "lean":
        return lean_requests(tasks, seeds, calibrated_default())
    if kind == "propose":
        return proposed_changes(round_name, tasks, seeds, dataset, _default_of(round_name, index, folder))
    for task in tasks:
        if task.demo or task.evaluation_only:
            continue
        if kind == "adamw-sweep":
            plans = [(f"adamw {lr:g}", plain_adamw(lr)) for lr in ADAMW_RATES]
        elif kind == "adamw-target":
            plans = [(f"adamw {lr:g}", plain_adamw(lr)) for lr in _best_adamw_rates(task, dataset)]
        elif kind == "portfolio":
            plans = portfolio()
        elif kind == "random":
            generator = random.Random(task.name)
            plans = [(f"random {k}", _random_recipe(generator)) for k in range(6)]
        elif kind in ("coordinate", "pairs"):
            for seed in seeds:
                found += _changes(round_name, kind, index, task, seed, folder, known)
            continue
        else:
            raise MetaDatasetError(
                f"there is no round {round_name!r}; the rounds are adamw-sweep, adamw-target, portfolio, "
                f"coordinate-K, pairs-K, propose-K (K = 1, 2, ...), lean, random, {', '.join(EVALUATION_ROUNDS)}"
            )
        for seed in seeds:
            found += [TrialRequest(task.name, recipe.to_json(), name, round_name, seed=seed) for name, recipe in plans]
    return found


def _best_adamw_rates(task: Task, dataset: Any, count: int = 2) -> list[float]:
    """The sweep's best rates on the first seed it was recorded with, once it is complete there."""
    plans = {plain_adamw(lr).to_json(): lr for lr in ADAMW_RATES}
    trials = dataset.trials
    runs = trials[(trials["task"] == task.name) & (trials["mode"] == "plan") & trials["plan"].isin(list(plans))]
    for _, sweep in runs.groupby("seed", sort=True):
        if sweep["plan"].nunique() == len(plans):
            best = sweep.sort_values("best_val_loss", kind="stable")["plan"].head(count)
            return [plans[plan] for plan in best]
    return []


def get_default(defaults: Mapping[str, Recipe], index: str) -> Recipe:
    """One of the defaults that `load_defaults` gave.

    Raises:
        MetaDatasetError: If it is not among them.
    """
    if index not in defaults:
        raise MetaDatasetError(f"there is no default {index}; defaults.json has {', '.join(defaults)}")
    return defaults[index]


def _default_of(round_name: str, index: str, folder: str | Path) -> Recipe:
    defaults = load_defaults(folder)
    if index not in defaults:
        raise MetaDatasetError(
            f"round {round_name!r} needs default {index} in {folder}/defaults.json, which has "
            f"{', '.join(defaults)}; run scripts/move_default.py after the round before"
        )
    return defaults[index]


_Pair = tuple[str, int, str, str]
"""Task, seed, role group and the group's configuration as canonical JSON."""


def _known_pairs(round_name: str, index: str, dataset: Any, folder: str | Path) -> frozenset[_Pair]:
    """The changes whose effect other rounds have recorded: around an earlier default that agrees in the group."""
    if dataset is None:
        return frozenset()
    trials = dataset.trials
    others = trials[trials["round"] != round_name]
    pairs = paired_outcomes(others, _default_of(round_name, index, folder).to_json())
    columns = (pairs[name] for name in ("task", "seed", "group", "config"))
    return frozenset(zip(*columns, strict=True))


def _changes(
    round_name: str,
    kind: str,
    index: str,
    task: Task,
    seed: int,
    folder: str | Path,
    known: frozenset[_Pair],
) -> list[TrialRequest]:
    default = on_task(_default_of(round_name, index, folder), task)
    base = default.to_json()
    base_id = trial_id(task.name, base, seed)
    found = [TrialRequest(task.name, base, f"default {index}", round_name, seed=seed)]
    changes = _task_changes(task, index)
    if kind == "pairs":
        generator = random.Random(f"{task.name} {seed}")
        groups = [(a, b) for a in changes for b in changes if a.group < b.group]
        chosen = generator.sample(groups, min(8, len(groups)))
        combined = [(f"{a.name}, {b.name}", f"{a.group}+{b.group}", [a, b]) for a, b in chosen]
    else:
        combined = [(change.name, change.group, [change]) for change in changes]
        found += _returns(round_name, index, task, seed, folder, known)
        # In an order of the task's own, so that a budget that ends first leaves all changes covered alike.
        random.Random(f"{task.name} {seed}").shuffle(combined)
    as_it_is = default.resolve(layers_of_task(task), task.budget_steps)
    for name, group, parts in combined:
        recipe = default
        for part in parts:
            recipe = recipe.with_change(part.group, part.values)
        text = recipe.to_json()
        if recipe.resolve(layers_of_task(task), task.budget_steps) == as_it_is:
            continue  # nothing on this model follows from what is changed
        if text == base or (task.name, seed, group, _config(text, group)) in known:
            continue
        change = parts[0].to_json() if len(parts) == 1 else json.dumps([p.values for p in parts])
        found.append(
            TrialRequest(task.name, text, f"default {index}: {name}", round_name, group, change, base_id, seed)
        )
    return found


def _returns(
    round_name: str, index: str, task: Task, seed: int, folder: str | Path, known: frozenset[_Pair]
) -> list[TrialRequest]:
    """Each role group as the default before had it: links between what was recorded around the two."""
    defaults = load_defaults(folder)
    before = defaults.get(str(int(index) - 1))
    if before is None:
        return []
    default = on_task(defaults[index], task)
    base, found = default.to_json(), []
    for group in sorted({layer.group for layer in layers_of_task(task)}):
        text = default.with_config(group, _config(before.to_json(), group)).to_json()
        if text != base and (task.name, seed, group, _config(text, group)) not in known:
            name = f"default {index}: {group} as in default {int(index) - 1}"
            base_id = trial_id(task.name, base, seed)
            found.append(TrialRequest(task.name, text, name, round_name, group, _config(text, group), base_id, seed))
    return found


def _config(recipe: str, group: str) -> str:
    """One role group's configuration in a recipe's JSON, as `paired_outcomes` writes it."""
    groups = json.loads(recipe)["groups"]
    return canonical(groups[group]) if group in groups else ""
