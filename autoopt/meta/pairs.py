"""Paired outcomes: what one controlled change of one role group did to a run's loss.

Two trials are a pair where task, seed and every other setting agree and only the configuration of one
role group differs. The outcome is the log ratio of their best validation losses, which seed noise
of about 1 % can be told from.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from autoopt.meta.options import PART, canonical, options_in, recorded_options, without
from autoopt.meta.trial import TrialStatus

if TYPE_CHECKING:
    import pandas as pd

CLIP = 0.5
"""Largest log ratio kept in size: beyond a factor of 1.6 only the direction counts (see EVIDENCE)."""


def log_ratio(loss: float, reference: float, scale: float = 1.0) -> float:
    """The clipped log ratio of two losses, positive where `loss` is worse than `reference`.

    Args:
        loss: Best validation loss; infinite for a run that diverged.
        reference: Best validation loss of the pair.
        scale: Unit for losses that are not positive (negative log densities): their difference over
            this scale takes the place of the log ratio.
    """
    if not math.isfinite(loss):
        return CLIP
    if not math.isfinite(reference):
        return -CLIP
    value = math.log(loss / reference) if loss > 0 and reference > 0 else (loss - reference) / scale
    return max(-CLIP, min(CLIP, value))


def paired_outcomes(trials: pd.DataFrame, default: str, linked: bool = False) -> pd.DataFrame:
    """One row for each recorded pair around the default.

    A pair counts if the role group's configuration on one side is the default's: the other groups
    may be those of another round's default, as long as they agree between the two sides.

    Args:
        trials: `MetaDataset.trials`.
        default: Canonical JSON of the default recipe.
        linked: Whether a configuration that was never paired with the default on a task and seed may be
            linked to it by two pairs: with what an earlier default had in its place, and of that with the
            default. Then what earlier rounds recorded is not lost where the default moves on.

    Returns:
        Columns `task`, `family`, `source`, `seed`, `group`, `config` (canonical JSON of the changed
        group, or of the plan-wide fields for group `"*"`), `outcome` and `linked`.
    """
    import pandas as pd

    fixed = json.loads(default)
    known = recorded_options(trials)
    wanted = {group: canonical(config) for group, config in fixed["groups"].items()} | {"*": _plan_wide(fixed)}
    frame: Any = trials  # pandas types what its methods return too loosely to be checked
    usable = frame[(frame["mode"] == "plan") & (frame["status"] != TrialStatus.FAILED)]
    parts: dict[str, dict[str, str]] = {}
    for plan in usable["plan"].unique():
        value = json.loads(plan)
        if value.get("width_free", True):
            parts[plan] = {g: canonical(c) for g, c in value["groups"].items()} | {"*": _plan_wide(value)}
    usable = usable[usable["plan"].isin(parts)]
    units = {group: {plan for plan, own in parts.items() if _alike(group, own["*"], wanted["*"])} for group in wanted}
    rows: list[dict[str, Any]] = []
    for (task, seed), runs in usable.groupby(["task", "seed"], observed=True, sort=True):
        losses = dict(zip(runs["plan"], runs["best_val_loss"], strict=True))
        first = runs.iloc[0]
        finite = [loss for loss in losses.values() if math.isfinite(loss)]
        scale = max(1e-12, abs(min(finite)), max(finite) - min(finite)) if finite else 1.0
        here = _plan_wide(without(fixed, options_in(fixed) - known[task]))
        for group, target in {**wanted, "*": here}.items():
            if group == PART:
                continue  # nothing is chosen for it
            contexts: dict[tuple[str, ...], dict[str, float]] = {}
            for plan, loss in losses.items():
                if plan not in units[group]:
                    continue
                others = tuple(config for key, config in parts[plan].items() if key != group)
                contexts.setdefault(others, {})[parts[plan][group]] = loss
            found = _direct(contexts.values(), target, scale)
            if linked and found:
                found += _linked(contexts.values(), target, found, scale)
            run = {"task": task, "family": first["family"], "source": first["source"], "seed": seed, "group": group}
            rows += [run | {"config": config, "outcome": value, "linked": way} for config, value, way in found]
    columns = ["task", "family", "source", "seed", "group", "config", "outcome", "linked"]
    return pd.DataFrame(rows, columns=columns)


_Outcome = tuple[str, float, bool]
"""A configuration, its outcome, and whether that was linked by two pairs."""


def _direct(contexts: Iterable[Mapping[str, float]], target: str, scale: float) -> list[_Outcome]:
    return [
        (config, log_ratio(loss, known[target], scale), False)
        for known in contexts
        if target in known
        for config, loss in known.items()
        if config != target
    ]


def _linked(
    contexts: Iterable[Mapping[str, float]], target: str, direct: Sequence[_Outcome], scale: float
) -> list[_Outcome]:
    """Outcomes of what was not paired with the target, by the most common of the configurations that were."""
    known_outcomes: dict[str, list[float]] = {}
    for config, value, _ in direct:
        known_outcomes.setdefault(config, []).append(value)
    counts = Counter(config for known in contexts for config in known)
    found = []
    for known in contexts:
        links = [config for config in known if config in known_outcomes]
        if target in known or not links:
            continue
        link = max(links, key=lambda config: (counts[config], config))
        start = sum(known_outcomes[link]) / len(known_outcomes[link])
        for config, loss in known.items():
            if config not in known_outcomes:
                value = start + log_ratio(loss, known[link], scale)
                found.append((config, max(-CLIP, min(CLIP, value)), True))
    return found


_UNIT_OF_GROUP: dict[str, tuple[str, ...]] = {
    "embedding": ("scale_free",),
    "matrix": ("horizon_free",),
    "head": ("horizon_free",),
    "conv": ("horizon_free", "norm_free"),
}
"""Plan-wide fields that decide what a unit of a role group's relative rate is."""


@lru_cache(maxsize=1 << 12)  # few plan-wide texts stand beside thousands of plans
def _alike(group: str, one: str, other: str) -> bool:
    """Whether a role group's rates mean the same under two recipes' plan-wide fields."""
    left, right = json.loads(one), json.loads(other)
    return all(left.get(name, False) == right.get(name, False) for name in _UNIT_OF_GROUP.get(group, ()))


def _plan_wide(recipe: dict[str, Any]) -> str:
    return canonical({key: value for key, value in recipe.items() if key != "groups"})
