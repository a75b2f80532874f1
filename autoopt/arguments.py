"""The arguments of `select` and `recommend`: what each may be, and what stands in for one that is left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from autoopt.budget.goal import Goal
from autoopt.errors import ProfileError
from autoopt.optimizers.catalog import get
from autoopt.optimizers.recipe import WIDE, Recipe, RoleConfig
from autoopt.start_profile import DEFAULT_PASSES

ASIDE_WARMUP_STEPS = 20
"""Warm-up steps where they run aside and cost what they take."""

STARTING_RATES: dict[str, float] = {
    "sgd": 0.1,
    "adam": 8e-3,
    "adamw": 8e-3,
    "nadam": 8e-3,
    "radam": 8e-3,
    "rmsprop": 4e-3,
    "adagrad": 0.1,
    "sparseadam": 8e-3,
    "adafactor": 3e-2,
    "lion": 1e-3,
    "muon": 0.02,
    "soap": 1e-2,
}
"""Relative rate that an optimizer starts with where `candidates` rules the default's own out."""


def default_warmup_steps(total_steps: int | None) -> int:
    """5 % of the run, between 20 and 200 steps; 100 where the horizon is unknown.

    >>> [default_warmup_steps(steps) for steps in (100, 1000, 100_000, None)]
    [20, 50, 200, 100]
    """
    return 100 if total_steps is None else max(20, min(200, total_steps // 20))


def aside_effort(
    total_steps: int | None, warmup_steps: int | None, profile_steps: int | None, batches: Any
) -> tuple[int | None, int]:
    """Warm-up steps and passes of measuring at the start."""
    if profile_steps is not None and (
        isinstance(profile_steps, bool) or not isinstance(profile_steps, int) or profile_steps < 1
    ):
        raise ValueError(f"profile_steps must be a positive whole number of training steps, got {profile_steps!r}")
    if batches is not None and warmup_steps is None:
        warmup_steps = min(default_warmup_steps(total_steps), ASIDE_WARMUP_STEPS, profile_steps or ASIDE_WARMUP_STEPS)
    if profile_steps is None or not isinstance(warmup_steps, int):
        return warmup_steps, DEFAULT_PASSES
    return warmup_steps, max(0, profile_steps - warmup_steps)


def checked_steps(total_steps: int | None, warmup_steps: int | None) -> int:
    """The steps of warm-up: what was given, or the default.

    Raises:
        ValueError: If one is no number of steps, or nothing of the run is left after warm-up.
    """
    for name, value in (("total_steps", total_steps), ("warmup_steps", warmup_steps)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be a positive whole number of optimizer steps, got {value!r}")
    chosen = default_warmup_steps(total_steps) if warmup_steps is None else warmup_steps
    if total_steps is not None and total_steps <= chosen:
        origin = "the default" if warmup_steps is None else "as given"
        raise ValueError(
            f"total_steps ({total_steps}) must be above warmup_steps ({chosen}, {origin}): pass a smaller "
            "warmup_steps, or train longer"
        )
    return chosen


def checked_averaging(averaging: Any, goal: Goal) -> str | float | None:
    """What was given; none in place of `"auto"` where memory counts, since an average is a copy of the weights."""
    scarce = goal.objective == "memory" or goal.max_state_bytes is not None
    if averaging is None or averaging == "auto":
        return None if scarce else averaging
    if isinstance(averaging, bool | str) or not isinstance(averaging, int | float) or not 0 <= averaging < math.inf:
        raise ValueError(
            f"averaging must be 'auto', None (keep no average) or a power of at least 0, got {averaging!r}"
        )
    if scarce:
        raise ValueError(
            f"averaging={averaging!r} keeps a copy of the weights, which objective='memory' and max_state_bytes are "
            "there to avoid; drop one of the two"
        )
    return float(averaging)


def checked_clip_norm(clip_norm: Any) -> str | float | None:
    """What was given.

    Raises:
        ValueError: If it is neither `"auto"` nor None nor a norm.
    """
    if clip_norm is None or clip_norm == "auto":
        return clip_norm
    if isinstance(clip_norm, bool | str) or not isinstance(clip_norm, int | float) or not 0 < clip_norm < math.inf:
        raise ValueError(f"clip_norm must be 'auto', None (do not clip) or a norm above 0, got {clip_norm!r}")
    return float(clip_norm)


def checked_candidates(candidates: Sequence[str] | None) -> tuple[str, ...] | None:
    """The catalog names that may be used, None for all.

    Raises:
        ValueError: If they are no list of names.
        PlanError: If one is not in the catalog.
    """
    if candidates is None:
        return None
    if isinstance(candidates, str) or not list(candidates):
        raise ValueError(f"candidates must be a list of catalog names such as ['adamw', 'muon'], got {candidates!r}")
    return tuple(get(name).name for name in candidates)


def check_num_examples(num_examples: Any) -> None:
    """Nothing.

    Raises:
        ValueError: If it is no number of training examples.
    """
    if isinstance(num_examples, bool) or not isinstance(num_examples, int) or num_examples < 1:
        raise ValueError(f"num_examples must be a positive whole number of training examples, got {num_examples!r}")


def check_race(race: Any) -> None:
    """Nothing.

    Raises:
        ValueError: If it is no share of a run that a race may take.
    """
    if isinstance(race, bool) or not isinstance(race, int | float) or not 0.0 < race <= 0.5:
        raise ValueError(f"race must be a share of total_steps above 0 and up to 0.5, got {race!r}")


def check_pair(batches: Any, loss_fn: Any) -> None:
    """Nothing.

    Raises:
        ProfileError: If one is given without the other.
    """
    if (batches is None) != (loss_fn is None):
        given, missing = ("batches", "loss_fn") if loss_fn is None else ("loss_fn", "batches")
        raise ProfileError(f"{given} was given without {missing}: profiling aside needs both, online neither")


def restricted(default: Recipe, candidates: tuple[str, ...] | None) -> Recipe:
    """The default with every optimizer that `candidates` rules out replaced by the first that fits."""
    if candidates is None:
        return default
    groups = {}
    for group, config in default.groups.items():
        if group == WIDE:
            if config.optimizer in candidates:
                groups[group] = config
            continue  # else these tables go with the other embeddings
        allowed = [name for name in candidates if group in get(name).groups and get(name).gradients != "sparse"]
        if config.optimizer in candidates:
            groups[group] = config
        elif allowed:
            groups[group] = RoleConfig(allowed[0], STARTING_RATES[allowed[0]])
        else:
            raise ValueError(
                f"none of candidates={list(candidates)} can take the role group '{group}'; add 'adamw' or 'sgd'"
            )
    return replace(default, groups=groups)
