"""A small selector whose every prediction is known: for each role group one change gains, one loses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from autoopt.meta.artifact import GroupModel, Predictor
from autoopt.meta.encoding import encode_candidate
from autoopt.meta.pairs import canonical
from autoopt.meta.process import Process, pinned_similarity
from autoopt.optimizers.recipe import Recipe, calibrated_default

FEATURES = ("log_fan_in", "log_numel", "hoyer_sparsity", "log_signal_to_noise")
LOSS_OF_DECOY = 0.2


def config_of(recipe: Recipe, group: str) -> dict[str, Any]:
    """A role group's configuration as the selector's candidates are written."""
    return json.loads(recipe.to_json())["groups"][group]


def synthetic_predictor(
    gain: float = -0.3,
    std: float = 0.01,
    changes: Mapping[str, Mapping[str, Any]] | None = None,
    far: tuple[str, ...] = (),
) -> Predictor:
    """A selector that expects `gain` of one change in each role group, and a loss of a rate of a quarter.

    Args:
        gain: Predicted log ratio of the favoured change, negative is better.
        std: Standard deviation of every prediction.
        changes: Favoured change by role group; a rate four times the default's elsewhere.
        far: Role groups that count as unlike everything recorded.
    """
    default = calibrated_default()
    groups = {}
    for group in default.groups:
        favoured = default.with_change(group, (changes or {}).get(group, {"lr_factor": 4.0}))
        decoy = default.with_change(group, {"lr_factor": 0.25})
        base = canonical(config_of(default, group))
        candidates = tuple(canonical(config_of(recipe, group)) for recipe in (favoured, decoy))
        groups[group] = GroupModel(
            process=_two_points(*(encode_candidate(c, base) for c in candidates), gain, std),
            candidates=candidates,
            spread=1.0,
            caution=1.0,
            reference=np.arange(3.0 * len(FEATURES)).reshape(3, -1),
            tasks=("recorded-a", "recorded-b", "recorded-c"),
            winners=("rate x4", "rate x4", "default"),
            reach=-1.0 if group in far else 100.0,
        )
    return Predictor(default.to_json(), FEATURES, groups, margin=0.005)


def _two_points(favoured: np.ndarray, decoy: np.ndarray, gain: float, std: float) -> Process:
    """A process that has seen two candidates, and knows what each does whatever the features."""
    codes = np.stack([favoured, decoy])
    alike = pinned_similarity(codes, codes)
    return Process(
        x=np.hstack([np.full((2, len(FEATURES)), 0.5), codes]),
        weights=np.linalg.solve(alike, np.array([gain, LOSS_OF_DECOY])),
        center=np.full(len(FEATURES), 0.5),
        spread=np.ones(len(FEATURES)),
        relevance=np.full(len(FEATURES), 0.1),
        lengths=np.ones(codes.shape[1]),
        common=0.999,
        linear=0.0,
        local=0.001,
        task_noise=0.0,
        noise=np.full(2, std),
    )
