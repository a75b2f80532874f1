"""Which changes of a task are worth recording next: where gain is expected, or the selector unsure.

Expected improvement (Jones, Schonlau & Welch 1998) weighs both: it is large where the prediction is
below the best outcome known for the task, and where the prediction is uncertain.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from autoopt.meta.artifact import GroupModel, Predictor
from autoopt.meta.encoding import ANCHOR_RATES, encode_candidate
from autoopt.meta.pairs import canonical
from autoopt.meta.process import Array

RATE_STEPS = tuple(2.0 ** (step / 2) for step in range(-10, 11))
"""Factors on a rate that are considered: half octaves over a factor of a thousand."""


@dataclass(frozen=True)
class Proposal:
    """A change of one role group of a task.

    Attributes:
        group: Role group.
        config: Canonical JSON of its configuration.
        mean: Expected log ratio to the default.
        std: Its standard deviation.
        improvement: Expected improvement over the best outcome known for the task, at least 0.
    """

    group: str
    config: str
    mean: float
    std: float
    improvement: float


def expected_improvement(mean: Array, std: Array, best: float) -> Array:
    """The mean of `max(0, best - effect)` for normal effects, `(num_rows,)`.

    Args:
        mean: Expected effects.
        std: Their standard deviations.
        best: Best outcome known; lower is better.
    """
    from scipy.special import ndtr

    gap = best - mean
    spread = np.maximum(std, 1e-12)
    density = np.exp(-0.5 * (gap / spread) ** 2) / math.sqrt(2.0 * math.pi)
    return np.asarray(gap * ndtr(gap / spread) + spread * density)


def propose(
    predictor: Predictor,
    values: Mapping[str, Mapping[str, float]],
    known: Mapping[str, Mapping[str, float]],
    count: int,
) -> list[Proposal]:
    """The changes of a task with the largest expected improvement, at most two for each role group.

    Args:
        predictor: A selector fitted on all that is recorded, the task itself included.
        values: Role group -> the task's meta-features.
        known: Role group -> configuration (canonical JSON) -> outcome recorded on the task.
        count: How many changes.
    """
    found: list[Proposal] = []
    for group, features in values.items():
        model = predictor.groups.get(group)
        if model is None:
            continue
        recorded = known.get(group, {})
        base = canonical(json.loads(predictor.default)["groups"][group])
        grid = (config for row in rate_grid(model, base) for config in row)
        configs = [config for config in grid if config not in recorded and config != base]
        rows = np.stack([np.concatenate([predictor.columns(features), encode_candidate(c, base)]) for c in configs])
        mean, std = model.process.predict(rows)
        gains = expected_improvement(mean, std, min([0.0, *recorded.values()]))
        columns = (part.tolist() for part in (mean, std, gains))
        proposals = [Proposal(group, *item) for item in zip(configs, *columns, strict=True)]
        found += _apart(sorted(proposals, key=_order), base)
    return sorted(found, key=_order)[:count]


def _order(proposal: Proposal) -> tuple[float, str, str]:
    return -proposal.improvement, proposal.group, proposal.config


def rate_grid(model: GroupModel, base: str) -> list[list[str]]:
    """The default and every recorded configuration of a role group, each at all the rates.

    Args:
        model: What was learned for the role group.
        base: Canonical JSON of the default's configuration.

    Returns:
        One row for each configuration that differs in more than its rate, the default's first; in each
        row the rates `RATE_STEPS` times the default's, or times the optimizer's anchor rate.
    """
    default = json.loads(base)
    found: dict[str, list[str]] = {}
    for text in (base, *model.candidates):
        config = json.loads(text)
        anchor = ANCHOR_RATES.get(config["optimizer"], config["lr"])
        rate = default["lr"] if config["optimizer"] == default["optimizer"] else anchor
        row = [canonical({**config, "lr": float(f"{rate * factor:.6g}")}) for factor in RATE_STEPS]
        found.setdefault(row[0], row)
    return list(found.values())


def _apart(ranked: Iterable[Proposal], base: str, least: float = 1.0) -> list[Proposal]:
    """The best change, and the best one whose columns are at least `least` from the first."""
    kept: list[Proposal] = []
    for proposal in ranked:
        code = encode_candidate(proposal.config, base)
        if all(np.abs(code - encode_candidate(other.config, base)).max() >= least for other in kept):
            kept.append(proposal)
        if len(kept) == 2:
            break
    return kept
