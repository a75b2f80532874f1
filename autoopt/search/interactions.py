"""What two changes at once do beyond the sum of what each does alone, as recorded.

The selector predicts changes of one role group. A plan changes several, and its predicted effect adds
them up; the terms here are what that sum leaves out, for each pair of role groups and kinds of change.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from autoopt.meta.pairs import canonical, log_ratio
from autoopt.meta.trial import TrialStatus

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("higher rate", "lower rate", "other optimizer", "other setting")
"""Kinds of change of a role group that interactions are told apart by."""

Side = tuple[str, str]
"""A role group and a kind of change of it."""


@dataclass(frozen=True)
class Interaction:
    """What one kind of change of one role group adds to one kind of change of another.

    Attributes:
        first: Role group and kind of change; the pair is in alphabetical order.
        second: The other one.
        mean: Mean over tasks of the joint log ratio less the sum of the single ones; negative is better.
        error: Standard error of that mean.
        shrunk: The mean after shrinkage towards no interaction, which is what a search uses.
        num_tasks: Tasks that it was recorded on.
    """

    first: Side
    second: Side
    mean: float
    error: float
    shrunk: float
    num_tasks: int


def kind_of(config: str, default: str) -> str | None:
    """The kind of a change of one role group, None where nothing is changed.

    Args:
        config: Canonical JSON of the configuration.
        default: Canonical JSON of the default's.
    """
    new, old = json.loads(config), json.loads(default)
    if new == old:
        return None
    if new["optimizer"] != old["optimizer"]:
        return "other optimizer"
    if new["lr"] == old["lr"]:
        return "other setting"
    return "higher rate" if new["lr"] > old["lr"] else "lower rate"


def squares(trials: pd.DataFrame, defaults: Sequence[str]) -> pd.DataFrame:
    """One row for each recorded square: a run, its two single changes, and both of them at once.

    The four runs share task, seed and every other setting; the other role groups may be anything, as
    long as they agree. A change that leaves the loss equal to the last bit touches nothing that the
    model has, and says nothing; neither does a square around a run that diverged. Where the single
    changes were combined because each was the best of several (rounds `propose-K`), noise makes
    their sum look too good, and the interaction too bad.

    Args:
        trials: `MetaDataset.trials`.
        defaults: Canonical JSON of the recipes that count as unchanged, the one that matters most first.

    Returns:
        Columns `task`, `seed`, `first`, `second` (sides, in alphabetical order) and `interaction`: the joint
        log ratio to the unchanged run less the sum of the two single ones.
    """
    import pandas as pd

    # pandas types what its methods return too loosely to be checked.
    frame: Any = trials
    usable = frame[(frame["mode"] == "plan") & (frame["status"] != TrialStatus.FAILED)]
    parts = {plan: part for plan in usable["plan"].unique() if (part := _parts(plan)) is not None}
    bases = [part for plan in defaults if (part := _parts(plan)) is not None]
    usable = usable[usable["plan"].isin(parts)]
    corners_of = {plan: list(_corners(part, bases)) for plan, part in parts.items()}
    found: dict[tuple[Any, ...], tuple[int, Side, Side, float]] = {}
    for (task, seed), runs in usable.groupby(["task", "seed"], observed=True, sort=True):
        losses = {_key(parts[p]): loss for p, loss in zip(runs["plan"], runs["best_val_loss"], strict=True)}
        finite = [loss for loss in losses.values() if np.isfinite(loss)]
        scale = max(1e-12, abs(min(finite)), max(finite) - min(finite)) if finite else 1.0
        for plan in sorted(runs["plan"].unique()):
            for rank, sides, corners in corners_of[plan]:
                if not all(corner in losses for corner in corners):
                    continue
                base, one, other, both = (losses[corner] for corner in corners)
                if not math.isfinite(base) or base in (one, other):
                    continue
                single = log_ratio(one, base, scale) + log_ratio(other, base, scale)
                # The same four runs are a square around each default that is one of them, with the sign of
                # the term turned: the first default counts.
                key = (task, seed, frozenset(corners))
                if key not in found or rank < found[key][0]:
                    found[key] = rank, *sides, log_ratio(both, base, scale) - single
    rows = [(task, seed, *value[1:]) for (task, seed, _), value in found.items()]
    return pd.DataFrame(rows, columns=["task", "seed", "first", "second", "interaction"])


def interactions(trials: pd.DataFrame, defaults: Sequence[str], min_tasks: int = 2) -> list[Interaction]:
    """The interactions of all pairs of role groups and kinds of change that were recorded.

    Means over tasks are shrunk as normal effects around zero: by `t^2 / (t^2 + error^2)`, where the variance
    `t^2` of the true interactions is the mean of `mean^2 - error^2` over all pairs, at least 0 (the moment
    estimate of empirical Bayes; Efron and Morris 1973). The error of a pair is at least the pooled
    standard deviation over the root of its tasks, since two tasks may agree by chance.

    Args:
        trials: `MetaDataset.trials`.
        defaults: Canonical JSON of the recipes that count as unchanged, the one that matters most first.
        min_tasks: Tasks that a pair must have been recorded on.
    """
    frame: Any = squares(trials, defaults)
    by_task = frame.groupby(["first", "second", "task"], observed=True)["interaction"].mean()
    table = by_task.groupby(level=[0, 1]).agg(["mean", "var", "size"])
    table = table[table["size"] >= max(2, min_tasks)]
    if table.empty:
        return []
    count = table["size"].to_numpy(dtype=float)
    mean, variance = table["mean"].to_numpy(), table["var"].to_numpy()
    pooled = float((variance * (count - 1)).sum() / (count - 1).sum())
    error = np.sqrt(np.maximum(variance, pooled) / count)
    spread = max(0.0, float(np.mean(mean**2 - error**2)))
    weight = spread / np.maximum(spread + error**2, 1e-300)
    columns = zip(table.index, mean, error, weight * mean, count, strict=True)
    return [Interaction(first, second, float(m), float(e), float(s), int(n)) for (first, second), m, e, s, n in columns]


def _parts(plan: str) -> dict[str, str] | None:
    """Role group -> canonical JSON, `"*"` the plan-wide fields; None for plans of absolute rates."""
    value = json.loads(plan)
    if not value.get("width_free", True):
        return None
    wide = canonical({key: item for key, item in value.items() if key != "groups"})
    return {group: canonical(config) for group, config in value["groups"].items()} | {"*": wide}


def _key(parts: dict[str, str]) -> tuple[str, ...]:
    return tuple(parts[group] for group in sorted(parts))


def _corners(
    parts: dict[str, str], bases: Sequence[dict[str, str]]
) -> Iterator[tuple[int, tuple[Side, Side], tuple[tuple[str, ...], ...]]]:
    """The squares that a plan would be the joint change of: number of the default, sides, keys of the four runs."""
    for rank, base in enumerate(bases):
        kinds = {group: kind_of(parts[group], base[group]) for group in base if group != "*" and group in parts}
        changed = [(group, kind) for group, kind in sorted(kinds.items()) if kind is not None]
        for first, second in combinations(changed, 2):
            one, other = first[0], second[0]
            undo = ({one: base[one], other: base[other]}, {other: base[other]}, {one: base[one]}, {})
            yield rank, (first, second), tuple(_key(parts | change) for change in undo)
