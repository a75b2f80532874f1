"""The one optimizer: an ordinary `torch.optim.Optimizer` in which every parameter has its own rule."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from autoopt.architecture import LayerInfo
from autoopt.errors import PlanError
from autoopt.optimizers.catalog import get
from autoopt.optimizers.checkpoint import check_checkpoint, plan_under_own_names, restore_state
from autoopt.optimizers.handover import hand_over
from autoopt.optimizers.initialisation import is_state_initialisation, prepare_gradients, reset_counters
from autoopt.optimizers.kernels import Kernel, Options
from autoopt.optimizers.overrides import NOMINAL_BETAS, overrides_of
from autoopt.optimizers.plan import OptimizerPlan
from autoopt.optimizers.program import encode, parse
from autoopt.optimizers.recipe import Recipe, calibrated_default
from autoopt.optimizers.schedule import Schedule
from autoopt.optimizers.validation import check_fits, check_gradients, check_group, check_parameters, layers_of
from autoopt.optimizers.warmup_step import NonfiniteSteps, all_finite, zero_where_not
from autoopt.statistics import warmup


class Selection(Protocol):
    """What decides, once, after the warm-up steps."""

    warmup_steps: int
    seed: int

    def layers(self) -> Mapping[str, LayerInfo]:
        """Description of every parameter by name."""
        ...

    def decide(self, optimizer: AutoOptimizer) -> Any:
        """The recommendation, whose `.plan` is applied from the next step on."""
        ...


class _Update(NamedTuple):
    """One kernel's share of a step: the arguments of `Kernel.step` behind the state."""

    kernel: Kernel
    params: list[Tensor]
    lr: float
    scale: Tensor | None
    overrides: Mapping[str, Any]
    options: Options
    sparse: bool


class AutoOptimizer(Optimizer):
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
    ) -> None:
        if differentiable:
            raise ValueError("AutoOptimizer does not support differentiable=True")
        if foreach and fused:
            raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
        self._source: OptimizerPlan | Recipe = plan if plan is not None else calibrated_default()
        self._selection = selection
        self._run: dict[str, Any] = {"recommendation": None}
        self._kernels: dict[str, list[Kernel]] = {}
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

    @classmethod
    def from_plan(cls, model: nn.Module, plan: OptimizerPlan, **options: Any) -> AutoOptimizer:
        """An optimizer that runs a saved plan on a model, without any selection.

        Args:
            model: The model the plan was made for.
            plan: The plan.
            **options: Further arguments of `AutoOptimizer`.

        Raises:
            PlanError: If the plan misses a trainable parameter or names one the model does not have.
        """
        named = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
        return cls(named, plan=plan, **options)

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
        return optimizer

    # ---- groups ---------------------------------------------------------------------------------

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
            check_parameters(named)
            lead = self.param_groups[0]
            group.setdefault("step", lead.get("step", 0))
            group.setdefault("phase", lead.get("phase", "fixed" if self._selection is None else "warmup"))
            group.setdefault("num_nonfinite_steps", lead.get("num_nonfinite_steps", 0))
            group.setdefault("observed_losses", None)
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

    def _layers(self) -> Mapping[str, LayerInfo]:
        return self._selection.layers() if self._selection is not None else {}

    def _encode(self, named: list[tuple[str, Tensor]]) -> str:
        plan, known = self._source, self._layers()
        if isinstance(plan, Recipe):
            plan = plan.resolve(layers_of(named, known))
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

    # ---- what users read ------------------------------------------------------------------------

    @property
    def phase(self) -> str:
        """`"warmup"` until the decision, then `"selected"`; `"fixed"` where nothing is to be decided."""
        return self.param_groups[0]["phase"]

    @property
    def recommendation(self) -> Any:
        """The `Recommendation`, or None before the decision (and where there is none)."""
        return self._run["recommendation"]

    @property
    def plan(self) -> OptimizerPlan:
        """The plan in force now."""
        programs = [parse(group["plan"]) for group in self.param_groups]
        layers = {name: config for program in programs for name, config in program.configs().items()}
        return OptimizerPlan(layers, programs[0].schedule if programs else Schedule())

    @property
    def num_nonfinite_steps(self) -> int:
        """Warm-up steps that were skipped since a gradient held NaN or Inf; may wait for the device."""
        return NonfiniteSteps(self.param_groups, self.state).count()

    def observe(self, loss: Tensor | float) -> None:
        """Tell the optimizer the loss of the coming step, so that warm-up can measure its drop.

        Optional: a closure's loss is observed by itself. Only the first and the latest value are
        kept, as they are; nothing is synchronised.
        """
        if self.phase == "warmup":
            value = loss.detach() if isinstance(loss, Tensor) else float(loss)
            self._run.setdefault("first_loss", value)
            self._run["last_loss"] = value

    def observed_losses(self) -> tuple[float | None, float | None]:
        """The first and the latest loss observed in warm-up, None where there was none; synchronises."""
        first, last = self._run.get("first_loss"), self._run.get("last_loss")
        return (None if first is None else float(first), None if last is None else float(last))

    def __repr__(self) -> str:
        """A summary: phase, and how many parameters each optimizer has."""
        counts: dict[str, int] = {}
        for config in self.plan.layers.values():
            counts[config.optimizer] = counts.get(config.optimizer, 0) + 1
        what = ", ".join(f"{get(name).title} on {count}" for name, count in counts.items())
        return f"AutoOptimizer(phase={self.phase!r}, lr={self.param_groups[0]['lr']}, tensors: {what})"

    # ---- stepping -------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore
        """Update all parameters once.

        Args:
            closure: Re-evaluates the model and returns the loss, as for any torch optimizer.

        Returns:
            The closure's loss, or None.

        Raises:
            PlanError: If a parameter's optimizer does not take its gradient's layout. Nothing has
                changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if "step" in self.__dict__:
            self._warn_of_two_schedules()
        lead = self.param_groups[0]
        if lead["step"] == 0 and is_state_initialisation(self):
            self._initialise_state()
        elif lead["phase"] == "warmup":
            if loss is not None:
                self.observe(loss)
            self._warmup_step()
        else:
            self._step(None)
        return loss

    def _step(self, mask: Tensor | None) -> None:
        updates = [update for group in self.param_groups for update in self._updates(group, mask)]
        for kernel, *arguments in updates:
            kernel.step(self.state, *arguments)
        for group in self.param_groups:
            group["step"] += 1

    def _updates(self, group: dict[str, Any], mask: Tensor | None) -> list[_Update]:
        """What each kernel is to do for a group, checked, so that a refusal comes before any change."""
        text, params = group["plan"], group["params"]
        program = parse(text)
        factor = program.schedule.factor(group["step"])
        lr, scale = group["lr"], mask
        if isinstance(lr, Tensor):
            lr, scale = 1.0, lr.reshape(()) if mask is None else lr.reshape(()) * mask
        overrides = overrides_of(group)
        options = Options(group["fused"], group["foreach"], group["maximize"], group["capturable"])
        updates = []
        for bucket, kernel in zip(program.buckets, self._kernels_of(text), strict=True):
            selected = params if bucket.everything else [params[i] for i in bucket.positions]
            used = sparse = dense = False
            for param in selected:
                grad = param.grad
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
            updates.append(_Update(kernel, selected, lr * (planned["lr"] * factor), scale, own, options, sparse))
        return updates

    def _kernels_of(self, text: str) -> list[Kernel]:
        kernels = self._kernels.get(text)
        if kernels is None:
            kernels = self._kernels[text] = [Kernel(bucket.config) for bucket in parse(text).buckets]
        return kernels

    def _warn_of_two_schedules(self) -> None:
        # torch's schedulers leave a mark on the step function that they wrap.
        if self._run.get("warned") or not getattr(self.__dict__["step"], "_wrapped_by_lr_sched", False):
            return
        self._run["warned"] = True
        if any(parse(group["plan"]).schedule != Schedule() for group in self.param_groups):
            warnings.warn(
                "a learning-rate scheduler is attached to an optimizer whose plan has a schedule of its own: the "
                "rates are the product of both. Use select(..., schedule=None), or drop the scheduler.",
                stacklevel=4,
            )

    def _initialise_state(self) -> None:
        entries = self.warmup_entries() if self.phase == "warmup" else []
        prepare_gradients(self.param_groups)
        fresh = self._missing_accumulators(entries)
        for group in self.param_groups:
            for kernel, *arguments in self._updates(group, None):
                kernel.step(self.state, *arguments)
        for index, accumulators in fresh.items():
            self.state[entries[index][1]].update(accumulators)
        reset_counters(self.state)

    # ---- warm-up and switch ---------------------------------------------------------------------

    @torch._disable_dynamo
    def _warmup_step(self) -> None:
        assert self._selection is not None
        entries = self.warmup_entries()
        params = [param for _, param, _ in entries]
        grads = [param.grad for param in params]
        present = [grad for grad in grads if grad is not None]
        finite, mask = all_finite(present), None
        counter = NonfiniteSteps(self.param_groups, self.state)
        if finite is not None and finite.device.type == "cpu":
            if not bool(finite):  # a CPU tensor: reading it synchronises nothing
                counter.skip()
                self._finish_warmup()
                return
        elif finite is not None:
            mask = finite.to(torch.float32)
        step = self.param_groups[0]["step"]
        fresh = self._missing_accumulators(entries)
        if warmup.collects(step):
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
        self._step(mask)
        for index, accumulators in fresh.items():
            self.state[params[index]].update(accumulators)
        if mask is not None:
            counter.add(mask)
        self._finish_warmup()

    def warmup_entries(self) -> list[tuple[LayerInfo, Tensor, dict[str, Any]]]:
        """Description, parameter and state of every parameter, in the order of the groups."""
        known = self._layers()
        entries = []
        for group in self.param_groups:
            named = list(zip(parse(group["plan"]).names, group["params"], strict=True))
            for layer, (_, param) in zip(layers_of(named, known), named, strict=True):
                entries.append((layer, param, self.state[param]))
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

    def _switch(self, plan: OptimizerPlan) -> None:
        """Put a plan in force: hand every parameter's state over and free what warm-up needed."""
        texts = [encode(plan, list(parse(group["plan"]).names)) for group in self.param_groups]
        kernels = {text: self._kernels_of(text) for text in texts}  # a plan that no library takes raises here
        num_nonfinite = self.num_nonfinite_steps
        for group, text in zip(self.param_groups, texts, strict=True):
            old, new = parse(group["plan"]).configs(), parse(text).configs()
            steps = group["step"] - num_nonfinite
            for name, param in zip(old, group["params"], strict=True):
                state = self.state[param]
                kept = {k: v for k, v in state.items() if not k.startswith(warmup.STATE_PREFIX)}
                state.clear()
                state.update(hand_over(old[name], new[name], kept, param, steps))
                if not state:
                    del self.state[param]
            group.update(plan=text, phase="selected", num_nonfinite_steps=num_nonfinite)
        self._kernels.clear()
        self._kernels.update(kernels)
        for key in ("first_loss", "last_loss"):
            self._run.pop(key, None)

    # ---- persistence ----------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """State for pickling and deepcopy: torch's own, plus what decides and what was decided."""
        own = {"_source": self._source, "_selection": self._selection, "_run": self._run}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore from `__getstate__` or, within `load_state_dict`, from groups and state alone."""
        super().__setstate__(state)
        self._kernels = {}
        self.__dict__.setdefault("_selection", None)
        self.__dict__.setdefault("_run", {"recommendation": None})
        self.__dict__.setdefault("_source", calibrated_default())

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs: state, multipliers, plan, phase and step."""
        result = super().state_dict()
        if "first_loss" in self._run and self.phase == "warmup":
            for group in result["param_groups"]:
                group["observed_losses"] = self.observed_losses()
        return result

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a checkpoint, its plan and its phase included.

        An optimizer made by `select` takes over the checkpoint's plan. One with a fixed plan refuses
        a checkpoint of another plan: rebuild it with `AutoOptimizer.from_plan` first.

        Raises:
            CheckpointError: If the checkpoint is of another model, plan or schema. Nothing has
                changed then.
        """
        check_checkpoint(state_dict, self.param_groups, selects=self._selection is not None)
        saved = state_dict["param_groups"]
        plans = [plan_under_own_names(theirs, ours) for theirs, ours in zip(saved, self.param_groups, strict=True)]
        super().load_state_dict(dict(state_dict))
        for group, text in zip(self.param_groups, plans, strict=True):
            group["plan"] = text
            losses = group.get("observed_losses")
            if losses is not None:
                self._run["first_loss"], self._run["last_loss"] = losses
            group["observed_losses"] = None
        restore_state(self, state_dict)
