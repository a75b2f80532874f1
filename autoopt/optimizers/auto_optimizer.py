"""The one optimizer: it runs a plan, and where `select` made it, profiles first and then decides."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from autoopt.architecture import LayerInfo, describe
from autoopt.distributed.wrappers import IN_BACKWARD, check_group_shape, is_within_backward, unwrapped
from autoopt.errors import ModelError
from autoopt.guard.fallback import Fallbacks
from autoopt.guard.guard import Guard
from autoopt.optimizers.kernels import Kernel
from autoopt.optimizers.loss_history import LossHistory
from autoopt.optimizers.overrides import NOMINAL_BETAS
from autoopt.optimizers.plan import OptimizerConfig, OptimizerPlan
from autoopt.optimizers.planned_optimizer import levels_to_the_caller
from autoopt.optimizers.program import parse
from autoopt.optimizers.recipe import Recipe, calibrated_default
from autoopt.optimizers.remembered_optimizer import RememberedOptimizer
from autoopt.optimizers.validation import layers_of
from autoopt.optimizers.warmup_step import NonfiniteSteps, all_finite, zero_where_not
from autoopt.run_recorder import Remember
from autoopt.statistics import warmup


class Clock(Protocol):
    """What is told when the updates of warm-up steps begin and end."""

    def begin(self, device: torch.device) -> None:
        """An update begins on this device."""
        ...

    def end(self, device: torch.device) -> None:
        """It has ended."""
        ...


class Selection(Protocol):
    """What decides, once, after the warm-up steps."""

    warmup_steps: int
    seed: int

    @property
    def clock(self) -> Clock | None:
        """Times the warm-up's updates, None where nobody asks."""
        ...

    def layers(self) -> Mapping[str, LayerInfo]:
        """Description of every parameter by name."""
        ...

    def admit(self, names: Sequence[str]) -> Mapping[str, OptimizerConfig]:
        """Configurations of parameters that were frozen and now join, as far as they are known."""
        ...

    def scales(self) -> str:
        """The scale that every layer started at, for a checkpoint in warm-up."""
        ...

    def take_scales(self, text: str) -> None:
        """Take over the scales of a checkpoint."""

    def decide(self, optimizer: AutoOptimizer) -> Any:
        """The recommendation, whose `.plan` is applied from the next step on."""
        ...


class AutoOptimizer(RememberedOptimizer):
    """An optimizer that runs the rule and the rate a plan names for each parameter.

    `group["lr"]` is a multiplier: the effective rate of a parameter is `group["lr"]` times its planned
    rate times the plan's schedule. The library never writes it, so any scheduler scales all layers.

    Args:
        params: Parameters, named parameters, or parameter groups, as for any torch optimizer.
        lr: Multiplier of all planned rates, 1 for "as planned".
        plan: An `OptimizerPlan` by parameter name, a `Recipe` (resolved on each parameter), or None
            for the calibrated default. Unnamed parameters are matched with a plan by order.
        betas: Leave at the default for the planned momenta. Where a scheduler (OneCycle) changes
            `group["betas"]`, its values replace the planned momentum of every layer.
        weight_decay: None for the planned weight decay of each layer, or a value for the group.
        maximize: Whether to ascend.
        foreach: None for the fastest correct implementation, or as in `torch.optim.AdamW`.
        fused: Likewise.
        capturable: Whether steps must be capturable in a CUDA graph (after the switch).
        differentiable: Must be False.
        selection: Set by `autoopt.select`; decides after the warm-up.
        guard: Whether to skip bad steps and to roll back a run that goes wrong, down to the calibrated
            default where nothing else helps; off here, on in `autoopt.select`, which passes its own.

    Raises:
        ModelError: If a parameter cannot be optimized (complex, quantised).
        PlanError: If the plan does not fit the parameters.
        ValueError: If a hyper-parameter is out of range.

    Example:
        >>> model = torch.nn.Linear(4, 2)
        >>> plan = OptimizerPlan.uniform(model, "adamw", lr=1e-2)
        >>> optimizer = AutoOptimizer(model.named_parameters(), plan=plan)
        >>> optimizer.phase
        'fixed'
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1.0,
        plan: OptimizerPlan | Recipe | None = None,
        *,
        betas: tuple[float, float] = NOMINAL_BETAS,
        weight_decay: float | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        selection: Selection | None = None,
        guard: Guard | bool = False,
    ) -> None:
        self._selection = selection
        options = {"fused": fused, "capturable": capturable, "differentiable": differentiable}
        super().__init__(
            params, lr, plan, betas=betas, weight_decay=weight_decay, maximize=maximize, foreach=foreach, **options
        )
        if guard:
            self._run["guard"] = Guard() if guard is True else guard
            self._set_fallbacks()

    @classmethod
    def from_plan(
        cls,
        model: nn.Module,
        plan: OptimizerPlan,
        *,
        remember: Remember | str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> AutoOptimizer:
        """An optimizer that runs a saved plan on a model, without any selection.

        Args:
            model: The model the plan was made for.
            plan: The plan.
            remember: A folder (or a `Remember`) to which this run is appended as it goes, as in `select`.
            **options: Further arguments of `AutoOptimizer`.

        Raises:
            PlanError: If the plan misses a trainable parameter or names one the model does not have.
        """
        named = [(name, param) for name, param in unwrapped(model).named_parameters() if param.requires_grad]
        optimizer = cls(named, plan=plan, **options)
        optimizer.average_buffers_of(model)
        if remember is not None:
            optimizer.remember_plan(Remember.of(remember), describe(unwrapped(model)).layers, type(model).__name__)
        return optimizer

    @classmethod
    def from_recommendation(cls, params: Iterable[Any], recommendation: Any, **options: Any) -> AutoOptimizer:
        """An optimizer that runs a recommendation from its first step on.

        Args:
            params: Named parameters.
            recommendation: A `Recommendation`; its plan must fit the parameters.
            **options: Further arguments of `AutoOptimizer`.
        """
        optimizer = cls(params, plan=recommendation.plan, **options)
        for group in optimizer.param_groups:
            group["phase"] = "selected"
        optimizer._run["recommendation"] = recommendation
        optimizer._set_fallbacks()
        return optimizer

    def _set_fallbacks(self) -> None:
        """Tell the guard what parameters can fall back to, as far as it is known now."""
        guard = self.guard
        if guard is None:
            return
        default = guard.fallbacks.default
        if not default and self._selection is not None and isinstance(self._source, OptimizerPlan):
            default = self._source.layers  # what warm-up trains with
        elif not default:
            layers = [layer for layer, _, _ in self.warmup_entries()]
            default = calibrated_default().over(self.plan.schedule.total_steps).resolve(layers).layers
        # A runner-up was not weighed against a limit of memory; the starting plan was.
        limited = getattr(self.recommendation, "max_state_bytes", None) is not None
        layers = () if limited else getattr(self.recommendation, "layers", ())
        second = {layer.name: layer.runner_up for layer in layers}
        runner_ups = {name: config for name, config in second.items() if config is not None}
        guard.fallbacks = Fallbacks(self.role_groups(), default, runner_ups or guard.fallbacks.runner_ups)

    def _known_layers(self) -> Mapping[str, LayerInfo]:
        return self._selection.layers() if self._selection is not None else {}

    def _encode(self, named: list[tuple[str, Tensor]]) -> str:
        if self._selection is not None and isinstance(self._source, OptimizerPlan):
            late = [name for name, _ in named if name not in self._source.layers]
            if late:
                layers = {**self._source.layers, **self._selection.admit(late)}
                self._source = OptimizerPlan(layers, self._source.schedule)
        return super()._encode(named)

    def _first_group_values(self) -> dict[str, Any]:
        own = {"num_nonfinite_steps": 0, "observed_losses": None, "guard": None}
        return {**super()._first_group_values(), "phase": "warmup" if self._selects() else "fixed", **own}

    def _selects(self) -> bool:
        return self._selection is not None

    def _takes_over(self, state_dict: Mapping[str, Any]) -> bool:
        return self._selects() or super()._takes_over(state_dict)

    # ---- what users read ------------------------------------------------------------------------

    @property
    def recommendation(self) -> Any:
        """The `Recommendation`, or None before the decision (and where there is none)."""
        return self._run.get("recommendation")

    @property
    def num_nonfinite_steps(self) -> int:
        """Warm-up steps that were skipped since a gradient held NaN or Inf; may wait for the device."""
        return NonfiniteSteps(self.param_groups, self.state).count()

    def observe(self, loss: Tensor | float) -> None:
        """Tell the optimizer the loss of the coming step, so that warm-up can measure its drop.

        Optional: in warm-up a closure's loss is observed by itself. A few hundred values, thinned
        evenly, are kept for the curve in `report()`; nothing is synchronised.
        """
        value = loss.detach() if isinstance(loss, Tensor) else float(loss)
        if (recorder := self._recorder) is not None:
            recorder.observe(value)
        self._run.setdefault("losses", LossHistory()).add(self.param_groups[0]["step"], value)
        if self.phase == "warmup":
            self._run.setdefault("first_loss", value)
            self._run["last_loss"] = value

    def report(self) -> Any:
        """The recommendation with the losses observed so far and what happened; synchronises.

        None before the decision, and in a run that was resumed after it: a checkpoint holds the plan,
        not the reasons, so save `recommendation` beside it.
        """
        losses = self._run.get("losses")
        if self.recommendation is None:
            return None
        guard = self.guard
        told = [(event.step, event.message) for event in self.guard_events]
        num_bytes = None if guard is None else guard.snapshot_bytes
        return self.recommendation.with_training(() if losses is None else losses.points(), told, num_bytes)

    def observed_losses(self) -> tuple[float | None, float | None]:
        """The first and the latest loss observed in warm-up, None where there was none; synchronises."""
        first, last = self._run.get("first_loss"), self._run.get("last_loss")
        return (None if first is None else float(first), None if last is None else float(last))

    # ---- warm-up and switch ---------------------------------------------------------------------

    def _take_step(self, loss: Any, traced: bool) -> list[Kernel]:
        if loss is not None and (self.phase == "warmup" or self.guard is not None):
            self.observe(loss)
        if self.phase != "warmup":
            return super()._take_step(loss, traced)
        self._watch()
        clock = None if self._selection is None else self._selection.clock
        device = self.param_groups[0]["params"][0].device
        if clock is not None:
            clock.begin(device)
        self._warmup_step()
        if clock is not None:
            clock.end(device)
        self._finish_warmup()
        return []

    def _initialise_state(self) -> None:
        entries = self.warmup_entries() if self.phase == "warmup" else []
        fresh = self._missing_accumulators(entries)
        super()._initialise_state()
        for index, accumulators in fresh.items():
            self.state[entries[index][1]].update(accumulators)

    def _warmup_step(self) -> None:
        assert self._selection is not None
        if is_within_backward():
            raise ModelError(f"step() was called within backward, before the optimizer has decided. {IN_BACKWARD}")
        step = self.param_groups[0]["step"]
        # On a small model to gather what most steps do not look at costs more than the looking.
        entries = self.warmup_entries() if warmup.collects(step) else []
        params = [param for group in self.param_groups for param in group["params"]]
        grads = [param.grad for param in params]
        present = [grad for grad in grads if grad is not None]
        if not present:
            self._warn_of_no_gradient()
        finite, mask = all_finite(present), None
        counter = NonfiniteSteps(self.param_groups, self.state)
        if finite is not None and finite.device.type == "cpu":
            if not bool(finite):  # a CPU tensor: reading it synchronises nothing
                counter.skip()
                return
        elif finite is not None:
            mask = finite.to(torch.float32)
        fresh = self._missing_accumulators(entries)
        if entries:
            warmup.update(
                [layer for layer, _, _ in entries],
                params,
                grads,
                [fresh.get(index, state) for index, (_, _, state) in enumerate(entries)],
                step=step,
                finite=finite,
                seed=self._selection.seed,
            )
        if finite is not None and mask is not None:
            zero_where_not(finite, present)
        self._update(mask)
        for index, accumulators in fresh.items():
            self.state[params[index]].update(accumulators)
        if mask is not None:
            counter.add(mask)

    def _warn_of_no_gradient(self) -> None:
        if not self._run.get("warned_of_no_gradient"):
            self._run["warned_of_no_gradient"] = True
            warnings.warn(
                "step() was called, but no parameter that select() was called for has a gradient. Was backward() "
                "called? If the model was sharded (fully_shard) or its parameters were replaced after select(), call "
                "select() afterwards.",
                stacklevel=levels_to_the_caller(),
            )

    def warmup_entries(self) -> list[tuple[LayerInfo, Tensor, dict[str, Any]]]:
        """Description, parameter and state of every parameter, in the order of the groups."""
        known = self._known_layers()
        entries = []
        for group in self.param_groups:
            names = parse(group["plan"]).names
            check_group_shape(names, group["params"])
            named = list(zip(names, group["params"], strict=True))
            for layer, (_, param) in zip(layers_of(named, known), named, strict=True):
                # Not self.state[param]: looking must not create an entry.
                entries.append((layer, param, self.state.get(param, {})))
        return entries

    def _missing_accumulators(
        self, entries: Sequence[tuple[LayerInfo, Tensor, dict[str, Any]]]
    ) -> dict[int, dict[str, Tensor]]:
        """Accumulators for the parameters that have a gradient but none yet, by position.

        They join the state after the kernels' first step: kernels take a state with anything in it
        for one of their own that is complete.
        """
        seed = self._selection.seed if self._selection is not None else 0
        return {
            index: warmup.init_state(layer, param, seed)
            for index, (layer, param, state) in enumerate(entries)
            if param.grad is not None and warmup.HISTORY not in state
        }

    def _finish_warmup(self) -> None:
        assert self._selection is not None
        if self.param_groups[0]["step"] >= self._selection.warmup_steps:
            recommendation = self._selection.decide(self)
            self._switch(recommendation.plan)
            self._run["recommendation"] = recommendation
            self._set_fallbacks()
            if self.guard is not None:
                self.guard.pin()

    def _switch(self, plan: OptimizerPlan) -> None:
        """Put a plan in force: hand every parameter's state over and free what warm-up needed."""
        num_nonfinite = self.num_nonfinite_steps
        self.change_plan(plan, [group["step"] - num_nonfinite for group in self.param_groups])
        for group in self.param_groups:
            group.update(phase="selected", num_nonfinite_steps=num_nonfinite)
        for key in ("first_loss", "last_loss"):
            self._run.pop(key, None)

    # ---- persistence ----------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """State for pickling and deepcopy: the plan's, and what decides."""
        return {**super().__getstate__(), "_selection": self._selection}

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs: state, multipliers, plan, phase and step."""
        result = super().state_dict()
        if "first_loss" in self._run and self.phase == "warmup":
            for group in result["param_groups"]:
                group["observed_losses"] = self.observed_losses()
        if self._selection is not None and self.phase == "warmup":
            for group in result["param_groups"]:
                group["initial_scales"] = self._selection.scales()
        return result

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a checkpoint, its plan, its phase and what warm-up has seen included.

        An optimizer made by `select` takes over the checkpoint's plan. One with a fixed plan refuses
        a checkpoint of another plan: rebuild it with `AutoOptimizer.from_plan` first.

        Raises:
            CheckpointError: If the checkpoint is of another model, plan or schema. Nothing has
                changed then.
        """
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            losses = group.get("observed_losses")
            if losses is not None:
                self._run["first_loss"], self._run["last_loss"] = losses
            group["observed_losses"] = None
            scales = group.pop("initial_scales", None)
            if scales is not None and self._selection is not None:
                self._selection.take_scales(scales)
