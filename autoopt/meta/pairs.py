"""Paired outcomes: what one controlled change of one role group did to a run's loss.

Two trials are a pair where task, seed and every other setting agree and only the configuration of one
role group differs. The outcome is the log ratio of their best validation losses, which seed noise
of about 1 % can be told from.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

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


def canonical(config: dict[str, Any]) -> str:
    """The canonical JSON of one role group's configuration."""
    return json.dumps(config, sort_keys=True, separators=(",", ":"))


def paired_outcomes(trials: pd.DataFrame, default: str) -> pd.DataFrame:
    """One row for each recorded pair around the default.

    A pair counts if the role group's configuration on one side is the default's: the other groups
    may be those of another round's default, as long as they agree between the two sides.

    Args:
        trials: `MetaDataset.trials`.
        default: Canonical JSON of the default recipe.

    Returns:
        Columns `task`, `family`, `source`, `seed`, `group`, `config` (canonical JSON of the changed
        group, or of the plan-wide fields for group `"*"`) and `outcome`.
    """
    import pandas as pd

    fixed = json.loads(default)
    wanted = {group: canonical(config) for group, config in fixed["groups"].items()} | {"*": _plan_wide(fixed)}
    frame: Any = trials  # pandas types what its methods return too loosely to be checked
    usable = frame[(frame["mode"] == "plan") & (frame["status"] != TrialStatus.FAILED)]
    parts: dict[str, dict[str, str]] = {}
    for plan in usable["plan"].unique():
        value = json.loads(plan)
        if value.get("width_free", True):
            parts[plan] = {g: canonical(c) for g, c in value["groups"].items()} | {"*": _plan_wide(value)}
    usable = usable[usable["plan"].isin(parts)]
    rows: list[dict[str, Any]] = []
    for (task, seed), runs in usable.groupby(["task", "seed"], observed=True, sort=True):
        losses = dict(zip(runs["plan"], runs["best_val_loss"], strict=True))
        first = runs.iloc[0]
        finite = [loss for loss in losses.values() if math.isfinite(loss)]
        scale = max(1e-12, abs(min(finite)), max(finite) - min(finite)) if finite else 1.0
        for group, target in wanted.items():
            contexts: dict[tuple[str, ...], dict[str, float]] = {}
            for plan, loss in losses.items():
                others = tuple(config for key, config in parts[plan].items() if key != group)
                contexts.setdefault(others, {})[parts[plan][group]] = loss
            for known in contexts.values():
                if target not in known:
                    continue
                rows += [
                    {
                        "task": task,
                        "family": first["family"],
                        "source": first["source"],
                        "seed": seed,
                        "group": group,
                        "config": config,
                        "outcome": log_ratio(loss, known[target], scale),
                    }
                    for config, loss in known.items()
                    if config != target
                ]
    columns = ["task", "family", "source", "seed", "group", "config", "outcome"]
    return pd.DataFrame(rows, columns=columns)


def _plan_wide(recipe: dict[str, Any]) -> str:
    return canonical({key: value for key, value in recipe.items() if key != "groups"})
