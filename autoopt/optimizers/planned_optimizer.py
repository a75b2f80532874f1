"""An ordinary `torch.optim.Optimizer` in which every parameter has its own rule: it runs a plan."""

from __future__ import annotations

import os
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from autoopt.architecture import LayerInfo
from autoopt.distributed.wrappers import check_group_shape
from autoopt.errors import PlanError
from autoopt.optimizers import averaging
from autoopt.optimizers.catalog import get
from autoopt.optimizers.checkpoint import check_checkpoint, plan_under_own_names, restore_state
from autoopt.optimizers.clipping import clip_gradients
from autoopt.optimizers.initialisation import is_state_initialisation, reset_counters, zero_gradient
from autoopt.optimizers.kernels import Kernel, Options, State, run_bound
from autoopt.optimizers.overrides import NOMINAL_BETAS, overrides_of
from autoopt.optimizers.plan import OptimizerPlan
from autoopt.optimizers.program import encode, parse
from autoopt.optimizers.recipe import Recipe, calibrated_default
from autoopt.optimizers.schedule import Schedule
from autoopt.optimizers.validation import (
    check_distinct,
    check_fits,
    check_gradients,
    check_group,
    check_parameters,
    layers_of,
)


class _Update(NamedTuple):
    """One kernel's share of a step."""

    kernel: Kernel
    params: list[Tensor]
    lr: float
    scale: Tensor | None
    overrides: Mapping[str, Any]
    options: Options
    sparse: bool
    whole: bool


class PlannedOptimizer(Optimizer):
    """Runs a plan. It owns all groups and all state; kernels are re-bound to them on each step.

    `AutoOptimizer` documents the arguments.
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
    ) -> None:
        if differentiable:
            raise ValueError("AutoOptimizer does not support differentiable=True")
        if foreach and fused:
            raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
        self._source: OptimizerPlan | Recipe = plan if plan is not None else calibrated_default()
        self._run: dict[str, Any] = {}
        self._kernels: dict[str, list[Kernel]] = {}
        self._buffers: list[averaging.Tracked] = []
        self._shows_averages = False
        defaults = {
            "lr": lr,
            "betas": betas,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "fused": fused,
            "capturable": capturable,
            "differentiable": False,
        }
        super().__init__(params, defaults)
        self._check_covered()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, planned as the others are.

        Raises:
            PlanError: If an explicit plan does not cover the new parameters.
            ModelError: If a parameter cannot be optimized.
        """
        groups_before = len(self.param_groups)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            check_group(group)
            named = self._named(group, groups_before)
            others = (parse(other["plan"]).names for other in self.param_groups[:-1])
            check_parameters(named, {name for names in others for name in names})
            if "param_names" in group:
                check_distinct(named)
            lead = self.param_groups[0]
            for key, value in self._first_group_values().items():
                group.setdefault(key, lead.get(key, value))
            group["plan"] = self._encode(named)
        except Exception:
            del self.param_groups[groups_before:]
            raise

    def _named(self, group: dict[str, Any], index: int) -> list[tuple[str, Tensor]]:
        names = group.get("param_names")
        if names is None and isinstance(self._source, OptimizerPlan):
            # Unnamed parameters can only be matched by their order, as torch's checkpoints do.
            start = sum(len(g["params"]) for g in self.param_groups[:index])
            known = list(self._source.layers)
            names = known[start : start + len(group["params"])]
            if len(names) < len(group["params"]):
                raise PlanError(
                    f"the plan covers {len(known)} parameters, but at least {start + len(group['params'])} were "
                    "given; pass model.named_parameters() and a plan made for this model"
                )
        elif names is None:
            names = [f"{index}.{position}" for position in range(len(group["params"]))]
        return list(zip(names, group["params"], strict=True))

    def _known_layers(self) -> Mapping[str, LayerInfo]:
        """Descriptions of parameters by name, where a model was described."""
        return {}

    def _first_group_values(self) -> dict[str, Any]:
        """Keys of the first group, and with them of all, beside torch's own and the plan."""
        return {"step": 0, "phase": "fixed"}

    def _encode(self, named: list[tuple[str, Tensor]]) -> str:
        plan, known = self._source, self._known_layers()
        if isinstance(plan, Recipe):
            plan = plan.resolve(layers_of(named, known)).with_schedule(Schedule())
        text = encode(plan, [name for name, _ in named])
        for (name, param), config in zip(named, parse(text).configs().values(), strict=True):
            check_fits(name, param, config, known.get(name))
        self._kernels_of(text)
        return text

    def _check_covered(self) -> None:
        if isinstance(self._source, OptimizerPlan):
            names = {name for group in self.param_groups for name in parse(group["plan"]).names}
            extra = [name for name in self._source.layers if name not in names]
            if extra:
                raise PlanError(
                    f"the plan names parameter {extra[0]!r}, which is not among the {len(names)} given; "
                    "build the plan from the same model"
                )

    @property
    def phase(self) -> str:
        """`"warmup"` until the decision, then `"selected"`; `"fixed"` where nothing is to be decided."""
        return self.param_groups[0]["phase"]

    @property
    def plan(self) -> OptimizerPlan:
        """The plan in force now."""
        programs = [parse(group["plan"]) for group in self.param_groups]
        layers = {name: config for program in programs for name, config in program.configs().items()}
        return OptimizerPlan(layers, programs[0].schedule if programs else Schedule())

    def __repr__(self) -> str:
        """A summary: phase, and how many parameters each optimizer has."""
        counts: dict[str, int] = {}
        for config in self.plan.layers.values():
            counts[config.optimizer] = counts.get(config.optimizer, 0) + 1
        what = ", ".join(f"{get(name).title} on {count}" for name, count in counts.items())
        return f"AutoOptimizer(phase={self.phase!r}, lr={self.param_groups[0]['lr']}, tensors: {what})"

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore
        """Update all parameters once.

        Args:
            closure: Re-evaluates the model and returns the loss, as for any torch optimizer.

        Returns:
            The closure's loss, or None.

        Raises:
            PlanError: If a parameter's optimizer does not take its gradient's layout. Nothing has
                changed then.
            RuntimeError: Within `averaged()`, where the weights are not those that are trained.
        """
        if self._shows_averages:
            raise RuntimeError("step() was called within averaged(); leave that context before training goes on")
        if torch.compiler.is_compiling():
            return self._step_beside_a_graph(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with_grad = torch.is_grad_enabled()
        torch.set_grad_enabled(False)  # torch.no_grad() costs a microsecond more
        try:
            self._advance(loss)
            self._average()
        finally:
            torch.set_grad_enabled(with_grad)
        return loss

    @torch._disable_dynamo(recursive=False)  # torch.compile passes this frame by, and compiles run_bound
    def _step_beside_a_graph(self, closure: Callable[[], Any] | None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            bound = self._advance_beside_a_graph(loss)
            try:
                if bound:
                    run_bound(bound, bound[0].params[0])
            finally:
                for kernel in bound:
                    kernel.release()
            self._average_beside_a_graph()
        return loss

    @torch._disable_dynamo
    def _advance_beside_a_graph(self, loss: Any) -> list[Kernel]:
        return self._advance(loss, traced=True)

    @torch._disable_dynamo
    def _average_beside_a_graph(self) -> None:
        self._average()

    def _advance(self, loss: Any, traced: bool = False) -> list[Kernel]:
        """Do all of a step after the closure, or where it is traced, all that torch.compile cannot trace.

        Args:
            loss: The closure's, or None.
            traced: Whether kernels that torch.compile can trace are to be bound only.

        Returns:
            The kernels that are bound and have yet to run.
        """
        self._warn_of_two_schedules()
        if self.param_groups[0]["step"] == 0 and is_state_initialisation(self):
            self._initialise_state()
            return []
        return self._take_step(loss, traced)

    def _take_step(self, loss: Any, traced: bool) -> list[Kernel]:
        """Take a training step as `_advance` says."""
        return self._update(None, traced)

    def _update(self, mask: Tensor | None, traced: bool = False) -> list[Kernel]:
        updates = [update for group in self.param_groups for update in self._updates(group, mask)]
        self._clip()
        state, bound = self.state, []
        for kernel, params, lr, scale, overrides, options, sparse, whole in updates:
            if kernel.step(state, params, lr, scale, overrides, options, sparse, traced and whole):
                bound.append(kernel)
        for group in self.param_groups:
            group["step"] += 1
        return bound

    def _clip(self) -> None:
        max_norm = parse(self.param_groups[0]["plan"]).schedule.clip_norm if self.param_groups else None
        if max_norm is not None:
            clip_gradients((param for group in self.param_groups for param in group["params"]), max_norm)

    def _updates(self, group: dict[str, Any], mask: Tensor | None) -> list[_Update]:
        """What each kernel is to do for a group, checked, so that a refusal comes before any change."""
        text, params = group["plan"], group["params"]
        program = parse(text)
        check_group_shape(program.names, params)
        factor = program.schedule.factor(group["step"])
        lr, scale = group["lr"], mask
        if isinstance(lr, Tensor):
            lr, scale = 1.0, lr.reshape(()) if mask is None else lr.reshape(()) * mask
        overrides = overrides_of(group)
        options = Options(group["fused"], group["foreach"], group["maximize"], group["capturable"])
        updates = []
        for bucket, kernel in zip(program.buckets, self._kernels_of(text), strict=True):
            selected = params if bucket.everything else [params[i] for i in bucket.positions]
            used = sparse = dense = mixed = False
            kind = type(selected[0])
            for param in selected:
                grad = param.grad
                mixed = mixed or type(param) is not kind
                if grad is not None:
                    used = True
                    if grad.is_sparse:
                        sparse = True
                    else:
                        dense = True
            if not used:
                continue
            planned = kernel.hyperparameters
            own = overrides.values_for(kernel.info, planned) if overrides is not None else {}
            if sparse or (dense and kernel.info.gradients == "sparse"):
                names = [program.names[i] for i in bucket.positions]
                check_gradients(kernel.info, {**planned, **own}, list(zip(names, selected, strict=True)))
            rate = lr * (planned["lr"] * factor)
            for part in _by_type(selected) if mixed else (selected,):
                updates.append(_Update(kernel, part, rate, scale, own, options, sparse, not mixed))
        return updates

    def _kernels_of(self, text: str) -> list[Kernel]:
        kernels = self._kernels.get(text)
        if kernels is None:
            kernels = self._kernels[text] = [Kernel(bucket.config) for bucket in parse(text).buckets]
        return kernels

    # ---- averages of the weights ----------------------------------------------------------------

    def averaged(self) -> AbstractContextManager[None]:
        """A context in which the model holds the average of its weights, to be evaluated or saved.

        The average over the last part of the run has, at any time, about the loss that the weights
        themselves reach only once the rates have decayed. Afterwards the weights are bit for bit what
        they were, and training goes on. Where the plan keeps no average, the weights stay as they are.

        Source: polynomial-decay averaging, Shamir and Zhang 2013 (arXiv 1212.1824).

        Raises:
            RuntimeError: If it is entered twice.

        Example:
            >>> model = torch.nn.Linear(4, 2)
            >>> plan = OptimizerPlan.uniform(model, "adamw", Schedule(averaging=6.0))
            >>> optimizer = PlannedOptimizer(model.named_parameters(), plan=plan)
            >>> with optimizer.averaged():
            ...     loss = model(torch.ones(1, 4)).sum()
        """
        return self._averaged()

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        if self._shows_averages:
            raise RuntimeError("averaged() was entered within averaged(); the weights are the average already")
        with averaging.in_place(self._tracked(), self.state):
            self._shows_averages = True
            try:
                yield
            finally:
                self._shows_averages = False

    def average_buffers_of(self, model: nn.Module) -> None:
        """Average the statistics of a model's normalisation layers with its weights.

        `select` and `AutoOptimizer.from_plan` do this for the model that they are given.
        """
        own = {param for group in self.param_groups for param in group["params"]}
        self._buffers = [item for item in averaging.buffers_of(model) if item.owner in own]

    def _average(self) -> None:
        """Take the weights after a step into their averages."""
        if not self.param_groups or self.param_groups[0]["step"] == 0:
            return
        lead = self.param_groups[0]
        power, step = parse(lead["plan"]).schedule.averaging, lead["step"]
        if power is not None and step % averaging.stride_at(step) == 0:
            averaging.advance(self._tracked(), self.state, step, power)

    def _tracked(self) -> list[averaging.Tracked]:
        """All that averages are kept of; nothing where the plan has none."""
        if parse(self.param_groups[0]["plan"]).schedule.averaging is None:
            return []
        found = []
        for group in self.param_groups:
            for param, config in zip(group["params"], parse(group["plan"]).configs().values(), strict=True):
                found.append(averaging.Tracked(param, param, stateless=not get(config.optimizer).state_keys))
        return found + self._buffers

    def _warn_of_two_schedules(self) -> None:
        if self._run.get("warned") or not any(map(_is_moved_by_a_scheduler, self.param_groups)):
            return
        self._run["warned"] = True
        if any(not parse(group["plan"]).schedule.is_constant for group in self.param_groups):
            warnings.warn(
                "a learning-rate scheduler is attached to an optimizer whose plan has a schedule of its own: the "
                "rates are the product of both. Use select(..., schedule=None), or drop the scheduler.",
                stacklevel=levels_to_the_caller(),
            )

    def _initialise_state(self) -> None:
        """Create the state of all parameters that have a gradient, as if nothing had happened yet."""
        params = {param for group in self.param_groups for param in group["params"] if param.grad is not None}
        self._start_state(params)
        averaging.start(self._tracked(), self.state)

    def _start_state(self, wanted: Collection[Tensor]) -> None:
        """Give parameters without state the state that a first step would start from.

        Kernels create state as they step: they step here at a rate of 0, on gradients of 0, one
        parameter after another, so that the gradients take no room.
        """
        created: State = defaultdict(dict)
        for group in self.param_groups:
            options = Options(group["fused"], group["foreach"], False, group["capturable"])
            program = parse(group["plan"])
            for bucket, kernel in zip(program.buckets, self._kernels_of(group["plan"]), strict=True):
                for param in (group["params"][position] for position in bucket.positions):
                    if param not in wanted:
                        continue
                    sparse, grad = kernel.info.gradients == "sparse", param.grad
                    param.grad = zero_gradient(param, sparse)
                    try:
                        kernel.step(created, [param], 0.0, None, {}, options, sparse)
                    finally:
                        param.grad = grad
        reset_counters(created)
        self.state.update(created)

    def __getstate__(self) -> dict[str, Any]:
        """State for pickling and deepcopy: torch's own, the plan's source and what was decided."""
        return {**super().__getstate__(), "_source": self._source, "_run": self._run}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore from `__getstate__` or, within `load_state_dict`, from groups and state alone."""
        super().__setstate__(state)
        self._kernels = {}
        self.__dict__.setdefault("_buffers", [])  # loading a checkpoint comes here too, and keeps them
        self._shows_averages = False

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a checkpoint, its plan and its phase included.

        An optimizer made by `select` takes over the checkpoint's plan. One with a fixed plan refuses
        a checkpoint of another plan: rebuild it with `AutoOptimizer.from_plan` first.

        Raises:
            CheckpointError: If the checkpoint is of another model, plan or schema. Nothing has
                changed then.
        """
        check_checkpoint(state_dict, self.param_groups, self._takes_over)
        saved = state_dict["param_groups"]
        plans = [plan_under_own_names(theirs, ours) for theirs, ours in zip(saved, self.param_groups, strict=True)]
        super().load_state_dict(dict(state_dict))
        for group, text in zip(self.param_groups, plans, strict=True):
            group["plan"] = text
        restore_state(self, state_dict)

    def _takes_over(self, state_dict: Mapping[str, Any]) -> bool:
        """Whether a checkpoint may bring a plan of its own."""
        return False


def _is_moved_by_a_scheduler(group: Mapping[str, Any]) -> bool:
    """Whether a scheduler has changed a group's multiplier; a tensor is not looked into.

    A constant scheduler, which some training stacks insist on, is none in this sense.
    """
    lr, initial = group["lr"], group.get("initial_lr")
    return initial is not None and (isinstance(lr, Tensor) or lr != initial)


def levels_to_the_caller() -> int:
    """The stack level, seen from the caller of this, of the frame that called the step from outside."""
    inside = (os.path.dirname(torch.__file__) + os.sep, os.path.dirname(__file__) + os.sep)
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(inside):
        frame, level = frame.f_back, level + 1
    return level


def _by_type(params: list[Tensor]) -> list[list[Tensor]]:
    """Parameters by tensor class: sharded and plain tensors must not share a call (pytorch#183207)."""
    parts: dict[type, list[Tensor]] = {}
    for param in params:
        parts.setdefault(type(param), []).append(param)
    return list(parts.values())
