"""`select` and `recommend`: where a model, the statistics of its gradients and the selector meet."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from autoopt.architecture import describe, frozen_layers
from autoopt.arguments import (
    aside_effort,
    check_num_examples,
    check_pair,
    check_race,
    checked_averaging,
    checked_candidates,
    checked_clip_norm,
    checked_steps,
    restricted,
)
from autoopt.budget.goal import Goal
from autoopt.budget.step_time import StepClock
from autoopt.distributed.ranks import Ranks
from autoopt.distributed.wrappers import check_layers_apart, group_of, unwrapped
from autoopt.errors import ModelError
from autoopt.guard.fallback import Fallbacks
from autoopt.guard.guard import Guard
from autoopt.meta import artifact, extrapolation
from autoopt.meta.artifact import Predictor
from autoopt.meta.extrapolation import Extrapolation
from autoopt.optimizers.auto_optimizer import AutoOptimizer
from autoopt.optimizers.averaging import buffer_bytes_of
from autoopt.optimizers.plan import OptimizerPlan
from autoopt.optimizers.recipe import Recipe, calibrated_default
from autoopt.optimizers.schedule import Schedule
from autoopt.owners import check_owner, own
from autoopt.profiling import profile_aside
from autoopt.race import race_aside
from autoopt.report.recommendation import Recommendation
from autoopt.run_recorder import Remember, RunRecorder
from autoopt.selection import OnlineSelection

LossFn = Callable[[nn.Module, Any], Tensor]


def select(
    model: nn.Module,
    *,
    total_steps: int | None = None,
    num_examples: int | None = None,
    warmup_steps: int | None = None,
    batches: Iterable[Any] | None = None,
    loss_fn: LossFn | None = None,
    profile_steps: int | None = None,
    race: float | None = None,
    objective: str = "loss",
    schedule: str | None = "auto",
    averaging: str | float | None = "auto",
    clip_norm: str | float | None = "auto",
    candidates: Sequence[str] | None = None,
    max_state_bytes: int | None = None,
    selector: Predictor | str | os.PathLike[str] | None = None,
    process_group: Any = "auto",
    guard: bool = True,
    seed: int = 0,
    remember: Remember | str | os.PathLike[str] | None = None,
    explore: bool = False,
) -> AutoOptimizer:
    """An optimizer that chooses the rule and the rate of every layer of `model`.

    Without `batches`, the first `warmup_steps` calls of `step()` train with the calibrated default
    while gradient statistics are collected; the last of them decides. With `batches` and `loss_fn`
    the profile runs aside first and everything it touched is restored bit by bit.

    Args:
        model: The model to train. Its trainable parameters are found when this is called.
        total_steps: Optimizer steps of the whole run. Known, it sets the schedule and informs the
            choice; None trains at a constant rate.
        num_examples: Distinct training examples, in the unit that a batch counts: with the batch size
            and `total_steps` it tells how often the run comes back to each. Where `batches` is a
            loader, its data set is asked; None where it is not known.
        warmup_steps: Steps of the profile; by default 5 % of `total_steps`, between 20 and 200, and 20
            where it runs aside.
        batches: Batches to profile on; at least `warmup_steps` of them are drawn.
        loss_fn: `loss_fn(model, batch)`, a scalar tensor.
        profile_steps: What profiling aside may cost, in training steps: those not spent on
            `warmup_steps` measure rates and curvature at the start. By default 60, or 40 more than
            the given `warmup_steps`.
        race: Share of `total_steps`, at most 0.5, that short runs of the likeliest changes may take before
            step 0, after profiling aside; None for no race. A race below 0.1 changes hardly anything, and
            its steps come on top of the run's (`docs/racing.md` says what it is worth).
        objective: `"loss"`; `"time"` to weigh predicted steps by the time of a step on this device;
            `"memory"` for the least optimizer state at nearly the same loss.
        schedule: `"auto"` for a built-in warm-up and decay over `total_steps`, None to leave rates
            to your own scheduler.
        averaging: Keep an average of the weights for `optimizer.averaged()`: `"auto"` as the calibrated default
            does, the power of its weights (see `autoopt.optimizers.averaging`), or None for none, which
            saves a copy of the weights.
        clip_norm: Norm that all gradients together are clipped to within `step()`: `"auto"` as the calibrated
            default does, a norm, or None for no clipping. Clipping them yourself before the step goes with each.
        candidates: Catalog names that may be used; None for all.
        max_state_bytes: Bytes of optimizer state that the plan must not exceed, exactly; None for no limit.
            Warm-up trains under it too, but its statistics come on top: at most 46 KiB a tensor.
        selector: A `Predictor`, the path of an artifact, `"default"` to keep the calibrated default,
            or None for the shipped selector.
        process_group: The ranks that decide together, where torch.distributed is in use: `"auto"` for
            those that a `DistributedDataParallel` model averages over, or else all; None to decide alone.
        guard: Whether to watch gradients and losses (`optimizer.observe(loss)`, or a closure's) after the
            decision: bad steps are skipped, and a run that goes wrong is rolled back and falls to the
            calibrated default where nothing else helps. A run in which nothing happens is the same, bit
            by bit; `optimizer.guard_events` tells what happened.
        seed: Seed of the coordinates that statistics are sampled at.
        remember: A folder (or a `Remember`) to which this run is appended as it goes: losses, times and
            meta-features, no data and no names. `autoopt learn` makes a selector of what lies there.
        explore: Try a change of one role group that the remembered runs of this task have not tried, instead
            of what is expected to be best; the task's first run trains with the default.

    Returns:
        An `AutoOptimizer`; its `.recommendation` is set by the decision.

    Raises:
        ModelError: If the model has nothing to train, parameters that cannot be optimized, or ones that
            a wrapper has flattened.
        ArtifactError: If the selector cannot be read.
        ProfileError: If `batches` or `loss_fn` do not give a usable profile.
        ValueError: If an argument is out of range.

    Example:
        >>> model = nn.Linear(4, 2)
        >>> optimizer = select(model, total_steps=200)
        >>> optimizer.phase
        'warmup'
    """
    warmup_steps, max_passes = aside_effort(total_steps, warmup_steps, profile_steps, batches)
    selection = _selection(
        model,
        total_steps,
        warmup_steps,
        objective,
        schedule,
        averaging,
        clip_norm,
        candidates,
        max_state_bytes,
        selector,
        seed,
    )
    selection.decide_with(_ranks(model, process_group))
    if num_examples is not None:
        check_num_examples(num_examples)
        selection.facts["num_examples"] = float(num_examples)
    check_pair(batches, loss_fn)
    learned = _extrapolation(race, selection, batches)
    inside = unwrapped(model)
    recorder = _recorder(selection, remember, explore, race, type(inside).__name__)
    named = [(name, param) for name, param in inside.named_parameters() if param.requires_grad]
    starting = selection.starting_plan()
    watch = _guard(inside, total_steps, selection.ranks, starting) if guard else False
    if batches is not None and loss_fn is not None:
        recommendation = _aside(model, batches, loss_fn, selection, max_passes, race, learned)
        optimizer = AutoOptimizer.from_recommendation(named, recommendation, guard=watch)
    else:
        optimizer = AutoOptimizer(named, plan=starting, selection=selection, guard=watch)
        selection.watch_first_batch(inside, optimizer)
        selection.may_thaw(frozen_layers(inside))
    optimizer.average_buffers_of(inside)
    if recorder is not None:
        optimizer.keep_in(recorder)
    own(inside, optimizer, (param for _, param in named))
    return optimizer


def recommend(
    model: nn.Module,
    *,
    batches: Iterable[Any] | None = None,
    loss_fn: LossFn | None = None,
    profile_steps: int | None = None,
    race: float | None = None,
    total_steps: int | None = None,
    num_examples: int | None = None,
    warmup_steps: int | None = None,
    objective: str = "loss",
    schedule: str | None = "auto",
    averaging: str | float | None = "auto",
    clip_norm: str | float | None = "auto",
    candidates: Sequence[str] | None = None,
    max_state_bytes: int | None = None,
    selector: Predictor | str | os.PathLike[str] | None = None,
    process_group: Any = "auto",
    seed: int = 0,
) -> Recommendation:
    """The recommendation for a model, without an optimizer: the model is left exactly as it was.

    The arguments are those of `select`. Without `batches` and `loss_fn` nothing can be measured: the
    calibrated default for the model is recommended, with a warning that says so.

    Raises:
        ModelError: If the model has nothing to train, parameters that cannot be optimized, or ones that
            a wrapper has flattened.
        ArtifactError: If the selector cannot be read.
        ProfileError: If `batches` or `loss_fn` do not give a usable profile.
        ValueError: If an argument is out of range.
    """
    warmup_steps, max_passes = aside_effort(total_steps, warmup_steps, profile_steps, batches)
    selection = _selection(
        model,
        total_steps,
        warmup_steps,
        objective,
        schedule,
        averaging,
        clip_norm,
        candidates,
        max_state_bytes,
        selector,
        seed,
    )
    selection.decide_with(_ranks(model, process_group))
    if num_examples is not None:
        check_num_examples(num_examples)
        selection.facts["num_examples"] = float(num_examples)
    check_pair(batches, loss_fn)
    learned = _extrapolation(race, selection, batches)
    if batches is None or loss_fn is None:
        return selection.unmeasured()
    return _aside(model, batches, loss_fn, selection, max_passes, race, learned)


def _aside(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: LossFn,
    selection: OnlineSelection,
    max_passes: int,
    race: float | None,
    learned: Extrapolation | None,
) -> Recommendation:
    """The recommendation after profiling aside, and after a race where one is asked for."""
    selection.races = race is not None
    recommendation = profile_aside(model, batches, loss_fn, selection, max_passes)
    if race is None or learned is None:
        return recommendation
    return race_aside(model, batches, loss_fn, selection, recommendation, race, learned)


def _extrapolation(race: float | None, selection: OnlineSelection, batches: Any) -> Extrapolation | None:
    """What was learned of short runs, None where no race is asked for."""
    if race is None:
        return None
    check_race(race)
    if batches is None:
        raise ValueError(f"race={race} trains short runs aside, so it needs batches and loss_fn; pass both")
    if selection.total_steps is None:
        raise ValueError(f"race={race} is a share of total_steps; pass total_steps, too")
    if selection.predictor is None:
        raise ValueError(f"race={race} shifts what a selector predicts, but selector='default' predicts nothing")
    return extrapolation.load()


def _selection(
    model: nn.Module,
    total_steps: int | None,
    warmup_steps: int | None,
    objective: str,
    schedule: str | None,
    averaging: str | float | None,
    clip_norm: str | float | None,
    candidates: Sequence[str] | None,
    max_state_bytes: int | None,
    selector: Predictor | str | os.PathLike[str] | None,
    seed: int,
) -> OnlineSelection:
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"select() takes a torch.nn.Module, got {type(model).__name__}; for a list of parameters use "
            "AutoOptimizer(params), which keeps the calibrated default"
        )
    check_layers_apart(model)
    warmup_steps = checked_steps(total_steps, warmup_steps)
    goal = Goal(objective, max_state_bytes)
    if schedule not in ("auto", None):
        raise ValueError(f"schedule must be 'auto' or None (your own scheduler), got {schedule!r}")
    averaging = checked_averaging(averaging, goal)
    clip_norm = checked_clip_norm(clip_norm)
    names = checked_candidates(candidates)
    predictor = _predictor(selector)
    architecture = describe(unwrapped(model))
    check_owner(unwrapped(model))
    default = calibrated_default() if predictor is None else Recipe.from_json(predictor.default)
    default = restricted(default, names).over(total_steps)
    warnings = []
    if predictor is None:
        warnings.append("selector='default': no choice was made, the calibrated default is kept everywhere.")
    if schedule == "auto" and total_steps is None:
        warnings.append("total_steps is unknown: rates stay constant, without the decay that ends a run well.")
    selection = OnlineSelection(
        architecture=architecture,
        warmup_steps=warmup_steps,
        default=default,
        schedule=replace(
            default.schedule(total_steps) if schedule == "auto" else Schedule(),
            averaging=default.averaging if averaging == "auto" else averaging,
            clip_norm=default.clipping_on(architecture.layers).clip_norm if clip_norm == "auto" else clip_norm,
        ),
        predictor=predictor,
        total_steps=total_steps,
        candidates=names,
        seed=seed,
        warnings=warnings,
        goal=goal,
        clock=None if goal.is_plain else StepClock(),
        buffer_bytes=buffer_bytes_of(unwrapped(model)),
    )
    selection.check_limit()
    return selection


def _predictor(selector: Predictor | str | os.PathLike[str] | None) -> Predictor | None:
    if isinstance(selector, Predictor):
        return selector
    if isinstance(selector, str) and selector == "default":
        return None
    return artifact.load(None if selector is None else Path(selector))


def _ranks(model: nn.Module, process_group: Any) -> Ranks:
    if process_group is None or not isinstance(process_group, str):
        return Ranks.of(process_group)
    if process_group != "auto":
        raise ValueError(f"process_group must be 'auto', None or a process group, got {process_group!r}")
    group = group_of(model)
    return Ranks() if group is None else Ranks.of(group)


def _guard(model: nn.Module, total_steps: int | None, ranks: Ranks, default: OptimizerPlan) -> Guard:
    norms = (module for module in model.modules() if isinstance(module, nn.modules.batchnorm._NormBase))
    guard = Guard(total_steps, ranks, [buffer for module in norms for buffer in module.buffers(recurse=False)])
    guard.fallbacks = Fallbacks({}, default.layers)
    return guard


def _recorder(
    selection: OnlineSelection,
    remember: Remember | str | os.PathLike[str] | None,
    explore: bool,
    race: float | None,
    model_name: str,
) -> RunRecorder | None:
    if remember is None:
        if explore:
            raise ValueError("explore=True needs remember=, a folder in which the runs that it makes are kept")
        return None
    if explore and selection.predictor is None:
        raise ValueError("explore=True needs a selector that proposes changes; selector='default' has none")
    if explore and (selection.goal != Goal() or race is not None):
        raise ValueError(
            "explore=True changes one role group for the loss: leave objective=, max_state_bytes= and race= out"
        )
    recorder = RunRecorder(
        Remember.of(remember), selection.architecture.layers, selection.total_steps, selection.ranks, model_name
    )
    selection.recorder, selection.explore = recorder, explore
    return recorder
